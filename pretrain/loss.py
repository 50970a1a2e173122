"""DenseCL's losses as pure functions (arXiv:2011.09157 section 3; SPEC of the official code).

Letters: B images, C feature channels, S² positions, D embedding width, K queue length, N rows.
"""

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from pretrain.model import Embeddings

# Rows of the queue looked at together: 392 × 2048 logits are 3 MB where all of them are 100 MB.
CHUNK = 2048


class Losses(NamedTuple):
    """total = (1-λ)·global_ + λ·dense; top1: share of rows whose positive beats all negatives.

    All scalars but `matches` (B,S²).
    """

    total: torch.Tensor
    global_: torch.Tensor
    dense: torch.Tensor
    global_top1: torch.Tensor
    dense_top1: torch.Tensor
    matches: torch.Tensor


def densecl_loss(
    query: Embeddings,
    key: Embeddings,
    global_negatives: torch.Tensor,
    dense_negatives: torch.Tensor,
    temperature: float,
    dense_weight: float,
) -> Losses:
    """Global and dense contrastive loss of one batch against the two queues, each (K,D).

    Each position of the query is paired with the key position whose backbone feature is most
    similar; the pair's dense embeddings are the positive. No gradient flows through the choice.
    """
    matches = match(query.feature, key.feature)  # (B,S²)
    dense_positive = key.dense.gather(2, matches[:, None].expand_as(key.dense))  # (B,D,S²)
    global_loss, global_top1 = info_nce_and_top1(
        query.global_, key.global_, global_negatives, temperature
    )
    dense_loss, dense_top1 = info_nce_and_top1(
        as_rows(query.dense), as_rows(dense_positive), dense_negatives, temperature
    )
    total = (1 - dense_weight) * global_loss + dense_weight * dense_loss
    return Losses(total, global_loss, dense_loss, global_top1, dense_top1, matches)


@torch.no_grad()
def match(query_feature: torch.Tensor, key_feature: torch.Tensor) -> torch.Tensor:
    """For each query position, the key position of the same image with the most similar feature.

    (B,C,S²) and (B,C,S²), unit length over C → (B,S²) int64. One-directional: several query
    positions may share a key position.
    """
    similarity = torch.bmm(query_feature.transpose(1, 2), key_feature)  # (B,S²,S²)
    return similarity.argmax(dim=2)


def as_rows(dense: torch.Tensor) -> torch.Tensor:
    """(B,D,S²) → (B·S²,D)."""
    return dense.transpose(1, 2).reshape(-1, dense.shape[1])


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


def match_entropy(matches: torch.Tensor) -> torch.Tensor:
    """How evenly the key positions are chosen: 1 evenly, 0 when one takes all.

    matches (B,S²) → scalar: entropy of the chosen positions over the batch, divided by ln S².
    """
    positions = matches.shape[1]
    share = torch.bincount(matches.flatten(), minlength=positions).float() / matches.numel()
    return torch.special.entr(share).sum() / max(torch.log(torch.tensor(positions)), 1e-12)
