"""ImageNet's layout: imagenet/{train,val}/CLASS/*.jpg, the class being the foremost shape."""

from pathlib import Path

from common.miniature.images import save_jpeg
from common.miniature.scenes import KINDS, Wanted, image_random, make_scene, some_things

TRAIN_IMAGES, VAL_IMAGES = 2000, 200


def write_imagenet(root: Path, seed: int) -> None:
    """Write imagenet/ under `root`: 112 to 128 pixels a side, classes of equal size."""
    for split, count in (("train", TRAIN_IMAGES), ("val", VAL_IMAGES)):
        for name in KINDS:
            (root / "imagenet" / split / name).mkdir(parents=True)
        for index in range(count):
            random = image_random(seed, f"imagenet/{split}", index)
            height, width = random.randint(112, 129, size=2).tolist()
            kind = index % len(KINDS)
            wanted = [Wanted(kind, (28, 40)), *some_things(random, 3, (9, 15))]
            scene = make_scene(random, height, width, wanted)
            folder = root / "imagenet" / split / KINDS[kind]
            save_jpeg(folder / f"{KINDS[kind]}_{index:05d}.jpg", scene.image)
