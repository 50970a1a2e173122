"""A converted pickle's trunk under torchvision's names: for those who do not fine-tune it.

Names: layer1.0.bn2.weight ↔ res2.0.conv2.norm.weight. Source: Detectron2's
tools/convert-torchvision-to-d2.py, of which this is the part that concerns the trunk.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from common.errors import UserError
from common.pickles import load_pickle
from common.resnet import STAGE_BLOCKS, trunk_shapes

_TO_DETECTRON2 = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    *((rf"^layer{stage}\.", f"res{stage + 1}.") for stage in range(1, 5)),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
_TO_TORCHVISION = (
    (r"^stem\.conv1\.norm\.", "bn1."),
    (r"^stem\.conv1\.", "conv1."),
    *((rf"^res{stage + 1}\.", f"layer{stage}.") for stage in range(1, 5)),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
)


def detectron2_name(name: str) -> str:
    """Detectron2's name of the tensor that torchvision calls `name`."""
    return _renamed(name, _TO_DETECTRON2)


def torchvision_name(name: str) -> str:
    """torchvision's name of the tensor that Detectron2 calls `name`."""
    return _renamed(name, _TO_TORCHVISION)


def load_backbone_file(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickle that `python -m converters` wrote, under torchvision's names.

    Raises UserError when the file is missing, damaged, executable, or not such a pickle.
    """
    content = load_pickle(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or "stem.conv1.weight" not in model:
        raise UserError(f"{path}: not a converted backbone: write it with python -m converters")
    if not all(isinstance(value, np.ndarray) for value in model.values()):
        raise UserError(f"{path}: holds more than arrays")
    return {torchvision_name(name): torch.from_numpy(value) for name, value in model.items()}


def size_of(tensors: Mapping[str, torch.Tensor], path: Path) -> tuple[int, int]:
    """Depth and width of the trunk that `tensors`, of `path`, are all tensors of, counters apart.

    Raises UserError when they are of no known trunk.
    """
    width = len(tensors["conv1.weight"])
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    for depth in STAGE_BLOCKS:
        known = trunk_shapes(depth, width).items()
        if shapes == {name: shape for name, shape in known if "num_batches" not in name}:
            return depth, width
    raise UserError(f"{path}: {len(tensors)} tensors that are not those of a known ResNet")


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
