"""Backbones for other programs: OUTPUT holds torchvision's names, which they share.

torchvision   .pth           a bare state dict, for torchvision and timm alike
openmmlab     .pth           state_dict and meta, for MMDetection, MMSegmentation and mmpretrain
safetensors   .safetensors   the same tensors in a file that cannot run anything
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from common.errors import UserError
from common.files import replacing, sha256_of, write_json
from converters.convert import manifest_beside, read
from converters.detect import AUTO
from converters.source import find_source, load_file

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Target:
    """A kind of file: its ending, how it is written, where it keeps the tensors, how it is used."""

    suffix: str
    write: Callable[[Tensors, Path], None]
    tensors: Callable[[dict[str, Any]], Tensors]
    use: str


def _write_bare(tensors: Tensors, path: Path) -> None:
    torch.save(dict(tensors), path)


def _write_openmmlab(tensors: Tensors, path: Path) -> None:
    torch.save({"meta": {}, "state_dict": dict(tensors)}, path)


def _write_safetensors(tensors: Tensors, path: Path) -> None:
    safetensors.torch.save_file(dict(tensors), path, metadata={"format": "pt"})


TARGETS = {
    "torchvision": Target(
        ".pth",
        _write_bare,
        lambda file: file,
        "model = torchvision.models.resnet{depth}(); model.fc = torch.nn.Identity(); "
        "model.load_state_dict(torch.load(FILE))   or   "
        "timm.create_model('resnet{depth}', num_classes=0).load_state_dict(torch.load(FILE))",
    ),
    "openmmlab": Target(
        ".pth",
        _write_openmmlab,
        lambda file: file["state_dict"],
        "backbone=dict(type='ResNet', depth={depth}, style='pytorch', "
        "init_cfg=dict(type='Pretrained', checkpoint=FILE))",
    ),
    "safetensors": Target(
        ".safetensors",
        _write_safetensors,
        lambda file: file,
        "model.load_state_dict(safetensors.torch.load_file(FILE))",
    ),
}


def export(source: Path, output: Path, target_name: str, layout_name: str = AUTO) -> dict[str, Any]:
    """Write `output` and its manifest from `source`; the manifest is returned.

    Raises UserError, and writes nothing, when the source is not exactly one known network, or when
    what was written is not bit-equal to it.
    """
    target = TARGETS[target_name]
    found = find_source(source)
    manifest_path = manifest_beside(output, found.path, target.suffix)
    extracted = read(found, layout_name)
    backbone, facts = extracted.backbone, dict(extracted.facts)
    with replacing(manifest_path) as manifest, replacing(output) as temporary:
        tensors = {name: tensor.contiguous() for name, tensor in backbone.tensors.items()}
        target.write(tensors, temporary)
        _prove(target.tensors(load_file(temporary)), backbone.tensors, output)
        facts["verified"] = [f"values: all {len(tensors)} tensors bit-equal to the source's"]
        facts["use"] = target.use.format(depth=backbone.depth)
        facts["file_sha256"] = sha256_of(temporary)
        write_json(manifest, facts)
    return facts


def _prove(written: Tensors, source: Tensors, output: Path) -> None:
    if written.keys() != source.keys():
        raise UserError(f"{output}: not written: other tensors than the source's were read back")
    for name, tensor in source.items():
        if not torch.equal(written[name], tensor):
            raise UserError(f"{output}: not written: {name} was read back differently")
