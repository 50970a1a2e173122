"""Every setting of pre-training, with its default: DenseCL on ImageNet, as published.

Source: WXinlong/DenseCL configs/selfsup/densecl/densecl_imagenet_200ep.py and
openselfsup/models/densecl.py (facts; arXiv:2011.09157 section 3).
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from common.config import option
from common.errors import UserError
from common.resnet import STAGE_BLOCKS


@dataclass(frozen=True)
class Data:
    """Where the images are and how they are cropped."""

    root: str = option("datasets/imagenet/train", "folder of images, searched recursively")
    list_file: str | None = option(None, "text file naming the images under root, one per line")
    image_size: int = option(224, "side of a view, in pixels")
    min_crop_area: float = option(0.2, "smallest crop, as a share of the image's area")


@dataclass(frozen=True)
class Model:
    """The two encoders and their queues."""

    depth: int = option(50, "ResNet depth: 50, 101 or 152")
    width: int = option(64, "channels of the stem; 64 is the published ResNet")
    hidden: int = option(2048, "hidden width of both heads")
    embedding: int = option(128, "width D of the embeddings")
    queue_length: int = option(65536, "negatives K held in each of the two queues")
    key_momentum: float = option(0.999, "share of the key encoder that stays at each step")
    bn_group: int = option(32, "images that share batch-norm statistics")


@dataclass(frozen=True)
class Loss:
    """The contrastive losses."""

    temperature: float = option(0.2, "temperature τ of both losses")
    dense_weight: float = option(0.5, "λ: total = (1-λ)·global + λ·dense")


@dataclass(frozen=True)
class Optim:
    """SGD with a cosine schedule, set once per epoch."""

    epochs: int = option(200, "passes over the images")
    batch_size: int = option(256, "images per step over all processes together")
    lr: float = option(0.03, "learning rate of the first epoch")
    momentum: float = option(0.9, "SGD momentum")
    weight_decay: float = option(1e-4, "weight decay, on every parameter")
    precision: str = option("auto", "fp32, bf16, or auto: measured once at the first start")


@dataclass(frozen=True)
class Launch:
    """Where and how it runs; nothing here changes the result."""

    device: str = option("auto", "cpu, cuda, or auto")
    workers: int = option(4, "data-loading processes per training process")
    log_every: int = option(50, "steps between two log lines")
    save_every: int = option(1000, "steps between two checkpoints")
    keep: int = option(2, "checkpoints kept")


@dataclass(frozen=True)
class PretrainConfig:
    """All settings; `identity` is the part that decides the result."""

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
        return settings


def check(config: PretrainConfig, world_size: int) -> None:
    """Raise UserError for settings that cannot work together, naming them."""
    batch, group = config.optim.batch_size, config.model.bn_group
    positive = {
        "data.image_size": config.data.image_size,
        "model.width": config.model.width,
        "model.queue_length": config.model.queue_length,
        "model.bn_group": group,
        "loss.temperature": config.loss.temperature,
        "optim.epochs": config.optim.epochs,
        "optim.batch_size": batch,
        "launch.log_every": config.launch.log_every,
        "launch.save_every": config.launch.save_every,
        "launch.keep": config.launch.keep,
    }
    for key, value in positive.items():
        if value <= 0:
            raise UserError(f"{key} = {value}: it must be greater than 0")
    if config.model.depth not in STAGE_BLOCKS:
        raise UserError(f"model.depth = {config.model.depth}: choose one of {list(STAGE_BLOCKS)}")
    if config.optim.precision not in ("auto", "fp32", "bf16"):
        raise UserError(f"optim.precision = {config.optim.precision}: choose auto, fp32 or bf16")
    if config.launch.device not in ("auto", "cpu", "cuda"):
        raise UserError(f"launch.device = {config.launch.device}: choose auto, cpu or cuda")
    if not 0 <= config.loss.dense_weight <= 1:
        raise UserError(f"loss.dense_weight = {config.loss.dense_weight}: it is between 0 and 1")
    if batch % world_size:
        raise UserError(
            f"optim.batch_size = {batch} does not divide by {world_size} processes: "
            f"use {batch // world_size * world_size or world_size}, or another number of processes"
        )
    local = batch // world_size
    if local > group and local % group:
        raise UserError(
            f"model.bn_group = {group} does not divide the {local} images of one process: "
            "every batch-norm group must be full"
        )
