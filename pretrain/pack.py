"""Images into tar shards: few large files instead of millions of small ones.

Pack a folder:          python -m pretrain.pack datasets/imagenet/train /fast/imagenet
Index shards you have:  python -m pretrain.pack --index FOLDER_OF_TARS
Train on either:        python -m pretrain --config-file ... data.root=/fast/imagenet

The images are copied byte for byte, in the order in which they are listed: a run on the shards sees
the batches of a run on the folder, to the last bit. WebDataset reads the shards too. The same
command continues what was interrupted.

TARGET/
  shard-000000.tar ...      000000012.jpg and 000000012.cls (its class) for image 12, and so on
  index.json  index.npy     where each image lies: pretrain/shards.py
  images.txt                the paths that the images had, one per line
  owner.json  config.yaml  DONE
"""

import argparse
import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.progress import track

from common.errors import UserError, run_command
from common.files import replacing, write_text
from common.parallel import cores, in_order
from common.run_folder import DONE, claim, mark_done
from pretrain.images import Folder, list_images
from pretrain.shards import (
    EXTENSIONS,
    FORMAT,
    INDEX,
    ROWS,
    Scan,
    Shards,
    read_format,
    scan,
    write_index,
)


class Job(NamedTuple):
    """A shard to write: which images of `root`, by path and class, and the first one's number."""

    path: Path
    root: Path
    files: list[str]
    labels: list[int]
    first: int


def main() -> None:
    """Pack, or index, and say what came of it."""
    arguments = parse_arguments()
    if arguments.index:
        index(arguments.index, arguments.workers)
    else:
        images = Folder(arguments.source, list_images(arguments.source, arguments.list_file))
        pack(images, arguments.target, arguments.shard_size, arguments.workers)


def pack(images: Folder, target: Path, shard_size: int, workers: int) -> None:
    """Write the shards that are not there yet, `shard_size` images each, and their index."""
    digest = images.digest
    identity = {
        "images_from": str(images.root.resolve()),
        "images": len(images),
        "image_list": digest,
        "shard_size": shard_size,
    }
    for number in range(len(images)):
        if Path(path := images.path(number)).suffix.lower() not in EXTENSIONS:
            raise UserError(f"{images.root / path}: its name ends like no image's: unlist it")
    if claim(target, identity, yaml.safe_dump(identity)):
        try:
            Shards(target).check()
        except UserError as error:
            print(f"{error}; packing what is missing")
            (target / DONE).unlink()
        else:
            print(f"{target}: already finished, nothing to do")
            return
    paths = (images.path(number) for number in range(len(images)))
    write_text(target / "images.txt", "".join(f"{path}\n" for path in paths))
    starts = range(0, len(images), shard_size)
    jobs = (_job(images, target, number, first, shard_size) for number, first in enumerate(starts))
    scans = track(in_order(write_shard, jobs, workers), "shards", total=len(starts))
    write_index(target, scans, images.classes, digest)
    mark_done(target, identity)
    print(f"{target}: {len(images)} images in {len(starts)} shards")


def index(folder: Path, workers: int) -> None:
    """Index the tar files of `folder`, by name, where they are."""
    paths = sorted(path for path in folder.glob("*.tar") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"{folder}: no .tar files there: name a folder of WebDataset shards")
    if (folder / INDEX).exists() and read_format(folder) != FORMAT:
        raise UserError(f"{folder / INDEX}: not made by this program: move it away")
    left_out: list[int] = []

    def counted(scans: Iterable[Scan]) -> Iterator[Scan]:
        for found in scans:
            left_out.append(found.left_out)
            yield found

    scans = track(in_order(scan, paths, workers), "shards", total=len(paths))
    shards = write_index(folder, counted(scans), None, None)
    if not len(shards):
        for name in (INDEX, ROWS):
            (folder / name).unlink()
        raise UserError(f"{folder}: no images in its {len(paths)} tar files")
    less = f", {sum(left_out)} left out: without an image, links, or of one name"
    print(f"{folder}: {len(shards)} images in {len(paths)} shards{less if sum(left_out) else ''}")


def write_shard(job: Job) -> Scan:
    """The shard, unless it is there already, and what a reader finds in it."""
    if not job.path.exists():
        with (
            replacing(job.path) as temporary,
            tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive,
        ):
            for number, (file, label) in enumerate(zip(job.files, job.labels), job.first):
                key = f"{number:09d}"
                _add(archive, key + Path(file).suffix.lower(), _content(job.root / file))
                _add(archive, f"{key}.cls", str(label).encode())
    found = scan(job.path)
    if len(found.rows) != len(job.files):
        raise UserError(f"{job.path}: {len(found.rows)} images of {len(job.files)}: delete it")
    return found


def _job(images: Folder, target: Path, number: int, first: int, size: int) -> Job:
    members = range(first, min(first + size, len(images)))
    return Job(
        target / f"shard-{number:06d}.tar",
        images.root,
        [images.path(member) for member in members],
        [images.label(member) for member in members],
        first,
    )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): mend or unlist it") from None


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, nargs="?", help="folder of images")
    parser.add_argument("target", type=Path, nargs="?", help="new folder for the shards")
    parser.add_argument("--index", type=Path, metavar="FOLDER_OF_TARS")
    parser.add_argument("--list-file", type=Path, help="which images of SOURCE, one path per line")
    parser.add_argument(
        "--shard-size", type=int, default=10_000, help="images in each (default: 10000)"
    )
    parser.add_argument("--workers", type=int, default=cores())
    arguments = parser.parse_args()
    packing = arguments.source is not None and arguments.target is not None
    if packing == (arguments.index is not None):
        parser.error("name SOURCE and TARGET, or --index FOLDER_OF_TARS")
    if arguments.shard_size < 1 or arguments.workers < 1:
        parser.error("--shard-size and --workers are at least 1")
    return arguments


if __name__ == "__main__":
    run_command(main)
