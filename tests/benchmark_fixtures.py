"""A VOC folder of a few tiny images, a detector that trains on it in seconds, and its weights."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
from golden.recipe import make_image
from PIL import Image

from benchmarks.config import find_config, load_config
from benchmarks.torchvision_engine.model import build_model
from common.files import sha256_of

ROOT = Path(__file__).parent.parent
CLASSES = ("disk", "square", "triangle", "cross")

# mini_voc, smaller still.
_TINY = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "4",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "16",
    "MODEL.RESNETS.WIDTH_PER_GROUP": "4",
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "8",
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": "40",
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": "20",
    "MODEL.RPN.PRE_NMS_TOPK_TEST": "20",
    "MODEL.RPN.POST_NMS_TOPK_TEST": "10",
    "INPUT.MIN_SIZE_TRAIN": "(48,64)",
    "INPUT.MIN_SIZE_TEST": "64",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "8",
    "SOLVER.STEPS": "(6,7)",
    "SOLVER.WARMUP_ITERS": "3",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.PRECISE_BN.NUM_ITER": "2",
}
TINY = [word for pair in _TINY.items() for word in pair]


def write_tiny_voc(datasets, train=10, test=4):
    """`datasets`/mini/VOC2007 with `train` + `test` images of one to three objects."""
    folder = datasets / "mini" / "VOC2007"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    names = [f"{number:06d}" for number in range(1, train + test + 1)]
    (folder / "ImageSets/Main/trainval.txt").write_text("\n".join(names[:train]) + "\n")
    (folder / "ImageSets/Main/test.txt").write_text("\n".join(names[train:]) + "\n")
    for number, name in enumerate(names):
        height, width = (64, 80) if number % 3 else (80, 60)
        pixels = make_image(number, height, width)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{name}.jpg")
        write_annotation(folder, name, height, width, objects(number, height, width))
    return folder


def objects(number, height, width):
    """(class name, box, difficult) of the image's objects."""
    random = np.random.RandomState(number)
    for index in range(1 + number % 3):
        x0, y0 = random.randint(1, width - 30), random.randint(1, height - 30)
        x1, y1 = x0 + random.randint(12, 30), y0 + random.randint(12, 30)
        yield CLASSES[(number + index) % 4], (x0, y0, x1, y1), int(number % 5 == 4)


def write_annotation(folder, name, height, width, things):
    """One VOC XML file with every field that Detectron2 reads."""
    parts = [f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"]
    for class_name, (x0, y0, x1, y1), difficult in things:
        parts.append(
            f"<object><name>{class_name}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>{difficult}</difficult><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
            f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        )
    text = f"<annotation>{''.join(parts)}</annotation>"
    (folder / "Annotations" / f"{name}.xml").write_text(text)


def tiny_config(*changes):
    """The tiny detector's configuration with KEY, VALUE words changed."""
    return load_config(find_config("mini_voc"), [*TINY, *changes])


def trunk(config, seed=0):
    """Random trunk tensors under the pickle's names, of the shapes that `config` wants."""
    random = np.random.RandomState(seed)
    tensors = {}
    for name, value in build_model(config).state_dict().items():
        short = name.removeprefix("backbone.").removeprefix("roi_heads.")
        head = name.startswith(("proposal", "roi_heads.box", "roi_heads.res5.norm"))
        if not head and not name.endswith("num_batches_tracked"):
            size = tuple(value.shape)
            tensors[short] = (0.5 + 0.1 * random.standard_normal(size)).astype(np.float32)
    return tensors


def write_pickle(path, tensors, **manifest):
    """A pickle as the converter writes it, and its manifest with fields changed."""
    content = {"model": tensors, "__author__": "test", "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content, protocol=4))
    facts = {
        "pickle_sha256": sha256_of(path),
        "tensors": len(tensors),
        "stride_in_1x1": False,
        "input": {
            "format": "RGB",
            "pixel_mean": [123.675, 116.28, 103.53],
            "pixel_std": [58.395, 57.12, 57.375],
        },
    }
    path.with_suffix(".json").write_text(json.dumps({**facts, **manifest}))
    return path


def command(*words, engine="torchvision"):
    """python -m benchmarks mini_voc with the tiny detector and `words`."""
    return [
        *(sys.executable, "-m", "benchmarks", "mini_voc", "--engine", engine),
        *(*words, *TINY),
    ]


def environment(datasets):
    """Environment variables for a subprocess that finds `datasets`."""
    return {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"}


def run(datasets, *words, engine="torchvision"):
    """Run the command to its end: the completed process, with its output as text."""
    return subprocess.run(
        command(*words, engine=engine),
        cwd=ROOT,
        env=environment(datasets),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
