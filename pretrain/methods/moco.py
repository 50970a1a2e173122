"""MoCo: a query encoder, its slow copy the key encoder, and a queue of negatives.

Source: arXiv:1911.05722 (v1: a linear head), arXiv:2003.04297 (v2: a hidden layer); the start of
the weights and the order of one step are those of WXinlong/DenseCL openselfsup/models/moco.py
(facts), from which the DenseCL paper's MoCo v2 rows come.
"""

import copy
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from common import distributed
from pretrain.config import PretrainConfig
from pretrain.data import Inputs
from pretrain.encoder import Encoder
from pretrain.group_bn import shuffle, shuffling, unshuffle
from pretrain.loss import Losses, info_nce_and_top1, mean_cosine
from pretrain.method import Method, Network


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

    def fill_share(self) -> torch.Tensor:
        """Share of rows that are real keys."""
        return torch.tensor(self.filled / len(self.rows))

    def get_extra_state(self) -> dict[str, int]:
        """Saved with the rows."""
        return {"pointer": self.pointer, "filled": self.filled}

    def set_extra_state(self, state: Any) -> None:
        """Restored with the rows."""
        self.pointer, self.filled = state["pointer"], state["filled"]


class Embedding(NamedTuple):
    """global_ (B,D): what each image is, as a vector of unit length."""

    global_: torch.Tensor


class MoCoEncoder(Encoder):
    """Images (B,3,H,W) → Embedding."""

    def forward(self, images: torch.Tensor) -> Embedding:
        return Embedding(self.embed(self.backbone(images)))


class MoCo(Method):
    """Both encoders and the queue: everything that a checkpoint has to hold of the model.

    DenseCL and ReSim are this with more to embed and more to compare.
    """

    def __init__(self, config: PretrainConfig) -> None:
        super().__init__()
        self.config = config
        self.query = self.build_encoder()
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.global_queue = Queue(config.model.queue_length, config.model.embedding)

    def build_encoder(self) -> Network:
        """Images (B,3,H,W) → a named tuple of embeddings, one row per image in each."""
        return MoCoEncoder(self.config.model)

    def losses(self, query_encoder: nn.Module, inputs: Inputs) -> Losses:
        """One step's loss, in the official order: the keys enter the queue after it."""
        query_view, key_view = inputs.views
        permutation = shuffling(self.config.optim.batch_size, self.config.seed, inputs.step)
        query = query_encoder(query_view)
        self.update_key_encoder()
        key = self.embed_keys(key_view, permutation)
        with torch.autocast(query_view.device.type, enabled=False):
            losses = self.compare(query, key, inputs)
        self.enqueue(key)
        fill = {"queue_fill": self.global_queue.fill_share()}
        return losses._replace(values=losses.values | fill)

    def compare(self, query: Any, key: Any, inputs: Inputs) -> Losses:
        """Each image's two embeddings (what `build_encoder` gives) against the queue."""
        loss, values = self.compare_global(query.global_, key.global_)
        return Losses(loss, values)

    def compare_global(
        self, query: torch.Tensor, key: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Query and key (B,D) → the global loss, and what to log of it."""
        queue = self.global_queue
        loss, top1 = info_nce_and_top1(query, key, queue.rows, self.config.loss.temperature)
        values = {"loss_global": loss, "top1_global": top1, "cosine_global": mean_cosine(key)}
        return loss, values

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """key ← m·key + (1-m)·query, parameters only: batch-norm buffers stay each one's own."""
        torch._foreach_lerp_(
            list(self.key.parameters()),
            list(self.query.parameters()),
            1 - self.config.model.key_momentum,
        )

    @torch.no_grad()
    def embed_keys(self, images: torch.Tensor, permutation: torch.Tensor) -> Any:
        """Key embeddings of this process's images, computed in shuffled company.

        Everything comes back un-shuffled. Forgetting it for a dense map or the features would
        pair each query with another image's positions.
        """
        shuffled = self.key(shuffle(images, permutation))
        return shuffled._make(unshuffle(part, permutation) for part in shuffled)

    @torch.no_grad()
    def enqueue(self, key: Any) -> None:
        """Add the batch's keys, of all processes."""
        self.global_queue.enqueue(distributed.gather(key.global_))
