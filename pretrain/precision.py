"""fp32 or bfloat16 autocast: chosen once, at the first start, and kept for the whole run."""

import copy
import json
import logging
import time
from pathlib import Path

import torch
from torch import nn

from common.files import write_json

log = logging.getLogger(__name__)

PROBE_IMAGES = 8


def choose_precision(
    setting: str, folder: Path, trunk: nn.Module, image_size: int, device: torch.device
) -> str:
    """'fp32' or 'bf16'. What `auto` decided is in FOLDER/precision.json, so that a resumed run
    computes what the interrupted one would have."""
    record = folder / "precision.json"
    if record.exists():
        return json.loads(record.read_text())["precision"]
    precision, why = (setting, "as configured")
    if setting == "auto":
        precision, why = _probe(trunk, image_size, device)
    write_json(record, {"precision": precision, "why": why})
    log.info("precision %s: %s", precision, why)
    return precision


def _probe(trunk: nn.Module, image_size: int, device: torch.device) -> tuple[str, str]:
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return "bf16", "the GPU has bfloat16 matrix units"
        return "fp32", "the GPU has no bfloat16 matrix units"
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "fp32", "the CPU has no bfloat16 instructions"
    seconds = {name: _seconds(trunk, image_size, name == "bf16") for name in ("fp32", "bf16")}
    why = f"a step of {PROBE_IMAGES} images took {seconds['fp32']:.3f} s in fp32"
    return min(seconds, key=seconds.__getitem__), f"{why}, {seconds['bf16']:.3f} s in bf16"


def _seconds(trunk: nn.Module, image_size: int, bf16: bool) -> float:
    """Shortest of three forward and backward passes of the trunk, on a copy."""
    trunk = copy.deepcopy(trunk)
    images = torch.zeros(PROBE_IMAGES, 3, image_size, image_size)
    images = images.contiguous(memory_format=torch.channels_last)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            feature = trunk(images)
        feature.sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)
