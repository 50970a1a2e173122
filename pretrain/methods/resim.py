"""ReSim: MoCo v2, and the same for regions that both views show.

Source: arXiv:2103.12902; window sizes, strides and what the negatives are: Tete-Xiao/ReSim
moco/{datasets,builder}.py (facts), its FPN variant. Two differences: the official code gives both
views one flip, and pools by PrRoIPool; here flips are independent, since windows are mapped
through them, and RoIAlign samples each cell densely.
Letters: B images, N windows that both views show, R channels of a region, T negatives.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

from common import distributed
from pretrain.config import Model
from pretrain.encoder import Encoder, unit_length
from pretrain.inputs import Inputs
from pretrain.loss import Losses, top1
from pretrain.method import Network
from pretrain.methods.moco import MoCo

REGION_CHANNELS = 256
_SAMPLES = 4  # of RoIAlign, per window and direction


class Level(NamedTuple):
    """A map of the pyramid and the windows that slide over it; sizes in pixels of the view."""

    name: str
    stride: int
    window: int
    step: int
    negatives_of_all: bool
    """Whether the windows of all processes' images are negatives, or only this one's."""


LEVELS = (Level("stride16", 16, 48, 32, True), Level("stride8", 8, 32, 24, False))


class RegionEmbeddings(NamedTuple):
    """global_ (B,D) of unit length; maps (B,R,H/16,W/16) and (B,R,H/8,W/8) of the pyramid."""

    global_: torch.Tensor
    stride16: torch.Tensor
    stride8: torch.Tensor


class RegionEncoder(Encoder):
    """Images (B,3,H,W) → RegionEmbeddings."""

    def __init__(self, config: Model) -> None:
        super().__init__(config)
        channels = self.backbone.out_channels
        with torch.random.fork_rng(devices=[]):  # as the dense head of DenseCL
            self.pyramid = Pyramid((channels // 4, channels // 2, channels))

    def forward(self, images: torch.Tensor) -> RegionEmbeddings:
        _, res3, res4, res5 = self.backbone.stages(images)
        stride16, stride8 = self.pyramid(res3, res4, res5)
        return RegionEmbeddings(self.embed(res5), stride16, stride8)


class Pyramid(nn.Module):
    """A feature pyramid's top-down path: lateral 1×1, sum with what is above, 3×3."""

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, REGION_CHANNELS, 1) for c in channels)
        self.output = nn.ModuleList(
            nn.Conv2d(REGION_CHANNELS, REGION_CHANNELS, 3, padding=1) for _ in LEVELS
        )

    def forward(
        self, res3: torch.Tensor, res4: torch.Tensor, res5: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        three, four, five = (layer(x) for layer, x in zip(self.lateral, (res3, res4, res5)))
        four = four + F.interpolate(five, size=four.shape[2:], mode="nearest")
        three = three + F.interpolate(four, size=three.shape[2:], mode="nearest")
        return self.output[0](four), self.output[1](three)


class ReSim(MoCo):
    """MoCo's model with a pyramid; regions need no queue."""

    def build_encoder(self) -> Network:
        """Images → RegionEmbeddings."""
        return RegionEncoder(self.config.model)

    def compare(self, query: RegionEmbeddings, key: RegionEmbeddings, inputs: Inputs) -> Losses:
        """The global term and one for each level, added."""
        total, values = self.compare_global(query.global_, key.global_, inputs)
        for level in LEVELS:
            maps = getattr(query, level.name), getattr(key, level.name)
            regions = compared_regions(*maps, inputs, level)
            # Where no window shows in both views, the loss is 0.
            loss = self.info_nce(*regions) if len(regions[0]) else maps[0].sum() * 0
            total = total + loss
            values[f"loss_{level.name}"] = loss
            if inputs.logged:
                none = loss.new_zeros(())
                values[f"top1_{level.name}"] = top1(*regions) if len(regions[0]) else none
        return Losses(total, values)


def compared_regions(
    query: torch.Tensor, key: torch.Tensor, inputs: Inputs, level: Level
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Maps (B,R,h,w) of both views → queries (N,R), their keys (N,R), negatives (T,R).

    Negatives are all windows of the key maps, at every cell, as in the official code: also those
    of the same image.
    """
    query, key = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, key))
    size = inputs.crops.shape[-1]
    # By the host: how many windows are shared decides the shapes of all that follows.
    of_query = windows(size, level).to(query.dtype)
    of_key, shared = mapped(of_query, size, *inputs.corners)  # (B,N,4), (B,N)
    positive = pooled(key, of_key, shared, level)  # (N,R)
    rows = pooled(query, of_query.expand_as(of_key), shared, level)
    cells = level.window // level.stride
    slid = unit_length(F.avg_pool2d(key, cells, stride=1))  # (B,R,h',w')
    negatives = slid.permute(0, 2, 3, 1).reshape(-1, slid.shape[1])  # (T,R)
    if level.negatives_of_all:
        negatives = distributed.gather(negatives)
    return rows, positive, negatives


def windows(size: int, level: Level) -> torch.Tensor:
    """(N,4): left, top, right, bottom of the windows within a view of `size` pixels."""
    starts = torch.arange(0, size, level.step)
    starts = starts[starts + level.window < size].double()
    top, left = (x.flatten() for x in torch.meshgrid(starts, starts, indexing="ij"))
    return torch.stack([left, top, left + level.window, top + level.window], 1)


def mapped(
    boxes: torch.Tensor, size: int, query_corners: torch.Tensor, key_corners: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where windows (N,4) of the query view lie in the key view: (B,N,4), and whether wholly.

    Corners (B,4), see `Views`; both views have `size` pixels.
    """
    x, y = boxes[:, 0::2], boxes[:, 1::2]  # (N,2)
    query, key = (c.to(boxes.dtype)[:, :, None, None] for c in (query_corners, key_corners))
    mapped_axes = []
    for points, (low, high) in ((x, (0, 2)), (y, (1, 3))):
        in_image = query[:, low] + points / size * (query[:, high] - query[:, low])  # (B,N,2)
        in_key = (in_image - key[:, low]) / (key[:, high] - key[:, low]) * size
        mapped_axes.append(in_key.sort(2).values)  # a mirrored view turns left and right round
    found = torch.stack(mapped_axes, 3).flatten(2)  # left, top, right, bottom
    return found, ((found >= 0) & (found <= size)).all(2)


def pooled(
    maps: torch.Tensor, boxes: torch.Tensor, chosen: torch.Tensor, level: Level
) -> torch.Tensor:
    """Maps (B,R,h,w) → the mean over each of the host's boxes (B,N,4) where `chosen` (B,N) is
    true: one row of unit length for each, (·,R)."""
    images = chosen.nonzero()[:, :1].to(boxes.dtype)
    rois = torch.cat([images, boxes[chosen]], 1).to(maps.device, non_blocking=True)  # (·,5)
    regions = roi_align(maps, rois, 1, 1 / level.stride, _SAMPLES, aligned=True)
    return unit_length(regions.flatten(1))
