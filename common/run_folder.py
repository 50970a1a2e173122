"""A stage's output folder: who owns it, what made it, and whether it is finished.

FOLDER/
  owner.json    what the folder belongs to: all that decides the stage's result
  config.yaml   the resolved configuration, with launch settings
  DONE          {"fingerprint": ..., ...} written last: without it the stage is unfinished
"""

import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import fingerprint, remove_temporary_files, write_json, write_text

OWNER = "owner.json"
DONE = "DONE"


def claim(folder: Path, identity: dict[str, Any], config_text: str) -> bool:
    """Make `folder` this stage's, or refuse one that something else made.

    `identity` holds, in plain types, all that decides the stage's result: the resolved
    configuration without launch settings, and the inputs' hashes. Returns True when the stage has
    already finished. Raises UserError naming the first difference when the folder belongs to
    another configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(folder)
    owner = folder / OWNER
    if owner.exists():
        _refuse_other(folder, json.loads(owner.read_text()), identity)
    elif any(folder.iterdir()):
        raise UserError(f"{folder}: not empty and not made by this program: choose another folder")
    else:
        write_json(owner, identity)
    write_text(folder / "config.yaml", config_text)
    return (folder / DONE).exists()


def mark_done(folder: Path, identity: dict[str, Any], **facts: Any) -> None:
    """Write DONE, the last file of a finished stage."""
    write_json(folder / DONE, {"fingerprint": fingerprint(identity), **facts})


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
