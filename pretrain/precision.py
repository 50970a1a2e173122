"""What a run computes with, chosen once, at the first start, and kept for the whole run."""

import copy
import json
import logging
import time

import torch
from torch import nn

from common import distributed
from common.files import write_json
from pretrain.attention import ATTENTIONS, choose_attention
from pretrain.config import QUEUE_METHODS
from pretrain.run import Run

log = logging.getLogger(__name__)

PROBE_IMAGES = 8


def choose(run: Run) -> None:
    """fp32 or bfloat16 autocast, and how queries are compared with a queue.

    What was decided is in FOLDER/precision.json, so that a resumed run computes what the
    interrupted one would have.
    """
    found = distributed.on_main(lambda: _recorded(run))
    run.precision = found["precision"]
    run.model.attention = ATTENTIONS[found["attention"]]


def _recorded(run: Run) -> dict[str, str]:
    record = run.folder / "precision.json"
    if not record.exists():
        found = decide(run)
        write_json(record, found)
        log.info("precision %(precision)s: %(why)s", found)
        log.info("attention %(attention)s: %(attention_why)s", found)
    return json.loads(record.read_text())


def decide(run: Run) -> dict[str, str]:
    """precision, attention, and why each."""
    config, model = run.config, run.config.model
    precision, why = config.optim.precision, "as configured"
    if precision == "auto":
        precision, why = _probe(run.model.query.backbone, config.data.image_size, run.device)
    attention, attention_why = "chunks", f"method = {config.method} has no queue"
    if config.method in QUEUE_METHODS:
        positions = (config.data.image_size // 32) ** 2
        rows = config.optim.batch_size // distributed.world_size() * positions
        attention, attention_why = choose_attention(
            run.device, precision == "bf16", rows, model.queue_length, model.embedding
        )
    return {
        "precision": precision,
        "why": why,
        "attention": attention,
        "attention_why": attention_why,
    }


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
