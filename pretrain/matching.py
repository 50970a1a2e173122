"""Which position of the key view a position of the query view is paired with.

Letters: B images, C channels, S² positions, row by row from the top left.
"""

import math
from dataclasses import dataclass

import torch

from common import distributed
from pretrain.views import random_key


@torch.no_grad()
def match_by_similarity(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """For each query position, the key position of the same image with the most similar vector.

    (B,C,S²) and (B,C,S²), unit length over C → (B,S²) int64. One-directional: several query
    positions may share a key position.
    """
    similarity = torch.bmm(query.transpose(1, 2), key)  # (B,S²,S²)
    return similarity.argmax(dim=2)


def match_by_place(
    query_corners: torch.Tensor, key_corners: torch.Tensor, positions: int
) -> torch.Tensor:
    """For each query position, the key position whose centre lies nearest in the image.

    Corners (B,4), see `Views` → (B,S²) int64. Like the most similar position, there always is
    one, also for what the key view does not show.
    """
    return distances(query_corners, key_corners, positions).argmin(2)


def distances(
    query_corners: torch.Tensor, key_corners: torch.Tensor, positions: int
) -> torch.Tensor:
    """(B,S²,S²): pixels of the image from each query position's centre to each key position's."""
    query, key = (centres(corners, positions) for corners in (query_corners, key_corners))
    return torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist")


def centres(corners: torch.Tensor, positions: int) -> torch.Tensor:
    """(B,S²,2): x and y in the image of the centre of each of a view's S² positions."""
    side = round(positions**0.5)
    along = (torch.arange(side, device=corners.device, dtype=torch.float64) + 0.5) / side
    left, top, right, bottom = corners.double()[:, :, None].unbind(1)  # (B,1) each
    x = left + along * (right - left)  # (B,S)
    y = top + along * (bottom - top)
    rows, columns = y.repeat_interleave(side, 1), x.repeat(1, side)
    return torch.stack([columns, rows], 2)


def match_randomly(images: int, positions: int, seed: int, step: int) -> torch.Tensor:
    """(B,S²) int64: for this process's part of the batch of `images`, any key positions."""
    generator = torch.Generator().manual_seed(random_key(seed, "match", step))
    whole = torch.randint(positions, (images, positions), generator=generator)
    return distributed.this_process_rows(whole)


@dataclass(frozen=True)
class Matches:
    """N matches of one image's two views.

    query, key (N,) int64: positions, row by row. similarity (N,). agrees (N,) bool.
    """

    query: torch.Tensor
    key: torch.Tensor
    similarity: torch.Tensor
    agrees: torch.Tensor


def mutual_matches(
    query: torch.Tensor, key: torch.Tensor, corners: torch.Tensor, threshold: float
) -> Matches:
    """Of two views' features (C,S²), unit length over C, and their corners (2,4), see `Views`."""
    similarity = query.T @ key  # (S²,S²)
    best_key, best_query = similarity.argmax(1), similarity.argmax(0)
    position = torch.arange(len(best_key))
    score = similarity[position, best_key]
    chosen = (best_query[best_key] == position) & (score > threshold)
    positions = query.shape[1]
    query_place, key_place = (centres(c[None], positions)[0] for c in corners)  # (S²,2)
    left, top, right, bottom = corners[1].double().tolist()
    cell = torch.tensor([abs(right - left), abs(bottom - top)]) / positions**0.5
    apart = (query_place - key_place[best_key]).abs()  # (S²,2) pixels of the image
    agrees = (apart <= cell.double()).all(1)
    return Matches(position[chosen], best_key[chosen], score[chosen], agrees[chosen])


def match_entropy(matches: torch.Tensor) -> torch.Tensor:
    """How evenly the key positions are chosen: 1 evenly, 0 when one takes all.

    matches (B,S²) → scalar: entropy of the chosen positions over the batch, divided by ln S².
    """
    chosen, positions = matches.flatten(), matches.shape[1]
    # Not bincount, which asks a GPU for the largest value.
    counts = chosen.new_zeros(positions).scatter_add_(0, chosen, torch.ones_like(chosen))
    return torch.special.entr(counts / len(chosen)).sum() / max(math.log(positions), 1e-12)
