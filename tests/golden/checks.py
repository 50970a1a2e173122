"""What the comparisons with the golden files share."""

import json

import numpy as np
import torch
from golden import recipe

from benchmarks.torchvision_engine.boxes import Target


def golden(name):
    return np.load(recipe.FOLDER / name)


def images(with_polygons=False):
    """The detectors' two images with their targets."""
    return [
        {
            "image": torch.from_numpy(recipe.make_image(*image).transpose(2, 0, 1).copy()),
            "height": height,
            "width": width,
            "target": Target(
                torch.tensor(boxes, dtype=torch.float32),
                torch.tensor(classes),
                [[recipe.polygon(box)] for box in boxes] if with_polygons else None,
            ),
        }
        for image, (height, width), boxes, classes in zip(
            recipe.IMAGES, recipe.OUTPUT_SIZES, recipe.BOXES, recipe.CLASSES
        )
    ]


def assert_close(found, expected, tolerance=1e-4):
    """As close as Detectron2 with two threads is to itself with one."""
    if isinstance(found, torch.Tensor):
        found = found.detach().numpy()
    scale = np.abs(expected).max() if np.size(expected) else 0.0
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=0.1 * tolerance * scale)


def assert_state_is_detectron2s(model, spec):
    recorded = json.loads((recipe.FOLDER / spec).read_text())
    assert {name: list(value.shape) for name, value in model.state_dict().items()} == {
        name: shape for name, (shape, _) in recorded.items()
    }


def first_k(monkeypatch):
    """Sampling without chance: the golden files' own."""
    monkeypatch.setattr(torch, "randperm", lambda n, device=None: torch.arange(n, device=device))
