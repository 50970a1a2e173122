"""COCO's layout: coco/{train,val}2017/*.jpg and coco/annotations/instances_*.json."""

from pathlib import Path
from typing import Any

from common.miniature.contours import polygons, run_lengths
from common.miniature.images import save_jpeg, save_json
from common.miniature.scenes import KINDS, Thing, image_random, make_scene, some_things

TRAIN_IMAGES, VAL_IMAGES = 300, 100
CATEGORY_IDS = (1, 2, 3, 5)  # with a gap, as in COCO
_EMPTY_EVERY, _CROWD_EVERY = 50, 8


def write_coco(root: Path, seed: int) -> None:
    """Write coco/ under `root`: some images with a crowd, a few with no things at all."""
    (root / "coco" / "annotations").mkdir(parents=True)
    splits = (("train2017", TRAIN_IMAGES, 1), ("val2017", VAL_IMAGES, 100001))
    for split, count, first_id in splits:
        (root / "coco" / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            random = image_random(seed, f"coco/{split}", index)
            height, width = random.randint(120, 177, size=2).tolist()
            wanted = some_things(random, 5, (12, 30), crowd=index % _CROWD_EVERY == 7)
            wanted = [] if index % _EMPTY_EVERY == 20 else wanted
            scene = make_scene(random, height, width, wanted)
            image_id = first_id + index
            name = f"{image_id:012d}.jpg"
            save_jpeg(root / "coco" / split / name, scene.image)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            for thing in scene.things:
                entry = {"id": len(annotations) + 1, "image_id": image_id}
                annotations.append({**entry, **_annotation(thing)})
        whole = {"images": images, "annotations": annotations, "categories": _categories()}
        save_json(
            root / "coco" / "annotations" / f"instances_{split}.json",
            {"info": {"description": "miniature", "version": "1"}, "licenses": [], **whole},
        )


def _annotation(thing: Thing) -> dict[str, Any]:
    left, top, right, bottom = thing.box
    segmentation: Any
    if thing.crowd:
        segmentation = {"counts": run_lengths(thing.visible), "size": list(thing.visible.shape)}
    else:
        loops = polygons(thing.visible)
        segmentation = [[coordinate for point in loop for coordinate in point] for loop in loops]
    return {
        "category_id": CATEGORY_IDS[thing.kind],
        "bbox": [left, top, right - left, bottom - top],
        "area": int(thing.visible.sum()),
        "iscrowd": int(thing.crowd),
        "segmentation": segmentation,
    }


def _categories() -> list[dict[str, Any]]:
    named = zip(CATEGORY_IDS, KINDS)
    return [{"id": number, "name": name, "supercategory": "shape"} for number, name in named]
