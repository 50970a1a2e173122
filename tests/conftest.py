"""Shared by all tests: one thread per process, a folder of small images, several processes."""

import os
import signal

import numpy as np
import pytest
import torch
from benchmark_fixtures import write_tiny_cityscapes, write_tiny_coco, write_tiny_voc
from PIL import Image

from benchmarks.datasets.catalog import read_set
from common.shutdown import HANDLED

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands that tests start
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def signals_as_before():
    """What a test lets a program do at a signal ends with the test.

    Processes forked by a later test would inherit it, and not end when they are told to.
    """
    handlers = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


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


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """A folder for DETECTRON2_DATASETS that holds a tiny VOC, COCO and Cityscapes."""
    folder = tmp_path_factory.mktemp("datasets")
    write_tiny_voc(folder)
    write_tiny_coco(folder)
    write_tiny_cityscapes(folder)
    return folder


@pytest.fixture(scope="module")
def images(datasets):
    """The training images of the tiny VOC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        yield read_set("mini_voc_2007_trainval")


@pytest.fixture(scope="module")
def coco_images(datasets):
    """The training images of the tiny COCO: objects with outlines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(datasets))
        yield read_set("mini_coco_2017_train")
