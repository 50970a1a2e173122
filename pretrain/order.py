"""Which images make which batch, computed from (seed, step) alone: nothing is shuffled or stored.

A set of 10^9 images costs no more memory than one of 10^3, and a run continues from its step: the
batches are the same whatever the number of processes, and of workers, before and after.
"""

from collections.abc import Iterator

import numpy as np

from common import distributed
from pretrain.config import PretrainConfig
from pretrain.shards import RUN_LENGTH
from pretrain.views import random_key

_ROUNDS = 6


class Order:
    """For each step from `first_step` on, the items (epoch, number) of this process.

    An epoch is a permutation of all images, cut into batches; what does not fill a batch is left
    out. Process r takes the r-th part of every batch, so the batch itself is the same however
    many processes share it. Time and memory of a step are those of its images, whatever `images`.
    """

    def __init__(self, images: int, config: PretrainConfig, first_step: int) -> None:
        self.images, self.seed, self.first_step = images, config.seed, first_step
        self.window, self.batch_size = config.data.window, config.optim.batch_size
        self.steps_per_epoch = images // self.batch_size
        self.total_steps = config.optim.epochs * self.steps_per_epoch
        self.rank, self.world_size = distributed.rank(), distributed.world_size()

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        local = self.batch_size // self.world_size
        for step in range(self.first_step, self.total_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            start = batch * self.batch_size + self.rank * local
            numbers = self.numbers(epoch, np.arange(start, start + local))
            yield [(epoch, number) for number in numbers.tolist()]

    def __len__(self) -> int:
        return self.total_steps - self.first_step

    def numbers(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """(N,) places in an epoch, 0 to images - 1 → (N,) int64: the images that come there."""
        key = random_key(self.seed, "order", epoch)
        if self.window:
            return permute_windowed(positions, self.images, self.window, key)
        return permute(positions, self.images, key)


def permute(positions: np.ndarray, n: int, key: int) -> np.ndarray:
    """(N,) integers of 0..n-1 → (N,) int64: where a random permutation of 0..n-1 takes them.

    A Feistel network permutes the 4^h numbers of 2h bits, the least such set that holds n; what
    lands outside n is permuted again until it is inside, on average at most four times (Black
    and Rogaway, Ciphers with Arbitrary Finite Domains, 2002). `key` chooses the permutation.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    keys = [np.uint64(random_key(key, number) % 2**64) for number in range(_ROUNDS)]
    values = np.array(positions, np.uint64)
    outside = np.ones(values.shape, bool)
    while outside.any():
        left, right = values[outside] >> bits, values[outside] & mask
        for round_key in keys:
            left, right = right, left ^ (_scramble(right ^ round_key) & mask)
        values[outside] = left << bits | right
        outside = values >= n
    return values.astype(np.int64)


def permute_windowed(positions: np.ndarray, n: int, window: int, key: int) -> np.ndarray:
    """`permute` for storage that is slow at random: images change places within a window only.

    Consecutive images form runs of RUN_LENGTH, which are shuffled as wholes. The shuffled runs
    are cut into windows of nearly equal length, `window` images at most; each mixes its images.
    The last run, which may be short, is always in the first window.
    """
    runs, missing = -(-n // RUN_LENGTH), -n % RUN_LENGTH
    windows = -(-runs * RUN_LENGTH // window)
    # Places count as if the first run, the short one, were whole: `missing` comes before place 0.
    places = np.asarray(positions, np.int64) + missing
    for number in np.unique(((places // RUN_LENGTH + 1) * windows - 1) // runs).tolist():
        first, end = (RUN_LENGTH * (w * runs // windows) for w in (number, number + 1))
        first = max(first, missing)
        inside = (places >= first) & (places < end)
        mixed = permute(places[inside] - first, end - first, random_key(key, "window", number))
        places[inside] = first + mixed
    slots, within = np.divmod(places, RUN_LENGTH)
    shuffled = np.full(slots.shape, runs - 1)
    later = slots > 0
    shuffled[later] = permute(slots[later] - 1, runs - 1, key)
    return shuffled * RUN_LENGTH + within - np.where(later, 0, missing)


def _scramble(values: np.ndarray) -> np.ndarray:
    """uint64 → uint64, each output bit depends on all input bits: SplitMix64's last part."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
