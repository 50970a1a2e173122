"""python -m common.miniature ROOT [--seed N]: generate all miniature datasets under ROOT."""

import argparse
import fcntl
import json
import shutil
import time
from pathlib import Path

from common.errors import UserError, run_command
from common.files import write_json
from common.miniature.cityscapes import write_cityscapes
from common.miniature.coco import write_coco
from common.miniature.imagenet import write_imagenet
from common.miniature.voc import write_voc
from common.run_folder import DONE

FORMAT = 2  # counts changes of what is generated


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m common.miniature", description=__doc__)
    parser.add_argument("root", type=Path, help="folder to create, for example datasets/mini")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other images")
    arguments = parser.parse_args()
    generate(arguments.root, arguments.seed)


def generate(root: Path, seed: int = 0) -> None:
    """Write imagenet/, coco/, VOC2007/ and cityscapes/ under `root`, all of them or none.

    A complete `root` of the same seed is left as it is. Raises UserError when `root` holds
    anything else.
    """
    identity = {"seed": seed, "format": FORMAT}
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f".{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second generator waits, then finds the work done
        if _is_complete(root, identity):
            print(f"{root}: complete (seed {seed})")
            return
        started = time.monotonic()
        partial = root.parent / f".{root.name}.partial"
        if partial.exists():
            shutil.rmtree(partial)
        for write in (write_imagenet, write_coco, write_voc, write_cityscapes):
            write(partial, seed)
        write_json(partial / DONE, identity)
        partial.rename(root)
    print(f"{root}: generated (seed {seed}) in {time.monotonic() - started:.1f} s")


def _is_complete(root: Path, identity: dict[str, int]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    advice = "choose another folder, or delete this one"
    if not (root / DONE).is_file():
        raise UserError(f"{root}: exists and is not a complete miniature dataset: {advice}")
    found = json.loads((root / DONE).read_text())
    if found != identity:
        raise UserError(f"{root}: made with {found}, now {identity}: {advice}")
    return True


if __name__ == "__main__":
    run_command(main)
