"""A loaded checkpoint → the tensors of its backbone, complete and under torchvision's names."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from common.errors import UserError, did_you_mean
from common.resnet import STAGE_BLOCKS, trunk_shapes
from converters.detect import group_of, tensors_of
from converters.layouts import Layout

_COUNTERS = "num_batches_tracked"
_LOSSLESS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Backbone:
    """A ResNet trunk: float32 tensors by torchvision's names, and how many others were dropped."""

    tensors: dict[str, torch.Tensor]
    depth: int
    width: int
    dropped: dict[str, int]


def extract(file: Mapping[str, Any], layout: Layout) -> Backbone:
    """The backbone of a checkpoint of this layout: every tensor of its depth, and no other.

    Raises UserError naming the first tensor that is missing, unknown, of a wrong shape or type,
    or that differs from its copy in the file.
    """
    trunk: dict[str, Any] = {}
    copies: dict[str, dict[str, Any]] = {prefix: {} for prefix in layout.copies}
    dropped: Counter[str] = Counter()
    for name, value in tensors_of(layout, file).items():
        group = group_of(layout, name)
        copy = next((prefix for prefix in copies if name.startswith(prefix)), None)
        if group is not None:
            dropped[group] += 1
        elif copy is not None:
            copies[copy][name.removeprefix(copy)] = value
            dropped[f"copy under {copy}"] += 1
        elif name.startswith(layout.prefix):
            own = layout.rename(name.removeprefix(layout.prefix))
            if own in trunk:
                raise UserError(f"{name}: {own} is in the file twice")
            trunk[own] = value
        else:
            raise UserError(f"{name}: a tensor that layout {layout.name} does not know")
    depth, width = _check_network(trunk, layout.prefix)
    for prefix, copied in copies.items():
        _check_copy(trunk, copied, layout.prefix, prefix)
    kept = {name: value.float() for name, value in trunk.items() if not name.endswith(_COUNTERS)}
    dropped[_COUNTERS] = len(trunk) - len(kept)
    return Backbone(kept, depth, width, dict(sorted(dropped.items())))


def _check_network(trunk: Mapping[str, Any], prefix: str) -> tuple[int, int]:
    """Depth and width of the network that these tensors are, exactly."""
    if not trunk:
        raise UserError(f"no backbone in the file: no tensor's name begins with {prefix!r}")
    for name, value in trunk.items():
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            raise UserError(f"{prefix}{name}: expected a dense tensor")
        if value.dtype not in _LOSSLESS and not name.endswith(_COUNTERS):
            raise UserError(f"{prefix}{name}: {value.dtype} does not fit into float32")
    _check_stem_and_shortcuts(trunk, prefix)
    depth = min(STAGE_BLOCKS, key=lambda depth: len(trunk.keys() ^ trunk_shapes(depth, 1).keys()))
    _check_names(trunk, trunk_shapes(depth, 1), prefix, depth)
    width = _most_common_width(trunk, trunk_shapes(depth, 1))
    for name, shape in trunk_shapes(depth, width).items():
        if name in trunk and tuple(trunk[name].shape) != shape:
            raise UserError(
                f"{prefix}{name}: shape {tuple(trunk[name].shape)}, "
                f"expected {shape} for ResNet-{depth} at width {width}"
            )
    return depth, width


def _check_stem_and_shortcuts(trunk: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Refuse, with the reason, relatives of ResNet that no renaming makes into one."""
    for name, value in trunk.items():
        if re.match(r"conv1\.\d|stem\.", name):
            raise UserError(
                f"{prefix}{name}: a deep stem (ResNet-C, -D, -S); only the 7x7 converts"
            )
        if name == "conv1.weight" and value.dim() == 4 and value.shape[-1] == 3:
            raise UserError(f"{prefix}{name}: a 3x3 stem, as for CIFAR; only the 7x7 converts")
        if ".downsample.2." in name or (name.endswith(".downsample.1.weight") and value.dim() == 4):
            raise UserError(
                f"{prefix}{name}: shortcuts that average-pool (ResNet-D) do not convert"
            )


def _check_names(found: Iterable[str], expected: Iterable[str], prefix: str, depth: int) -> None:
    counters = {name for name in expected if name.endswith(_COUNTERS)}
    unknown = sorted(set(found) - set(expected))
    missing = sorted(set(expected) - set(found) - counters)
    if unknown:
        hint = did_you_mean(unknown[0], missing)
        raise UserError(
            f"{prefix}{unknown[0]}: not a tensor of ResNet-{depth}{hint}; "
            f"{len(unknown)} unknown and {len(missing)} missing in all"
        )
    if missing:
        raise UserError(
            f"{prefix}{missing[0]} is missing ({len(missing)} of ResNet-{depth} in all)"
        )


def _most_common_width(trunk: Mapping[str, Any], unit: Mapping[str, tuple[int, ...]]) -> int:
    """The width that most tensors' first dimension speaks for, so that one bad shape is named."""
    votes = Counter(
        trunk[name].shape[0] // shape[0]
        for name, shape in unit.items()
        if shape and name in trunk and trunk[name].dim() > 0
    )
    return max([1, *(width for width, _ in votes.most_common(1))])


def _check_copy(
    trunk: Mapping[str, Any], copy: Mapping[str, Any], prefix: str, copy_prefix: str
) -> None:
    for name in sorted(trunk.keys() ^ copy.keys()):
        here, there = (prefix, copy_prefix) if name in trunk else (copy_prefix, prefix)
        raise UserError(f"{here}{name} has no copy under {there}")
    for name, value in trunk.items():
        if not torch.equal(value, copy[name]):
            raise UserError(f"{prefix}{name} differs from its copy {copy_prefix}{name}")
