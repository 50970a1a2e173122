"""Masks as polygons and run lengths, exactly."""

from itertools import pairwise

import numpy as np

Point = tuple[int, int]  # x, y of a pixel corner

_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # east, south, west, north; y points down
_CORNERS = ((0, 0), (1, 0), (1, 1), (0, 1))  # of a pixel, where its edge in each direction starts


def polygons(mask: np.ndarray) -> list[list[Point]]:
    """Polygons along the pixel edges of a (H,W) mask that together cover exactly its pixels.

    Parts that touch at a corner only are separate. Polygons cannot have holes, so a mask with a
    hole is cut in two where the hole begins.
    """
    loops = _loops(mask)
    hole = next((loop for loop in loops if signed_area(loop) < 0), None)
    if hole is None:
        return loops
    cut = min(x for x, _ in hole)
    left, right = mask.copy(), mask.copy()
    left[:, cut:] = False
    right[:, :cut] = False
    return polygons(left) + polygons(right)


def run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed RLE: lengths of runs of 0, 1, 0, ... down the columns, from a 0 run."""
    pixels = mask.T.ravel()
    changes = np.flatnonzero(np.diff(pixels)) + 1
    bounds = [0, *([0] if pixels[0] else []), *changes.tolist(), pixels.size]
    return [end - start for start, end in pairwise(bounds)]


def signed_area(loop: list[Point]) -> int:
    """Pixels inside a polygon; negative when it runs counter-clockwise, as around a hole."""
    pairs = zip(loop, loop[1:] + loop[:1])
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs) // 2


def _loops(mask: np.ndarray) -> list[list[Point]]:
    """Borders of the mask: clockwise around its parts, counter-clockwise around its holes."""
    edges = _edges(mask)
    loops = []
    while edges:
        x, y, direction = first = min(edges)
        loop = []
        while True:
            edges.discard((x, y, direction))
            x, y = x + _STEPS[direction][0], y + _STEPS[direction][1]
            # A right turn first: it stays with the same pixel where two meet at a corner.
            turns = ((direction + turn) % 4 for turn in (1, 0, 3))
            onward = next(d for d in turns if (x, y, d) in edges or (x, y, d) == first)
            if onward != direction:
                loop.append((x, y))
            direction = onward
            if (x, y, direction) == first:
                break
        loops.append(loop)
    return loops


def _edges(mask: np.ndarray) -> set[tuple[int, int, int]]:
    """Start corner (x, y) and direction of each pixel edge with the mask on its right only."""
    padded = np.pad(mask, 1)
    edges = set()
    for direction, (start_x, start_y) in enumerate(_CORNERS):
        step_x, step_y = _STEPS[direction]
        beyond = np.roll(padded, (step_x, -step_y), axis=(0, 1))  # the neighbour on the left
        rows, columns = np.nonzero(padded & ~beyond)
        edges |= {
            (x - 1 + start_x, y - 1 + start_y, direction)
            for x, y in zip(columns.tolist(), rows.tolist())
        }
    return edges
