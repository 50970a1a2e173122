"""DenseCL's step as it is usually written, for the real one to be held against."""

import copy

import torch
import torch.nn.functional as F

from pretrain.config import PretrainConfig
from pretrain.data import Batch
from pretrain.group_bn import shuffling
from pretrain.methods.densecl import DenseCL
from pretrain.views import MEAN, STD


class PlainStep:
    """float32, NCHW, a matrix of logits, loops over parameters, queues with a key per column.

    Starts from a copy of `model`; one process. Pooled or local negatives, matches by the backbone.
    """

    def __init__(self, config: PretrainConfig, model: DenseCL, device: torch.device) -> None:
        self.config, self.device, self.number = config, device, 0
        plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
        self.query, self.key = plain.query, plain.key
        self.queues = [q.rows.T.contiguous() for q in (plain.global_queue, plain.dense_queue)]
        self.pointers = [0, 0]
        optim = config.optim
        parameters = self.query.parameters()
        self.optimizer: torch.optim.Optimizer
        if optim.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(
                parameters, optim.lr, weight_decay=optim.weight_decay, foreach=False
            )
        else:
            self.optimizer = torch.optim.SGD(
                parameters, optim.lr, optim.momentum, 0, optim.weight_decay, foreach=False
            )

    def __call__(self, batch: Batch) -> float:
        """One update; the loss."""
        queries, keys = (self.normalise(view) for view in batch.views)
        count = len(queries)
        with torch.no_grad():
            momentum = self.config.model.key_momentum
            for key, query in zip(self.key.parameters(), self.query.parameters()):
                key.data = key.data * momentum + query.data * (1 - momentum)
            order = shuffling(count, self.config.seed, self.number).to(self.device)
            shuffled = self.key(keys[order])
            key = shuffled._make(part[order.argsort()] for part in shuffled)
        query = self.query(queries)
        similarity = torch.einsum("bcq,bck->bqk", query.feature, key.feature)
        matches = similarity.argmax(2)[:, None].expand_as(key.dense)
        positive = key.dense.gather(2, matches)
        global_loss = self.contrast(query.global_, key.global_, self.queues[0])
        dense_loss = self.contrast(rows(query.dense), rows(positive), self.queues[1])
        weight = self.config.loss.dense_weight
        loss = (1 - weight) * global_loss + weight * dense_loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        local = self.config.loss.negatives == "local"
        self.enqueue(0, key.global_)
        self.enqueue(1, rows(key.dense) if local else key.pooled)
        self.number += 1
        return loss.item()

    def normalise(self, view: torch.Tensor) -> torch.Tensor:
        """(B,3,H,W) uint8 → float32."""
        mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, STD))
        return (view.to(self.device).float() / 255 - mean) / std

    def contrast(self, query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
        """Query and key (N,D) against the queue (D,K)."""
        positive = torch.einsum("nd,nd->n", query, key)[:, None]
        logits = torch.cat([positive, query @ queue], 1) / self.config.loss.temperature
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long).to(self.device))

    def enqueue(self, number: int, keys: torch.Tensor) -> None:
        """Replace the oldest columns by keys (N,D)."""
        queue, pointer = self.queues[number], self.pointers[number]
        places = torch.arange(pointer, pointer + len(keys)) % queue.shape[1]
        queue[:, places.to(self.device)] = keys.T
        self.pointers[number] = (pointer + len(keys)) % queue.shape[1]


def rows(dense: torch.Tensor) -> torch.Tensor:
    """(B,D,S²) → (B·S²,D)."""
    return dense.transpose(1, 2).flatten(0, 1)
