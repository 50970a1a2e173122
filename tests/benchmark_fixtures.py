"""A VOC folder of a few tiny images, a detector that trains on it in seconds, and its weights."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
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
# Mask R-CNN on a pyramid, as small.
_TINY_FPN = {
    **_TINY,
    "MODEL.FPN.OUT_CHANNELS": "16",
    "MODEL.ROI_BOX_HEAD.CONV_DIM": "16",
    "MODEL.ROI_BOX_HEAD.FC_DIM": "16",
    "MODEL.ROI_MASK_HEAD.CONV_DIM": "16",
    "TEST.EVAL_PERIOD": "0",
}
TINY_FPN = [word for pair in _TINY_FPN.items() for word in pair]


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


def write_tiny_coco(datasets, train=10, val=4):
    """`datasets`/mini/coco with `train` + `val` images; each third has a crowd, the last nothing.

    Some boxes and outlines are whole numbers, some are not.
    """
    folder = datasets / "mini" / "coco"
    (folder / "annotations").mkdir(parents=True)
    for split, first, count in (("train2017", 1, train), ("val2017", 1001, val)):
        (folder / split).mkdir()
        images, annotations = [], []
        for number in range(first, first + count):
            height, width = (64, 80) if number % 3 else (80, 60)
            name = f"{number:012d}.jpg"
            Image.fromarray(make_image(number, height, width)).save(folder / split / name)
            images.append({"id": number, "file_name": name, "height": height, "width": width})
            things = [] if number == first + count - 1 else objects(number, height, width)
            for index, (kind, box, _) in enumerate(things):
                crowd = index == 1 and number % 3 == 1
                annotation = coco_object(kind, box, crowd, height, width, shift=0.25 * (number % 2))
                annotations.append({"id": len(annotations) + 1, "image_id": number, **annotation})
        named = zip((1, 2, 3, 5), CLASSES)
        categories = [{"id": number, "name": name} for number, name in named]
        whole = {"images": images[::-1], "annotations": annotations, "categories": categories}
        file = folder / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(whole))
    return folder


def coco_object(kind, box, crowd, height, width, shift):
    """One annotation: a crowd's run lengths, or a diamond beside a triangle in the box."""
    x0, y0, x1, y1 = (value + shift if shift else int(value) for value in box)
    middle = (x0 + x1) // 2 + shift
    outlines = [
        [x0, (y0 + y1) / 2, middle, y0, x1, (y0 + y1) / 2, middle, y1],
        [x0, y0, x0 + 5, y0, x0, y0 + 5],
    ]
    inside = int(x0) * height
    counts = [inside, 400, height * width - inside - 400]
    return {
        "category_id": (1, 2, 3, 5)[CLASSES.index(kind)],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0) / 2,
        "iscrowd": int(crowd),
        "segmentation": {"counts": counts, "size": [height, width]} if crowd else outlines,
    }


def write_tiny_cityscapes(datasets, train=4, val=2):
    """`datasets`/mini/cityscapes with things before and behind each other, groups and others."""
    folder = datasets / "mini" / "cityscapes"
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            city = ("aachen", "ulm")[number % 2]
            random = np.random.RandomState(number)
            name = f"{city}_{number:06d}_000019"
            for part in ("leftImg8bit", "gtFine"):
                (folder / part / split / city).mkdir(parents=True, exist_ok=True)
            image = folder / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png"
            Image.fromarray(make_image(number, 64, 128)).save(image)
            names = [
                "road",
                "car",
                "rider",
                "persongroup",
                "license plate",
                "car",
                "sky",
                "person",
            ]
            outlines = [rectangle(0, 0, 128, 64), *(blob(random) for _ in names[1:])]
            objects = [{"label": k, "polygon": o} for k, o in zip(names, outlines)]
            objects.append({"label": "bus", "polygon": rectangle(5, 5, 60, 60), "deleted": 1})
            content = {"imgHeight": 64, "imgWidth": 128, "objects": objects}
            stem = folder / "gtFine" / split / city / f"{name}_gtFine"
            file = stem.with_name(f"{stem.name}_polygons.json")
            file.write_text(json.dumps(content))
            annotation = Annotation()
            annotation.fromJsonFile(str(file))
            ids = np.array(createInstanceImage(annotation, "ids")).astype(np.uint16)
            Image.fromarray(ids).save(f"{stem}_instanceIds.png")
            labels = np.where(ids < 1000, ids, ids // 1000).astype(np.uint8)
            Image.fromarray(labels).save(f"{stem}_labelIds.png")
    return folder


def rectangle(x0, y0, x1, y1):
    """Its corners."""
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def blob(random):
    """Corners around a random centre."""
    angles = np.sort(random.uniform(0, 2 * np.pi, 9))
    around = np.stack([np.cos(angles), np.sin(angles)], 1) * random.uniform(12, 24, (9, 1))
    return np.round(random.uniform([25, 20], [100, 45]) + around).astype(int).tolist()


def tiny_config(*changes):
    """The tiny detector's configuration with KEY, VALUE words changed."""
    return load_config(find_config("mini_voc"), [*TINY, *changes])


def trunk(config, seed=0):
    """Random trunk tensors under the pickle's names, of the shapes that `config` wants."""
    random = np.random.RandomState(seed)
    tensors = {}
    for name, value in build_model(config).state_dict().items():
        short = re.sub(r"^(backbone\.(bottom_up\.)?|roi_heads\.)", "", name)
        head = not short.startswith(("stem", "res")) or short.startswith("res5.norm")
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
    """Run `command` to its end: the completed process, with its output as text."""
    return run_to_end(datasets, command(*words, engine=engine))


def run_to_end(datasets, command):
    """Run any command on `datasets` to its end."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment(datasets),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
