"""Where a stage's words and numbers go.

FOLDER/log.txt         what the console showed
FOLDER/metrics.jsonl   one JSON object per logged step
FOLDER/tensorboard/    the same numbers
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

from rich.logging import RichHandler
from torch.utils.tensorboard import SummaryWriter

from common.files import write_text

_PLAIN = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")


def set_up_logging(folder: Path | None, main_process: bool = True) -> None:
    """Log to the console and, in `folder`, to log.txt; other processes only warn."""
    console: logging.Handler
    if sys.stdout.isatty():
        console = RichHandler(show_path=False, log_time_format="%H:%M:%S")
        console.setFormatter(logging.Formatter("%(message)s"))
    else:
        console = logging.StreamHandler()
        console.setFormatter(_PLAIN)
    handlers: list[logging.Handler] = [console]
    if folder is not None and main_process:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / "log.txt", encoding="utf-8", errors="backslashreplace")
        file.setFormatter(_PLAIN)
        handlers.append(file)
    level = logging.INFO if main_process else logging.WARNING
    logging.basicConfig(level=level, handlers=handlers, force=True)


class Metrics:
    """Numbers of the logged steps, to metrics.jsonl and TensorBoard.

    A resumed run repeats the steps after its checkpoint, so those are dropped from both first.
    """

    def __init__(self, folder: Path, steps_done: int) -> None:
        self.path = folder / "metrics.jsonl"
        earlier = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in earlier if _step(line) <= steps_done]
        write_text(self.path, "".join(f"{line}\n" for line in kept))
        self.file = self.path.open("a")
        self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=steps_done + 1)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Record one step's values (plain numbers)."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush both."""
        self.file.close()
        self.board.close()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")  # a line cut off by a kill
