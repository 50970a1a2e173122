"""The ResNet trunk under torchvision's parameter names, at any width, to its last map."""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck

STAGE_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
EXPANSION = Bottleneck.expansion


class ResNet(nn.Module):
    """Images (B,3,H,W) → res5 feature (B, 32·width, H/32, W/32).

    Stride 2 sits on the 3×3 convolution, as in torchvision and DenseCL's official backbone.
    width 64 is the published network; 16 is the miniature.
    """

    def __init__(
        self,
        depth: int = 50,
        width: int = 64,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for stage, blocks in enumerate(STAGE_BLOCKS[depth]):
            planes = width * 2**stage
            layer = _layer(channels, planes, blocks, 1 if stage == 0 else 2, norm_layer)
            setattr(self, f"layer{stage + 1}", layer)
            channels = planes * EXPANSION
        self.out_channels = channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.stages(images)[-1]

    def stages(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Images (B,3,H,W) → the maps of res2 to res5, at strides 4 to 32."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for stage in range(4):
            x = getattr(self, f"layer{stage + 1}")(x)
            maps.append(x)
        return maps


@cache
def trunk_shapes(depth: int, width: int) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a trunk's tensors, the batch norms' counters included."""
    with torch.device("meta"):
        network = ResNet(depth, width)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def _layer(
    channels: int, planes: int, blocks: int, stride: int, norm_layer: Callable[[int], nn.Module]
) -> nn.Sequential:
    out_channels = planes * EXPANSION
    downsample = nn.Sequential(
        nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False), norm_layer(out_channels)
    )
    layers = [Bottleneck(channels, planes, stride, downsample, norm_layer=norm_layer)]
    layers += [Bottleneck(out_channels, planes, norm_layer=norm_layer) for _ in range(blocks - 1)]
    return nn.Sequential(*layers)
