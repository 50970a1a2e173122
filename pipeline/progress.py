"""How far a stage has come, from what it logs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.stage import Stage

_TAIL = 65_536  # bytes of a log or of metrics.jsonl that are looked at


@dataclass(frozen=True)
class Progress:
    """As of the last logged step."""

    step: int | None = None
    steps: int | None = None  # of the whole stage
    rate: str = ""
    seconds_left: float | None = None


def progress_of(stage: Stage) -> Progress:
    """How far a stage has come; nothing is known of one that has no steps."""
    if not stage.resumes:
        return Progress()
    folder = stage.owns[0]
    last: dict[str, Any] = {}
    for line in _tail(folder / "metrics.jsonl"):
        try:
            values = json.loads(line)
        except ValueError:  # cut off at the front, or half written
            continue
        if isinstance(values, dict) and "eta_seconds" in values:
            last = values
    if not last:
        return Progress(stage.step() or None, _steps(folder))
    rate = f"{last['images_per_second']:.0f} img/s" if "images_per_second" in last else ""
    if "time" in last:
        rate = f"{last['time']:.2f} s/it"
    return Progress(int(last["step"]), _steps(folder), rate, float(last["eta_seconds"]))


def _steps(folder: Path) -> int | None:
    """How many steps a pre-training or a fine-tuning has."""
    try:
        owner: dict[str, Any] = json.loads((folder / "owner.json").read_text())
        if "optim" in owner:
            optim = owner["optim"]
            return int(optim["epochs"] * (owner["images"] // optim["batch_size"]))
        return int(owner["config"]["SOLVER.MAX_ITER"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def last_line(folder: Path, name: str) -> str:
    """What the stage's log ends with."""
    lines = [line.strip() for line in _tail(folder / "logs" / f"{name}.log")]
    return next((line for line in reversed(lines) if line), "")


def last_word(folder: Path, stage: Stage) -> str:
    """The last line that says what went wrong, else the last that the stage itself wrote."""
    own = (f"{stage.name}: ", "srun: ", "slurmstepd", "submitit ")
    lines = [line.strip() for line in _tail(folder / "logs" / f"{stage.name}.log")]
    lines = [line for line in lines if line and not line.startswith(own)]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def _tail(file: Path) -> list[str]:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - _TAIL))
            return opened.read().decode(errors="replace").splitlines()
    except OSError:
        return []
