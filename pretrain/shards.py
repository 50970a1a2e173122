"""Images in tar files, each read at random by one `pread`.

FOLDER/
  shard-000000.tar ...   any tar files of WebDataset samples: KEY.jpg, and KEY.cls with a number
  index.json             format, shards (name, samples, bytes), classes, image_list (a SHA-256)
  index.npy              for each sample where its image lies: offset, size, label

The index is mapped, not read: the processes of a machine share its pages, and 10^9 images take as
much private memory as 10^3. Layout of samples: webdataset's docs/webdataset.md.
"""

import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from common.files import fingerprint, replacing, sha256_of, write_json

INDEX, ROWS = "index.json", "index.npy"
FORMAT = "densecl-shards-1"
# Where an image lies in its shard, in bytes, and its class.
ROW = np.dtype([("offset", "<u8"), ("size", "<u4"), ("label", "<u4")])
EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
RUN_LENGTH = 256  # consecutive images that a windowed order reads together
_MOST_OPEN = 256  # shards that one process holds open
_BLOCK = 512  # bytes: what a tar file consists of
_LARGEST = 2**32 - 1  # bytes of an image
_MOST_CLASSES = 10_000_000


class Shards:
    """The images of an indexed folder of tar files; `Images` says what its methods give.

    window: of the order in which they will be read, see `pretrain.order.permute_windowed`. With
    it, the first image asked for of a run has the kernel read the whole run, in one go.
    Raises UserError when the index is not one of `write_index`'s.
    """

    def __init__(self, root: Path, window: int = 0) -> None:
        self.root, self.window = root, window
        path = root / INDEX
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
            if facts["format"] != FORMAT:
                raise ValueError(f"format {facts['format']}")
            self.shards: list[dict[str, Any]] = facts["shards"]
            self.classes: list[str] = facts["classes"]
            self.digest: str = facts["image_list"]
            self._rows = np.load(root / ROWS, mmap_mode="r", allow_pickle=False)
            self._ends = np.cumsum([shard["samples"] for shard in self.shards])
            if self._rows.dtype != ROW or self._rows.shape != (self._ends[-1],):
                raise ValueError(f"{ROWS} is of another index")
        except (OSError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"{path}: not an index of shards ({error}): make it with python -m pretrain.pack"
            ) from None
        self._open: OrderedDict[int, int] = OrderedDict()  # descriptors, the longest unused first
        self._fetched: dict[int, None] = {}  # runs of this window and the one before

    def __reduce__(self) -> tuple[type, tuple[Path, int]]:
        return Shards, (self.root, self.window)  # another process maps the index itself

    def __len__(self) -> int:
        return len(self._rows)

    def label(self, number: int) -> int:
        """What its .cls says."""
        return int(self._rows[number]["label"])

    def name(self, number: int) -> str:
        """Its shard, and which of the shard's samples it is."""
        shard = self._shard_of(number)
        return f"{self.root / self.shards[shard]['name']} sample {number - self._first_of(shard)}"

    def read(self, number: int) -> bytes:
        """The image's bytes."""
        if self.window:
            self._fetch_run(number // RUN_LENGTH)
        row = self._rows[number]
        content = os.pread(self._descriptor(self._shard_of(number)), row["size"], row["offset"])
        if len(content) != row["size"]:
            raise OSError(f"{self.name(number)}: the shard ends within it")
        return content

    def check(self) -> None:
        """Raise UserError for a shard that is missing or as long as another."""
        for shard in self.shards:
            path, expected = self.root / shard["name"], shard["bytes"]
            found = path.stat().st_size if path.is_file() else None
            if found != expected:
                state = "missing" if found is None else f"{found} bytes long"
                raise UserError(
                    f"{path}: {state}, and its index says {expected} bytes: copy it again, or "
                    f"index what is there with python -m pretrain.pack --index {self.root}"
                )

    def _shard_of(self, number: int) -> int:
        return int(np.searchsorted(self._ends, number, side="right"))

    def _first_of(self, shard: int) -> int:
        return int(self._ends[shard]) - self.shards[shard]["samples"]

    def _fetch_run(self, run: int) -> None:
        if run in self._fetched:
            return
        if len(self._fetched) >= 2 * self.window // RUN_LENGTH:
            del self._fetched[next(iter(self._fetched))]
        self._fetched[run] = None
        first, end = run * RUN_LENGTH, min((run + 1) * RUN_LENGTH, len(self))
        for shard in range(self._shard_of(first), self._shard_of(end - 1) + 1):
            if not self.shards[shard]["samples"]:
                continue
            begin = self._rows[max(first, self._first_of(shard))]
            last = self._rows[min(end, int(self._ends[shard])) - 1]
            length = int(last["offset"]) + int(last["size"]) - int(begin["offset"])
            place = self._descriptor(shard), int(begin["offset"]), length
            os.posix_fadvise(*place, os.POSIX_FADV_WILLNEED)

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= _MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = os.open(self.root / self.shards[shard]["name"], os.O_RDONLY)
        return self._open[shard]


class Scan(NamedTuple):
    """What is in a shard. rows (N,) of ROW; labelled: how many of them had a .cls; left_out: how
    many samples had no image, links, and images of the same name as one before."""

    path: Path
    bytes: int
    rows: np.ndarray
    labelled: int
    left_out: int


def scan(path: Path) -> Scan:
    """The samples of a tar file, in its order: members that share a path up to its first dot.

    Raises UserError for what is not a whole tar file, and for a .cls that is no class's number.
    """
    samples: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    keys, end, left_out = set(), 0, 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.issparse() or member.size > _LARGEST:
                    raise ValueError(f"{member.name}: sparse, or larger than 4 GiB")
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                left_out += member.islnk() or member.issym()
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, kind = name.partition(".")
                key = f"{folder}/{stem}"
                keys.add(key)
                if f".{kind.lower()}" in EXTENSIONS:
                    left_out += key in samples
                    samples.setdefault(key, (member.offset_data, member.size))
                elif kind == "cls":
                    labels[key] = _label(archive, member)
        size = _check_end(path, end)
    except (tarfile.TarError, FileNotFoundError, ValueError) as error:
        raise UserError(
            f"{path}: not a whole tar file of images ({error}): make it again"
        ) from None
    rows = [(*place, labels.get(key, 0)) for key, place in samples.items()]
    labelled = sum(key in labels for key in samples)
    left_out += len(keys) - len(samples)
    return Scan(path, size, np.array(rows, ROW), labelled, left_out)


def _check_end(path: Path, end: int) -> int:
    """The file's length, if from byte `end` on there are only the empty blocks of a tar's end.

    tarfile takes a damaged header for the end, and so it does where two archives are joined.
    """
    size = path.stat().st_size
    if size < end + _BLOCK:
        raise tarfile.ReadError(f"it ends at byte {size}")
    with path.open("rb") as file:
        file.seek(end)
        while block := file.read(2**20):
            if any(block):
                raise tarfile.ReadError(f"after byte {end} comes what is no member")
    return size


def read_format(root: Path) -> object:
    """What the index.json of `root` calls itself; None where it says nothing."""
    try:
        facts = json.loads((root / INDEX).read_text(encoding="utf-8"))
    except ValueError:
        return None
    return facts.get("format") if isinstance(facts, dict) else None


def write_index(
    root: Path, scans: Iterable[Scan], classes: list[str] | None, image_list: str | None
) -> Shards:
    """Index the shards of `root` in the order given, each row written as it comes.

    classes: their names, by default their numbers, where every image has one; image_list: by
    default a hash of the rows.
    """
    shards: list[dict[str, Any]] = []
    highest, labelled = 0, 0
    with replacing(root / ROWS) as temporary:
        with temporary.open("wb") as file:
            _write_header(file, 0)
            for found in scans:
                found.rows.tofile(file)
                shards.append(
                    {"name": found.path.name, "samples": len(found.rows), "bytes": found.bytes}
                )
                highest = max(highest, int(found.rows["label"].max(initial=0)))
                labelled += found.labelled
            file.seek(0)
            samples = sum(shard["samples"] for shard in shards)
            _write_header(file, samples)
        digest = image_list or fingerprint([shards, sha256_of(temporary)])
    if classes is None:
        everywhere = samples and labelled == samples
        classes = [str(number) for number in range(highest + 1)] if everywhere else [""]
    facts = {"format": FORMAT, "shards": shards, "classes": classes, "image_list": digest}
    write_json(root / INDEX, facts)
    return Shards(root)


def _write_header(file: Any, samples: int) -> None:
    """NumPy leaves room in it for any number of rows, so that it can be written again."""
    facts = {"descr": ROW.descr, "fortran_order": False, "shape": (samples,)}
    np.lib.format.write_array_header_1_0(file, facts)


def _label(archive: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    content = archive.extractfile(member)
    number = int(content.read()) if content else 0
    if not 0 <= number < _MOST_CLASSES:
        raise ValueError(f"{member.name}: {number} is no class's number")
    return number
