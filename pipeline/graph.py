"""graph.json: what became of each stage of a run, for the next run and for whoever asks."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import UserError
from common.files import write_json

GRAPH = "graph.json"
_LOCK = ".lock"

PENDING, RUNNING, DONE = "pending", "running", "done"
FAILED, INTERRUPTED, BLOCKED = "failed", "interrupted", "blocked"


@dataclass(frozen=True)
class Record:
    """A stage's line in graph.json."""

    needs: tuple[str, ...]
    command: tuple[str, ...]
    state: str = PENDING
    fingerprint: str | None = None  # of the inputs that what it owns was made from
    seconds: float = 0.0  # over all attempts, where one was interrupted
    started: str | None = None  # local time, ISO 8601
    ended: str | None = None
    note: str = ""  # why it is in this state


Records = dict[str, Record]


def load_graph(folder: Path) -> Records:
    """The records of a run folder; none where it is new.

    Raises UserError when the file is not this program's.
    """
    path = folder / GRAPH
    try:
        stages = json.loads(path.read_text())["stages"]
        return {name: Record(**entry) for name, entry in stages.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a graph of this program's ({error}): move it away") from None


def save_graph(folder: Path, records: Records) -> None:
    """Write all records, in one step."""
    stages = {name: asdict(record) for name, record in records.items()}
    write_json(folder / GRAPH, {"format": 1, "stages": stages})


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
