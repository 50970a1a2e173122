"""DenseCL: a query encoder, its slow copy the key encoder, and two queues of negatives.

Source: arXiv:2011.09157 section 3; WXinlong/DenseCL openselfsup/models/{densecl,necks}.py (facts).
"""

import copy
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from common import distributed
from common.resnet import ResNet
from pretrain.config import Model
from pretrain.shuffle_bn import GroupBatchNorm2d, shuffle, unshuffle


class Embeddings(NamedTuple):
    """What an encoder says about B images; every vector has unit length.

    feature (B,C,S²): the backbone's last map. global_ (B,D): the image. dense (B,D,S²): each
    position. pooled (B,D): the mean of the dense map before its positions were normalised.
    """

    feature: torch.Tensor
    global_: torch.Tensor
    dense: torch.Tensor
    pooled: torch.Tensor


class Encoder(nn.Module):
    """Images (B,3,H,W) → Embeddings, with S = H/32."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        norm_layer = partial(GroupBatchNorm2d, group=config.bn_group)
        self.backbone = ResNet(config.depth, config.width, norm_layer)
        channels = self.backbone.out_channels
        self.global_head = nn.Sequential(
            nn.Linear(channels, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.embedding),
        )
        self.dense_head = nn.Sequential(
            nn.Conv2d(channels, config.hidden, 1),
            nn.ReLU(),
            nn.Conv2d(config.hidden, config.embedding, 1),
        )
        self._initialise()

    def forward(self, images: torch.Tensor) -> Embeddings:
        feature = self.backbone(images)  # (B,C,S,S)
        dense = self.dense_head(feature).flatten(2)  # (B,D,S²)
        return Embeddings(
            feature=unit_length(feature.flatten(2)),
            global_=unit_length(self.global_head(feature.mean((2, 3)))),
            dense=unit_length(dense),
            pooled=unit_length(dense.mean(2)),
        )

    def _initialise(self) -> None:
        """The official initialisation; the dense head's convolutions keep PyTorch's own."""
        for module in self.backbone.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        for module in self.global_head:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)


def unit_length(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors along dimension 1 scaled to length 1, in float32 at least."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=1)


class Queue(nn.Module):
    """The last K keys, rows (K,D) of unit length; random ones until it has filled."""

    rows: torch.Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", F.normalize(torch.randn(length, width), dim=1))
        self.pointer = 0  # where the next key goes
        self.filled = 0  # how many rows are real keys

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor) -> None:
        """Replace the oldest rows by keys (N,D), around the end. Any N: the last K stay."""
        length = len(self.rows)
        positions = torch.arange(self.pointer, self.pointer + len(keys), device=keys.device)
        self.rows[positions[-length:] % length] = keys[-length:].to(self.rows.dtype)
        self.pointer = (self.pointer + len(keys)) % length
        self.filled = min(self.filled + len(keys), length)

    def get_extra_state(self) -> dict[str, int]:
        """Saved with the rows."""
        return {"pointer": self.pointer, "filled": self.filled}

    def set_extra_state(self, state: Any) -> None:
        """Restored with the rows."""
        self.pointer, self.filled = state["pointer"], state["filled"]


class DenseCL(nn.Module):
    """Both encoders and both queues: everything that a checkpoint has to hold of the model."""

    def __init__(self, config: Model) -> None:
        super().__init__()
        self.query = Encoder(config)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.global_queue = Queue(config.queue_length, config.embedding)
        self.dense_queue = Queue(config.queue_length, config.embedding)
        self.key_momentum = config.key_momentum

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """key ← m·key + (1-m)·query, parameters only: batch-norm buffers stay each one's own."""
        torch._foreach_lerp_(
            list(self.key.parameters()), list(self.query.parameters()), 1 - self.key_momentum
        )

    @torch.no_grad()
    def embed_keys(self, images: torch.Tensor, permutation: torch.Tensor) -> Embeddings:
        """Key embeddings of this process's images, computed in shuffled company.

        Everything comes back un-shuffled. Forgetting it for the dense map or the features would
        pair each query with another image's positions.
        """
        shuffled = self.key(shuffle(images, permutation))
        return Embeddings(*(unshuffle(part, permutation) for part in shuffled))

    @torch.no_grad()
    def enqueue(self, key: Embeddings) -> None:
        """Add the batch's keys, of all processes: global ones and pooled dense ones."""
        self.global_queue.enqueue(distributed.gather(key.global_))
        self.dense_queue.enqueue(distributed.gather(key.pooled))
