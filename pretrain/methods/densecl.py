"""DenseCL: MoCo, and the same for each position of the last map.

Source: arXiv:2011.09157 section 3; WXinlong/DenseCL openselfsup/models/{densecl,necks}.py (facts).
Letters: B images, C feature channels, S² positions, D embedding width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from common import distributed
from pretrain.config import Model, PretrainConfig
from pretrain.encoder import Encoder, unit_length
from pretrain.inputs import Inputs
from pretrain.loss import Losses, mean_cosine, top1
from pretrain.matching import match_by_place, match_by_similarity, match_entropy, match_randomly
from pretrain.method import Network
from pretrain.methods.moco import MoCo, Queue


class DenseEmbeddings(NamedTuple):
    """What an encoder says about B images; every vector has unit length.

    feature (B,C,S²): the backbone's last map. global_ (B,D): the image. dense (B,D,S²): each
    position. pooled (B,D): the mean of the dense map before its positions were normalised.
    """

    feature: torch.Tensor
    global_: torch.Tensor
    dense: torch.Tensor
    pooled: torch.Tensor


class DenseEncoder(Encoder):
    """Images (B,3,H,W) → DenseEmbeddings, with S = H/32 or `grid`."""

    def __init__(self, config: Model) -> None:
        super().__init__(config)
        self.grid = config.grid
        channels = self.backbone.out_channels
        # Drawn aside, and left as PyTorch draws it: what MoCo has in common starts as in MoCo.
        with torch.random.fork_rng(devices=[]):
            self.dense_head = nn.Sequential(
                nn.Conv2d(channels, config.hidden, 1),
                nn.ReLU(),
                nn.Conv2d(config.hidden, config.embedding, 1),
            )

    def forward(self, images: torch.Tensor) -> DenseEmbeddings:
        feature = self.backbone(images)  # (B,C,H/32,W/32)
        global_ = self.embed(feature)
        if self.grid:  # the features that positions are paired by, as well as the dense map
            feature = F.adaptive_avg_pool2d(feature, self.grid)  # (B,C,S,S)
        dense = self.dense_head(feature).flatten(2)  # (B,D,S²)
        return DenseEmbeddings(
            feature=unit_length(feature.flatten(2)),
            global_=global_,
            dense=unit_length(dense),
            pooled=unit_length(dense.mean(2)),
        )


class DenseCL(MoCo):
    """MoCo's model with a dense head and a queue of dense keys."""

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__(config)
        self.dense_queue = Queue(config.model.queue_length, config.model.embedding)

    def build_encoder(self) -> Network:
        """Images → DenseEmbeddings."""
        return DenseEncoder(self.config.model)

    def compare(self, query: DenseEmbeddings, key: DenseEmbeddings, inputs: Inputs) -> Losses:
        """(1-λ)·global + λ·dense. No gradient flows through the choice of matches."""
        global_loss, values = self.compare_global(query.global_, key.global_, inputs)
        matches = self.match(query, key, inputs)  # (B,S²)
        positive = key.dense.gather(2, matches[:, None].expand_as(key.dense))  # (B,D,S²)
        rows = as_rows(query.dense), as_rows(positive), self.dense_queue.rows
        dense_loss = self.info_nce(*rows)
        weight = self.dense_weight(inputs.step)
        values |= {
            "loss_dense": dense_loss,
            "loss_global_weighted": (1 - weight) * global_loss,
            "loss_dense_weighted": weight * dense_loss,
        }
        if inputs.logged:
            values["top1_dense"] = top1(*rows)
            values["cosine_dense"] = mean_cosine(key.pooled)
            values["match_entropy"] = match_entropy(matches)
        return Losses((1 - weight) * global_loss + weight * dense_loss, values)

    def dense_weight(self, step: int) -> float:
        """λ; 0 in the first `dense_from` steps, in which the dense queue fills all the same."""
        loss = self.config.loss
        return loss.dense_weight if step >= loss.dense_from else 0.0

    def match(self, query: DenseEmbeddings, key: DenseEmbeddings, inputs: Inputs) -> torch.Tensor:
        """For each query position its key position in the same image: (B,S²) int64."""
        match self.config.loss.matching:
            case "backbone":
                return match_by_similarity(query.feature, key.feature)
            case "head":
                return match_by_similarity(query.dense, key.dense)
            case "geometric":
                corners = inputs.corners.to(key.dense.device, non_blocking=True)
                return match_by_place(corners[0], corners[1], key.dense.shape[2])
            case _:
                count, positions = self.config.optim.batch_size, key.dense.shape[2]
                matches = match_randomly(count, positions, self.config.seed, inputs.step)
                return matches[inputs.rows].to(key.dense.device, non_blocking=True)

    @torch.no_grad()
    def remember(self, targets: DenseEmbeddings) -> None:
        """The global keys, and one pooled dense key per image or all of its positions."""
        super().remember(targets)
        local = self.config.loss.negatives == "local"
        keys = as_rows(targets.dense) if local else targets.pooled
        self.dense_queue.enqueue(distributed.gather(keys))


def as_rows(dense: torch.Tensor) -> torch.Tensor:
    """(B,D,S²) → (B·S²,D)."""
    return dense.transpose(1, 2).reshape(-1, dense.shape[1])
