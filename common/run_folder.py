"""A stage's output folder: who owns it, what made it, and whether it is finished.

FOLDER/
  owner.json    what the folder belongs to: all that decides the stage's result
  config.yaml   the resolved configuration, with launch settings
  DONE          {"fingerprint": ..., ...} written last: without it the stage is unfinished
  .in_use       locked by the process that writes here
"""

import fcntl
import json
import logging
import os
import time
from pathlib import Path
from typing import IO, Any

from common.errors import UserError
from common.files import fingerprint, remove_temporary_files, write_json, write_text

OWNER = "owner.json"
_IN_USE = ".in_use"
DONE = "DONE"

# Seconds to wait for a process that is about to end. A SLURM node that lost its controller works on
# while its job is started again elsewhere.
_WAIT, _WAIT_AFTER_REQUEUE = 5, 1800

log = logging.getLogger(__name__)
_held: list[IO[str]] = []  # until this process ends


def claim(folder: Path, identity: dict[str, Any], config_text: str) -> bool:
    """Make `folder` this stage's, or refuse one that something else made.

    `identity` holds, in plain types, all that decides the stage's result: the resolved
    configuration without launch settings, and the inputs' hashes. Returns True when the stage has
    already finished. Raises UserError naming the first difference when the folder belongs to
    another configuration, or when another process writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / OWNER
    if owner.exists():
        _refuse_other(folder, json.loads(owner.read_text()), identity)
    elif any(path.name != _IN_USE for path in folder.iterdir()):
        raise UserError(f"{folder}: not empty and not made by this program: choose another folder")
    _hold(folder)
    remove_temporary_files(folder)
    if not owner.exists():
        write_json(owner, identity)
    write_text(folder / "config.yaml", config_text)
    return _is_finished(folder)


def mark_done(folder: Path, identity: dict[str, Any], **facts: Any) -> None:
    """Write DONE, the last file of a finished stage.

    `checkpoint` and `results` among the facts name files without which it is not finished.
    """
    write_json(folder / DONE, {"fingerprint": fingerprint(identity), **facts})


def _is_finished(folder: Path) -> bool:
    """Whether DONE and what it names are there; without that, DONE is taken away as well."""
    done = folder / DONE
    if not done.exists():
        return False
    facts = json.loads(done.read_text())
    if all((folder / facts[name]).exists() for name in ("checkpoint", "results") if name in facts):
        return True
    done.unlink()
    return False


def _hold(folder: Path) -> None:
    """Keep every other process out of `folder` until this one ends."""
    file = (folder / _IN_USE).open("a+")
    restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    deadline = time.monotonic() + (_WAIT_AFTER_REQUEUE if restarted else _WAIT)
    while not _locked(file):
        file.seek(0)
        other = f"{folder}: in use by {file.read().strip() or 'another process'}"
        if time.monotonic() > deadline:
            raise UserError(f"{other}: wait until it ends, or choose another folder")
        log.warning("%s: waiting until it ends", other)
        time.sleep(1)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
    file.flush()
    _held.append(file)


def _locked(file: IO[str]) -> bool:
    try:
        # This kind belongs to the process: its data-loader workers do not keep it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # a file system without locks: as careful as it lets us be
        return True
    return True


def _refuse_other(folder: Path, theirs: Any, ours: Any) -> None:
    difference = _first_difference(theirs, ours)
    if difference:
        key, old, new = difference
        raise UserError(
            f"{folder}: made with {key} = {old}, now {new}: choose another output folder, "
            "or delete this one"
        )


def _first_difference(old: Any, new: Any, key: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(name for name in new if name not in old)]:
            inner = f"{key}.{name}" if key else name
            found = _first_difference(old.get(name, "nothing"), new.get(name, "nothing"), inner)
            if found:
                return found
        return None
    return None if json.dumps(old) == json.dumps(new) else (key, old, new)
