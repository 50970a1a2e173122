"""The losses as pure functions (arXiv:2011.09157 section 3; SPEC of the official code).

Letters: D embedding width, K queue length, N rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

# Rows of the queue looked at together: 392 × 2048 logits are 3 MB where all of them are 100 MB.
CHUNK = 2048


class Losses(NamedTuple):
    """What a method computes of one batch: the scalar that is trained on, and scalars to log.

    more: further scalars, computed only where they are logged.
    """

    total: torch.Tensor
    values: dict[str, torch.Tensor]
    more: Callable[[], dict[str, torch.Tensor]] = dict


def info_nce(
    query: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean cross-entropy of each query row's positive against its positive and all negatives.

    query (N,D), positive (N,D), negatives (K,D) → scalar. The gradient goes to `query` alone:
    keys and queue are constants in MoCo and DenseCL. The (N,K) logits are never held at once.
    """
    return info_nce_and_top1(query, positive, negatives, temperature)[0]


def info_nce_and_top1(
    query: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`info_nce`, and the share of rows whose positive is more similar than every negative."""
    if positive.requires_grad or negatives.requires_grad:
        raise ValueError("keys and negatives are constants here: detach them")
    return _InfoNCE.apply(query, positive, negatives, temperature)


class _InfoNCE(torch.autograd.Function):
    """Loss and gradient in one pass over the queue.

    With p the softmax over positive and negatives, the gradient of a row is
    (Σ_j p_j·n_j + (p_0 - 1)·k) / τ: the forward pass can sum it while it sums the partition
    function, keeping a running maximum so that no exponential overflows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        positive: torch.Tensor,
        negatives: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(query.device.type, enabled=False):
            q = query if query.dtype == torch.float64 else query.float()
            k, queue = positive.to(q.dtype), negatives.to(q.dtype)
            q_scaled = q / temperature
            positive_logit = (q_scaled * k).sum(1, keepdim=True)  # (N,1)
            largest = positive_logit.clone()
            partition = torch.ones_like(largest)  # Σ exp(logit - largest), the positive's share: 1
            weighted = k.clone()  # Σ exp(logit - largest) · key
            best_negative = torch.full_like(largest, -torch.inf)
            for chunk in queue.split(CHUNK):
                logits = q_scaled @ chunk.T  # (N,CHUNK)
                chunk_best = logits.amax(1, keepdim=True)
                best_negative = torch.maximum(best_negative, chunk_best)
                new_largest = torch.maximum(largest, chunk_best)
                rescale = (largest - new_largest).exp_()
                weights = logits.sub_(new_largest).exp_()
                partition = partition.mul_(rescale).add_(weights.sum(1, keepdim=True))
                weighted = weighted.mul_(rescale).addmm_(weights, chunk)
                largest = new_largest
            row_loss = partition.log() + largest - positive_logit
            gradient = weighted.div_(partition).sub_(k).div_(temperature * len(q))
            ctx.save_for_backward(gradient.to(query.dtype))
            top1 = (positive_logit > best_negative).to(q.dtype).mean()
        ctx.mark_non_differentiable(top1)
        return row_loss.mean(), top1

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: torch.Tensor, _: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * loss_gradient, None, None, None


def nt_xent(
    views: torch.Tensor, everyone: torch.Tensor, first: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """SimCLR's loss (arXiv:2002.05709 eq. 1) of N/2 images in two views each, and its top-1.

    views (N,D): the first views of this process's images, then the second, in the same order.
    everyone (M,D): those rows of all processes; this process's begin at row `first`. A row's
    positive is its image's other view, and its negatives are all rows but these two.
    """
    count = len(views)
    own = torch.arange(count, device=views.device)
    logits = views @ everyone.T / temperature  # (N,M)
    logits = logits.index_put((own, first + own), logits.new_tensor(-torch.inf))
    positive = first + (own + count // 2) % count
    top1 = (logits.argmax(1) == positive).to(logits.dtype).mean()
    return F.cross_entropy(logits, positive), top1


def mean_cosine(vectors: torch.Tensor) -> torch.Tensor:
    """Mean cosine between two different rows of (N,D) unit vectors: 1 where all are one."""
    vectors = vectors.detach()
    count = len(vectors)
    return (vectors.sum(0).square().sum() - count) / max(count * (count - 1), 1)
