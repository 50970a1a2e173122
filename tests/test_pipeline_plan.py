"""From choices to stages: names, needs, commands, and what the fingerprints depend on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.config import find_config
from common.benchmarks import benchmark_files
from common.config import load_config
from common.errors import UserError
from common.files import read_yaml
from pipeline.plan import Choices, plan
from pipeline.stage import Stage, read_settings, stage_fingerprint
from pretrain.config import PretrainConfig, check

MINI = Choices("MINI", Path("runs/demo"))


def test_the_miniature_plan():
    stages = {stage.name: stage for stage in plan(MINI)}
    assert {name: stage.needs for name, stage in stages.items()} == {
        "data": (),
        "pretrain/densecl-MINI": ("data",),
        "convert/densecl-MINI": ("pretrain/densecl-MINI",),
        "benchmarks/mini_voc/densecl-MINI/seed_1": ("data", "convert/densecl-MINI"),
        "benchmarks/mini_voc/random/seed_1": ("data",),
        "correspondence": ("convert/densecl-MINI",),
        "tables": ("benchmarks/mini_voc/densecl-MINI/seed_1", "benchmarks/mini_voc/random/seed_1"),
        "report": ("correspondence", "tables"),
    }
    assert [" ".join(stage.words) for stage in stages.values()] == [
        "-m common.miniature datasets/mini",
        "-m pretrain --config-file configs/pretrain/densecl_mini.yaml"
        " --output runs/demo/pretrain/densecl-MINI",
        "-m converters runs/demo/pretrain/densecl-MINI runs/demo/weights/densecl-MINI.pkl",
        "-m benchmarks mini_voc --weights runs/demo/weights/densecl-MINI.pkl --row densecl-MINI"
        " --seed 1 --output runs/demo/benchmarks/mini_voc/densecl-MINI/seed_1",
        "-m benchmarks mini_voc --weights random --row random"
        " --seed 1 --output runs/demo/benchmarks/mini_voc/random/seed_1",
        "-m pretrain.correspondence --weights random runs/demo/weights/densecl-MINI.pkl"
        " --images datasets/mini/imagenet/val --size 192 --output runs/demo/correspondence",
        "-m benchmarks.tables runs/demo",
        "-m pipeline.report runs/demo",
    ]
    assert not any(stage.on_every_gpu for stage in stages.values())


@pytest.mark.parametrize(
    "source, config",
    [("IN", "densecl_imagenet_200ep.yaml"), ("CC", "densecl_coco_800ep.yaml")],
)
def test_the_plan_on_real_images(source, config):
    stages = plan(Choices(source, Path("runs/x"), epochs=7, trials=5))
    pretrain = stages[0]
    assert pretrain.configs == (Path("configs/pretrain", config),)
    assert pretrain.words[-1] == "optim.epochs=7" and pretrain.on_every_gpu
    trials = [stage for stage in stages if stage.name.startswith("benchmarks/voc/")]
    assert len(trials) == 2 * 5 and len({stage.words for stage in trials}) == 10
    assert len(stages) == 2 + 10 + 3


def test_each_stage_comes_after_those_it_needs():
    seen = set()
    for stage in plan(Choices("CC", Path("runs/x"), trials=3)):
        assert seen.issuperset(stage.needs)
        seen.add(stage.name)


def test_no_two_stages_own_the_same_files():
    owned = [path for stage in plan(Choices("CC", Path("r"), trials=3)) for path in stage.owns]
    assert len(owned) == len(set(owned))


def test_benchmarks_are_those_that_the_benchmarks_package_knows():
    files = benchmark_files()
    assert {"voc", "mini_voc"} <= set(files)
    for name, file in files.items():
        assert find_config(name).samefile(file)


def test_every_benchmark_has_a_short_name_and_no_two_share_one():
    names = read_yaml(Path("configs/benchmarks.yaml"))
    stems = {file.stem for file in Path("configs/benchmarks").glob("*.yaml")}
    assert {stem for stem in stems if not stem.startswith("base_")} <= set(names.values())
    assert len(set(names.values())) == len(names)
    assert all(name.startswith("mini_") == stem.startswith("mini_") for name, stem in names.items())


def test_a_miniature_benchmark_has_two_names():
    assert plan(Choices("MINI", Path("r"), benchmarks=("mini_voc", "voc"))) == plan(
        Choices("MINI", Path("r"), benchmarks=("voc",))
    )


@pytest.mark.parametrize("source", ["IN", "MINI"])
def test_all_benchmarks_are_those_of_the_source_for_a_resnet_50(source):
    stages = plan(Choices(source, Path("r"), benchmarks=("all",)))
    found = {Path(c).stem for s in stages if s.name.startswith("bench") for c in s.configs}
    files = {file.stem for file in benchmark_files().values()}
    mini = {stem for stem in files if stem.startswith("mini_")}
    mini -= {stem for stem in files if "study" in stem}
    files -= {stem for stem in files if "study" in stem}
    expected = mini if source == "MINI" else {s for s in files - mini if "r101" not in s}
    assert found == expected


def test_an_unknown_method_lists_those_that_have_a_configuration():
    with pytest.raises(
        UserError, match=r"dense_mini\.yaml.*did you mean densecl.*are byol, densecl"
    ):
        plan(Choices("MINI", Path("r"), methods=("dense",)))


@pytest.mark.parametrize("source, name", [("IN", "mini_voc"), ("MINI", "lvis"), ("CC", "vox")])
def test_an_unknown_benchmark_lists_those_that_exist(source, name):
    with pytest.raises(UserError, match=rf"--benchmarks {name}: .*available are .*voc"):
        plan(Choices(source, Path("r"), benchmarks=(name,)))


def test_planning_imports_no_torch_and_no_other_package():
    code = (
        "import sys, pipeline.cli\n"
        "heavy = {'torch', 'torchvision', 'pretrain', 'converters', 'benchmarks', 'submitit'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def run_all(*words):
    command = [sys.executable, "run_all.py", "--cluster", "local", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["--methods", "sinclr"], ["--benchmarks", "vox"]])
def test_a_mistake_is_one_line_and_exit_code_2(words):
    done = run_all("--pretrain", "MINI", "--dry-run", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--trials", "0"], ["--epochs", "x"], ["--cluster", "moon"]])
def test_a_bad_option_is_exit_code_2(words):
    assert run_all("--pretrain", "MINI", "--dry-run", *words).returncode == 2


def test_a_dry_run_shows_everything_and_writes_nothing(tmp_path):
    folder = tmp_path / "run"
    done = run_all("--pretrain", "MINI", "--output", str(folder), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    for stage in plan(Choices("MINI", folder)):
        assert f"] {stage.name}: would run" in done.stdout
        assert " ".join(stage.words) in done.stdout


# --- fingerprints ---


@pytest.fixture
def chain(tmp_path):
    """Two stages, the second of which reads a configuration on a base and the first's output."""
    (tmp_path / "base.yaml").write_text("MODEL: {DEPTH: 50, DEVICE: cpu}\nSEED: 1\n")
    (tmp_path / "own.yaml").write_text("_BASE_: base.yaml\nSEED: 2\n")
    (tmp_path / "first").write_text("made")
    first = Stage("first", ("-c", "1"), outputs=(tmp_path / "first",))
    second = Stage("second", ("-c", "2"), (tmp_path / "out",), ("first",), (tmp_path / "own.yaml",))
    return {"first": first, "second": second}


def test_settings_follow_the_base(chain, tmp_path):
    assert read_settings(tmp_path / "own.yaml") == {"MODEL.DEPTH": 50, "SEED": 2}


@pytest.mark.parametrize(
    "file, content, changes",
    [
        ("own.yaml", "_BASE_: base.yaml\nSEED: 3\n", True),
        ("base.yaml", "MODEL: {DEPTH: 101, DEVICE: cpu}\nSEED: 1\n", True),
        ("first", "made otherwise", True),
        ("own.yaml", "# a remark\n_BASE_: base.yaml\nSEED: 2\n", False),
        ("base.yaml", "MODEL: {DEPTH: 50, DEVICE: cuda}\nSEED: 1\n", False),
        ("base.yaml", "MODEL: {DEPTH: 50, DEVICE: cpu}\nSEED: 7\n", False),  # overridden anyway
    ],
)
def test_a_fingerprint_changes_with_what_decides_the_result(
    chain, tmp_path, file, content, changes
):
    before = stage_fingerprint(chain["second"], chain, tmp_path)
    (tmp_path / file).write_text(content)
    assert (stage_fingerprint(chain["second"], chain, tmp_path) != before) == changes


def test_a_moved_run_folder_keeps_its_fingerprints(tmp_path):
    first, second = (
        [stage_fingerprint(stage, {s.name: s for s in stages}, folder) for stage in stages]
        for folder in (tmp_path / "here", tmp_path / "there")
        for stages in [plan(Choices("MINI", folder))]
    )
    assert first == second


@pytest.mark.parametrize("content, reason", [("- 1\n", "mapping"), ("a: [\n", "YAML")])
def test_a_bad_configuration_is_named(tmp_path, content, reason):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(UserError, match=rf"bad\.yaml: .*{reason}"):
        read_settings(tmp_path / "bad.yaml")
    with pytest.raises(UserError, match="no such configuration file"):
        read_settings(tmp_path / "absent.yaml")


ABLATION_ROWS = {
    ("CC", "lambda"): 7,
    ("CC", "matching"): 5,
    ("CC", "grid"): 5,
    ("CC", "schedule"): 8,
    ("MINI", "lambda"): 7,
    ("MINI", "matching"): 5,
    ("MINI", "grid"): 5,
    ("MINI", "schedule"): 6,
}


@pytest.mark.parametrize("source, name", ABLATION_ROWS)
def test_an_ablation_pretrains_each_of_its_rows(source, name):
    stages = plan(Choices(source, Path("runs/x"), benchmarks=(), ablation=name))
    rows = [s.name.removeprefix("pretrain/") for s in stages if s.name.startswith("pretrain/")]
    assert len(rows) == len(set(rows)) == ABLATION_ROWS[source, name]
    for stage in stages:
        if stage.name.startswith("pretrain/"):
            words = stage.words[stage.words.index("--output") + 2 :]
            config = load_config(PretrainConfig, stage.configs[0], words)
            check(config, world_size=1)
            assert bool(words) == (stage.name.count("-") == 2)
    benchmarks = {s.name.split("/")[1] for s in stages if s.name.startswith("benchmarks/")}
    prefix = "mini_" if source == "MINI" else ""
    wanted = {"voc"} if name == "schedule" else {"voc", "voc07_svm"}
    assert benchmarks == {prefix + short for short in wanted}


def test_the_papers_ablations_have_exactly_the_settings_that_its_tables_ask_for():
    """Every row of Tables 5 to 7 and the figure is planned, with the settings it is held to."""
    tables = json.loads(Path("configs/paper_tables.json").read_text())
    conditions, planned = tables["pretraining"], {}
    for name in ("lambda", "matching", "grid", "schedule"):
        for stage in plan(Choices("CC", Path("runs/x"), benchmarks=(), ablation=name)):
            if stage.name.startswith("pretrain/"):
                words = stage.words[stage.words.index("--output") + 2 :]
                config = load_config(PretrainConfig, stage.configs[0], words)
                planned[stage.name.removeprefix("pretrain/")] = config.identity()
    ids = ("T5", "T6", "T7", "F3")
    for table in (t for t in tables["tables"] if any(f"_{part}_" in t["id"] for part in ids)):
        for row in table["rows"]:
            settings = planned[row["row"]]
            assert settings["optim"]["epochs"] == row["epochs"]
            for key, value in conditions[row["row"]].items():
                found = settings
                for part in key.split("."):
                    found = found[part]
                assert found == value, (row["row"], key)


def test_every_row_of_the_tables_can_be_pretrained():
    rows = json.loads(Path("configs/paper_tables.json").read_text())["tables"]
    names = {r["row"] for t in rows if t.get("parts") for r in t["rows"] if r["row"]}
    wanted = {name for name in names if name.count("-") == 1}
    assert wanted >= {"moco_v1-IN", "simclr-IN", "byol-IN", "supervised-IN", "moco_v2-CC"}
    for name in wanted:
        method, source = name.split("-")
        (stage,) = [
            stage
            for stage in plan(Choices(source, Path("runs/x"), methods=(method,)))
            if stage.name == f"pretrain/{name}"
        ]
        assert stage.configs[0].is_file()


@pytest.mark.parametrize("source, ablation", [("CC", "gird"), ("MINI", "")])
def test_an_unknown_ablation_is_named(source, ablation):
    with pytest.raises(UserError, match=f"--ablation {ablation}: not in configs/ablations.yaml"):
        plan(Choices(source, Path("runs/x"), benchmarks=(), ablation=ablation))
