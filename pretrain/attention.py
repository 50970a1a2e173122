"""What a query sees of a queue of negatives, without the matrix of all logits.

InfoNCE needs of N queries and K keys the log-sum of the logits and, for its gradient, the keys'
mean weighted by their softmax. That is attention with the queue as keys and values, so a flash
kernel computes both in one pass; adding up chunk by chunk does too, on any device.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch


class Seen(NamedTuple):
    """mean (N,D): Σ softmax(logits)·keys. log_sum (N,): log Σ exp(logits)."""

    mean: torch.Tensor
    log_sum: torch.Tensor


Attention = Callable[[torch.Tensor, torch.Tensor, float], Seen]

# Keys looked at together: 392 rows of 512 logits stay in a core's cache; a GPU wants longer work.
CHUNK = {"cpu": 512, "cuda": 4096}


def by_chunks(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> Seen:
    """Queries (N,D), keys (K,D) of the same type; logits are scale · queries @ keys.T.

    A running maximum keeps every exponential finite, whatever the vectors' lengths.
    """
    queries = queries * scale
    largest = queries.new_full((len(queries), 1), -torch.inf)
    partition = torch.zeros_like(largest)  # Σ exp(logit - largest)
    weighted = torch.zeros_like(queries)  # Σ exp(logit - largest) · key
    for chunk in keys.split(CHUNK[keys.device.type]):
        logits = queries @ chunk.T
        new_largest = torch.maximum(largest, logits.amax(1, keepdim=True))
        rescale = (largest - new_largest).exp_()
        weights = logits.sub_(new_largest).exp_()
        partition = partition.mul_(rescale).add_(weights.sum(1, keepdim=True))
        weighted = weighted.mul_(rescale).addmm_(weights, chunk)
        largest = new_largest
    return Seen(weighted.div_(partition), partition.log().add_(largest)[:, 0])


def by_flash(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> Seen:
    """The same from PyTorch's flash attention, which gives the log-sum beside its output.

    In half precision on a GPU, float32 on a CPU. The operators are not PyTorch's public ones:
    `pretrain.precision` sees whether they are there and agree.
    """
    half = keys.is_cuda
    # The queue in parts, as heads of their own, so that few queries still fill a GPU.
    parts = math.gcd(len(keys), 64 if half and len(queries) < 4096 else 4)
    queries, keys = (x.half() if half else x for x in (queries, keys))
    query = queries[None, None].expand(1, parts, -1, -1)
    key = keys.view(1, parts, len(keys) // parts, -1)
    flash = (
        torch.ops.aten._scaled_dot_product_flash_attention
        if half
        else torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    )
    means, log_sums = flash(query, key, key, 0.0, False, scale=scale)[:2]
    means, log_sums = means[0].float(), log_sums[0].float()  # (parts,N,D), (parts,N)
    log_sum = log_sums.logsumexp(0)
    return Seen(((log_sums - log_sum).exp()[..., None] * means).sum(0), log_sum)


ATTENTIONS: dict[str, Attention] = {"chunks": by_chunks, "flash": by_flash}
