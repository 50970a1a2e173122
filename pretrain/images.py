"""Where the images are: files of a folder or samples of tar shards, alike to whoever reads them."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from common.errors import UserError
from pretrain.shards import EXTENSIONS, INDEX, ROWS, Shards


class Images(Protocol):
    """Numbered images, 0 to len - 1."""

    @property
    def classes(self) -> list[str]:
        """Their names; "" for images without one."""

    @property
    def digest(self) -> str:
        """Hex SHA-256 of which images these are: what a run's identity records of them."""

    def __len__(self) -> int: ...

    def label(self, number: int) -> int:
        """The image's class, as a place in `classes`."""

    def name(self, number: int) -> str:
        """For people: where the image lies."""

    def read(self, number: int) -> bytes:
        """The encoded image. Raises OSError when it cannot be read."""


class Folder:
    """Image files under `root`; the first folder of each path is its class."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self.root, self.classes = root, class_folders(files)
        self._numbers = {name: number for number, name in enumerate(self.classes)}
        # Not a list: counting a string's references would copy its page into every worker.
        self._paths = np.array([os.fsencode(path) for path in files])

    @property
    def digest(self) -> str:
        """Of the file names."""
        return hashlib.sha256(b"\n".join(self._paths.tolist())).hexdigest()

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, number: int) -> str:
        """Below `root`."""
        return os.fsdecode(self._paths[number])

    def label(self, number: int) -> int:
        """The place of its folder among all."""
        return self._numbers[_first_folder(self.path(number))]

    def name(self, number: int) -> str:
        """Its path."""
        return str(self.root / self.path(number))

    def read(self, number: int) -> bytes:
        """The file's content."""
        return (self.root / self.path(number)).read_bytes()


def open_images(root: Path, list_file: Path | None = None, window: int = 0) -> Images:
    """The shards that `python -m pretrain.pack` wrote or indexed in `root`; else its image files.
    `window`: see `Shards`.

    Raises UserError when there is no such folder, no image in it, or a shard that is not whole.
    """
    if not ((root / INDEX).is_file() and (root / ROWS).is_file()):
        return Folder(root, list_images(root, list_file))
    if list_file is not None:
        raise UserError(f"{root}: made of shards: choose images with data.list_file when packing")
    shards = Shards(root, window)
    shards.check()
    return shards


def list_images(root: Path, list_file: Path | None = None) -> list[str]:
    """Paths relative to `root`, sorted; from `list_file` (one per line, a label may follow) in its
    order. ImageFolder trees and flat folders look the same here: labels are not used.

    Raises UserError when there is no such folder or no image in it.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: set data.root to a folder of images")
    if list_file is not None:
        if not list_file.is_file():
            raise UserError(f"{list_file}: no such file: data.list_file names a text file of paths")
        found = _listed(list_file)
    else:
        found = sorted(_walk(root, root))
    if not found:
        where = list_file or root
        tars = (
            next(root.glob("*.tar"), None) and f"; python -m pretrain.pack --index {root} for tars"
        )
        raise UserError(
            f"{where}: no images found (looked for {', '.join(EXTENSIONS)}{tars or ''})"
        )
    return found


def _listed(list_file: Path) -> list[str]:
    """The paths in a list, in any encoding: file names are bytes."""
    content = list_file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if b"\0" in content:
        raise UserError(f"{list_file}: data.list_file has one path per line, and this has a NUL")
    lines = (line.strip() for line in os.fsdecode(content).split("\n"))
    return [os.path.normpath(_without_label(line)) for line in lines if line]


def class_folders(files: list[str]) -> list[str]:
    """The first folder of each path, each once, sorted; "" for images that lie in none."""
    return sorted({_first_folder(path) for path in files})


def _first_folder(path: str) -> str:
    return path.rpartition("/")[0].partition("/")[0]


def _without_label(line: str) -> str:
    path, _, label = line.rpartition(" ")
    return path.rstrip() if path and label.lstrip("-").isdigit() else line


def _leads_back(parent: str, name: str) -> bool:
    """Whether a link leads to a folder that it lies in."""
    path = Path(parent, name)
    return path.is_symlink() and Path(parent).resolve().is_relative_to(path.resolve())


def _raise(error: OSError) -> None:
    raise error


def _walk(folder: Path, root: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        folders[:] = [name for name in folders if not _leads_back(parent, name)]
        relative = Path(parent).relative_to(root)
        yield from (str(relative / name) for name in names if name.lower().endswith(EXTENSIONS))
