"""What is told of repeated measurements."""

from collections.abc import Sequence

import numpy as np


def middle_half(values: Sequence[float]) -> dict[str, float]:
    """The median of the values, and low and high, the ends of their middle half."""
    low, median, high = np.percentile(values, [25, 50, 75]).tolist()
    return {"median": median, "low": low, "high": high}
