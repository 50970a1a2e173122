"""A copy of the code in the run folder: jobs that start days later run what was submitted."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from common.code import COMMIT, ROOT, source_commit

_PARTS = (
    *("common", "pretrain", "converters", "benchmarks", "pipeline"),
    *("configs", "run_all.py", "hubconf.py"),
)


def take_snapshot(folder: Path) -> Path:
    """Copy the code to folder/code/HASH, unless the same code is there already."""
    files = sorted(_files())
    content = hashlib.sha256()
    for file in files:
        content.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    target = folder.resolve() / "code" / content.hexdigest()[:12]
    if target.exists():
        return target
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for file in files:
        copy = temporary / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    (temporary / COMMIT).write_text(f"{source_commit() or ''}\n", encoding="utf-8")
    temporary.rename(target)
    return target


def _files() -> Iterator[Path]:
    for part in map(ROOT.joinpath, _PARTS):
        found = part.rglob("*") if part.is_dir() else [part]
        yield from (p for p in found if p.is_file() and "__pycache__" not in p.parts)
