"""The known checkpoint layouts, one entry each; a new one is one more entry.

A layout is recognised from what the file holds, never from the file's name. What is not the
backbone is dropped by name: a name that no rule knows is an error, because it may be a part of
the backbone that some other program named differently.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from common.errors import UserError, did_you_mean

AUTO = "auto"


@dataclass(frozen=True)
class ImageInput:
    """What the network expects of an image in 0..255: channel order, mean and scale."""

    format: str
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]

    def to_plain(self) -> dict[str, Any]:
        """For the manifest."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}


IMAGENET_RGB = ImageInput("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint of one kind keeps its backbone, and what else it may hold."""

    name: str
    # The keys to walk from the file's top to the tensors.
    container: tuple[str, ...]
    # Whether a file with these top-level items and these tensor names is of this kind.
    recognise: Callable[[Mapping[str, Any], Iterable[str]], bool]
    # In front of torchvision's names.
    prefix: str
    # Group → pattern of whole names.
    drop: Mapping[str, str]
    # Prefixes under which the backbone is stored once more, bit for bit.
    copies: tuple[str, ...] = ()
    image_input: ImageInput = IMAGENET_RGB


def _any_start(names: Iterable[str], *prefixes: str) -> bool:
    return all(any(name.startswith(prefix) for name in names) for prefix in prefixes)


LAYOUTS = (
    Layout(
        name="densecl-pipeline",  # written by this project's pre-training
        container=("model",),
        recognise=lambda file, names: file.get("format") == "densecl-pipeline",
        prefix="query.backbone.",
        drop={
            "heads": r"query\.(global_head|dense_head)\..+",
            "key encoder": r"key\.(backbone|global_head|dense_head)\..+",
            "queues": r"(global_queue|dense_queue)(\..+)?",
        },
    ),
    Layout(
        name="densecl-official-raw",  # epoch_N.pth as the official DenseCL code saves it
        container=("state_dict",),
        recognise=lambda file, names: _any_start(names, "encoder_q.", "queue2"),
        prefix="backbone.",
        copies=("encoder_q.0.",),
        drop={
            "heads": r"encoder_q\.1\..+",
            "key encoder": r"encoder_k\.[01]\..+",
            "queues": r"queue2?(_ptr)?",
        },
    ),
    Layout(
        name="densecl-official-backbone",  # as released, or extracted from a raw file
        container=("state_dict",),
        recognise=lambda file, names: "author" in file and _any_start(names, "layer1.", "layer4."),
        prefix="",
        drop={},
    ),
)


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
        what = "no known layout" if not found else f"{len(found)} layouts fit"
        raise UserError(
            f"{what}: the file holds {_outline(file)}; "
            f"known: {', '.join(by_name)} (choose one with --layout)"
        )
    return found[0]


def tensors_of(layout: Layout, file: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the layout's container holds, by name. Raises UserError when it is not there."""
    inner: Any = file
    for key in layout.container:
        inner = inner.get(key) if isinstance(inner, Mapping) else None
    if not isinstance(inner, Mapping) or not all(isinstance(name, str) for name in inner):
        raise UserError(f"not of layout {layout.name}: no tensors by name in {layout.container}")
    return inner


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
