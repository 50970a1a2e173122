"""Where the code that runs lies, and which version of it that is."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMIT = "COMMIT"  # the file that says it in a copy of the code, which is no repository


def source_commit() -> str | None:
    """Commit of the source tree, '+changes' where files differ from it; None without git."""
    copied_from = ROOT / COMMIT
    if copied_from.is_file():
        return copied_from.read_text(encoding="utf-8").strip() or None
    try:
        return _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
