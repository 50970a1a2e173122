"""A checkpoint → OUTPUT.pkl and, beside it, its manifest OUTPUT.json.

The pickle is written under a temporary name, read back and proven; then both get their names. A
failure before that leaves nothing new and what was there before as it was. The manifest is named
last and holds the pickle's SHA-256, so a kill between the two renames can be seen.
"""

import json
import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.backbone_file import detectron2_name
from common.code import source_commit
from common.errors import UserError
from common.files import replacing, sha256_of, write_json
from converters.backbone import Backbone, extract
from converters.detect import AUTO, find_layout
from converters.layouts import ImageInput
from converters.source import Source, find_source, load_file
from converters.verify import prove

AUTHOR = "densecl-pipeline"


@dataclass(frozen=True)
class Extracted:
    """A source's backbone, and what is known of where it came from."""

    backbone: Backbone
    facts: dict[str, Any]


def read(found: Source, layout_name: str = AUTO) -> Extracted:
    """The backbone of what `find_source` found.

    Raises UserError when it is not exactly one known network.
    """
    file = load_file(found.path)
    try:
        layout = find_layout(file, layout_name)
        backbone = extract(file, layout)
    except UserError as error:
        raise UserError(f"{found.path}: {error}") from None
    facts = {
        "source": found.path.name,
        "source_sha256": found.sha256,
        "source_sha256_recorded_in": found.recorded_in,
        "layout": layout.name,
        "depth": backbone.depth,
        "width": backbone.width,
        "tensors": len(backbone.tensors),
        "dropped": backbone.dropped,
        "input": layout.image_input.to_plain(),
        "stride_in_1x1": False,
        "config": _config_lines(backbone, layout.image_input),
        "difference": layout.difference,
        "pretrain": _pretraining(file),
        "commit": source_commit(),
    }
    return Extracted(backbone, facts)


def convert(source: Path, output: Path, layout_name: str = AUTO) -> dict[str, Any]:
    """Write `output` and its manifest from `source`; the manifest is returned.

    Raises UserError, and writes nothing, when the source is not exactly one known network or when
    a proof fails.
    """
    found = find_source(source)
    manifest_path = manifest_beside(output, found.path, ".pkl")
    extracted = read(found, layout_name)
    backbone, facts = extracted.backbone, dict(extracted.facts)
    with replacing(manifest_path) as manifest, replacing(output) as temporary:
        _write_pickle(backbone, temporary)
        facts["verified"] = _prove_all(temporary, backbone, output)
        facts["pickle_sha256"] = sha256_of(temporary)
        write_json(manifest, facts)
    return facts


def _config_lines(backbone: Backbone, images: ImageInput) -> list[str]:
    """What a Detectron2 configuration must say for these weights, one KEY VALUE a line."""
    mean, std = (list(values) for values in (images.pixel_mean, images.pixel_std))
    return [
        f"INPUT.FORMAT {images.format}",
        f"MODEL.PIXEL_MEAN {mean}",
        f"MODEL.PIXEL_STD {std}",
        f"MODEL.RESNETS.DEPTH {backbone.depth}",
        f"MODEL.RESNETS.STEM_OUT_CHANNELS {backbone.width}",
        f"MODEL.RESNETS.RES2_OUT_CHANNELS {4 * backbone.width}",
        f"MODEL.RESNETS.WIDTH_PER_GROUP {backbone.width}",
        "MODEL.RESNETS.STRIDE_IN_1X1 False",
    ]


def manifest_beside(output: Path, source: Path, suffix: str) -> Path:
    """Where the manifest of `output` goes.

    Raises UserError unless `output` ends in `suffix`, is no folder, and is not the source itself.
    """
    if output.suffix != suffix:
        raise UserError(f"{output}: this kind of file is known by a name that ends in {suffix}")
    manifest = output.with_suffix(".json")
    if source.resolve() == output.resolve():
        raise UserError(f"{output}: is the source itself: choose another output")
    for path in (output, manifest):
        if path.is_dir():
            raise UserError(f"{path}: is a folder: choose another output")
    return manifest


def _write_pickle(backbone: Backbone, path: Path) -> None:
    model = {
        detectron2_name(name): np.ascontiguousarray(tensor.numpy())
        for name, tensor in sorted(backbone.tensors.items())
    }
    # Without an author Detectron2 takes a pickle for Caffe2's, and renames its tensors.
    value = {"model": model, "__author__": AUTHOR, "matching_heuristics": True}
    with path.open("wb") as file:
        pickle.dump(value, file, protocol=4)


def _prove_all(temporary: Path, backbone: Backbone, output: Path) -> list[str]:
    try:
        return [*prove(temporary, backbone), _prove_with_detectron2(temporary, backbone)]
    except UserError as error:
        raise UserError(f"{output}: not written, a proof failed: {error}") from None


def _prove_with_detectron2(temporary: Path, backbone: Backbone) -> str:
    try:
        with warnings.catch_warnings(action="ignore"):  # its own, about PyTorch's deprecations
            from converters.detectron2_check import prove_detectron2_loads
    except ImportError as error:
        return f"Detectron2: not checked ({error})"
    return prove_detectron2_loads(temporary, backbone.depth, backbone.width)


def _pretraining(file: dict[str, Any]) -> dict[str, Any] | None:
    """Step and configuration, where the checkpoint records them."""
    if "step" not in file:
        return None
    config = json.loads(json.dumps(file.get("config"), default=str))
    return {"step": file["step"], "config": config}
