"""Convolutions, normalisation and the ResNet trunk, under Detectron2's parameter names.

Modules are built and initialised in Detectron2's order, so that the same seed gives the same
weights and a state dict of either engine loads in the other.
"""

from typing import Any

import torch
import torch.nn.functional as F
from fvcore.nn import weight_init
from torch import nn

from common.resnet import STAGE_BLOCKS


class FrozenBatchNorm(nn.Module):
    """Batch normalisation with fixed statistics and fixed scale, all buffers.

    torchvision's own rounds differently; this is the arithmetic of detectron2/layers/batch_norm.py.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - eps)
        self.register_buffer("num_batches_tracked", None)  # a tensor where training was frozen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B,C,H,W) → the same shape."""
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = (v.to(x.dtype).reshape(1, -1, 1, 1) for v in (scale, shift))
        return x * scale + shift


NORMS: dict[str, type[nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "FrozenBN": FrozenBatchNorm,
}


class ConvNorm(nn.Conv2d):
    """A convolution followed by its normalisation (`.norm`), or with a bias where `norm` is ""."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, norm: str, **options: Any
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias=not norm, **options)
        self.norm = NORMS[norm](out_channels) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(super().forward(x))


class Stem(nn.Module):
    """7×7 convolution and max pooling: (B,3,H,W) → (B,C,H/4,W/4)."""

    def __init__(self, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, out_channels, 7, norm, stride=2, padding=3)
        weight_init.c2_msra_fill(self.conv1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(F.relu_(self.conv1(x)), kernel_size=3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 with a shortcut; the stride sits on the 3×3 unless `stride_in_1x1`.

    The 3×3 samples its input `dilation` pixels apart.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        stride: int,
        groups: int,
        norm: str,
        stride_in_1x1: bool,
        dilation: int,
    ) -> None:
        super().__init__()
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = ConvNorm(in_channels, out_channels, 1, norm, stride=stride)
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = ConvNorm(in_channels, width, 1, norm, stride=first)
        spread = {"padding": dilation, "dilation": dilation}
        self.conv2 = ConvNorm(width, width, 3, norm, stride=second, groups=groups, **spread)
        self.conv3 = ConvNorm(width, out_channels, 1, norm)
        for layer in (self.conv1, self.conv2, self.conv3, self.shortcut):
            if layer is not None:
                weight_init.c2_msra_fill(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu_(self.conv1(x))
        out = F.relu_(self.conv2(out))
        out = self.conv3(out)
        out += x if self.shortcut is None else self.shortcut(x)
        return F.relu_(out)


def build_stage(
    resnets: Any, stage: int, dilation: int = 1, contracted: bool = False
) -> nn.Sequential:
    """Stage res`stage` (2 to 5) of the trunk that MODEL.RESNETS describes.

    A dilated stage keeps its input's resolution: its convolutions reach as far without the stride.
    Contracted, its first block has half the dilation, for what comes in is less dilated.
    """
    scale = 2 ** (stage - 2)
    out_channels = resnets.RES2_OUT_CHANNELS * scale
    in_channels = resnets.STEM_OUT_CHANNELS if stage == 2 else out_channels // 2
    stride = 1 if stage == 2 or dilation > 1 else 2
    blocks = []
    for index in range(STAGE_BLOCKS[resnets.DEPTH][stage - 2]):
        halved = contracted and dilation > 1 and index == 0
        block = Bottleneck(
            in_channels,
            out_channels,
            resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * scale,
            stride,
            resnets.NUM_GROUPS,
            resnets.NORM,
            resnets.STRIDE_IN_1X1,
            dilation // 2 if halved else dilation,
        )
        blocks.append(block)
        in_channels, stride = out_channels, 1
    return nn.Sequential(*blocks)


class ResNet(nn.Module):
    """The trunk up to its last wanted stage: images (B,3,H,W) → {"res4": (B,C,H/16,W/16), ...}.

    The first `freeze_at` stages (1: stem, 2: stem and res2, ...) get fixed weights and statistics.
    `dilations` are those of res4 and res5; each above 1 halves the strides from there on.
    `contracted` dilations are half in the first block, as contract_dilation of mmsegmentation.
    """

    def __init__(
        self,
        resnets: Any,
        freeze_at: int,
        dilations: tuple[int, int] = (1, 1),
        contracted: bool = False,
    ) -> None:
        super().__init__()
        self.out_features = list(resnets.OUT_FEATURES)
        self.stem = Stem(resnets.STEM_OUT_CHANNELS, resnets.NORM)
        last = max(int(name.removeprefix("res")) for name in self.out_features)
        self.stages = [f"res{stage}" for stage in range(2, last + 1)]
        # All four stages are drawn, as Detectron2 does, for equal weights from equal seeds.
        for stage, dilation in enumerate((1, 1, *dilations), start=2):
            blocks = build_stage(resnets, stage, dilation, contracted)
            if stage <= last:
                self.add_module(f"res{stage}", blocks)
        for name in ["stem", *self.stages][:freeze_at]:
            freeze(getattr(self, name))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.stem(images)
        features = {}
        for name in self.stages:
            x = getattr(self, name)(x)
            features[name] = x
        return {name: features[name] for name in self.out_features}


def freeze(module: nn.Module) -> None:
    """Fix a module's weights, and replace its batch normalisation by the frozen kind."""
    module.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, ConvNorm) and not isinstance(part.norm, FrozenBatchNorm):
            trained = part.norm
            part.norm = FrozenBatchNorm(part.out_channels)
            part.norm.num_batches_tracked = trained.num_batches_tracked
            part.norm.load_state_dict(trained.state_dict())
