"""BYOL's JAX checkpoint (deepmind-research:byol) → tensors under torchvision's names.

Its pickle holds dictionaries of NumPy arrays inside haiku's mapping and two named tuples. They are
read by plain stand-ins: nothing of haiku, jax or byol is imported or run. Names: haiku's
haiku/_src/nets/resnet.py (BlockV1) and batch_norm.py; kernels are HWIO there, OIHW here.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from common.errors import UserError


class ExperimentState(NamedTuple):
    """Stands in for byol_experiment._ByolExperimentState: its fields, in order."""

    online_params: Any
    target_params: Any
    online_state: Any
    target_state: Any
    opt_state: Any


class OptimizerState(tuple[Any, ...]):
    """Stands in for a named tuple that is not needed here."""

    def __new__(cls, *values: Any) -> "OptimizerState":
        return super().__new__(cls, values)


STAND_INS: Mapping[tuple[str, str], Any] = {
    ("haiku._src.data_structures", "FlatMapping"): dict,
    ("haiku._src.data_structures", "frozendict"): dict,
    ("byol.byol_experiment", "_ByolExperimentState"): ExperimentState,
    ("byol.utils.optimizers", "LarsState"): OptimizerState,
}

_VALUES = {"w": "weight", "scale": "weight", "offset": "bias"}
_LAYERS = {"conv": "conv", "batchnorm": "bn"}
_AVERAGES = {"mean_ema": "running_mean", "var_ema": "running_var"}


def torch_names(state: ExperimentState) -> dict[str, torch.Tensor]:
    """The online network: its trunk by torchvision's names, its other modules by their own.

    Raises UserError when the state is not of modules that hold arrays by name.
    """
    tensors: dict[str, torch.Tensor] = {}
    try:
        for module, values in state.online_params.items():
            for value, array in values.items():
                _put(tensors, f"{_name(module)}.{_VALUES.get(value, value)}", array)
        for module, values in state.online_state.items():
            norm, _, average = module.rpartition("/~/")
            if average in _AVERAGES:
                _put(tensors, f"{_name(norm)}.{_AVERAGES[average]}", values["average"])
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"not a haiku network: {type(error).__name__}: {error}") from None
    return tensors


def _put(tensors: dict[str, torch.Tensor], name: str, array: Any) -> None:
    """Kernels (H,W,I,O) → (O,I,H,W); what batch norm keeps as (1,1,1,C) → (C,)."""
    if name in tensors:
        raise UserError(f"{name} is in the file twice")
    array = np.asarray(array)
    kernel = array.ndim == 4 and not re.search(r"bn\d\.|downsample\.1\.", name)
    array = array.transpose(3, 2, 0, 1) if kernel else array.reshape(-1)
    tensors[name] = torch.from_numpy(np.array(array, order="C"))


def _name(module: str) -> str:
    """res_net50/~/block_group_0/~/block_1/~/conv_2 → layer1.1.conv3."""
    stem = {"initial_conv": "conv1", "initial_batchnorm": "bn1"}
    parts = module.split("/~/")
    if len(parts) == 2 and parts[1] in stem:
        return stem[parts[1]]
    found = re.fullmatch(r"[^/]+/~/block_group_(\d)/~/block_(\d+)/~/([a-z]+)_(\w+)", module)
    if found is None:
        return module
    group, index, kind, which = found.groups()
    if kind == "shortcut" and which in ("conv", "batchnorm"):
        return f"layer{int(group) + 1}.{index}.downsample.{'0' if which == 'conv' else '1'}"
    if kind not in _LAYERS or not which.isdecimal():
        return module
    return f"layer{int(group) + 1}.{index}.{_LAYERS[kind]}{int(which) + 1}"
