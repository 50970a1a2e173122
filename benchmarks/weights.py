"""The pre-trained backbone: read without running anything, loaded, and proven to be loaded.

A fine-tuning run whose backbone was loaded in part, or not at all, looks healthy and ends some
ten AP low. So each tensor of the trunk must come from the pickle and be found in the model bit by
bit, or the run does not start. Both engines use this; the model's names are Detectron2's.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common.errors import UserError
from common.files import sha256_of
from common.pickles import load_pickle

log = logging.getLogger(__name__)

# A model's trunk, wherever it lives; the norm after res5 belongs to the head.
_TRUNK = re.compile(r"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)((?:stem|res\d)\.(?!norm\.).*)")
# Counters mean nothing here, and converters of others leave the classifier in.
_IGNORED = re.compile(r".*\.num_batches_tracked|(?:stem\.)?fc\..*")
_DEPTHS = {(4, 6): 50, (4, 23): 101, (8, 36): 152}  # blocks of res3 and res4


@dataclass(frozen=True)
class Backbone:
    """A pickle's trunk."""

    path: Path
    sha256: str
    tensors: dict[str, np.ndarray]
    """stem.conv1.weight, stem.conv1.norm.weight, ..., res5.2.conv3.norm.running_var."""


def read_backbone(path: Path, config: Any) -> Backbone:
    """The backbone in a Detectron2 pickle, checked against its manifest and the configuration.

    Raises UserError when the file is missing, damaged, executable, without a backbone, not the
    one its manifest describes, or for another network or input than `config` says.
    """
    content = load_pickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise UserError(f'{path}: not a Detectron2 weights file: it has no "model" dictionary')
    everything = content["model"]
    if not all(isinstance(value, np.ndarray) for value in everything.values()):
        raise UserError(f"{path}: not a Detectron2 weights file: it holds more than arrays")
    tensors = {name: v for name, v in everything.items() if not _IGNORED.fullmatch(name)}
    if "stem.conv1.weight" not in tensors:
        raise UserError(f"{path}: holds no stem.conv1.weight: convert it with python -m converters")
    backbone = Backbone(Path(path), sha256_of(path), tensors)
    _check_size(backbone, config.MODEL.RESNETS)
    _check_manifest(backbone, config)
    return backbone


def load_backbone(model: nn.Module, backbone: Backbone) -> None:
    """Copy the backbone into `model` and prove it.

    Raises UserError, with nothing copied, unless both hold exactly the same names and shapes.
    """
    wanted = _trunk(model)
    _refuse(backbone, "missing in the file", [n for n in wanted if n not in backbone.tensors])
    _refuse(backbone, "unknown to the model", [n for n in backbone.tensors if n not in wanted])
    for name, target in wanted.items():
        array = backbone.tensors[name]
        if array.shape != tuple(target.shape) or array.dtype != np.float32:
            raise UserError(
                f"{backbone.path}: {name} is {array.dtype} {list(array.shape)}, "
                f"the model wants float32 {list(target.shape)}"
            )
        if not np.isfinite(array).all():
            raise UserError(f"{backbone.path}: {name} holds values that are not finite")
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(torch.from_numpy(backbone.tensors[name]))
    count = prove_loaded(model, backbone)
    log.info("%s: all %d backbone tensors loaded, bit-equal", backbone.path, count)


def prove_loaded(model: nn.Module, backbone: Backbone) -> int:
    """Count the trunk's tensors, each bit-equal to the pickle's; UserError if one is not."""
    trunk = _trunk(model)
    different = [
        name
        for name, value in trunk.items()
        if name not in backbone.tensors
        or not torch.equal(value.cpu(), torch.from_numpy(backbone.tensors[name]))
    ]
    _refuse(backbone, "different in the model", different)
    return len(trunk)


def _trunk(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's backbone tensors (sharing its memory) under the pickle's names."""
    found = {}
    for name, value in model.state_dict().items():
        match = _TRUNK.fullmatch(name)
        if match and not _IGNORED.fullmatch(name):
            found[match[1]] = value
    return found


def _refuse(backbone: Backbone, what: str, names: list[str]) -> None:
    if names:
        examples = ", ".join(sorted(names)[:3])
        raise UserError(
            f"{backbone.path}: {len(names)} backbone tensors are {what}, the first: {examples}"
        )


def _check_size(backbone: Backbone, resnets: Any) -> None:
    """The depth and width that can be seen from the names and shapes."""
    blocks = [
        len({name.split(".")[1] for name in backbone.tensors if name.startswith(f"{stage}.")})
        for stage in ("res3", "res4")
    ]
    depth = _DEPTHS.get((blocks[0], blocks[1]), resnets.DEPTH)
    width = backbone.tensors["stem.conv1.weight"].shape[0]
    for what, key, found, wanted in (
        ("depth", "MODEL.RESNETS.DEPTH", depth, resnets.DEPTH),
        ("stem width", "MODEL.RESNETS.STEM_OUT_CHANNELS", width, resnets.STEM_OUT_CHANNELS),
    ):
        if found != wanted:
            raise UserError(
                f"{backbone.path}: weights are for {what} {found}, the config says {wanted} ({key})"
            )


def _check_manifest(backbone: Backbone, config: Any) -> None:
    """FILE.json beside FILE.pkl, as the converter writes it."""
    path = backbone.path.with_suffix(".json")
    if not path.exists():
        log.warning(
            "%s has no manifest %s: its origin and its input format are unknown",
            backbone.path,
            path.name,
        )
        return
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        recorded, image, count = (manifest[k] for k in ("pickle_sha256", "input", "tensors"))
        expected = [image["format"], image["pixel_mean"], image["pixel_std"]]
        stride_in_1x1 = manifest.get("stride_in_1x1", False)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a converter's manifest ({error!r})") from None
    if recorded != backbone.sha256:
        raise UserError(f"{backbone.path}: not the file that {path.name} describes (SHA-256)")
    if count != len(backbone.tensors):
        raise UserError(f"{backbone.path}: {len(backbone.tensors)} tensors, {path.name}: {count}")
    model = config.MODEL
    settings = {
        "INPUT.FORMAT": (config.INPUT.FORMAT, expected[0]),
        "MODEL.PIXEL_MEAN": (list(model.PIXEL_MEAN), expected[1]),
        "MODEL.PIXEL_STD": (list(model.PIXEL_STD), expected[2]),
        "MODEL.RESNETS.STRIDE_IN_1X1": (model.RESNETS.STRIDE_IN_1X1, stride_in_1x1),
    }
    for key, (ours, theirs) in settings.items():
        if ours != theirs:
            raise UserError(f"{backbone.path}: pre-trained with {key} {theirs}, the config: {ours}")
