"""A batch on the training device, and how it becomes images there."""

from dataclasses import dataclass, field, replace

import torch

from pretrain.device_views import augment
from pretrain.group_bn import shuffle
from pretrain.views import RECIPES, normalise


@dataclass(frozen=True)
class Inputs:
    """This process's part of the batch at `step`, or some `rows` of it.

    crops (V,B,3,H,W) uint8; drawn (V,B,13): the changes to make, None where they have been made;
    labels (B,). corners (V,B,4), see `Views`, stay with the host, who decides by them without
    asking the device. logged: whether what is computed will be shown.
    """

    crops: torch.Tensor
    drawn: torch.Tensor | None
    corners: torch.Tensor
    labels: torch.Tensor
    recipe: str
    step: int
    logged: bool
    rows: slice = field(default_factory=lambda: slice(None))

    @property
    def count(self) -> int:
        """How many images there are."""
        return self.crops.shape[1]

    def images(self, view: int, permutation: torch.Tensor | None = None) -> torch.Tensor:
        """(B,3,H,W) of a view, normalised; with a permutation, in the company that it makes.

        Images change places as bytes, before they are as floats four times as large.
        """
        crops, drawn = self.crops[view], None if self.drawn is None else self.drawn[view]
        if permutation is not None:
            crops = shuffle(crops.movedim(1, 3), permutation).movedim(3, 1)  # as they lie in memory
            drawn = None if drawn is None else shuffle(drawn, permutation)
        if drawn is None:
            return normalise(crops)
        return augment(crops, drawn, RECIPES[self.recipe].views[view])

    def part(self, rows: slice) -> "Inputs":
        """These rows alone."""
        return replace(
            self,
            crops=self.crops[:, rows],
            drawn=None if self.drawn is None else self.drawn[:, rows],
            corners=self.corners[:, rows],
            labels=self.labels[rows],
            rows=rows,
        )
