"""Tiny segmentation sets of both layouts, and a segmentor that trains on them in seconds."""

import numpy as np
from golden.recipe import make_image
from PIL import Image

from benchmarks.config import find_config, load_config

# The miniatures, smaller still.
_TINY = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "4",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "4",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "16",
    "MODEL.SEM_SEG_HEAD.AUXILIARY.CONVS_DIM": "8",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "INPUT.SCALE_RANGE": "(0.5,2.0)",
    "INPUT.CROP.SIZE": "(48,48)",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "8",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.EVAL_PERIOD": "0",
}
TINY = [word for pair in _TINY.items() for word in pair]
# The same under Cityscapes' rules of testing.
SLIDING = [
    *("TEST.SLIDING_WINDOW.SIZE", "33"),
    *("TEST.SLIDING_WINDOW.STRIDE", "25"),
    *("MODEL.SEM_SEG_HEAD.ALIGN_CORNERS", "True"),
]


def tiny_segmentor(*changes):
    """The tiny segmentor's configuration with KEY, VALUE words changed."""
    return load_config(find_config("mini_voc_seg"), [*TINY, *changes])


def make_labels(number, height, width, classes=5):
    """(H,W) uint8: the background, two rectangles, and a border that is ignored."""
    random = np.random.RandomState(number)
    labels = np.zeros((height, width), np.uint8)
    for index in range(2):
        y, x = random.randint(0, height - 24), random.randint(0, width - 24)
        labels[y : y + 24, x : x + 20] = 255
        labels[y + 2 : y + 22, x + 2 : x + 18] = 1 + (number + index) % (classes - 1)
    return labels


def write_tiny_voc_segmentation(datasets, train=6, test=3):
    """`datasets`/mini/VOC2007 with `train` + `test` images and their labels."""
    folder = datasets / "mini" / "VOC2007"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = [f"{number:06d}" for number in range(1, train + test + 1)]
    for split, members in (("trainval", names[:train]), ("test", names[train:])):
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("\n".join(members) + "\n")
    for number, name in enumerate(names):
        size = (64, 80) if number % 3 else (80, 60)
        Image.fromarray(make_image(number, *size)).save(folder / "JPEGImages" / f"{name}.jpg")
        labels = Image.fromarray(make_labels(number, *size))
        labels.putpalette([value // 3 for value in range(768)])
        labels.save(folder / "SegmentationClass" / f"{name}.png")
    return folder


def write_tiny_cityscapes(datasets, train=4, val=2):
    """`datasets`/mini/cityscapes with `train` + `val` images of 48×96 pixels in two cities."""
    folder = datasets / "mini" / "cityscapes"
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            city = ("aachen", "bochum")[number % 2]
            name = f"{city}_{number:06d}_000019"
            for part, suffix in (
                ("leftImg8bit", "leftImg8bit"),
                ("gtFine", "gtFine_labelTrainIds"),
            ):
                file = folder / part / split / city / f"{name}_{suffix}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                random = number + 10 * count
                pixels = make_image if part == "leftImg8bit" else make_labels
                Image.fromarray(pixels(random, 48, 96)).save(file)
    return folder
