"""Surfaces: two colours in a pattern, in integer arithmetic."""

import math

import numpy as np

ANGLES = 64
# Rounded at once: the last bits of a machine's cos and sin never reach a pixel.
_COS = [round(256 * math.cos(2 * math.pi * step / ANGLES)) for step in range(ANGLES)]
_SIN = [round(256 * math.sin(2 * math.pi * step / ANGLES)) for step in range(ANGLES)]


def rotated_grid(
    height: int, width: int, angle: int, centre: tuple[int, int] = (0, 0)
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates u and v, (H,W) each, in 1/256 pixel from `centre` (row, column).

    `angle` counts in 1/ANGLES of a turn.
    """
    y, x = np.ogrid[:height, :width]
    y, x = y - centre[0], x - centre[1]
    return x * _COS[angle] + y * _SIN[angle], y * _COS[angle] - x * _SIN[angle]


def clouds(random: np.random.RandomState, height: int, width: int, cell: int) -> np.ndarray:
    """Smooth noise (H,W), 0 to 255: random lattice points `cell` pixels apart, interpolated."""
    lattice = random.randint(256, size=(height // cell + 2, width // cell + 2))
    row, below = np.divmod(np.arange(height)[:, None], cell)
    column, right = np.divmod(np.arange(width), cell)
    rows = (lattice[row[:, 0]] * (cell - below) + lattice[row[:, 0] + 1] * below) // cell
    return (rows[:, column] * (cell - right) + rows[:, column + 1] * right) // cell


def ramp(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """A straight gradient (H,W) in a random direction, 0 to 255."""
    u, _ = rotated_grid(height, width, random.randint(ANGLES))
    return (u - u.min()) * 255 // (u.max() - u.min())


def texture(
    random: np.random.RandomState,
    height: int,
    width: int,
    colours: tuple[int, int],
    contrast: tuple[int, int],
) -> np.ndarray:
    """A random surface (H,W,3) int32, 0 to 255: a pattern between two random colours.

    The colours differ by contrast[0] to contrast[1] - 1 levels in each channel.
    """
    level = _pattern(random, height, width).astype(np.int32)
    colour = random.randint(*colours, size=3).astype(np.int32)
    change = random.randint(*contrast, size=3).astype(np.int32)
    change = np.where(colour < 128, change, -change)
    return colour + (level[..., None] * change >> 8)


def _pattern(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    u, v = rotated_grid(height, width, random.randint(ANGLES))
    period = int(random.randint(3, 10))
    u, v = u + random.randint(4096), v + random.randint(4096)
    size = period * 256
    zigzag = abs(v % (2 * size) - size)
    kinds = (
        lambda: u // size % 2 * 255,  # stripes
        lambda: (u // size + v // size) % 2 * 255,  # checks
        lambda: (u + zigzag) // size % 2 * 255,  # zigzag
        lambda: ((u % (2 * size) - size) ** 2 + (v % (2 * size) - size) ** 2 < size**2 // 2) * 255,
        lambda: abs(u % (4 * size) - 2 * size) * 255 // (2 * size),  # waves
        lambda: clouds(random, height, width, period),
    )
    return kinds[random.randint(len(kinds))]()
