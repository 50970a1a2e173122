"""The losses as pure functions (arXiv:2011.09157 section 3; SPEC of the official code).

Letters: D embedding width, K queue length, N rows.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from pretrain.attention import CHUNK, Attention, by_chunks


class Losses(NamedTuple):
    """What a method computes of a batch: the scalar that is trained on, and scalars to log."""

    total: torch.Tensor
    values: dict[str, torch.Tensor]


def info_nce(
    query: torch.Tensor,
    positive: torch.Tensor,
    negatives: torch.Tensor,
    temperature: float,
    attend: Attention = by_chunks,
) -> torch.Tensor:
    """Mean cross-entropy of each query row's positive against its positive and all negatives.

    query (N,D), positive (N,D), negatives (K,D) → scalar. The gradient goes to `query` alone:
    keys and queue are constants in MoCo and DenseCL. The (N,K) logits are never held at once.
    """
    if positive.requires_grad or negatives.requires_grad:
        raise ValueError("keys and negatives are constants here: detach them")
    return _InfoNCE.apply(query, positive, negatives, temperature, attend)


class _InfoNCE(torch.autograd.Function):
    """Loss and gradient in one pass over the queue.

    With p the positive's share of the softmax and n the negatives' mean by their own softmax, a
    row's gradient is (1 - p)·(n - k) / τ: the forward pass has all of it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        positive: torch.Tensor,
        negatives: torch.Tensor,
        temperature: float,
        attend: Attention,
    ) -> torch.Tensor:
        with torch.autocast(query.device.type, enabled=False):
            q = query if query.dtype == torch.float64 else query.float()
            k = positive.to(q.dtype)
            seen = attend(q, negatives.to(q.dtype), 1 / temperature)
            margin = seen.log_sum - (q * k).sum(1) / temperature  # (N,)
            share = margin.sigmoid()[:, None]  # 1 - p: of all negatives together
            gradient = (seen.mean - k).mul_(share).div_(temperature * len(q))
            ctx.save_for_backward(gradient.to(query.dtype))
            return F.softplus(margin, threshold=40).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: torch.Tensor) -> tuple[Any, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * loss_gradient, None, None, None, None


@torch.no_grad()
def top1(query: torch.Tensor, positive: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Share of rows (N,D) whose positive (N,D) is more similar than every negative (K,D)."""
    best = query.new_full((len(query),), -torch.inf)
    for chunk in negatives.split(CHUNK[negatives.device.type]):
        best = torch.maximum(best, (query @ chunk.to(query.dtype).T).amax(1))
    return ((query * positive).sum(1) > best).float().mean()


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
    logits = logits.index_put((own, first + own), logits.new_full((), -torch.inf))
    positive = first + (own + count // 2) % count
    top1 = (logits.argmax(1) == positive).to(logits.dtype).mean()
    return F.cross_entropy(logits, positive), top1


def mean_cosine(vectors: torch.Tensor) -> torch.Tensor:
    """Mean cosine between two different rows of (N,D) unit vectors: 1 where all are one."""
    vectors = vectors.detach()
    count = len(vectors)
    return (vectors.sum(0).square().sum() - count) / max(count * (count - 1), 1)
