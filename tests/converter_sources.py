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


def moco(backbone):
    """A checkpoint of facebookresearch/moco v2; v1 differs in the head alone."""
    encoder = backbone | _under("fc.", _head(0, 2))
    state = _under("encoder_q.", encoder) | _under("encoder_k.", encoder)
    state |= {"queue": torch.ones(2, 8), "queue_ptr": torch.tensor([3])}
    state = _under("module.", state)
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}


def coincheung(backbone):
    """MoCo's layout with a second head."""
    file = moco(backbone)
    for side in ("encoder_q", "encoder_k"):
        file["state_dict"] |= _under(f"module.{side}.dense_head.", _head(0, 2))
    return file


def torchvision(backbone):
    """A bare dictionary, as torchvision and timm publish."""
    return backbone | {"fc.weight": torch.ones(5, 256), "fc.bias": torch.ones(5)}


def openselfsup_moco(backbone):
    """The backbone twice, as in DenseCL's official files, without the second head and queue."""
    file = official_raw(backbone)
    names = [n for n in file["state_dict"] if "mlp2" in n or n.startswith("queue2")]
    for name in names:
        del file["state_dict"][name]
    return file


def openmmlab(backbone):
    """mmpretrain's DenseCL: the key encoder is an averaged model that counts its steps."""
    neck = _under("mlp.", _head(0, 2)) | _under("mlp2.", _head(0, 2))
    state = _under("backbone.", backbone) | _under("neck.", neck)
    state |= _under("encoder_k.module.0.", backbone) | _under("encoder_k.module.1.", neck)
    state |= {"encoder_k.steps": torch.tensor(7)}
    for queue in ("queue", "queue2"):
        state |= {queue: torch.ones(2, 8), f"{queue}_ptr": torch.tensor([3])}
    return {"meta": {"epoch": 200}, "state_dict": state, "message_hub": {}}


SEQUENTIAL = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


def lightly(backbone):
    """examples/pytorch/densecl.py of lightly: children of the network, numbered."""
    numbered = {}
    for name, tensor in backbone.items():
        first, rest = name.split(".", 1)
        numbered[f"{SEQUENTIAL[first]}.{rest}"] = tensor
    head = _under("layers.", _head(0, 2))
    state = {}
    for suffix in ("", "_momentum"):
        state |= _under(f"backbone{suffix}.", numbered)
        state |= _under(f"projection_head_global{suffix}.", head)
        state |= _under(f"projection_head_local{suffix}.", head)
    return state


def lightly_train(backbone):
    """DenseCL of lightly-train as Lightning saves it; the network without its classifier."""
    state = {}
    for side in ("query_encoder", "key_encoder"):
        state |= _under(f"{side}.embedding_model.wrapped_model._features.", backbone)
        for head in ("local", "global"):
            state |= _under(f"{side}.{head}_projection_head.layers.", _head(0, 2))
    state |= {"memory_bank.bank": torch.ones(2, 8), "memory_bank.bank_ptr": torch.tensor([3])}
    state |= {"global_criterion.memory_bank.bank": torch.ones(2, 8)}
    return {"epoch": 9, "pytorch-lightning_version": "2.4.0", "state_dict": state}


def solo_learn(backbone, trunk="backbone"):
    """MoCo v2+ of solo-learn, as Lightning saves it."""
    state = _under(f"{trunk}.", backbone) | _under(f"momentum_{trunk}.", backbone)
    state |= {"classifier.weight": torch.ones(5, 256), "classifier.bias": torch.ones(5)}
    state |= _under("projector.", _head(0, 2)) | _under("momentum_projector.", _head(0, 2))
    state |= {"queue": torch.ones(2, 2, 8), "queue_ptr": torch.tensor([3])}
    return {"epoch": 400, "pytorch-lightning_version": "1.6.4", "state_dict": state}


def vissl(backbone):
    """The trunk alone; heads lie beside it."""
    trunk = _under("_feature_blocks.", backbone)
    model = {"trunk": trunk, "heads": _under("0.clf.", _head(0, 2))}
    return {"phase_idx": 99, "classy_state_dict": {"base_model": {"model": model, "meta": {}}}}


MAKERS = {
    "densecl-pipeline": ours,
    "densecl-official-raw": official_raw,
    "densecl-official-backbone": official_backbone,
    "moco": moco,
    "densecl-coincheung": coincheung,
    "torchvision": torchvision,
    "openselfsup-moco-raw": openselfsup_moco,
    "openmmlab-raw": openmmlab,
    "lightly": lightly,
    "lightly-train": lightly_train,
    "solo-learn": solo_learn,
    "solo-learn-encoder": functools.partial(solo_learn, trunk="encoder"),
    "vissl": vissl,
}

# Where each layout keeps its tensors, and what stands before torchvision's names.
CONTAINERS = {
    "densecl-pipeline": (("model",), "query.backbone."),
    "densecl-official-raw": (("state_dict",), "backbone."),
    "densecl-official-backbone": (("state_dict",), ""),
    "moco": (("state_dict",), "module.encoder_q."),
    "densecl-coincheung": (("state_dict",), "module.encoder_q."),
    "torchvision": ((), ""),
    "openselfsup-moco-raw": (("state_dict",), "backbone."),
    "openmmlab-raw": (("state_dict",), "backbone."),
    "lightly": ((), "backbone."),
    "lightly-train": (
        ("state_dict",),
        "query_encoder.embedding_model.wrapped_model._features.",
    ),
    "solo-learn": (("state_dict",), "backbone."),
    "solo-learn-encoder": (("state_dict",), "encoder."),
    "vissl": (("classy_state_dict", "base_model", "model", "trunk"), "_feature_blocks."),
}


def tensors_in(file, layout):
    """The dictionary of tensors inside a file of this layout, and the prefix of its trunk."""
    container, prefix = CONTAINERS[layout]
    return functools.reduce(lambda inner, key: inner[key], container, file), prefix


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
