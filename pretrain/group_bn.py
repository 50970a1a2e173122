"""Batch norm that does not tell a query which key is its own (MoCo, arXiv:1911.05722, 3.3).

Batch-norm statistics leak who shares a batch with whom. MoCo shuffles the keys over the GPUs, so
that a query and its key are normalised with different company. Here the company is a *group*: each
process splits its images into groups of `group` images with statistics of their own, and the keys
are shuffled over all groups of all processes. One process with two groups is thus as protected as
two processes with one.
"""

import torch
import torch.nn.functional as F
from torch import nn

from common import distributed
from pretrain.views import random_key


def norm_layer(channels: int, group: int) -> nn.Module:
    """Batch norm over groups of `group` images; with 0, over all images of all processes."""
    return GroupBatchNorm(channels, group) if group else nn.SyncBatchNorm(channels)


class GroupBatchNorm(nn.BatchNorm2d):
    """Batch norm over groups of `group` images, one after another in the batch.

    Images are (B,C,H,W) maps or (B,C) vectors. The running statistics follow the mean over all
    groups; training never reads them.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, channels: int, group: int) -> None:
        super().__init__(channels)
        self.group = group

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() not in (2, 4):
            raise ValueError(f"expected (B,C,H,W) or (B,C), not {tuple(input.shape)}")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training or len(images) <= self.group:
            return super().forward(images)
        if len(images) % self.group:
            raise ValueError(f"{len(images)} images do not fill groups of {self.group}")
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        groups = images.split(self.group)
        means, variances = (x.repeat(len(groups), 1) for x in (self.running_mean, self.running_var))
        normalised = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, var in zip(groups, means, variances)
        ]
        self.running_mean.copy_(means.mean(0))
        self.running_var.copy_(variances.mean(0))
        return torch.cat(normalised)


@torch.no_grad()
def average_running_statistics(module: nn.Module) -> None:
    """Make every process hold the mean of all processes' running statistics.

    So the saved statistics are those of all groups, and any process can save them.
    """
    if distributed.world_size() == 1:
        return
    statistics = [b for name, b in module.named_buffers() if "running_" in name]
    mean = distributed.sum_over_processes(torch.cat(statistics)) / distributed.world_size()
    torch._foreach_copy_(statistics, list(mean.split([len(b) for b in statistics])))


def shuffling(images: int, seed: int, step: int) -> torch.Tensor:
    """(images,) int64: the permutation of the whole batch at `step`, the same in all processes."""
    generator = torch.Generator().manual_seed(random_key(seed, "shuffle", step))
    return torch.randperm(images, generator=generator)


def shuffle(local: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
    """This process's part (N,...) of the shuffled batch; `local` is its part (N,...) before."""
    return distributed.exchange(local, permutation)


def unshuffle(local: torch.Tensor, permutation: torch.Tensor) -> torch.Tensor:
    """Undo `shuffle`: rows (N,...) back in the order of this process's own images."""
    return distributed.exchange(local, permutation.argsort())
