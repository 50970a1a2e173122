"""Pictures inside the page: predictions beside the truth, and what corresponds in two views."""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from pipeline.report.read import Trial

FOLDER, INDEX = "examples", "examples.json"
CORRESPONDENCE = "correspondence"  # the folder, and the name of its JSON file
_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png"}


@dataclass(frozen=True)
class Picture:
    """One picture, with its bytes."""

    uri: str  # data:
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class Comparison:
    """One image of the test set: its truth and what each row predicts, in the rows' order."""

    image: str
    truth: Picture | None
    predictions: list[Picture | None]


@dataclass(frozen=True)
class Correspondence:
    """What `python -m pretrain.correspondence` counted and drew; a picture per weights."""

    threshold: float
    rows: list[dict[str, Any]]
    """weights, images, matches, agree."""
    pictures: dict[str, list[Picture | None]]
    """By image."""


def correspondence_of(run: Path, problems: list[str]) -> Correspondence | None:
    """None where the run has none; what cannot be read is added to `problems`."""
    folder = run / CORRESPONDENCE
    file = folder / f"{CORRESPONDENCE}.json"
    if not folder.is_dir():
        return None
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rows = [
            {key: row[key] for key in ("weights", "images", "matches", "agree")}
            for row in content["rows"]
        ]
        names = [row["weights"] for row in rows]
        pictures = {
            str(entry["image"]): [
                _picture(run, folder / Path(entry["files"][name]).name, "", problems)
                for name in names
            ]
            for entry in content["pictures"]
        }
        return Correspondence(float(content["threshold"]), rows, pictures)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        problems.append(f"{file.relative_to(run)}: missing or damaged")
        return None


def compare(
    run: Path, trials: Sequence[Trial], problems: list[str]
) -> tuple[list[str], list[Comparison]]:
    """Rows with pictures, each by its first trial that has some, and the images they share.

    trials: all of one benchmark. What cannot be read is added to `problems`.
    """
    truths: dict[str, Picture | None] = {}
    rows: dict[str, dict[str, Picture | None]] = {}
    for trial in trials:
        folder = run / trial.path / FOLDER
        if trial.row in rows or not folder.is_dir():
            continue
        rows[trial.row] = {}
        for image, caption, files in _index(run, folder, problems):
            if truths.get(image) is None:
                truths[image] = _picture(run, folder / files["truth"], "", problems)
            prediction = _picture(run, folder / files["prediction"], caption, problems)
            rows[trial.row][image] = prediction
    comparisons = [
        Comparison(image, truth, [row.get(image) for row in rows.values()])
        for image, truth in truths.items()
    ]
    return list(rows), comparisons


def _index(run: Path, folder: Path, problems: list[str]) -> list[tuple[str, str, dict[str, str]]]:
    """(image id, caption, files by role) of each entry of examples.json."""
    try:
        entries = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return [
            (
                str(entry["image"]),
                str(entry.get("caption", "")),
                {role: Path(entry["files"][role]).name for role in ("truth", "prediction")},
            )
            for entry in entries
        ]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        problems.append(f"{(folder / INDEX).relative_to(run)}: missing or damaged")
        return []


def _picture(run: Path, file: Path, caption: str, problems: list[str]) -> Picture | None:
    try:
        content = file.read_bytes()
        with Image.open(io.BytesIO(content), formats=list(_FORMATS)) as image:
            image.load()
            width, height = image.size
            kind = _FORMATS[str(image.format)]
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError):
        problems.append(f"{file.relative_to(run)}: missing or damaged")
        return None
    uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(uri, width, height, caption)
