"""Scenes of textured shapes: occlusion in depth order, shadows, changing scale and light."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.miniature.textures import ANGLES, clouds, ramp, rotated_grid, texture

KINDS = ("disk", "square", "triangle", "cross")

# (from, below) of the first colour's levels and of its distance to the second. Backgrounds are
# duller than things, as a rule; which kind a thing is shows in its shape alone.
_BACKGROUND = ((80, 176), (4, 28))
_THING = ((0, 256), (16, 64))
_TILT = ANGLES // 16  # things stand upright, more or less
_SMALLEST = 48  # pixels that must show of a thing
_SHOWS = 70  # percent of a thing that must show


@dataclass(frozen=True)
class Wanted:
    """A thing to place: its kind and its radius, in percent of the image's shorter side."""

    kind: int
    radius: tuple[int, int]
    crowd: bool = False


@dataclass(frozen=True)
class Thing:
    """A placed thing. Masks are (H,W) bool: its whole outline in the image, and what shows of it.

    A crowd is a group of small things of one kind, under one mask.
    """

    kind: int
    whole: np.ndarray
    visible: np.ndarray
    crowd: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of what shows, in pixels; right and bottom exclusive."""
        return _box(self.visible)

    @property
    def visible_percent(self) -> int:
        """How much of the outline shows."""
        return int(100 * self.visible.sum() // self.whole.sum())


@dataclass(frozen=True)
class Scene:
    """image (H,W,3) uint8, and its things from front to back."""

    image: np.ndarray
    things: list[Thing]


def image_random(seed: int, split: str, index: int) -> np.random.RandomState:
    """The random stream of one image: independent of every other image's."""
    digest = hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()
    return np.random.RandomState(int.from_bytes(digest[:4], "big"))


def some_things(
    random: np.random.RandomState, most: int, radius: tuple[int, int], crowd: bool = False
) -> list[Wanted]:
    """One to `most` things of random kinds; with `crowd`, a crowd behind them."""
    count = random.randint(1, most + 1)
    wanted = [Wanted(int(random.randint(len(KINDS))), radius) for _ in range(count)]
    if crowd:
        wanted.append(Wanted(int(random.randint(len(KINDS))), (26, 32), crowd=True))
    return wanted


def make_scene(
    random: np.random.RandomState, height: int, width: int, wanted: Sequence[Wanted]
) -> Scene:
    """A scene with the wanted things from front to back; one that finds no place is left out."""
    free = np.ones((height, width), dtype=bool)
    things = []
    for want in wanted:
        thing = _place(random, free, want)
        if thing is not None:
            things.append(thing)
            free &= ~thing.whole
    return Scene(_paint(random, height, width, things), things)


def _place(random: np.random.RandomState, free: np.ndarray, want: Wanted) -> Thing | None:
    for _ in range(10):
        whole = _outline(random, free.shape, want)
        visible = whole & free
        if visible.sum() >= max(_SMALLEST, whole.sum() * _SHOWS // 100):
            return Thing(want.kind, whole, visible, want.crowd)
    return None


def _outline(random: np.random.RandomState, shape: Sequence[int], want: Wanted) -> np.ndarray:
    height, width = shape
    radius = min(height, width) * int(random.randint(want.radius[0], want.radius[1] + 1)) // 100
    margin = radius * 3 // 4  # so that a thing may reach beyond the image, but not by much
    row = int(random.randint(margin, height - margin))
    column = int(random.randint(margin, width - margin))
    if not want.crowd:
        return _shape(random, height, width, want.kind, (row, column), radius)
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(random.randint(8, 14)):
        offset = random.randint(-radius, radius + 1, size=2)
        centre = (row + int(offset[0]) // 2, column + int(offset[1]))
        mask |= _shape(random, height, width, want.kind, centre, max(4, radius // 5))
    return mask


def _shape(
    random: np.random.RandomState,
    height: int,
    width: int,
    kind: int,
    centre: tuple[int, int],
    radius: int,
) -> np.ndarray:
    u, v = rotated_grid(height, width, int(random.randint(-_TILT, _TILT + 1)), centre)
    u = u * int(random.randint(256, 308)) // 256  # narrower by up to a quarter
    r = radius * 256
    match KINDS[kind]:
        case "disk":
            return u * u + v * v <= r * r
        case "square":
            return np.maximum(abs(u), abs(v)) <= r * 13 // 16
        case "triangle":  # equilateral: 443/256 is the square root of 3
            return (v >= -r // 2) & (v + abs(u) * 443 // 256 <= r)
        case _:
            narrow, wide = np.minimum(abs(u), abs(v)), np.maximum(abs(u), abs(v))
            return (narrow <= r * 5 // 16) & (wide <= r)


def _paint(
    random: np.random.RandomState, height: int, width: int, things: Sequence[Thing]
) -> np.ndarray:
    canvas = _background(random, height, width)
    shadow = (int(random.randint(2, 6)), int(random.randint(-5, 6)))
    for thing in reversed(things):
        shaded = _shifted(thing.whole, shadow)
        canvas[shaded] = canvas[shaded] * 5 >> 3
        left, top, right, bottom = _box(thing.whole)
        surface = texture(random, bottom - top, right - left, *_THING)
        mask = thing.whole[top:bottom, left:right]
        canvas[top:bottom, left:right][mask] = surface[mask]
    bright = random.randint(150, 340, size=2)
    tint = random.randint(230, 283, size=3)
    light = bright[0] + ((bright[1] - bright[0]) * ramp(random, height, width) >> 8)
    lamp = (light[..., None] * tint >> 8).astype(np.int32)
    grain = random.randint(-5, 6, size=(height, width, 1))
    return np.clip(_softened(canvas * lamp >> 8) + grain, 0, 255).astype(np.uint8)


def _background(random: np.random.RandomState, height: int, width: int) -> np.ndarray:
    """Two surfaces that meet at a wavy line."""
    first = texture(random, height, width, *_BACKGROUND)
    second = texture(random, height, width, *_BACKGROUND)
    border = 64 + int(random.randint(128))
    side = ramp(random, height, width) * 7 // 8 + clouds(random, height, width, 24) // 8
    return np.where((side < border)[..., None], first, second)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _shifted(mask: np.ndarray, offset: tuple[int, int]) -> np.ndarray:
    height, width = mask.shape
    row, column = 8 - offset[0], 8 - offset[1]
    return np.pad(mask, 8)[row : row + height, column : column + width]


def _softened(canvas: np.ndarray) -> np.ndarray:
    """A lens: each pixel mixed with its neighbours, 1-2-1 in both directions."""
    canvas = np.pad(canvas, ((1, 1), (1, 1), (0, 0)), mode="edge")
    canvas = canvas[:-2] + 2 * canvas[1:-1] + canvas[2:]
    return canvas[:, :-2] + 2 * canvas[:, 1:-1] + canvas[:, 2:] >> 4
