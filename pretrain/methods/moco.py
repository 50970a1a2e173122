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
from pretrain.encoder import Encoder
from pretrain.group_bn import shuffling, unshuffle
from pretrain.inputs import Inputs
from pretrain.loss import Losses, info_nce, mean_cosine, top1
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

    @torch.no_grad()
    def targets(self, inputs: Inputs) -> Any:
        """The keys, by the encoder that has just followed the query; they leave as they came."""
        self.update_key_encoder()
        permutation = shuffling(self.config.optim.batch_size, self.config.seed, inputs.step)
        return self.embed_keys(inputs.images(1, permutation), permutation)

    def losses(self, query_encoder: nn.Module, inputs: Inputs, targets: Any) -> Losses:
        """The queries against their keys and the queues as they were before the step."""
        query = query_encoder(inputs.images(0))
        with torch.autocast(inputs.crops.device.type, enabled=False):
            losses = self.compare(query, targets, inputs)
        fill = {"queue_fill": self.global_queue.fill_share()}
        return losses._replace(values=losses.values | fill)

    def compare(self, query: Any, key: Any, inputs: Inputs) -> Losses:
        """Each image's two embeddings (what `build_encoder` gives) against the queue."""
        loss, values = self.compare_global(query.global_, key.global_, inputs)
        return Losses(loss, values)

    def compare_global(
        self, query: torch.Tensor, key: torch.Tensor, inputs: Inputs
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Query and key (B,D) → the global loss, and what to log of it."""
        loss = self.info_nce(query, key, self.global_queue.rows)
        values = {"loss_global": loss}
        if inputs.logged:
            values["top1_global"] = top1(query, key, self.global_queue.rows)
            values["cosine_global"] = mean_cosine(key)
        return loss, values

    def info_nce(
        self, query: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor
    ) -> torch.Tensor:
        """Mean over the rows, at the configured temperature."""
        temperature = self.config.loss.temperature
        return info_nce(query, positive, negatives, temperature, self.attention)

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """key ← m·key + (1-m)·query, parameters only: batch-norm buffers stay each one's own."""
        torch._foreach_lerp_(
            list(self.key.parameters()),
            list(self.query.parameters()),
            1 - self.config.model.key_momentum,
        )

    def embed_keys(self, shuffled: torch.Tensor, permutation: torch.Tensor) -> Any:
        """Key embeddings of images in shuffled company, back in their own order.

        Everything comes back un-shuffled. Forgetting it for a dense map or the features would
        pair each query with another image's positions.
        """
        at_once = self.config.optim.micro_batch or len(shuffled)
        parts = [self.key(images) for images in shuffled.split(at_once)]
        return parts[0]._make(unshuffle(torch.cat(part), permutation) for part in zip(*parts))

    @torch.no_grad()
    def remember(self, targets: Any) -> None:
        """Add the batch's keys, of all processes, to the queue."""
        self.global_queue.enqueue(distributed.gather(targets.global_))
