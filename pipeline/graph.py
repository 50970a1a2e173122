"""What a run consists of, and what became of it, for the next run and for whoever asks.

RUN/graph.json           the stages, their needs, commands, fingerprints and SLURM jobs
RUN/states/STAGE.json    what became of each one: written by whatever runs it, one file per stage,
                         so that jobs on many nodes never write to the same file
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_json
from pipeline.stage import Stage, from_json, to_json

GRAPH = "graph.json"
_FORMAT = 2
_LOCK = ".lock"

PENDING, RUNNING, DONE = "pending", "running", "done"
FAILED, INTERRUPTED, BLOCKED = "failed", "interrupted", "blocked"


@dataclass(frozen=True)
class Entry:
    """A stage's line in graph.json."""

    stage: Stage
    command: tuple[str, ...]
    fingerprint: str  # of the command and its settings
    job: str | None = None  # SLURM's number
    code: str | None = None  # the copy of the code that the job runs


@dataclass(frozen=True)
class Record:
    """What became of a stage."""

    state: str = PENDING
    fingerprint: str | None = None  # of the inputs that what it owns was made from
    target: str | None = None  # of those that the last attempt read
    seconds: float = 0.0  # over all attempts, where one was interrupted
    started: str | None = None  # local time, ISO 8601
    ended: str | None = None
    note: str = ""  # why it is in this state
    job: str | None = None  # SLURM's number
    steps: tuple[int, ...] = ()  # in the checkpoint that each start of the job found


Entries = dict[str, Entry]
Records = dict[str, Record]


def load_graph(folder: Path) -> Entries:
    """The stages of a run folder in their order; none where it is new.

    Raises UserError when the file is not this program's.
    """
    path = folder / GRAPH
    try:
        content = json.loads(path.read_text())
        if content["format"] != _FORMAT:
            raise UserError(
                f"{path}: written by another version of this program (format {content['format']}, "
                f"here {_FORMAT}): finish the run with that version, or choose another --output"
            )
        return {name: _entry(name, entry) for name, entry in content["stages"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a graph of this program's ({error}): move it away") from None


def save_graph(folder: Path, entries: Mapping[str, Entry]) -> None:
    """Write all stages, in one step."""
    stages = {}
    for name, entry in entries.items():
        own = {key: value for key, value in vars(entry).items() if key != "stage"}
        stages[name] = {**to_json(entry.stage), **own}
        del stages[name]["name"]
    write_json(folder / GRAPH, {"format": _FORMAT, "stages": stages})


def load_records(folder: Path, names: Iterable[str]) -> Records:
    """What became of the stages called `names`."""
    return {name: load_record(folder, name) for name in names}


def load_record(folder: Path, name: str) -> Record:
    """What became of one stage. Raises UserError when its file is not this program's."""
    path = _record_file(folder, name)
    try:
        content = json.loads(path.read_text())
        return Record(**(content | {"steps": tuple(content["steps"])}))
    except FileNotFoundError:
        return Record()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a state of this program's ({error}): remove it") from None


def save_record(folder: Path, name: str, record: Record) -> None:
    """Write what became of one stage, in one step."""
    write_json(_record_file(folder, name), asdict(record))


def with_blocked(entries: Mapping[str, Entry], records: Mapping[str, Record]) -> Records:
    """The records, in which those stages are blocked that need one that did not succeed."""
    told = dict(records)
    for name, entry in entries.items():  # each after those it needs
        if told[name].state == PENDING and not entry.stage.always:
            bad = [n for n in entry.stage.needs if told[n].state in (FAILED, BLOCKED)]
            if bad:
                note = f"needs {bad[0]}, which is {told[bad[0]].state}"
                told[name] = replace(told[name], state=BLOCKED, note=note)
    return told


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the run folder; yields the lock's file descriptor, for the stages to hold as well.

    A stage that outlives a killed pipeline keeps the folder locked until it ends. Raises UserError
    when another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder}: in use by process {file.read().strip()}, or by a stage it left "
                "running: wait until it ends, or choose another --output"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file.fileno()


def is_locked(folder: Path) -> bool:
    """Whether a pipeline, or a stage that it left running, holds the run folder on this machine."""
    try:
        with (folder / _LOCK).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # never run here
        return False
    return False


def _entry(name: str, content: dict[str, Any]) -> Entry:
    own = {key: content.pop(key) for key in ("command", "fingerprint", "job", "code")}
    command = tuple(own.pop("command"))
    return Entry(from_json({"name": name, **content}), command, **own)


def _record_file(folder: Path, name: str) -> Path:
    return folder / "states" / f"{name}.json"
