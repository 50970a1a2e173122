"""SOURCE of a conversion → the checkpoint file, held against the hash recorded for it.

Two tensors of equal shape that changed places inside a file cannot be told from a file that was
trained so. Only a hash recorded when the file was written shows it: DONE of a pre-training folder
or FILE.sha256 beside a checkpoint. Files without either are converted as they are.
"""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch.serialization import MAGIC_NUMBER

from common.checkpoint import load_checkpoint
from common.errors import UserError
from common.files import sha256_of
from common.pickles import load_pickle
from converters.haiku import STAND_INS, ExperimentState, torch_names

# torch.save writes a zip archive; before PyTorch 1.6, pickles of which this is the first.
_TORCH_SAVED = (b"PK", pickle.dumps(MAGIC_NUMBER, protocol=2))


@dataclass(frozen=True)
class Source:
    """A checkpoint file, its SHA-256, and the file that recorded the same hash, if any."""

    path: Path
    sha256: str
    recorded_in: str | None


def find_source(path: Path) -> Source:
    """The checkpoint of a finished pre-training folder, or the file itself.

    Raises UserError when it is missing, unfinished, or differs from its recorded hash.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        checkpoint, recorded, where = *_finished_in(path), "DONE"
    else:
        checkpoint, recorded, where = path, _beside(path), "FILE.sha256"
    sha256 = sha256_of(checkpoint)
    if recorded is None:
        return Source(checkpoint, sha256, None)
    if recorded != sha256:
        raise UserError(
            f"{checkpoint}: not the file that was written: its SHA-256 begins {sha256[:12]}, "
            f"{where} says {recorded[:12]}"
        )
    return Source(checkpoint, sha256, where)


def load_file(path: Path) -> dict[str, Any]:
    """What torch.save, safetensors or a plain pickle of arrays holds; nothing in the file is run.

    Raises UserError when it is damaged, holds other objects, or is not a dictionary.
    """
    with path.open("rb") as opened:
        start = opened.read(64)
    if start.startswith(_TORCH_SAVED):
        file: Any = load_checkpoint(path)
    elif start[8:9] == b"{":  # after eight bytes with the length of a JSON header
        file = _load_safetensors(path)
    else:
        file = load_pickle(path, STAND_INS)
    if not isinstance(file, dict):
        raise UserError(f"{path}: it holds a {type(file).__name__}, not a dictionary")
    if isinstance(file.get("experiment_state"), ExperimentState):
        try:
            return {"format": "byol-haiku", "online": torch_names(file["experiment_state"])}
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    return file


def _load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error})") from None


def _finished_in(folder: Path) -> tuple[Path, str | None]:
    done = folder / "DONE"
    if not done.is_file():
        raise UserError(f"{folder}: not a finished pre-training folder: it has no DONE file")
    try:
        facts = json.loads(done.read_text())
        checkpoint, recorded = folder / facts["checkpoint"], str(facts["checkpoint_sha256"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{done}: names no checkpoint with its SHA-256") from None
    if not checkpoint.is_file() or not checkpoint.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{done}: its checkpoint {facts['checkpoint']} is not in the folder")
    return checkpoint, recorded


def _beside(path: Path) -> str | None:
    file = path.with_name(path.name + ".sha256")
    words = file.read_text(errors="replace").split() if file.is_file() else []
    if file.is_file() and not words:
        raise UserError(f"{file}: empty, so {path.name} cannot be checked")
    return words[0] if words else None
