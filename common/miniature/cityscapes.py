"""Cityscapes' layout: cityscapes/{leftImg8bit,gtFine}/{train,val}/CITY/*."""

from pathlib import Path

import numpy as np

from common.miniature.contours import polygons, signed_area
from common.miniature.images import save_json, save_png
from common.miniature.scenes import Thing, image_random, make_scene, some_things

HEIGHT, WIDTH = 128, 256
# Cityscapes' own names, label ids and training ids; the shapes in the order of KINDS.
ROAD = ("road", 7, 0)
LABELS = (("person", 24, 11), ("rider", 25, 12), ("car", 26, 13), ("truck", 27, 14))
_IMAGES = (("train", "aachen", 30), ("train", "bochum", 30), ("val", "frankfurt", 20))


def write_cityscapes(root: Path, seed: int) -> None:
    """Write cityscapes/ under `root`: up to seven things on the road."""
    for split, city, count in _IMAGES:
        images = root / "cityscapes" / "leftImg8bit" / split / city
        truths = root / "cityscapes" / "gtFine" / split / city
        images.mkdir(parents=True)
        truths.mkdir(parents=True)
        for index in range(count):
            random = image_random(seed, f"cityscapes/{split}/{city}", index)
            scene = make_scene(random, HEIGHT, WIDTH, some_things(random, 7, (12, 30)))
            name = f"{city}_{index:06d}_000019"
            save_png(images / f"{name}_leftImg8bit.png", scene.image)
            _write_truth(truths / f"{name}_gtFine", scene.things)


def _write_truth(stem: Path, things: list[Thing]) -> None:
    labels = np.full((HEIGHT, WIDTH), ROAD[1], dtype=np.uint8)
    training = np.full((HEIGHT, WIDTH), ROAD[2], dtype=np.uint8)
    instances = labels.astype(np.uint16)
    for number, thing in enumerate(things):
        _, label_id, training_id = LABELS[thing.kind]
        labels[thing.visible] = label_id
        training[thing.visible] = training_id
        instances[thing.visible] = label_id * 1000 + number
    save_png(stem.with_name(f"{stem.name}_labelIds.png"), labels)
    save_png(stem.with_name(f"{stem.name}_labelTrainIds.png"), training)
    save_png(stem.with_name(f"{stem.name}_instanceIds.png"), instances)
    save_json(stem.with_name(f"{stem.name}_polygons.json"), _outlines(things))


def _outlines(things: list[Thing]) -> dict[str, object]:
    """Whole outlines from back to front: each is painted over those before it."""
    corners = [(0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT)]
    objects = [{"label": ROAD[0], "polygon": corners}]
    for thing in reversed(things):
        outline = max(polygons(thing.whole), key=signed_area)  # without a sharp tip's lone pixel
        objects.append({"label": LABELS[thing.kind][0], "polygon": outline})
    return {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
