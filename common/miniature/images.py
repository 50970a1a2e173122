"""Image and JSON files whose bytes depend on their content alone."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def save_jpeg(path: Path, image: np.ndarray) -> None:
    """Write (H,W,3) uint8 as JPEG, quality 90."""
    Image.fromarray(image).save(path, quality=90)


def save_png(path: Path, image: np.ndarray, palette: list[int] | None = None) -> None:
    """Write (H,W,3) uint8, (H,W) uint8 (with `palette`: indices into it) or (H,W) uint16."""
    picture = Image.fromarray(image)
    if palette is not None:
        picture.putpalette(palette)
    # Run lengths only: zlib's search for longer matches may differ between builds of zlib.
    picture.save(path, compress_type=zlib.Z_RLE)


def save_json(path: Path, value: Any) -> None:
    """Write `value` on one line, keys sorted."""
    path.write_text(json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n")
