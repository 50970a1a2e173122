"""Every setting of pre-training, with its default: DenseCL on ImageNet, as published.

Source: WXinlong/DenseCL configs/selfsup/densecl/densecl_imagenet_200ep.py and
openselfsup/models/densecl.py (facts; arXiv:2011.09157 section 3).
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from common.config import option
from common.errors import UserError, did_you_mean
from common.resnet import STAGE_BLOCKS
from pretrain.shards import RUN_LENGTH

# What each choice may be, by its key; `check` refuses anything else.
CHOICES: dict[str, tuple[Any, ...]] = {
    "method": ("densecl", "moco", "resim", "simclr", "byol", "supervised"),
    "data.colours": ("auto", "cpu", "device"),
    "data.augmentation": ("moco_v1", "moco_v2", "simclr", "byol", "supervised"),
    "model.depth": tuple(STAGE_BLOCKS),
    "model.head": ("mlp", "linear"),
    "loss.matching": ("backbone", "head", "random", "geometric"),
    "loss.negatives": ("pooled", "local"),
    "optim.optimizer": ("sgd", "lars", "adamw"),
    "optim.precision": ("auto", "fp32", "bf16"),
    "launch.device": ("auto", "cpu", "cuda"),
}

QUEUE_METHODS = ("densecl", "moco", "resim")  # those that compare with a queue of keys


def _choice(key: str, default: Any, help_text: str) -> Any:
    return option(default, f"{help_text}: {', '.join(map(str, CHOICES[key]))}")


@dataclass(frozen=True)
class Data:
    """Where the images are and how views are drawn from them."""

    root: str = option(
        "datasets/imagenet/train", "folder of images, searched recursively, or of shards"
    )
    list_file: str | None = option(None, "text file naming the images under root, one per line")
    image_size: int = option(224, "side of a view, in pixels")
    min_crop_area: float = option(0.2, "smallest crop, as a share of the image's area")
    augmentation: str = _choice("data.augmentation", "moco_v2", "whose recipe of views.py")
    colours: str = _choice("data.colours", "auto", "who changes them; auto: the device if a GPU")
    window: int = option(0, "images mixed together, for slow storage; 0: all of them")


@dataclass(frozen=True)
class Model:
    """The encoders and what they are compared with."""

    depth: int = _choice("model.depth", 50, "of the ResNet")
    width: int = option(64, "channels of the stem; 64 is the published ResNet")
    zero_init_residual: bool = option(False, "each residual block starts as the identity")
    init_backbone: str | None = option(None, "WEIGHTS.pkl of python -m converters to start from")
    head: str = _choice("model.head", "mlp", "MoCo's global head (moco only)")
    hidden: int = option(2048, "hidden width of the heads")
    embedding: int = option(128, "width D of the embeddings")
    grid: int = option(0, "side S of the grid of positions; 0: the last map's own (densecl)")
    queue_length: int = option(65536, "negatives K held in each queue (densecl, moco, resim)")
    key_momentum: float = option(0.999, "share of the key encoder that stays at each step")
    bn_group: int = option(32, "images that share batch-norm statistics; 0: all of a step")


@dataclass(frozen=True)
class Loss:
    """What is compared, and how."""

    temperature: float = option(0.2, "temperature τ of every contrastive loss")
    dense_weight: float = option(0.5, "λ: total = (1-λ)·global + λ·dense (densecl)")
    dense_from: int = option(0, "steps before which λ is 0; the authors use 10000 for λ = 1")
    matching: str = _choice("loss.matching", "backbone", "how positions are paired (densecl)")
    negatives: str = _choice("loss.negatives", "pooled", "the dense queue's keys (densecl)")


@dataclass(frozen=True)
class Optim:
    """The optimiser, and a learning rate that is set once per epoch."""

    epochs: int = option(200, "passes over the images")
    batch_size: int = option(256, "images per step over all processes together")
    micro_batch: int = option(0, "images a process takes at once; 0: all of its step's")
    optimizer: str = _choice("optim.optimizer", "sgd", "what updates the weights")
    lr: float = option(0.03, "learning rate of the first epoch after the warm-up")
    warmup_epochs: int = option(0, "epochs of a linear warm-up, set at each step")
    drop_at: tuple[int, ...] = option((), "epochs at which lr falls to a tenth; empty: cosine to 0")
    momentum: float = option(0.9, "momentum of SGD and LARS")
    weight_decay: float = option(1e-4, "weight decay; LARS spares biases and batch norms")
    precision: str = _choice("optim.precision", "auto", "auto is measured once at the first start")


@dataclass(frozen=True)
class Launch:
    """Where and how it runs; nothing here changes the result."""

    device: str = _choice("launch.device", "auto", "where to train")
    workers: int = option(4, "data-loading processes per training process")
    log_every: int = option(50, "steps between two log lines")
    save_every: int = option(1000, "steps between two checkpoints")
    keep: int = option(2, "checkpoints kept")


@dataclass(frozen=True)
class PretrainConfig:
    """All settings; `identity` is the part that decides the result."""

    method: str = _choice("method", "densecl", "what is learnt")
    seed: int = option(0, "decides initialisation, order, crops and shuffling")
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    launch: Launch = field(default_factory=Launch)

    def identity(self) -> dict[str, Any]:
        """Plain types of all settings but the launch's: two runs with equal identity end equal."""
        settings = asdict(self)
        del settings["launch"]
        settings["optim"]["drop_at"] = list(self.optim.drop_at)
        return settings


def with_colours(config: PretrainConfig, device_type: str) -> PretrainConfig:
    """`config` with data.colours = auto decided: they differ in rounding, so a run keeps to one."""
    if config.data.colours != "auto":
        return config
    colours = "device" if device_type == "cuda" else "cpu"
    return replace(config, data=replace(config.data, colours=colours))


def check(config: PretrainConfig, world_size: int) -> None:
    """Raise UserError for settings that cannot work together, naming them."""
    for key, known in CHOICES.items():
        value = _value(config, key)
        if value not in known:
            hint = did_you_mean(str(value), map(str, known))
            raise UserError(f"{key} = {value}: choose one of {', '.join(map(str, known))}{hint}")
    positive = (
        *("data.image_size", "model.width", "model.hidden", "model.embedding"),
        *("model.queue_length", "loss.temperature", "optim.epochs", "optim.batch_size"),
        *("launch.log_every", "launch.save_every", "launch.keep"),
    )
    for key in positive:
        if _value(config, key) <= 0:
            raise UserError(f"{key} = {_value(config, key)}: it must be greater than 0")
    not_negative = (
        *("data.window", "model.grid", "model.bn_group"),
        *("loss.dense_from", "optim.warmup_epochs", "optim.micro_batch", "launch.workers"),
    )
    for key in not_negative:
        if _value(config, key) < 0:
            raise UserError(f"{key} = {_value(config, key)}: it must be 0 or more")
    if config.data.window % RUN_LENGTH:
        raise UserError(
            f"data.window = {config.data.window}: it must be a multiple of {RUN_LENGTH}, the "
            "images that are read together"
        )
    if not 0 < config.data.min_crop_area <= 1:
        raise UserError(
            f"data.min_crop_area = {config.data.min_crop_area}: it is above 0, and at most 1"
        )
    if not 0 <= config.loss.dense_weight <= 1:
        raise UserError(f"loss.dense_weight = {config.loss.dense_weight}: it is between 0 and 1")
    _check_views(config)
    _check_batch(config, world_size)


def _check_views(config: PretrainConfig) -> None:
    one_view = config.data.augmentation == "supervised"
    if one_view != (config.method == "supervised"):
        raise UserError(
            f"data.augmentation = {config.data.augmentation}: it makes {1 if one_view else 2} "
            f"view(s) of an image, and method = {config.method} needs {2 if one_view else 1}"
        )


def _check_batch(config: PretrainConfig, world_size: int) -> None:
    batch, group = config.optim.batch_size, config.model.bn_group
    if batch % world_size:
        raise UserError(
            f"optim.batch_size = {batch} does not divide by {world_size} processes: "
            f"use {batch // world_size * world_size or world_size}, or another number of processes"
        )
    local = batch // world_size
    _check_micro_batch(config, local)
    if group and local > group and local % group:
        raise UserError(
            f"model.bn_group = {group} does not divide the {local} images of one process: "
            "every batch-norm group must be full"
        )


def _check_micro_batch(config: PretrainConfig, local: int) -> None:
    micro, group = config.optim.micro_batch, config.model.bn_group
    if not micro:
        return
    if config.method in ("simclr", "resim"):
        raise UserError(
            f"optim.micro_batch = {micro}: the images of a step are each other's negatives in "
            f"method = {config.method}: they cannot be taken in parts"
        )
    if local % micro or not group or micro % group:
        raise UserError(
            f"optim.micro_batch = {micro}: it must divide the {local} images of one process, and "
            f"consist of whole batch-norm groups (model.bn_group = {group}, 0 for none)"
        )


def _value(config: PretrainConfig, key: str) -> Any:
    """The setting called a.b."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
