"""Thin networks in each layout that the converter knows, and the converter as a command."""

import contextlib
import functools
import io
import sys
from unittest import mock

import torch

from common.errors import run_command
from common.resnet import ResNet
from converters.__main__ import main


def thin_backbone(depth=50, width=8):
    """A state dict in which no two tensors are equal: swaps of any two can be seen."""
    return {name: tensor.clone() for name, tensor in _thin_backbone(depth, width).items()}


@functools.cache
def _thin_backbone(depth, width):
    generator = torch.Generator().manual_seed(depth)
    state = ResNet(depth, width).state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(12)
        elif tensor.dim() == 4:
            fan_in = tensor[0].numel()
            tensor.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.1, generator=generator)
        else:
            tensor.uniform_(0.5, 1.5, generator=generator)
    return state


def _under(prefix, tensors):
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _head(first, second):
    sizes = {f"{first}.weight": (4, 4), f"{first}.bias": (4,)}
    sizes |= {f"{second}.weight": (2, 4), f"{second}.bias": (2,)}
    return {name: torch.ones(size) for name, size in sizes.items()}


def ours(backbone):
    """As pretrain/train.py saves it."""
    encoder = _under("backbone.", backbone)
    encoder |= _under("global_head.", _head(0, 2)) | _under("dense_head.", _head(0, 2))
    queue = {"rows": torch.ones(8, 2), "_extra_state": {"pointer": 1, "filled": 8}}
    model = _under("query.", encoder) | _under("key.", encoder)
    model |= _under("global_queue.", queue) | _under("dense_queue.", queue)
    state = {"format": "densecl-pipeline", "step": 7, "model": model}
    return {**state, "optimizer": {"state": {}}, "config": {"seed": 3}}


def official_raw(backbone):
    """An epoch_N.pth of the official code: the backbone twice, heads, key encoder, queues."""
    neck = _under("mlp.", _head(0, 2)) | _under("mlp2.", _head(0, 2))
    state = _under("backbone.", backbone)
    for side in ("encoder_q", "encoder_k"):
        state |= _under(f"{side}.0.", {name: tensor.clone() for name, tensor in backbone.items()})
        state |= _under(f"{side}.1.", neck)
    for queue in ("queue", "queue2"):
        state |= {queue: torch.ones(2, 8), f"{queue}_ptr": torch.tensor([3])}
    return {"meta": {"epoch": 200}, "state_dict": state, "optimizer": {"state": {}}}


def official_backbone(backbone):
    """What the official code's extraction leaves, and what it released."""
    return {"state_dict": dict(backbone), "author": "OpenSelfSup"}


MAKERS = {
    "densecl-pipeline": ours,
    "densecl-official-raw": official_raw,
    "densecl-official-backbone": official_backbone,
}

# Where each layout keeps its tensors, and what stands before torchvision's names.
CONTAINERS = {
    "densecl-pipeline": ("model", "query.backbone."),
    "densecl-official-raw": ("state_dict", "backbone."),
    "densecl-official-backbone": ("state_dict", ""),
}


def run_converter(*words):
    """Exit code and everything printed of `python -m converters WORDS`, in this process."""
    printed = io.StringIO()
    argv = ["converters", *map(str, words)]
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        try:
            run_command(main)
        except SystemExit as ended:
            return ended.code, printed.getvalue()
    return 0, printed.getvalue()
