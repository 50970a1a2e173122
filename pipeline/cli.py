"""The command line of run_all.py."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError, did_you_mean
from pipeline import graph, slurm
from pipeline.attempt import set_aside
from pipeline.cluster import Profile, load_profile
from pipeline.execute import Execution
from pipeline.graph import locked
from pipeline.local import Signals, count_gpus, run_process
from pipeline.plan import SOURCES, Choices, plan
from pipeline.stage import Stage
from pipeline.submit import live_jobs, submit_graph
from pipeline.summary import print_jobs, print_plan, print_submitted, print_summary, verdict

LOCAL = "local"


def main() -> None:
    """Parse, plan, and run or show the plan. Exit code 0: all done; 1: not; 2: user's mistake."""
    arguments = _parse_arguments()
    choices = Choices(
        source=arguments.pretrain,
        folder=arguments.output or _default_folder(arguments.pretrain, arguments.epochs),
        epochs=arguments.epochs,
        methods=arguments.methods,
        benchmarks=arguments.benchmarks or (() if arguments.ablation else ("voc",)),
        ablation=arguments.ablation,
        trials=arguments.trials,
    )
    stages = plan(choices)
    profile = _profile(arguments.cluster, arguments.slurm, arguments.dry_run)
    gpus = count_gpus()
    if arguments.dry_run:
        if profile:
            print_jobs(stages, choices.folder, profile)
        else:
            print_plan(stages, choices.folder, gpus)
        return
    if choices.is_miniature and not gpus:
        # Small models run no slower in one thread, and their results repeat exactly.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    make_again(stages, choices.folder, arguments.rerun)
    if profile:
        print_submitted(submit_graph(stages, choices.folder, profile), choices.folder)
        return
    sys.exit(run(stages, choices.folder, gpus))


def _profile(cluster: str, changes: Sequence[str], dry_run: bool) -> Profile | None:
    """The cluster to submit to; None to run here.

    Raises UserError for one that is not known, and for SLURM where there is none.
    """
    if cluster == "auto":
        # Inside a job the stages run in it.
        cluster = "slurm" if slurm.is_available() and "SLURM_JOB_ID" not in os.environ else LOCAL
    if cluster == LOCAL:
        if changes:
            raise UserError("--slurm: the stages run on this machine; name a --cluster")
        return None
    profile = load_profile(cluster, changes)
    if not dry_run and not slurm.is_available():
        raise UserError(
            f"--cluster {cluster}: sbatch and srun are not on the PATH: run this on a login node "
            "of the cluster, or use --cluster local"
        )
    return profile


def make_again(stages: Sequence[Stage], folder: Path, names: Sequence[str]) -> None:
    """Set aside what the stages called `names`, or below such a name, have left.

    Raises UserError for a name that no stage has, for one that is on its way, and for one whose
    files belong to other runs as well.
    """
    for name in names:
        chosen = [stage for stage in stages if f"{stage.name}/".startswith(f"{name.rstrip('/')}/")]
        if not chosen:
            known = [stage.name for stage in stages]
            raise UserError(
                f"--rerun {name}: no such stage{did_you_mean(name, known)}: --dry-run lists them"
            )
        with locked(folder):
            live = live_jobs(folder)
            for stage in chosen:
                if stage.name in live:
                    raise UserError(f"--rerun {name}: {stage.name} is in SLURM's queue already")
                if not all(path.is_relative_to(folder) for path in stage.owns):
                    raise UserError(f"--rerun {name}: {stage.owns[0]} is not this run's alone")
                set_aside(stage, folder, "is made again")


def run(stages: Sequence[Stage], folder: Path, gpus: int) -> int:
    """Run the stages on this machine; returns the exit code."""
    started = time.monotonic()
    with locked(folder) as lock:
        if live := live_jobs(folder):
            raise UserError(
                f"{folder}: {len(live)} of its stages are jobs in SLURM's queue: wait for them, "
                f"or end them with `python -m pipeline.status {folder} --cancel`"
            )
        print("without SLURM: the stages run on this machine, one after another", flush=True)
        signals = Signals()

        def launch(stage: Stage, command: tuple[str, ...]) -> int:
            return run_process(command, folder / "logs" / f"{stage.name}.log", signals, lock)

        records = Execution(stages, folder, gpus, launch, signals).run()
    print_summary(records, time.monotonic() - started)
    print(f"{folder}: {verdict(records, folder, shlex.join(['python', *sys.argv]))}", flush=True)
    return int(any(record.state != graph.DONE for record in records.values()))


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python run_all.py",
        description="Pre-train, convert, benchmark and print the tables. The same command "
        "continues an interrupted run and skips what is done.",
    )
    parser.add_argument(
        "--pretrain",
        required=True,
        choices=SOURCES,
        help="images to pre-train on: ImageNet, COCO train2017, or miniature (generated)",
    )
    parser.add_argument("--epochs", type=_number, help="default: the configuration's")
    parser.add_argument(
        "--methods", type=_names, default=("densecl",), help="default: densecl; a comma between two"
    )
    parser.add_argument(
        "--benchmarks",
        type=_names,
        help="default: voc, or the ablation's; a comma between two; all: every one for a ResNet-50",
    )
    parser.add_argument(
        "--ablation",
        metavar="NAME",
        help="pre-train the rows of a table of configs/ablations.yaml: lambda, matching, ...",
    )
    parser.add_argument(
        "--trials",
        type=_number,
        default=1,
        help="fine-tunings per benchmark and row (default: 1)",
    )
    parser.add_argument(
        "--cluster",
        default="auto",
        metavar="WHERE",
        help="local: here, one stage after another; a profile of configs/cluster (slurm, a100, ...)"
        " or a YAML file like them: as SLURM jobs; auto (default): slurm where there is sbatch",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=(),
        metavar="KEY=VALUE",
        help="changes of the profile: partition=gpu pretrain.nodes=2 benchmarks/coco.minutes=2880",
    )
    parser.add_argument(
        "--output", type=Path, help="run folder (default: runs/PRETRAIN[-EPOCHSep])"
    )
    parser.add_argument(
        "--rerun",
        nargs="+",
        default=(),
        metavar="STAGE",
        help="set its results aside and make it again, with what hangs on it: benchmarks/voc, "
        "benchmarks/voc/densecl-IN/seed_3, ...",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="show stages, needs and commands; write nothing"
    )
    return parser.parse_args()


def _default_folder(source: str, epochs: int | None) -> Path:
    return Path("runs", source if epochs is None else f"{source}-{epochs}ep")


def _number(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1")
    return number


def _names(words: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in words.split(",") if word.strip()))
