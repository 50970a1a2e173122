"""What a run computes with, chosen once, at the first start, and kept for the whole run."""

import copy
import json
import logging
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from common import distributed
from common.files import write_json
from pretrain.attention import ATTENTIONS
from pretrain.config import QUEUE_METHODS
from pretrain.run import Run

log = logging.getLogger(__name__)

PROBE_IMAGES = 8
_TOLERANCE = 2e-3  # of half precision; float32 kernels agree to 1e-6


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
    seconds = {name: _step_seconds(trunk, image_size, name == "bf16") for name in ("fp32", "bf16")}
    why = f"a step of {PROBE_IMAGES} images took {seconds['fp32']:.3f} s in fp32"
    return min(seconds, key=seconds.__getitem__), f"{why}, {seconds['bf16']:.3f} s in bf16"


def _step_seconds(trunk: nn.Module, image_size: int, bf16: bool) -> float:
    """Of a forward and backward pass of the trunk, on a copy on the CPU."""
    trunk = copy.deepcopy(trunk)
    images = torch.zeros(PROBE_IMAGES, 3, image_size, image_size)
    images = images.contiguous(memory_format=torch.channels_last)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            feature = trunk(images)
        feature.sum().backward()

    return shortest(step, torch.device("cpu"))


def choose_attention(
    device: torch.device, half: bool, rows: int, keys: int, width: int
) -> tuple[str, str]:
    """'flash' on a GPU where it is there, agrees with 'chunks' and is faster; and why.

    half: whether the run computes in half precision anyway, as flash does on a GPU.
    """
    if device.type == "cpu":
        return "chunks", "on a CPU both take what their matrix products take"
    if not half:
        return "chunks", "float32 was asked for, and a GPU's flash attention has none"
    return compare(device, rows, keys, width)


@torch.no_grad()
def compare(device: torch.device, rows: int, keys: int, width: int) -> tuple[str, str]:
    """The faster of the two at this size, if they agree; and why."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, width), (keys, width))
    given = [F.normalize(torch.randn(s, generator=generator)).to(device) for s in shapes]
    try:
        found = {name: attend(given[0], given[1], 5.0) for name, attend in ATTENTIONS.items()}
    except (RuntimeError, AttributeError, TypeError) as error:
        return "chunks", f"flash attention does not work here: {str(error).splitlines()[0]}"
    apart = max((a - b).abs().max().item() for a, b in zip(found["chunks"], found["flash"]))
    if not apart < _TOLERANCE:
        return "chunks", f"flash attention differs from chunks by {apart:.1g}"
    seconds = {
        name: shortest(partial(attend, given[0], given[1], 5.0), device)
        for name, attend in ATTENTIONS.items()
    }
    times = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in seconds.items())
    return min(seconds, key=seconds.__getitem__), f"{times}; they differ by {apart:.1g}"


def shortest(action: Callable[[], object], device: torch.device, times: int = 3) -> float:
    """Seconds of the shortest of several calls."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found)
