"""Benchmark configurations: what they say, and what a wrong one is told."""

import pytest

from benchmarks.config import FOLDER, config_sha256, find_config, load_config
from common.errors import UserError
from common.files import read_yaml

FILES = sorted(FOLDER.glob("*.yaml"))


def voc(*words):
    return load_config(find_config("voc"), words)


def test_voc_is_the_published_protocol():
    config = voc()
    model, solver = config.MODEL, config.SOLVER
    assert model.ROI_HEADS.NAME == "Res5ROIHeadsExtraNorm"
    assert (model.RESNETS.NORM, model.BACKBONE.FREEZE_AT) == ("SyncBN", 0)
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.WARMUP_ITERS) == (16, 0.02, 100)
    assert (list(solver.STEPS), solver.MAX_ITER) == ([18_000, 22_000], 24_000)
    assert list(config.INPUT.MIN_SIZE_TRAIN) == list(range(480, 801, 32))
    assert (config.INPUT.MIN_SIZE_TEST, config.INPUT.FORMAT) == (800, "RGB")
    assert (model.ROI_HEADS.NUM_CLASSES, model.MASK_ON) == (20, False)
    assert (model.RPN.PRE_NMS_TOPK_TEST, model.RPN.POST_NMS_TOPK_TEST) == (6000, 1000)
    assert config.TEST.PRECISE_BN.ENABLED
    assert list(config.DATASETS.TRAIN) == ["voc_2007_trainval", "voc_2012_trainval"]


def test_the_pyramids_base_is_mask_rcnn_with_norms_everywhere():
    model = load_config(FOLDER / "base_rcnn_fpn.yaml").MODEL
    assert model.MASK_ON
    assert (model.ROI_BOX_HEAD.NUM_CONV, model.ROI_BOX_HEAD.NUM_FC) == (4, 1)
    for part in (model.RESNETS, model.FPN, model.ROI_BOX_HEAD, model.ROI_MASK_HEAD):
        assert part.NORM == "SyncBN"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_loads_and_says_what_it_is(file):
    load_config(file)
    text = file.read_text()
    if "_BASE_" in text:
        header = text.partition("_BASE_")[0]
        for word in ("data", "time", "result", "command"):
            assert f"# {word} " in header


@pytest.mark.parametrize("file", [f for f in FILES if "_BASE_" in f.read_text()])
def test_every_file_holds_differences_only(file):
    tree = read_yaml(file)
    base = load_config(file.parent / tree.pop("_BASE_"))
    config = load_config(file)
    for key in keys_of(tree):
        assert value(config, key) != value(base, key), key


def keys_of(tree):
    keys, rest = [], [("", tree)]
    while rest:
        prefix, node = rest.pop()
        for name, child in node.items():
            if isinstance(child, dict):
                rest.append((f"{prefix}{name}.", child))
            else:
                keys.append(prefix + name)
    return keys


def value(config, key):
    for name in key.split("."):
        config = config[name]
    return config


def test_words_are_read_as_detectron2_reads_them():
    config = voc("SOLVER.BASE_LR", "1", "SOLVER.STEPS", "(10, 20)", "MODEL.MASK_ON", "True")
    assert (config.SOLVER.BASE_LR, list(config.SOLVER.STEPS)) == (1.0, [10, 20])
    assert config.MODEL.MASK_ON is True


@pytest.mark.parametrize(
    "words, message",
    [
        (["SOLVER.MAXITER", "3"], r"unknown key SOLVER\.MAXITER \(did you mean SOLVER\.MAX_ITER"),
        (["SOLVER.MAX_ITER", "x"], "expected int"),
        (["SOLVER.MAX_ITER", "3.5"], "expected int"),
        (["MODEL.MASK_ON", "true"], "expected bool"),
        (["SOLVER.STEPS", "('a', 'b')"], "expected list"),
        (["DATASETS.TRAIN", "voc_2007_train"], "expected list"),
        (["SOLVER", "3"], "unknown key SOLVER"),
        (["SOLVER.MAX_ITER"], "no value"),
    ],
)
def test_a_wrong_word_is_explained(words, message):
    with pytest.raises(UserError, match=message):
        voc(*words)


def test_a_wrong_key_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(f"_BASE_: {FOLDER / 'base_rcnn_c4.yaml'}\nSOLVER: {{MAXITER: 3}}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: unknown key SOLVER\.MAXITER"):
        load_config(file)


@pytest.mark.parametrize("text", ["[1, 2", "- a\n- b\n", "_BASE_: nowhere.yaml\n"])
def test_a_broken_file_is_named(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"mine\.yaml|nowhere\.yaml"):
        load_config(file)


def test_an_unknown_benchmark_is_met_with_a_guess():
    with pytest.raises(UserError, match="did you mean mini_voc"):
        find_config("mini_vox")


def test_launch_settings_are_not_part_of_the_identity():
    same = voc(
        "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "1", "SOLVER.CHECKPOINT_PERIOD", "7"
    )
    assert config_sha256(same) == config_sha256(voc())
    assert config_sha256(voc("SOLVER.BASE_LR", "0.01")) != config_sha256(voc())
