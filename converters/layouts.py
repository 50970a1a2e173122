"""The known checkpoint layouts, one entry each; a new one is one more entry.

A layout is recognised from what the file holds, never from the file's name. What is not the
backbone is dropped by name: a name that no rule knows is an error, because it may be a part of
the backbone that some other program named differently.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


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
UNIT_RGB = ImageInput("RGB", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))

STATE_DICT = ("state_dict",)


@dataclass(frozen=True)
class Layout:
    """Where a checkpoint of one kind keeps its backbone, and what else it may hold."""

    name: str
    # The keys to walk from the file's top to the tensors. For STATE_DICT these may also lie at the
    # top: a model's state_dict() saved by itself.
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
    # What follows the prefix → torchvision's name.
    rename: Callable[[str], str] = str
    # How the converted network still differs from the source's, for the manifest.
    difference: str | None = None


def _any_start(names: Iterable[str], *prefixes: str) -> bool:
    return all(any(name.startswith(prefix) for name in names) for prefix in prefixes)


def _is_lightning(file: Mapping[str, Any]) -> bool:
    return "pytorch-lightning_version" in file


def _from_sequential(name: str) -> str:
    """nn.Sequential(*resnet.children()) numbers what torchvision names: 4.0.… → layer1.0.…"""
    index, _, rest = name.partition(".")
    named = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    return f"{named.get(index, index)}.{rest}"


_LIGHTLY_TRAIN = "query_encoder.embedding_model.wrapped_model._features."

_SOLO_LEARN_DROP = {
    "heads": r"(momentum_)?(classifier|projector|predictor)\..+|prototypes\..+",
    "key encoder": r"momentum_(backbone|encoder)\..+",
    "queues": r"queue\w*",
}

LAYOUTS = (
    Layout(
        name="densecl-pipeline",  # written by this project's pre-training
        container=("model",),
        recognise=lambda file, names: file.get("format") == "densecl-pipeline",
        prefix="query.backbone.",
        drop={
            "heads": r"query\.(global_head|dense_head|pyramid|predictor|classifier)\..+",
            "key encoder": r"key\.(backbone|global_head|dense_head|pyramid)\..+",
            "queues": r"(global_queue|dense_queue)(\..+)?",
        },
    ),
    Layout(
        name="densecl-official-raw",  # epoch_N.pth as the official DenseCL code saves it
        container=STATE_DICT,
        recognise=lambda file, names: _any_start(names, "encoder_q.0.", "queue2"),
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
        container=STATE_DICT,
        recognise=lambda file, names: "author" in file and _any_start(names, "layer1.", "layer4."),
        prefix="",
        drop={},
    ),
    Layout(
        name="moco",  # facebookresearch/moco v1 and v2, and forks that strip module.
        container=STATE_DICT,
        recognise=lambda file, names: (
            _any_start(names, "encoder_q.layer1.")
            and not _any_start(names, "encoder_q.dense_head.")
        ),
        prefix="encoder_q.",
        drop={
            "heads": r"encoder_q\.fc\..+",
            "key encoder": r"encoder_k\..+",
            "queues": r"queue(_ptr)?",
        },
    ),
    Layout(
        name="densecl-coincheung",  # CoinCheung/DenseCL, built on MoCo's code
        container=STATE_DICT,
        recognise=lambda file, names: _any_start(
            names, "encoder_q.layer1.", "encoder_q.dense_head."
        ),
        prefix="encoder_q.",
        drop={
            "heads": r"encoder_q\.(fc|dense_head)\..+",
            "key encoder": r"encoder_k\..+",
            "queues": r"queue\w*",
        },
    ),
    Layout(
        # torchvision's and timm's supervised ResNets, what OpenSelfSup and mmselfsup 0.x released,
        # and what most exporters write: the same tensors under the same names.
        name="torchvision",
        container=STATE_DICT,
        recognise=lambda file, names: (
            "author" not in file and _any_start(names, "layer1.", "layer4.")
        ),
        prefix="",
        drop={"heads": r"fc\.(weight|bias)"},
    ),
    Layout(
        # tonylins/simclr-converter. Nothing in the file tells it from a classifier of torchvision's
        # that someone wrapped in state_dict, and the input differs: one of the two must be named.
        name="simclr-v1-converted",
        container=STATE_DICT,
        recognise=lambda file, names: (
            set(file) == {"state_dict"} and _any_start(names, "layer1.", "layer4.", "fc.")
        ),
        prefix="",
        drop={"heads": r"fc\.(weight|bias)"},
        image_input=UNIT_RGB,
    ),
    Layout(
        name="openselfsup-moco-raw",  # MoCo of OpenSelfSup and mmselfsup 0.x, epoch_N.pth
        container=STATE_DICT,
        recognise=lambda file, names: (
            _any_start(names, "backbone.", "encoder_q.0.") and not _any_start(names, "queue2")
        ),
        prefix="backbone.",
        copies=("encoder_q.0.",),
        drop={
            "heads": r"encoder_q\.1\..+",
            "key encoder": r"encoder_k\.[01]\..+",
            "queues": r"queue(_ptr)?",
        },
    ),
    Layout(
        name="openmmlab-raw",  # mmpretrain, mmselfsup 1.x; OpenSelfSup where the trunk is held once
        container=STATE_DICT,
        recognise=lambda file, names: (
            not _is_lightning(file)
            and _any_start(names, "backbone.layer1.")
            and not _any_start(names, "encoder_q.")
        ),
        prefix="backbone.",
        drop={
            "heads": r"(neck|head)\..+",
            "key encoder": r"(encoder_k|target_net)\..+",
            "queues": r"queue2?(_ptr)?",
        },
    ),
    Layout(
        name="lightly",  # a module of lightly's examples, saved alone or by Lightning
        container=STATE_DICT,
        recognise=lambda file, names: _any_start(names, "backbone.0.", "backbone.7."),
        prefix="backbone.",
        drop={
            "heads": r"(projection|prediction)_head\w*\..+",
            "key encoder": r"backbone_momentum\..+",
            "queues": r"criterion\w*\..+",
        },
        rename=_from_sequential,
    ),
    Layout(
        # lightly-train's DenseCL on a ResNet of torchvision's, as Lightning saves it; what its
        # exporter writes is of layout torchvision.
        name="lightly-train",
        container=STATE_DICT,
        recognise=lambda file, names: _any_start(names, f"{_LIGHTLY_TRAIN}layer1."),
        prefix=_LIGHTLY_TRAIN,
        drop={
            "heads": r"query_encoder\.(local|global)_projection_head\..+",
            "key encoder": r"key_encoder\..+",
            "queues": r"(memory_bank|\w+_criterion)\..+",
        },
    ),
    Layout(
        name="solo-learn",
        container=STATE_DICT,
        recognise=lambda file, names: _is_lightning(file) and _any_start(names, "backbone.layer1."),
        prefix="backbone.",
        drop=_SOLO_LEARN_DROP,
    ),
    Layout(
        name="solo-learn-encoder",  # before the trunk was called backbone
        container=STATE_DICT,
        recognise=lambda file, names: _is_lightning(file) and _any_start(names, "encoder.layer1."),
        prefix="encoder.",
        drop=_SOLO_LEARN_DROP,
    ),
    Layout(
        name="byol-haiku",  # deepmind-research's BYOL, renamed by haiku.py
        container=("online",),
        recognise=lambda file, names: file.get("format") == "byol-haiku",
        prefix="",
        drop={"heads": r"(projector|predictor|classifier)(/.+)?\..+"},
        difference=(
            "trained with SAME padding, which at stride 2 pads right and below only; here both "
            "sides are padded, so features differ slightly"
        ),
    ),
    Layout(
        name="vissl",  # every method of VISSL; heads lie beside the trunk
        container=("classy_state_dict", "base_model", "model", "trunk"),
        recognise=lambda file, names: _any_start(names, "_feature_blocks."),
        prefix="_feature_blocks.",
        drop={"heads": r"(_feature_blocks\.)?fc[12]\..+"},
    ),
)
