"""Runs for the tables' tests: a paper's own numbers as results, in memory or as a folder."""

import dataclasses
import json

from benchmarks.results import Results, write_results
from benchmarks.tables.paper import FILE, read_paper
from benchmarks.tables.run import Experiment, Run

RAW = json.loads(FILE.read_text())
COMPARED = [table for table in RAW["tables"] if "parts" in table]


PAPER = read_paper()
TRIAL = Results(
    benchmark="voc_r50_c4_24k",
    row="densecl-IN",
    seed=1,
    metrics={"AP": 58.7, "AP50": 82.8, "AP75": 65.2, "AP50-dog": 90.0},
    engine="torchvision",
    engine_version="torchvision 0.29.2",
    weights_sha256="ab" * 32,
    config_sha256=PAPER.conditions["voc_r50_c4_24k"].config_sha256,
    schedule={"iterations": 24000, "batch": 16},
    trained_on=["voc_2007_trainval", "voc_2012_trainval"],
    device="1 x CPU",
    environment={},
    seconds=1.0,
    restarts=0,
    commit="12" * 20,
)


def trial(benchmark, row, seed, metrics, **changes):
    """Results made under the conditions that are published for the benchmark."""
    facts = PAPER.conditions.get(benchmark)
    return dataclasses.replace(
        TRIAL,
        benchmark=benchmark,
        row=row,
        seed=seed,
        metrics=metrics,
        config_sha256=facts.config_sha256 if facts else "ef" * 32,
        schedule=facts.schedule if facts else {},
        trained_on=facts.trained_on if facts else [],
        **changes,
    )


def published():
    """(benchmark, row, key) → value of every number that is published for a row of ours.

    Read from the file itself. Of Cityscapes only a difference is, so the smaller number is made up.
    """
    values = {}
    for table in COMPARED:
        for part in table["parts"]:
            for metric, place in part["columns"].items():
                benchmark, key = place.split(":")
                for row in table["rows"]:
                    if benchmark != "pretrain" and row["row"] and row["values"][metric]:
                        values[benchmark, row["row"], key] = row["values"][metric]
                for delta in table.get("deltas", []):
                    values[benchmark, delta["minus_row"], key] = 50.0
                    values[benchmark, delta["of_row"], key] = 50.0 + delta["values"][metric]
    return values


def run_of(values, folder, seeds=3):
    """A run with these numbers: `seeds` trials that are 0.1 apart around each."""
    metrics = {}
    for (benchmark, row, key), value in values.items():
        metrics.setdefault((benchmark, row), {})[key] = value
    experiments = {}
    for (benchmark, row), numbers in metrics.items():
        trials = [
            trial(
                benchmark,
                row,
                seed,
                {key: value + 0.1 * (seed - (seeds + 1) / 2) for key, value in numbers.items()},
            )
            for seed in range(1, seeds + 1)
        ]
        folders = [folder / f"{row}/seed_{seed}" for seed in range(1, seeds + 1)]
        experiments[benchmark, row] = Experiment(benchmark, row, trials, folders, None)
    return Run(folder, experiments, {})


def add(run, done=True, **changes):
    """Write one trial's folder, TRIAL with `changes`."""
    results = dataclasses.replace(TRIAL, **changes)
    folder = run / "benchmarks" / results.benchmark / results.row / f"seed_{results.seed}"
    write_results(folder / "results.json", results)
    if done:
        (folder / "DONE").write_text("{}")
    return folder


def add_manifest(run, row, config):
    """The converter's manifest of TRIAL's weights, made with this configuration."""
    facts = {"pickle_sha256": TRIAL.weights_sha256, "pretrain": {"step": 1, "config": config}}
    (run / "weights").mkdir(exist_ok=True)
    (run / "weights" / f"{row}.json").write_text(json.dumps(facts))


def add_pretraining(run, row, seconds_per_step=0.5, done=True, gpus=()):
    """A pre-training of 1000 images in batches of 30, with two speeds that average as asked."""
    folder = run / "pretrain" / row
    folder.mkdir(parents=True)
    identity = {"seed": 0, "images": 1000, "optim": {"batch_size": 30}}
    environment = {"gpus": list(gpus), "commit": None, "packages": {"torch": "2.15"}}
    (folder / "owner.json").write_text(json.dumps(identity))
    (folder / "env.json").write_text(json.dumps(environment))
    slow, fast = 1.5 * seconds_per_step, 0.5 * seconds_per_step  # 50 steps each
    speeds = {50: 30 / slow, 100: 30 / fast}
    lines = [{"step": step, "images_per_second": speed} for step, speed in speeds.items()]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    if done:
        (folder / "DONE").write_text("{}")
    return folder
