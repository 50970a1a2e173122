"""The command line: a wrong request is one clear line, exit code 2, and nothing written."""

import sys

import pytest
from benchmark_fixtures import (
    ROOT,
    TINY,
    run,
    tiny_config,
    trunk,
    write_annotation,
    write_pickle,
    write_tiny_cityscapes,
    write_tiny_coco,
    write_tiny_voc,
)

from benchmarks.__main__ import main
from benchmarks.run import find_engine
from common.errors import UserError


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    folder = tmp_path / "datasets"
    write_tiny_voc(folder, train=4, test=2)
    write_tiny_coco(folder, train=4, val=2)
    write_tiny_cityscapes(folder, train=1, val=1)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    return folder


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command in this process, in the repository's root."""
    monkeypatch.chdir(ROOT)

    def calling(*words):
        output = ["--output", str(tmp_path / "run")]
        given = [*words, "--engine", "torchvision"]
        monkeypatch.setattr(sys, "argv", ["benchmarks", *given, *output, *TINY])
        main()

    return calling


@pytest.mark.parametrize(
    "words, message",
    [
        (["mini_vox", "--weights", "random"], "did you mean mini_voc"),
        (["mini_voc", "--weights", "nowhere.pkl"], "nowhere.pkl: no such file"),
        (["mini_voc", "--weights", "random", "SOLVER.MAXITER", "3"], "did you mean SOLVER.MAX"),
        (["mini_voc", "--weights", "random", "SOLVER.MAX_ITER", "x"], "expected int"),
        (["mini_voc", "--weights", "random", "SOLVER.MAX_ITER"], "no value"),
        (["mini_voc", "--weights", "random", "MODEL.DEVICE", "tpu"], "choose cpu or cuda"),
        (["mini_voc", "--weights", "random", "DATASETS.TEST", "['voc']"], "unknown dataset"),
        (["voc", "--weights", "random", "MODEL.DEVICE", "cpu"], "voc_2007_trainval.*is missing"),
        (["coco", "--weights", "random", "MODEL.DEVICE", "cpu"], "coco_2017_train.*is missing"),
        (
            ["cityscapes_instance", "--weights", "random", "MODEL.DEVICE", "cpu"],
            "cityscapes_fine_instance_seg_train.*is missing",
        ),
        (
            ["mini_coco", "--weights", "random", "MODEL.ROI_HEADS.NUM_CLASSES", "80"],
            "NUM_CLASSES is 80, but mini_coco_2017_train has 4",
        ),
        (["mini_voc", "--weights", "random", "MODEL.MASK_ON", "True"], "has no outlines"),
        (
            ["mini_cityscapes_instance", "--weights", "random", "MODEL.MASK_ON", "False"],
            "is evaluated by masks",
        ),
    ],
)
def test_a_wrong_request_is_explained_and_writes_nothing(call, datasets, tmp_path, words, message):
    # The first pair of words that is wrong is named; the tiny detector's follow.
    with pytest.raises(UserError, match=message):
        call(*words)
    assert not (tmp_path / "run").exists()


def test_weights_of_another_width_write_nothing(call, datasets, tmp_path):
    wider = trunk(tiny_config("MODEL.RESNETS.STEM_OUT_CHANNELS", "8"))
    path = write_pickle(tmp_path / "wide.pkl", wider)
    with pytest.raises(UserError, match="weights are for stem width 8, the config says 4"):
        call("mini_voc", "--weights", str(path))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_before_the_update(call, datasets, tmp_path):
    tensors = trunk(tiny_config())
    tensors["res4.0.conv1.weight"] *= 1e38
    path = write_pickle(tmp_path / "wild.pkl", tensors)
    with pytest.raises(UserError, match="iteration 0: the loss is not finite"):
        call("mini_voc", "--weights", str(path))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_an_annotation_that_cannot_be_read_is_named(call, datasets):
    folder = datasets / "mini" / "VOC2007"
    write_annotation(folder, "000001", 64, 80, [("zebra", (1, 2, 30, 40), 0)])
    with pytest.raises(UserError, match=r"000001\.xml.*unknown class zebra"):
        call("mini_voc", "--weights", "random")


def test_finished_again_and_for_another_configuration(call, datasets, tmp_path, capsys):
    path = write_pickle(tmp_path / "mine.pkl", trunk(tiny_config()))
    call("mini_voc", "--weights", str(path), "--row", "ours")
    results = (tmp_path / "run" / "results.json").read_bytes()
    call("mini_voc", "--weights", str(path), "--row", "ours")
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="made with seed = 0, now 1"):
        call("mini_voc", "--weights", str(path), "--row", "ours", "--seed", "1")
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LR = 0\.02, now 0\.5"):
        call("mini_voc", "--weights", str(path), "--row", "ours", "SOLVER.BASE_LR", "0.5")
    assert (tmp_path / "run" / "results.json").read_bytes() == results


def test_a_folder_of_somebody_else_is_left_alone(call, datasets, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and not made by this program"):
        call("mini_voc", "--weights", "random")
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_from_the_shell_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = run(tmp_path, "--weights", "random", "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    (line,) = [x for x in done.stderr.splitlines() if "mini_voc_2007_trainval" in x]
    assert line.startswith("error: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_help_names_every_choice(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--help"])
    with pytest.raises(SystemExit) as exit_:
        main()
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    for word in ("--weights", "--row", "--engine", "--seed", "--output", "KEY VALUE", "mini_voc"):
        assert word in text


def test_without_detectron2_auto_is_torchvision_and_asking_for_it_is_explained(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("detectron2")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "benchmarks.detectron2_engine", raising=False)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    config = tiny_config()
    assert find_engine("auto", config)[0] == "torchvision"
    with pytest.raises(UserError, match=r"Detectron2 is not importable.*--engine torchvision"):
        find_engine("detectron2", config)
