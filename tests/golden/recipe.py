"""The weights, images and targets of the golden files, from names and numbers alone.

Every weight comes from its name in Detectron2's state dict, through NumPy's legacy generator,
whose stream is frozen. A change here makes the golden files wrong.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent
IMAGES = [(1, 120, 152), (2, 136, 112)]  # seed, height, width
OUTPUT_SIZES = [(240, 304), (100, 90)]  # height, width asked for
BOXES = [
    [[20.5, 30, 80, 90.25], [70, 10, 140, 60], [5, 80, 40, 118], [75, 20, 132, 70]],
    [[10, 15, 60, 100], [50, 60, 108, 130.5]],
]
CLASSES = [[0, 1, 2, 3], [3, 1]]


def fill(name, shape):
    """The value of the tensor called `name`."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        value = 0.75 + 0.5 * random.random_sample(shape)
    elif name.endswith(("running_mean", "bias")):
        value = 0.1 * random.standard_normal(shape)
    elif ".norm." in name:
        gain = 0.3 if "conv3.norm" in name else 1.0
        value = gain * (1 + 0.1 * random.standard_normal(shape))
    else:
        gains = {
            "objectness_logits": 4.0,
            "anchor_deltas": 0.1,
            "cls_score": 8.0,
            "bbox_pred": 1.0,
            "predictor": 4.0,
        }
        gain = gains.get(name.split(".")[-2], 2.0)
        fan = shape[0] if ".deconv." in name else np.prod(shape[1:])
        value = np.sqrt(gain / fan) * random.standard_normal(shape)
    return torch.from_numpy(np.asarray(value, np.float32))


def state(spec):
    """The state dict that a *_state_spec.json describes."""
    shapes = json.loads((FOLDER / spec).read_text())
    return {name: fill(name, shape) for name, (shape, _) in shapes.items()}


def polygon(box):
    """(24,) corners of the 12-gon inscribed in `box`, x and y in turn."""
    angles = np.arange(12) * 2 * np.pi / 12
    x0, y0, x1, y1 = box
    x = (x0 + x1) / 2 + (x1 - x0) / 2 * np.cos(angles)
    y = (y0 + y1) / 2 + (y1 - y0) / 2 * np.sin(angles)
    return np.stack([x, y], axis=1).ravel()


def make_image(seed, height, width):
    """(H,W,3) uint8: waves, rectangles and noise."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    waves = [
        127 + 90 * np.sin(x / (9.0 + 5 * c) + c) * np.cos(y / (13.0 - 3 * c)) for c in range(3)
    ]
    image = np.stack(waves, -1)
    for _ in range(6):
        x0, y0 = random.randint(0, width - 20), random.randint(0, height - 20)
        w, h = random.randint(12, width // 2), random.randint(12, height // 2)
        patch = image[y0 : y0 + h, x0 : x0 + w]
        patch[:] = 0.3 * patch + 0.7 * random.randint(0, 256, 3)
    return np.clip(image + random.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
