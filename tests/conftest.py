"""Shared by all tests: one thread per process, a folder of small images, several processes."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """48 JPEG files of blurry noise, some in a sub-folder, of differing sizes."""
    root = tmp_path_factory.mktemp("images")
    random = np.random.RandomState(0)
    (root / "more").mkdir()
    for number in range(48):
        pixels = random.randint(0, 256, (6, 7, 3)).astype(np.uint8)
        size = (72 + number % 5, 80 - number % 3)
        folder = root / "more" if number % 4 == 0 else root
        Image.fromarray(pixels).resize(size, Image.BICUBIC).save(folder / f"{number:03d}.jpg")
    return root
