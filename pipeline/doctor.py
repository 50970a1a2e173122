"""Whether a run would work here: `python -m pipeline.doctor [--cluster PROFILE] [--output FOLDER]`.

Looks at the software, the GPUs, the datasets, the disk and, with --cluster, at SLURM, and says for
whatever is wrong how to mend it. Nothing is kept of what it writes.
"""

import argparse
import fcntl
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from common.errors import UserError, run_command
from pipeline import slurm
from pipeline.cluster import Profile, load_profile
from pipeline.plan import Choices, plan
from pipeline.stage import read_settings
from pipeline.submit import check_shared
from pipeline.summary import describe

OK, WARN, FAIL = "ok", "warn", "FAIL"
_COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}

# What pre-training keeps for its gradients, per 224-pixel image of a ResNet-50 in fp32: counted.
_GIB_PER_IMAGE, _GIB_BESIDES = 0.081, 2.0
_GIB_DETECTION = 11  # two images per GPU fit the 16 GB V100s that the paper's numbers are from

# Folder below the datasets' root → how many files, and which.
_DATASETS = {
    "imagenet/train": (1_281_167, ".jpeg"),
    "coco/train2017": (118_287, ".jpg"),
    "coco/val2017": (5_000, ".jpg"),
    "VOC2007/JPEGImages": (9_963, ".jpg"),
    "VOC2012/JPEGImages": (17_125, ".jpg"),
    "VOC2012/SegmentationClassAug": (12_031, ".png"),
    "cityscapes/leftImg8bit/train": (2_975, ".png"),
    "cityscapes/leftImg8bit/val": (500, ".png"),
}
_DECODED = 200  # images, chosen at random

# Run in a process of its own, where a broken build does no harm.
_PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": [], "error": ""}
try:
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        torch.ones(8, device=number).sum().item()
        found["gpus"].append([gpu.name, gpu.total_memory / 2**30])
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
try:
    from detectron2 import _C
    found["detectron2"] = str(_C.get_cuda_version())
except ImportError as error:
    found["detectron2_error"] = str(error).splitlines()[0]
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and what to do about it."""

    what: str
    state: str
    found: str
    fix: str = ""


def software() -> Iterator[Finding]:
    """Packages, and whether PyTorch, CUDA and Detectron2 go together."""
    for name in ("torch", "torchvision", "fvcore", "pycocotools", "submitit"):
        try:
            yield Finding(name, OK, metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, FAIL, "not installed", "make setup, or README's Set-up by hand")
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield Finding("torch, CUDA", FAIL, last, "install torch for this machine's driver")
        return
    found = json.loads(done.stdout.splitlines()[-1])
    yield from _gpus(found)
    yield _detectron2(found)


def _gpus(found: dict[str, Any]) -> Iterator[Finding]:
    if found["error"]:
        fix = (
            f"torch is built for CUDA {found['cuda']}: update the driver, or install another torch"
        )
        yield Finding("GPUs", FAIL, found["error"], fix)
        return
    if not found["gpus"]:
        fix = "on a login node that is as it should be; else check nvidia-smi and torch's build"
        yield Finding("GPUs", WARN, f"none (torch for CUDA {found['cuda']})", fix)
        return
    names = ", ".join(sorted({name for name, _ in found["gpus"]}))
    yield Finding("GPUs", OK, f"{len(found['gpus'])} x {names}, CUDA {found['cuda']}")
    memory = min(gib for _, gib in found["gpus"])
    images = read_settings(plan(Choices("IN", Path("runs/x")))[0].configs[0])
    per_gpu = images.get("optim.batch_size", 256) / len(found["gpus"])
    needed = max(_GIB_DETECTION, _GIB_BESIDES + _GIB_PER_IMAGE * per_gpu)
    fits = memory >= needed
    yield Finding(
        "GPU memory",
        OK if fits else FAIL,
        f"{memory:.0f} GiB; {per_gpu:.0f} images of pre-training per GPU, or 2 of detection, need "
        f"about {needed:.0f}",
        "" if fits else "more GPUs, or smaller optim.batch_size and SOLVER.IMS_PER_BATCH",
    )


def _detectron2(found: dict[str, Any]) -> Finding:
    if "detectron2" in found:
        built = re.sub(r"[^\d.]", "", found["detectron2"]) or None
        ours = found["cuda"]
        if not found["gpus"] and not built:
            return Finding(
                "Detectron2", OK, "importable, built for CPUs only, as fits this machine"
            )
        if ours and built != ours:
            fix = "build Detectron2 again in this environment, by its INSTALL.md"
            return Finding("Detectron2", FAIL, f"built for CUDA {built}, torch for {ours}", fix)
        return Finding("Detectron2", OK, "importable: the benchmarks run on it")
    if importlib.util.find_spec("detectron2"):
        fix = "build it again in this environment, by its INSTALL.md"
        return Finding("Detectron2", FAIL, found["detectron2_error"], fix)
    return Finding("Detectron2", OK, "not installed: the benchmarks run on torchvision")


def datasets(root: Path) -> Iterator[Finding]:
    """Folders and counts, and whether images can be decoded."""
    for name, (expected, suffix) in _DATASETS.items():
        folder = root / name
        if not folder.is_dir():
            yield Finding(name, WARN, "missing", "needed by some runs: see README's Set-up")
            continue
        if (index := folder / "index.json").is_file():  # python -m pretrain.pack made it
            found = sum(shard["samples"] for shard in json.loads(index.read_text())["shards"])
            fix = "" if found == expected else "pack the whole folder again"
            state = OK if found == expected else FAIL
            yield Finding(name, state, f"{found:,} of {expected:,} images, in shards", fix)
            continue
        files = [Path(p, f) for p, _, names in os.walk(folder) for f in names]
        files = [file for file in files if file.suffix.lower() == suffix]
        state = OK if len(files) == expected else FAIL
        fix = "" if state == OK else "unpack the archive again: some files are missing or added"
        yield Finding(name, state, f"{len(files):,} of {expected:,} files", fix)
        if files:
            yield _decoding(name, files)


def _decoding(name: str, files: Sequence[Path]) -> Finding:
    bad = []
    for file in random.sample(files, min(_DECODED, len(files))):
        try:
            with Image.open(file) as image:
                image.load()
        except (OSError, SyntaxError, ValueError):
            bad.append(str(file))
    if not bad:
        return Finding(f"{name}: images", OK, f"{min(_DECODED, len(files))} decoded")
    return Finding(f"{name}: images", FAIL, f"{len(bad)} unreadable: {bad[0]}", "copy them again")


def disk(folder: Path, shared: bool) -> Iterator[Finding]:
    """Room, and whether files can be renamed and locked as runs rely on."""
    while not folder.exists():
        folder = folder.parent
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize / 2**30
    fix = "a run of all benchmarks leaves about 50 GiB: free some space, or another --output"
    yield Finding("disk", OK if free > 50 else WARN, f"{free:,.0f} GiB free", fix * (free <= 50))
    if room.f_files:
        few = room.f_favail < 100_000
        fix = "runs leave some thousand files: remove some, or another --output"
        yield Finding("inodes", WARN if few else OK, f"{room.f_favail:,} free", fix * few)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as place:
            old, new = Path(place, "old"), Path(place, "new")
            old.write_text("old")
            new.write_text("new")
            new.replace(old)
            assert old.read_text() == "new"
            with old.open("a") as file:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield Finding("rename and lock", OK, f"work in {folder}")
    except (OSError, AssertionError) as error:
        yield Finding("rename and lock", FAIL, str(error), "another file system for --output")
    if shared:
        try:
            check_shared(folder)
            yield Finding("shared folder", OK, f"{folder}")
        except UserError as error:
            yield Finding("shared folder", FAIL, str(error), "an --output that all nodes see")


def cluster(profile: Profile, folder: Path) -> Iterator[Finding]:
    """Whether SLURM takes the jobs, and how it treats them."""
    if not slurm.is_available():
        yield Finding("SLURM", FAIL, "no sbatch and srun on the PATH", "run this on a login node")
        return
    submission = slurm.Submission(folder, profile, folder)
    stages = plan(Choices("IN", folder))
    for stage in {profile.resources(stage): stage for stage in reversed(stages)}.values():
        resources = profile.resources(stage)
        fix = "partition, account, qos, constraint, gpus, memory_gb or minutes of the profile"
        try:
            slurm.test_only(submission.script(stage))
            if resources.minutes > (most := slurm.longest(profile.partition)):
                fix = f"--slurm {stage.kind}.minutes={most:.0f}: it continues in the next job"
                raise UserError(f"{resources.minutes} minutes, of at most {most:.0f}")
            yield Finding(f"jobs: {stage.kind}", OK, describe(resources))
        except UserError as error:
            yield Finding(f"jobs: {stage.kind}", FAIL, str(error), fix)
    settings = slurm.settings()
    kill = re.sub(r"\D", "", settings.get("KillWait", "30")) or "30"
    short = int(kill) < 30
    fix = "ask for KillWait of 30 s or more: the time to save at scontrol requeue"
    yield Finding("KillWait", WARN if short else OK, f"{kill} s", fix * short)
    requeue = settings.get("JobRequeue", "1") == "1"
    fix = "ask for JobRequeue=1, or interrupted jobs must be submitted again by hand"
    yield Finding("JobRequeue", OK if requeue else WARN, str(int(requeue)), fix * (not requeue))
    early = "preempt_send_user_signal" in settings.get("SlurmctldParameters", "")
    found = "SIGUSR2" if early else "SIGTERM: taken as well, if the partition has a GraceTime"
    yield Finding("signal at preemption", OK, found)


def main() -> None:
    """Print the findings; exit code 1 where one of them is a failure."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cluster", metavar="PROFILE", help="as of run_all.py")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="default: runs")
    arguments = parser.parse_args()
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    findings = [*software(), *datasets(root), *disk(arguments.output, bool(arguments.cluster))]
    if arguments.cluster:
        findings += cluster(load_profile(arguments.cluster), arguments.output)
    table = Table(box=box.SIMPLE)
    for name in ("looked at", "", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        state = f"[{_COLOURS[finding.state]}]{finding.state}[/]"
        table.add_row(finding.what, state, finding.found, finding.fix)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    counts = {state: sum(f.state == state for f in findings) for state in _COLOURS}
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    sys.exit(int(counts[FAIL] > 0))


if __name__ == "__main__":
    run_command(main)
