"""Predictions belong to images of the ground truth, or are refused."""

from collections.abc import Iterable

from common.errors import UserError


def check_image_ids(predicted: Iterable[str], known: Iterable[str]) -> None:
    """Raise UserError when a prediction is for an image that the ground truth does not have."""
    unknown = sorted(set(predicted) - set(known))
    if unknown:
        raise UserError(
            f"predictions for {len(unknown):,} images that are not in the ground truth, "
            f"{unknown[0]} for one: were they made on another dataset?"
        )
