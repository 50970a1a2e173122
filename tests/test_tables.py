"""Published numbers beside a run's own: averages, verdicts, and what is never compared."""

import csv
import dataclasses
import json
import sys

import numpy as np
import pytest

from benchmarks.config import config_sha256, find_config, load_config
from benchmarks.paper import Summary, is_reproduced, paper_tables, summarise
from benchmarks.results import Results, write_results
from benchmarks.tables import main
from common.errors import run_command

VOC = next(table for table in paper_tables() if table.benchmark == "voc_r50_c4_24k")
TRIAL = Results(
    benchmark=VOC.benchmark,
    row="densecl-IN",
    seed=1,
    metrics={"AP": 58.7, "AP50": 82.8, "AP75": 65.2, "AP50-dog": 90.0},
    engine="torchvision",
    engine_version="0.29.2",
    weights_sha256="ab" * 32,
    config_sha256=config_sha256(load_config(find_config("voc"))),
    schedule={"iterations": 24000, "batch": 16},
    trained_on=["voc_2007_trainval", "voc_2012_trainval"],
    device="1 x cpu",
    environment={},
    seconds=1.0,
    restarts=0,
    commit=None,
)


def add(run, done=True, **changes):
    """Write one trial's folder, TRIAL with `changes`."""
    trial = dataclasses.replace(TRIAL, **changes)
    folder = run / "benchmarks" / trial.benchmark / trial.row / f"seed_{trial.seed}"
    write_results(folder / "results.json", trial)
    if done:
        (folder / "DONE").write_text("{}")
    return folder


def add_paper(run, seeds=(1, 2, 3), **moved):
    """All of the paper's rows that have a name of ours; metric=difference moves densecl-IN."""
    for row in VOC.rows:
        changes = moved if row.row == "densecl-IN" else {}
        metrics = {metric: value + changes.get(metric, 0) for metric, value in row.values.items()}
        for seed in seeds if row.row else ():
            add(run, row=row.row, seed=seed, metrics=metrics)


def tables(run, capsys, *words):
    """Exit code and everything that the command printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tables", str(run), *words])
        try:
            run_command(main)
            code = 0
        except SystemExit as ended:
            code = ended.code
    printed = capsys.readouterr()
    if isinstance(code, str):  # sys.exit prints a text and exits 1
        return 1, printed.out + code
    return code, printed.out + printed.err


def cells(run, name=VOC.id):
    """(row, metric) → the line's other cells, from the CSV file."""
    with (run / "tables" / f"{name}.csv").open() as file:
        return {(line[0], line[1]): line[2:] for line in list(csv.reader(file))[1:]}


@pytest.mark.parametrize("n", [2, 3, 5])
def test_summary_is_numpys(n):
    values = np.random.default_rng(n).normal(58, 1, n)
    ours = summarise(list(values))
    np.testing.assert_allclose(ours.mean, values.mean(), rtol=1e-14)
    np.testing.assert_allclose(ours.std, values.std(ddof=1), rtol=1e-12)
    assert ours.n == n
    assert summarise([3.0]) == Summary(3.0, None, 1)


@pytest.mark.parametrize(
    "ours, expected",
    [
        (Summary(58.9, None, 1), True),  # within the published noise, whatever floats make of 0.2
        (Summary(58.5, 0.0, 5), True),
        (Summary(58.91, None, 1), False),
        (Summary(59.1, 0.45, 5), True),  # 2 · 0.45 / √5 = 0.402
        (Summary(59.1, 0.44, 5), False),
    ],
)
def test_rule(ours, expected):
    assert is_reproduced(ours, 58.7, 0.2) is expected


def test_the_papers_own_numbers_pass_every_cell(tmp_path, capsys):
    add_paper(tmp_path)
    code, printed = tables(tmp_path, capsys, "--check")
    assert code == 0
    found = cells(tmp_path)
    named = {row.label for row in VOC.rows if row.row}
    verdicts = {cell[-1] for (label, _), cell in found.items() if label in named}
    assert verdicts == {"reproduced"}
    assert len(found) == 3 * len(VOC.rows)
    assert found["DenseCL IN", "AP"] == ["58.7", "58.70 ± 0.00 (3)", "+0.00", "reproduced"]
    assert "max(2·std/√n, published noise)" in printed
    assert (tmp_path / "tables" / f"{VOC.id}.md").read_text() in printed


@pytest.mark.parametrize("metric", ["AP", "AP50", "AP75"])
@pytest.mark.parametrize("sign", [1, -1])
def test_one_moved_cell_fails_alone(tmp_path, capsys, metric, sign):
    add_paper(tmp_path, **{metric: 3 * sign * VOC.noise[metric]})
    code, printed = tables(tmp_path, capsys, "--check")
    assert code == 1
    off = [key for key, cell in cells(tmp_path).items() if cell[-1] == "off"]
    assert off == [("DenseCL IN", metric)]
    assert printed.splitlines()[-1].startswith(f"DenseCL IN {metric}: ours")
    assert tables(tmp_path, capsys)[0] == 0  # without --check


def test_mean_std_and_count_are_printed(tmp_path, capsys):
    for seed, value in enumerate([58.4, 58.8, 59.0]):
        add(tmp_path, seed=seed, metrics={**TRIAL.metrics, "AP": value})
    assert tables(tmp_path, capsys)[0] == 0
    assert cells(tmp_path)["DenseCL IN", "AP"][1] == "58.73 ± 0.31 (3)"


def test_a_single_trial_has_no_spread(tmp_path, capsys):
    add(tmp_path)
    assert tables(tmp_path, capsys, "--check")[0] == 0
    assert cells(tmp_path)["DenseCL IN", "AP"] == ["58.7", "58.70 (1)", "+0.00", "reproduced"]
    assert cells(tmp_path)["DenseCL CC", "AP"] == ["56.7", "", "", "missing"]


def test_miniature_results_never_enter_the_papers_table(tmp_path, capsys):
    add(tmp_path, benchmark="mini_voc_r50_c4", row="densecl-IN")
    code, printed = tables(tmp_path, capsys, "--check")
    assert code == 1 and "nothing in this run is comparable" in printed
    assert {cell[-1] for cell in cells(tmp_path).values()} == {"missing"}
    assert printed.index("Table 1") < printed.index("Miniature (not comparable with the paper)")
    text = (tmp_path / "tables" / "mini_voc_r50_c4.md").read_text()
    assert "| densecl-IN   | 58.70 (1) | 82.80 (1) | 65.20 (1) |" in text
    assert "dog" not in text


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"schedule": {"iterations": 600, "batch": 16}}, "600 iterations of 16 images, the paper"),
        (
            {"schedule": {"iterations": 24000, "batch": 8}},
            "24000 iterations of 8 images, the paper",
        ),
        ({"trained_on": ["voc_2007_trainval"]}, "trained on voc_2007_trainval"),
        ({"config_sha256": "0" * 64}, "settings differ from configs/benchmarks"),
    ],
)
def test_other_conditions_are_not_comparable(tmp_path, capsys, changes, reason):
    add(tmp_path, **changes)
    code, printed = tables(tmp_path, capsys, "--check")
    assert code == 1 and "nothing in this run is comparable" in printed
    _, ours, difference, verdict = cells(tmp_path)["DenseCL IN", "AP"]
    assert (ours, difference) == ("58.70 (1)", "")
    assert verdict.startswith(f"not comparable: {reason}")


@pytest.mark.parametrize(
    "field, value",
    [("config_sha256", "0" * 64), ("weights_sha256", None), ("engine", "detectron2")],
)
def test_trials_of_different_experiments_are_not_averaged(tmp_path, capsys, field, value):
    for benchmark in (VOC.benchmark, "mini_voc_r50_c4"):
        add(tmp_path, seed=1, benchmark=benchmark)
        add(tmp_path, seed=2, benchmark=benchmark, **{field: value})
    _, printed = tables(tmp_path, capsys)
    _, ours, _, verdict = cells(tmp_path)["DenseCL IN", "AP"]
    assert ours == "" and verdict.startswith("not comparable: trials of 2 different")
    assert "densecl-IN: not averaged: trials of 2 different" in printed


@pytest.mark.parametrize("epochs, verdict", [(200, "reproduced"), (2, "not comparable: pre-tr")])
def test_weights_pretrained_for_other_epochs_are_not_comparable(tmp_path, capsys, epochs, verdict):
    add(tmp_path)
    manifest = {
        "pickle_sha256": TRIAL.weights_sha256,
        "pretrain": {"step": 1, "config": {"optim": {"epochs": epochs}}},
    }
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "densecl-IN.json").write_text(json.dumps(manifest))
    tables(tmp_path, capsys)
    assert cells(tmp_path)["DenseCL IN", "AP"][-1].startswith(verdict)


def test_rows_that_the_paper_lacks_are_listed(tmp_path, capsys):
    add(tmp_path, row="mine-IN")
    code, _ = tables(tmp_path, capsys, "--check")
    assert code == 1
    assert cells(tmp_path)["mine-IN", "AP"] == ["", "58.70 (1)", "", "not published"]


def test_unfinished_trials_are_named_and_not_counted(tmp_path, capsys):
    add(tmp_path, seed=1)
    add(tmp_path, seed=2, done=False, metrics={"AP": 0.0})
    code, printed = tables(tmp_path, capsys)
    assert code == 0 and "unfinished, not counted: voc_r50_c4_24k/densecl-IN/seed_2" in printed
    assert cells(tmp_path)["DenseCL IN", "AP"][1] == "58.70 (1)"


def test_refuses_a_results_file_changed_by_hand(tmp_path, capsys):
    path = add(tmp_path) / "results.json"
    path.write_text(path.read_text().replace("58.7", "59.9"))
    code, printed = tables(tmp_path, capsys)
    assert code == 2 and "changed after it was written" in printed
    assert not (tmp_path / "tables").exists()


def test_refuses_one_trial_counted_twice(tmp_path, capsys):
    folder = add(tmp_path)
    folder.with_name("seed_2").mkdir()
    for file in folder.iterdir():
        (folder.with_name("seed_2") / file.name).write_bytes(file.read_bytes())
    code, printed = tables(tmp_path, capsys)
    assert code == 2 and "the same trial as" in printed


@pytest.mark.parametrize("run", ["missing", "empty"])
def test_refuses_a_run_without_benchmarks(tmp_path, capsys, run):
    (tmp_path / "empty" / "benchmarks").mkdir(parents=True)
    code, printed = tables(tmp_path / run, capsys)
    assert code == 2 and "no benchmark results" in printed and printed.count("\n") == 1


def test_published_conditions_are_those_of_the_configuration():
    for table in paper_tables():
        config = load_config(find_config(table.benchmark))
        schedule = {"iterations": config.SOLVER.MAX_ITER, "batch": config.SOLVER.IMS_PER_BATCH}
        assert table.schedule == schedule
        assert table.trained_on == list(config.DATASETS.TRAIN)
        assert table.noise.keys() == set(table.metrics)
        assert all(row.values.keys() == set(table.metrics) for row in table.rows)
        names = [row.row for row in table.rows if row.row]
        assert len(names) == len(set(names))
