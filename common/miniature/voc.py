"""PASCAL VOC's layout: VOC2007/{Annotations,ImageSets,JPEGImages,SegmentationClass,...}."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from common.miniature.images import save_jpeg, save_png
from common.miniature.scenes import KINDS, Scene, Thing, image_random, make_scene, some_things

TRAINVAL_IMAGES, TEST_IMAGES = 300, 100
VOID = 255
_DIFFICULT_BELOW = 80  # percent visible


def write_voc(root: Path, seed: int) -> None:
    """Write VOC2007/ under `root`: one to four things in images of about 160 pixels."""
    folder = root / "VOC2007"
    for name in ("Annotations", "JPEGImages", "SegmentationClass", "SegmentationObject"):
        (folder / name).mkdir(parents=True)
    scenes = {}
    for split, count, first in (("trainval", TRAINVAL_IMAGES, 1), ("test", TEST_IMAGES, 5001)):
        for index in range(count):
            random = image_random(seed, f"voc/{split}", index)
            height, width = int(random.randint(128, 169)), int(random.randint(144, 177))
            scene = make_scene(random, height, width, some_things(random, 4, (14, 30)))
            name = f"{first + index:06d}"
            _write_image(folder, name, scene)
            scenes[name] = scene.things
    _write_image_sets(folder / "ImageSets", scenes)


def _write_image(folder: Path, name: str, scene: Scene) -> None:
    save_jpeg(folder / "JPEGImages" / f"{name}.jpg", scene.image)
    instances = np.zeros(scene.image.shape[:2], dtype=np.uint8)
    classes = instances.copy()
    for number, thing in enumerate(scene.things, start=1):
        instances[thing.visible] = number
        classes[thing.visible] = 1 + thing.kind
    border = _border(instances)
    for kind, mask in (("Class", classes), ("Object", instances)):
        mask[border] = VOID
        save_png(folder / f"Segmentation{kind}" / f"{name}.png", mask, _palette())
    tree = _annotation(name, scene)
    ElementTree.indent(tree, "\t")
    tree.write(folder / "Annotations" / f"{name}.xml", encoding="utf-8")


def _border(instances: np.ndarray) -> np.ndarray:
    """Pixels on either side of a change of instance, which VOC leaves out of the evaluation."""
    border = np.zeros(instances.shape, dtype=bool)
    across = instances[:, 1:] != instances[:, :-1]
    down = instances[1:] != instances[:-1]
    border[:, 1:] |= across
    border[:, :-1] |= across
    border[1:] |= down
    border[:-1] |= down
    return border


def _palette() -> list[int]:
    """VOC's colours, 256 × RGB: the bits of the index dealt to the high bits of R, G and B."""
    colours = []
    for index in range(256):
        for channel in range(3):
            bits = ((index >> (3 * step + channel) & 1) << (7 - step) for step in range(8))
            colours.append(sum(bits))
    return colours


def _annotation(name: str, scene: Scene) -> ElementTree.ElementTree:
    height, width, depth = scene.image.shape
    root = ElementTree.Element("annotation")
    _add(root, folder="VOC2007", filename=f"{name}.jpg")
    _add(ElementTree.SubElement(root, "source"), database="miniature", image="generated")
    _add(ElementTree.SubElement(root, "size"), width=width, height=height, depth=depth)
    _add(root, segmented=1)
    for thing in scene.things:
        left, top, right, bottom = thing.box
        entry = ElementTree.SubElement(root, "object")
        _add(entry, name=KINDS[thing.kind], pose="Unspecified")
        _add(entry, truncated=int(left == 0 or top == 0 or right == width or bottom == height))
        _add(entry, occluded=int(thing.visible_percent < 100), difficult=int(_difficult(thing)))
        box = ElementTree.SubElement(entry, "bndbox")  # counted from 1, both ends included
        _add(box, xmin=left + 1, ymin=top + 1, xmax=right, ymax=bottom)
    return ElementTree.ElementTree(root)


def _add(parent: ElementTree.Element, **fields: object) -> None:
    for tag, value in fields.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def _difficult(thing: Thing) -> bool:
    return thing.visible_percent < _DIFFICULT_BELOW


def _write_image_sets(folder: Path, scenes: dict[str, list[Thing]]) -> None:
    names = list(scenes)
    trainval, test = names[:TRAINVAL_IMAGES], names[TRAINVAL_IMAGES:]
    half = TRAINVAL_IMAGES // 2
    splits = {"train": trainval[:half], "val": trainval[half:], "trainval": trainval, "test": test}
    for task in ("Main", "Segmentation"):
        (folder / task).mkdir(parents=True)
        for split, members in splits.items():
            _write_lines(folder / task / f"{split}.txt", members)
    for kind, class_name in enumerate(KINDS):
        for split, members in splits.items():
            lines = [f"{name} {_presence(scenes[name], kind):2d}" for name in members]
            _write_lines(folder / "Main" / f"{class_name}_{split}.txt", lines)


def _presence(things: list[Thing], kind: int) -> int:
    """1 where an image shows the kind, 0 where only difficult ones, -1 where none."""
    found = [_difficult(thing) for thing in things if thing.kind == kind]
    if not found:
        return -1
    return 0 if all(found) else 1


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))
