"""When a number of ours reproduces a published one: the rule, and the check of every table."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from table_runs import COMPARED, PAPER, RAW, TRIAL, published, run_of, trial

from benchmarks.config import find_config, load_config
from benchmarks.tables.compare import compare
from benchmarks.tables.judge import Summary, difference, judge, summarise
from benchmarks.tables.make import check
from benchmarks.tables.run import Experiment

RUN = Path("run")
OURS = published()


def cells(values, seeds=3):
    """(table, row's label, metric) → cell, of all tables but the one of times."""
    return cells_of(run_of(values, RUN, seeds), PAPER.tables)


def cells_of(run, tables):
    return {
        (table.name, row.label, cell.metric): cell
        for table in (compare(published, PAPER, run) for published in tables)
        for row in table.rows
        for cell in row.cells
    }


def reads(table, benchmark):
    """Whether results of the benchmark are in the table at all; no others can change."""
    return any(column.benchmark == benchmark for column in table.columns)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_summary_is_numpys(n):
    values = np.random.default_rng(n).normal(58, 1, n)
    ours = summarise(list(values))
    np.testing.assert_allclose(ours.mean, values.mean(), rtol=1e-14)
    np.testing.assert_allclose(ours.std, values.std(ddof=1), rtol=1e-12)
    assert ours.n == n
    assert summarise([3.0]) == Summary(3.0, None, 1)


@pytest.mark.parametrize(
    "ours, noise, expected",
    [
        (Summary(58.9, None, 1), 0.2, "reproduced"),  # at the edge, whatever floats make of 0.2
        (Summary(58.5, 0.0, 5), 0.2, "reproduced"),
        (Summary(58.91, None, 1), 0.2, "off"),
        (Summary(59.1, 0.45, 5), 0.2, "reproduced"),  # 2 · 0.45 / √5 = 0.402
        (Summary(59.1, 0.44, 5), 0.2, "off"),
        (Summary(59.1, 0.45, 5), None, "reproduced"),
        (Summary(59.1, 0.44, 5), None, "off"),
        (Summary(58.7, None, 1), None, "not judged"),
        (Summary(58.7, 0.0, 3), None, "not judged"),
    ],
)
def test_rule(ours, noise, expected):
    assert judge(ours, 58.7, noise)[0] == expected


def test_the_error_of_a_difference_is_that_of_sampled_means():
    random = np.random.default_rng(0)
    of, minus = random.normal(3, 2, (20_000, 5)), random.normal(1, 1, (20_000, 3))
    expected = np.std(of.mean(axis=1) - minus.mean(axis=1))
    ours = difference(Summary(3, 2, 5), Summary(1, 1, 3))
    assert ours.mean == 2 and ours.n == 3
    assert math.isclose(ours.standard_error, expected, rel_tol=0.02)
    assert difference(Summary(3, None, 1), Summary(1, 1, 3)) == Summary(2, None, 1)


def test_the_papers_own_numbers_pass_every_cell():
    found = cells(OURS)
    unknown = {key for key, cell in found.items() if cell.paper is None}
    nameless = {key for key in found if key[1] == "MoCo-v2 IN*"}
    verdicts = {key: cell.verdict for key, cell in found.items() if key not in unknown | nameless}
    assert set(verdicts.values()) == {"reproduced"}
    assert {found[key].verdict for key in unknown} == {"not published here"}
    assert {found[key].verdict for key in nameless} == {"missing"}
    # Counted in the file: all its numbers, Table 3's twice, the nameless row's and the times not.
    numbers = 0
    for table in COMPARED:
        rows = [*table["rows"], *table.get("deltas", [])]
        values = [v for row in rows for v in row["values"].values() if v is not None]
        numbers += len(values) * len(table["parts"])
    times = next(t for t in COMPARED if t["id"] == "densecl_T9_time")
    assert len(verdicts) == numbers - 3 - sum(len(row["values"]) for row in times["rows"])
    assert not check([compare(table, PAPER, run_of(OURS, RUN)) for table in PAPER.tables])


def test_each_moved_cell_fails_alone():
    before = cells(OURS)
    run = run_of(OURS, RUN)
    for number, moved in enumerate(OURS):
        benchmark, _, key = moved
        conditions = PAPER.conditions[benchmark]
        # The deltas' own error is that of two means; 0.1: the trials' standard deviation.
        error = 2 * 0.1 / math.sqrt(3) * (math.sqrt(2) if "cityscapes" in benchmark else 1)
        step = 3 * max(conditions.noise.get(key, 0), error) * (-1) ** number
        place = moved[:2]
        numbers = {key: value for key, value in OURS.items() if key[:2] == place}
        only_it = run_of({**numbers, moved: OURS[moved] + step}, RUN).experiments
        changed = dataclasses.replace(run, experiments=run.experiments | only_it)
        after = cells_of(changed, [t for t in PAPER.tables if reads(t, benchmark)])
        off = {place for place, cell in after.items() if cell.verdict == "off"}
        expected = {
            (table.name, published_row.label, column.metric)
            for table in PAPER.tables
            for column in table.columns
            for published_row in table.rows
            if (column.benchmark, published_row.row, column.key) == moved
            and published_row.values[column.metric] is not None
        } or {("densecl_T4b_cityscapes", "DenseCL CC − MoCo-v2 CC", "mIoU")}
        assert off == expected, moved
        for place in set(after) - off:
            assert after[place].verdict == before[place].verdict


def test_one_of_two_assumed_schedules_has_to_reproduce_a_number():
    parts = [table for table in PAPER.tables if table.id == "densecl_T3_coco10"]
    short, long = ("coco10_r50_fpn_9k", "coco10_r50_fpn_90k")
    place = ("densecl-IN", "APb")
    failures = {}
    for moved in ((), (short,), (short, long)):
        changes = {(benchmark, *place): OURS[(benchmark, *place)] + 2.0 for benchmark in moved}
        run = run_of({**OURS, **changes}, RUN)
        failures[moved] = check([compare(table, PAPER, run) for table in parts])
    assert failures[()] == failures[(short,)] == []
    assert sorted(line.partition(":")[0] for line in failures[(short, long)]) == [
        "Table 3 (90k), DenseCL IN, APb",
        "Table 3 (9k), DenseCL IN, APb",
    ]


def test_without_published_noise_one_trial_is_not_judged():
    found = cells(OURS, seeds=1)
    judged = {cell.verdict for cell in found.values() if cell.benchmark == "voc_r50_c4_24k"}
    assert judged == {"reproduced", "missing"}
    for benchmark in ("voc_seg_fcn_r50_20k", "voc07_svm_r50"):
        here = [c for c in found.values() if c.benchmark == benchmark and c.paper is not None]
        assert {cell.verdict for cell in here} == {"not judged"}
        assert {cell.reason for cell in here} == {"no published noise, one trial"}
    assert found["densecl_T4b_cityscapes", "DenseCL CC − MoCo-v2 CC", "mIoU"].verdict == (
        "not judged"
    )


BENCHMARKS = [name for name in PAPER.conditions if "cityscapes" not in name]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"schedule": {"iterations": 600, "batch": 16}}, "600 iterations of 16 images, the paper"),
        ({"schedule": {"iterations": 24000, "batch": 1}}, "of 1 images, the paper"),
        ({"trained_on": ["mine"]}, "trained on mine"),
        ({"config_sha256": "0" * 64}, "settings differ from configs/benchmarks/"),
    ],
)
def test_other_conditions_are_not_comparable(benchmark, changes, reason):
    found, numbers = refused(benchmark, lambda seed: changes)
    assert {cell.verdict for cell in found} == {"not comparable"}
    assert all(reason in cell.reason for cell in found)
    assert all(round(cell.ours.mean, 6) in numbers for cell in found)


@pytest.mark.parametrize(
    "field, value",
    [("config_sha256", "0" * 64), ("weights_sha256", None), ("engine", "detectron2")],
)
def test_trials_of_different_experiments_are_not_averaged(field, value):
    found, _ = refused("voc_r50_c4_24k", lambda seed: {field: value} if seed == 2 else {})
    assert {(cell.verdict, cell.ours) for cell in found} == {("not comparable", None)}
    assert all("trials of 2 different" in cell.reason for cell in found)


def refused(benchmark, changes_of_seed):
    """The cells of densecl-CC when its trials are changed, and the numbers it had."""
    run = run_of(OURS, RUN)
    old = run.experiments[benchmark, "densecl-CC"]
    trials = [dataclasses.replace(t, **changes_of_seed(t.seed)) for t in old.trials]
    run.experiments[benchmark, "densecl-CC"] = dataclasses.replace(old, trials=trials)
    tables = [compare(table, PAPER, run) for table in PAPER.tables]
    found = [
        cell
        for table in tables
        for row in table.rows
        for cell in row.cells
        if row.name == "densecl-CC" and cell.benchmark == benchmark
    ]
    assert found
    return found, {v for (b, row, _), v in OURS.items() if (b, row) == (benchmark, "densecl-CC")}


@pytest.mark.parametrize(
    "settings, verdict",
    [
        ({}, "reproduced"),
        ({"optim.epochs": 800, "loss.dense_weight": 0.5}, "reproduced"),
        ({"optim.epochs": 2}, "not comparable"),
        ({"optim.epochs": 800, "loss.dense_weight": 0.3}, "not comparable"),
    ],
)
def test_weights_pretrained_otherwise_are_not_comparable(settings, verdict):
    run = run_of(OURS, RUN)
    place = ("voc_r50_c4_24k", "densecl-CC")
    run.experiments[place] = dataclasses.replace(run.experiments[place], pretraining=settings)
    table = compare(PAPER.tables[0], PAPER, run)
    found = {row.name: row.cells[0] for row in table.rows}
    assert found["densecl-CC"].verdict == verdict
    assert found["moco_v2-CC"].verdict == "reproduced"


def test_a_difference_of_rows_that_are_not_comparable_is_not_judged():
    run = run_of(OURS, RUN)
    place = ("cityscapes_fcn_r50_40k", "moco_v2-CC")
    old = run.experiments[place]
    changed = [dataclasses.replace(t, config_sha256="0" * 64) for t in old.trials]
    run.experiments[place] = dataclasses.replace(old, trials=changed)
    table = next(t for t in PAPER.tables if t.name == "densecl_T4b_cityscapes")
    delta = compare(table, PAPER, run).rows[-1].cells[0]
    assert delta.verdict == "not comparable" and "settings differ" in delta.reason


def test_a_benchmark_without_a_configuration_file_is_not_comparable():
    name = "coco_r50_fpn_1x"
    conditions = {**PAPER.conditions}
    conditions[name] = dataclasses.replace(conditions[name], config_sha256=None)
    without = dataclasses.replace(PAPER, conditions=conditions)
    table = next(t for t in without.tables if t.columns[0].benchmark == name)
    found = [cell for row in compare(table, without, run_of(OURS, RUN)).rows for cell in row.cells]
    assert {cell.verdict for cell in found} == {"not comparable"}
    assert all(f"there is no configs/benchmarks/{name}.yaml" in cell.reason for cell in found)


def test_other_protocols_of_coco_never_enter_table_2():
    run = run_of({}, RUN)
    trials = [trial("coco_r50_c4_1x", "densecl-CC", 1, {"APb": 39.6, "APm": 35.7})]
    run.experiments["coco_r50_c4_1x", "densecl-CC"] = Experiment(
        "coco_r50_c4_1x", "densecl-CC", trials, [RUN / "seed_1"], None
    )
    for table in PAPER.tables:
        assert not compare(table, PAPER, run).is_measured


def test_published_conditions_are_those_of_the_configurations():
    for name, facts in PAPER.conditions.items():
        config = load_config(find_config(name))
        assert find_config(facts.miniature).stem == facts.miniature
        solver = config.get("SOLVER")
        schedule = solver and {"iterations": solver.MAX_ITER, "batch": solver.IMS_PER_BATCH}
        assert facts.schedule == (schedule or {}), name
        assert facts.trained_on == list(config.DATASETS.TRAIN), name


def test_the_file_is_consistent():
    """What the program does not read must agree with what it reads."""
    rows = {}
    for table in COMPARED:
        names = [row["row"] for row in table["rows"] if row["row"]]
        assert len(names) == len(set(names)), table["id"]
        for row in table["rows"]:
            assert row["values"].keys() == set(table["metrics"])
            assert set(row["verified_by"]) <= RAW["sources"].keys()
            if row["row"] and table["id"] != "densecl_T9_time":  # its rows are methods
                rows.setdefault(row["row"], set()).add(row["epochs"])
        for part in table["parts"]:
            assert list(part["columns"]) == table["metrics"]
    assert all(len(epochs) == 1 for epochs in rows.values())
    assert RAW["pretraining"].keys() <= rows.keys()
    for facts in RAW["benchmarks"].values():
        assert bool(facts["noise"]) == (facts["noise_source"] is not None)
    assert TRIAL.benchmark in RAW["benchmarks"]
