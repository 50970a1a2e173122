"""What a run needs to be explained later: versions, machine, commit and command."""

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from common.code import source_commit

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "detectron2", "fvcore", "pycocotools")


def describe_environment() -> dict[str, Any]:
    """Plain types for env.json. Nothing here influences a result."""
    return {
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": source_commit(),
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _cpu() -> str:
    """Its name, and which of bfloat16's instructions it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    (name,) = {line.partition(": ")[2] for line in lines if line.startswith("model name")} or {""}
    has = {
        "AVX-512 BF16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    return ", ".join([name, *(unit for unit, there in has.items() if there)])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
