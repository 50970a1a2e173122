"""Checkpoints that survive a kill at any instant.

    checkpoints/
      step_00001200.pth          tensors and plain types only, so weights_only=True reads it
      step_00001200.pth.sha256   `sha256sum -c` reads it

The hash is written first and the checkpoint is renamed into place last, so a checkpoint that has
its final name has its hash. An older checkpoint goes only after the newer one was read back.
"""

import hashlib
import io
import logging
import pickle
from pathlib import Path
from typing import IO, Any, cast

import torch

from common.errors import UserError
from common.files import remove_temporary_files, replacing, sha256_of, write_text

log = logging.getLogger(__name__)


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write the checkpoint of `step`, then remove all but the newest `keep` good ones."""
    path = Path(folder) / f"step_{step:08d}.pth"
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            hashing = _HashingFile(file)
            try:
                torch.save(state, cast(IO[bytes], hashing))
            except RuntimeError as error:  # torch's words for a failed write: give the cause
                raise hashing.error or error from None
        write_text(_hash_file(path), f"{hashing.sha256.hexdigest()}  {path.name}\n")
    if not is_good(path):
        raise OSError(f"{path}: what was read back differs from what was written")
    for old in _newest_first(Path(folder))[keep:]:
        old.unlink()
        _hash_file(old).unlink(missing_ok=True)
    return path


def latest_good(folder: Path) -> Path | None:
    """The newest checkpoint whose bytes match its hash; each bad one is named in the log."""
    if not Path(folder).is_dir():
        return None
    remove_temporary_files(Path(folder))
    for path in _newest_first(Path(folder)):
        if is_good(path):
            return path
        log.warning(
            "%s is damaged (its SHA-256 does not match): falling back to an older one", path
        )
    return None


def is_good(path: Path) -> bool:
    """Whether the checkpoint's bytes match the hash written with it."""
    hash_file = _hash_file(path)
    return hash_file.exists() and hash_file.read_text().split()[:1] == [sha256_of(path)]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Tensors (on the CPU) and plain types of a checkpoint; anything executable is refused.

    Raises UserError when the file is missing, damaged, or holds other objects.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        reason = str(error).split("Please file an issue")[0].splitlines()
        named = next((line for line in reason if "GLOBAL" in line), reason[0])
        raise UserError(f"{path}: refused as a checkpoint: {named.strip()}") from None
    except OSError:
        raise
    except Exception as error:  # whatever the reader stumbles over in damaged bytes
        cause = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: not a whole checkpoint ({cause})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: not a checkpoint: it holds a {type(state).__name__}, not a dict")
    return state


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step_*.pth"), reverse=True)


def _hash_file(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


class _HashingFile(io.RawIOBase):
    """A file for writing that hashes what passes through, so that a bad disk is noticed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise
