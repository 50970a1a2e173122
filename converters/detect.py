"""Which layout a loaded checkpoint has, and where its tensors lie."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from common.errors import UserError, did_you_mean
from converters.layouts import LAYOUTS, STATE_DICT, Layout

AUTO = "auto"


def find_layout(file: Mapping[str, Any], wanted: str = AUTO) -> Layout:
    """The layout called `wanted`, or the one that the file's content shows.

    Raises UserError when the name is unknown, or none or several are recognised.
    """
    by_name = {layout.name: layout for layout in LAYOUTS}
    if wanted != AUTO:
        if wanted not in by_name:
            raise UserError(f"unknown layout {wanted}{did_you_mean(wanted, by_name)}")
        return by_name[wanted]
    found = [layout for layout in LAYOUTS if _is_of(layout, file)]
    if len(found) != 1:
        fit = " and ".join(layout.name for layout in found)
        what = f"{fit} both fit" if found else "no known layout"
        raise UserError(
            f"{what}: the file holds {_outline(file)}; "
            f"known: {', '.join(by_name)} (choose one with --layout)"
        )
    return found[0]


def tensors_of(layout: Layout, file: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the layout's container holds, by name, without DistributedDataParallel's `module.`.

    Raises UserError when it is not there.
    """
    inner: Any = file
    if layout.container != STATE_DICT or not _is_state_dict(file):
        for key in layout.container:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not all(isinstance(name, str) for name in inner):
        raise UserError(f"not of layout {layout.name}: no tensors by name in {layout.container}")
    if inner and all(name.startswith("module.") for name in inner):
        return {name.removeprefix("module."): value for name, value in inner.items()}
    return inner


def _is_state_dict(file: Mapping[str, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in file.values())


def group_of(layout: Layout, name: str) -> str | None:
    """The group under which a tensor that is not the backbone's is dropped; None: unknown."""
    fits = (group for group, pattern in layout.drop.items() if re.fullmatch(pattern, name))
    return next(fits, None)


def _is_of(layout: Layout, file: Mapping[str, Any]) -> bool:
    try:
        return layout.recognise(file, tensors_of(layout, file))
    except UserError:
        return False


def _outline(file: Mapping[str, Any], shown: int = 6) -> str:
    inner = next((v for v in file.values() if isinstance(v, Mapping) and v), {})
    starts = dict.fromkeys(str(name).split(".")[0] for name in inner)
    words = [", ".join(list(map(str, names))[:shown]) or "nothing" for names in (file, starts)]
    return f"{words[0]} (names begin with {words[1]})"
