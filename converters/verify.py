"""The proofs that a Detectron2 pickle is the network that its source was.

They read the written file and share nothing with the conversion: names and shapes are listed here
once more, and the network is evaluated here once more, from Detectron2's names. Two tensors that
the conversion exchanged fail the last two proofs. Two that were already exchanged in the source
do not: only a recorded hash or a second copy in the source shows those (source.py, layouts.py).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common.backbone_file import detectron2_name
from common.errors import UserError
from common.pickles import load_pickle
from common.resnet import STAGE_BLOCKS, ResNet
from converters.backbone import Backbone

# Bit-equal on one machine with one algorithm; another algorithm for a convolution may round.
_RELATIVE = 1e-6


def prove(pickle: Path, source: Backbone) -> list[str]:
    """What was proven about the pickle, one line each. Raises UserError at what does not hold."""
    weights = {name: torch.from_numpy(array) for name, array in _read(pickle).items()}
    return [
        _prove_names_and_shapes(weights, source.depth, source.width),
        _prove_values(weights, source.tensors),
        _prove_usable(weights),
        _prove_forward(weights, source),
    ]


def expected_shapes(depth: int, width: int) -> dict[str, tuple[int, ...]]:
    """Detectron2's names and shapes of a bottleneck ResNet's tensors."""
    shapes = _conv_shapes("stem.conv1", 3, width, 7)
    channels = width
    for stage, blocks in enumerate(STAGE_BLOCKS[depth]):
        inner, outer = width * 2**stage, 4 * width * 2**stage
        for block in range(blocks):
            name = f"res{stage + 2}.{block}"
            if block == 0:
                shapes |= _conv_shapes(f"{name}.shortcut", channels, outer, 1)
            shapes |= _conv_shapes(f"{name}.conv1", channels, inner, 1)
            shapes |= _conv_shapes(f"{name}.conv2", inner, inner, 3)
            shapes |= _conv_shapes(f"{name}.conv3", inner, outer, 1)
            channels = outer
    return shapes


def forward(weights: Mapping[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Images (B,3,H,W) → res5 (B,C,H/32,W/32) of a network in evaluation mode, its stride on the
    3×3 convolutions, straight from tensors under Detectron2's names."""
    x = F.relu(_conv_norm(weights, "stem.conv1", images, stride=2))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    for stage in range(2, 6):
        block = 0
        while f"res{stage}.{block}.conv1.weight" in weights:
            stride = 2 if stage > 2 and block == 0 else 1
            x = _bottleneck(weights, f"res{stage}.{block}", x, stride)
            block += 1
    return x


def probe_images() -> torch.Tensor:
    """The fixed input (2,3,64,96) of the forward proofs."""
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest absolute difference over the largest absolute value; infinite if not comparable."""
    if ours.shape != theirs.shape or not (ours.isfinite().all() and theirs.isfinite().all()):
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


def _conv_shapes(name: str, inner: int, outer: int, kernel: int) -> dict[str, tuple[int, ...]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    shapes: dict[str, tuple[int, ...]] = {f"{name}.norm.{part}": (outer,) for part in parts}
    return shapes | {f"{name}.weight": (outer, inner, kernel, kernel)}


def _conv_norm(
    weights: Mapping[str, torch.Tensor], name: str, x: torch.Tensor, stride: int = 1
) -> torch.Tensor:
    kernel = weights[f"{name}.weight"]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
    mean, var = weights[f"{name}.norm.running_mean"], weights[f"{name}.norm.running_var"]
    return F.batch_norm(x, mean, var, weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"])


def _bottleneck(
    weights: Mapping[str, torch.Tensor], name: str, x: torch.Tensor, stride: int
) -> torch.Tensor:
    shortcut = x
    if f"{name}.shortcut.weight" in weights:
        shortcut = _conv_norm(weights, f"{name}.shortcut", x, stride)
    x = F.relu(_conv_norm(weights, f"{name}.conv1", x))
    x = F.relu(_conv_norm(weights, f"{name}.conv2", x, stride))
    return F.relu(_conv_norm(weights, f"{name}.conv3", x) + shortcut)


def _read(pickle: Path) -> dict[str, np.ndarray]:
    file = load_pickle(pickle)
    # Detectron2 takes a pickle by Caffe2 for one of its own, and renames its tensors.
    if not file.get("matching_heuristics") or file.get("__author__") in (None, "Caffe2"):
        raise UserError("Detectron2 would not match the pickle's names by their endings")
    for name, array in file["model"].items():
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            raise UserError(f"{name}: not a float32 array")
    return file["model"]


def _prove_names_and_shapes(weights: Mapping[str, torch.Tensor], depth: int, width: int) -> str:
    expected = expected_shapes(depth, width)
    for name in sorted(weights.keys() ^ expected.keys()):
        raise UserError(f"{name}: {'missing' if name in expected else 'not expected'}")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise UserError(f"{name}: shape {tuple(weights[name].shape)}, expected {shape}")
    return f"names and shapes: the {len(expected)} tensors of ResNet-{depth} at width {width}"


def _prove_values(weights: Mapping[str, torch.Tensor], source: Mapping[str, torch.Tensor]) -> str:
    for name, tensor in source.items():
        # As integers, so that every bit counts and a NaN equals itself.
        if not torch.equal(
            weights[detectron2_name(name)].view(torch.int32), tensor.view(torch.int32)
        ):
            raise UserError(f"{detectron2_name(name)} differs from the source's {name}")
    values = sum(tensor.numel() for tensor in source.values())
    return f"values: {values} bit-equal to the source's"


def _prove_usable(weights: Mapping[str, torch.Tensor]) -> str:
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(f"{name}: holds a value that is not finite")
        if name.endswith("running_var") and (tensor < 0).any():
            raise UserError(f"{name}: a variance below zero")
    return "values: all finite, no variance below zero"


def _prove_forward(weights: Mapping[str, torch.Tensor], source: Backbone) -> str:
    network = ResNet(source.depth, source.width).eval()
    counters = {n: b for n, b in network.named_buffers() if n.endswith("num_batches_tracked")}
    network.load_state_dict(counters | source.tensors, strict=True)
    with torch.inference_mode():
        theirs = network(probe_images())
        ours = forward(weights, probe_images())
    difference = relative_difference(ours, theirs)
    if not difference <= _RELATIVE:
        raise UserError(f"res5 differs from the source's by {difference:.1e} (relative)")
    return f"forward: res5 {tuple(ours.shape)} differs from the source's by {difference:.1e}"
