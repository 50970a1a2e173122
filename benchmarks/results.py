"""results.json: what one benchmark run measured, on what, and how it got there.

The file carries a SHA-256 of its own other fields, so that a number edited by hand is noticed
before it reaches a table.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import fingerprint, write_json

_HASH = "content_sha256"


@dataclass(frozen=True)
class Results:
    """One run's outcome. Metrics are percentages, as the paper prints them."""

    benchmark: str
    """The configuration's name, for example voc_r50_c4_24k."""
    row: str
    """Which row of the table: the pickle's name, or random."""
    seed: int
    """The trial's seed: it decides initialisation, data order and augmentation."""
    metrics: dict[str, float]
    """The last evaluation's, in percent: AP (of boxes APb, of masks APm), AP50, AP-CLASS, ..."""
    engine: str
    """detectron2 or torchvision."""
    engine_version: str
    weights_sha256: str | None
    """The pickle's hash; None for random initialisation."""
    config_sha256: str
    """Fingerprint of the resolved configuration without launch settings."""
    schedule: dict[str, int]
    """iterations and batch (images per iteration over all processes)."""
    trained_on: list[str]
    """Names of the training sets."""
    device: str
    """The processor's or GPU's name, and how many."""
    environment: dict[str, Any]
    """Versions, machine and command, as common.environment describes them."""
    seconds: float
    """Wall time over all restarts."""
    restarts: int
    """How often the run was resumed."""
    commit: str | None
    """The source commit, '+changes' where files differ from it."""


def write_results(path: Path, results: Results) -> None:
    """Write results.json, whole or not at all."""
    content = asdict(results)
    write_json(path, {**content, _HASH: fingerprint(content)})


def read_results(path: Path) -> Results:
    """The results in a results.json.

    Raises UserError when the file is missing, not JSON, lacks a field, or was changed after it
    was written.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(content, dict) or _HASH not in content:
        raise UserError(f"{path}: not a results file: it has no {_HASH}")
    if content.pop(_HASH) != fingerprint(content):
        raise UserError(f"{path}: changed after it was written: its {_HASH} does not match")
    expected = {field.name for field in fields(Results)}
    if set(content) != expected:
        different = ", ".join(sorted(expected ^ set(content)))
        raise UserError(f"{path}: written by another version of this program: {different}")
    return Results(**content)
