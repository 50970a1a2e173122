"""Pictures of what a finished trial predicts, beside the truth, for whoever looks at the run.

FOLDER/examples/
  examples.json                 [{"image", "files": {"truth", "prediction"}, "caption"}, ...]
  NAME_truth.jpg  NAME_prediction.jpg

The evaluated model is read back from model_final.pth, which either engine writes and the
torchvision engine reads, so that the pictures do not depend on the engine.
"""

import colorsys
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import PIL.ImageOps
import torch
from matplotlib import font_manager
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from benchmarks.datasets.catalog import find_set
from benchmarks.datasets.images import open_image
from benchmarks.datasets.records import Instance, LabelledImage
from benchmarks.datasets.segmentation import open_labels
from benchmarks.torchvision_engine.loader import test_batches
from benchmarks.torchvision_engine.model import build_model
from common.errors import UserError
from common.files import write_json

log = logging.getLogger(__name__)

COUNT = 4
SCORE = 0.3  # of the detections that are drawn
_LONG_SIDE = 320  # pixels of the pictures


def write_examples(folder: Path, config: Any, device: torch.device) -> None:
    """Draw the truth and the prediction of a few test images of the trial in `folder`.

    A model that only Detectron2 builds is left without pictures, which the log says.
    """
    try:
        model = build_model(config)
    except UserError as reason:
        log.info("no example pictures: %s", reason)
        return
    final = torch.load(folder / "model_final.pth", map_location="cpu", weights_only=True)
    model.load_state_dict(final["model"])
    model.to(device).eval()
    dataset = find_set(config.DATASETS.TEST[0])
    images = choose(dataset.read())
    entries = []
    for image, batch in zip(images, test_batches(images, config)):
        picture = shown(image)
        batch[0]["height"], batch[0]["width"] = picture.height, picture.width
        with torch.no_grad():
            (output,) = model(batch)
        truth = _draw_truth(picture, image, dataset.classes)
        prediction = _draw_output(picture, output, dataset.classes)
        entries.append(save(folder, image, truth, prediction, _caption(output)))
    write_json(folder / "examples" / "examples.json", entries)


def write_classified(
    folder: Path, images: Sequence[LabelledImage], scores: np.ndarray, classes: Sequence[str]
) -> None:
    """The same for classifiers: images (N) with the names of the classes in them.

    scores (N,K): above 0 the class is said to be in the image.
    """
    entries = []
    for image, of_image in zip(images, scores):
        there = sorted({thing.category for thing in image.objects})
        found = np.flatnonzero(of_image > 0).tolist()
        truth, prediction = (
            _draw_names(shown(image), [(classes[number], colour(number)) for number in numbers])
            for numbers in (there, found)
        )
        entries.append(save(folder, image, truth, prediction, "classes with a score above 0"))
    write_json(folder / "examples" / "examples.json", entries)


def choose(images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """A few images, evenly spread over the set: the same for every trial."""
    return [images[position] for position in positions(len(images))]


def positions(count: int) -> list[int]:
    """Which of `count` images are the examples."""
    return [index * count // COUNT for index in range(min(COUNT, count))]


def save(
    folder: Path,
    image: LabelledImage,
    truth: PIL.Image.Image,
    prediction: PIL.Image.Image,
    caption: str,
) -> dict[str, Any]:
    """Write an example's two pictures below `folder`; returns its entry in examples.json."""
    (folder / "examples").mkdir(exist_ok=True)
    files = {}
    for kind, picture in (("truth", truth), ("prediction", prediction)):
        files[kind] = f"{image.image_id.replace('/', '_')}_{kind}.jpg"
        picture.save(folder / "examples" / files[kind], quality=85, subsampling=0)
    return {"image": image.image_id, "files": files, "caption": caption}


def shown(image: LabelledImage) -> PIL.Image.Image:
    """The image at the size of the pictures."""
    pixels = open_image(image)
    scale = _LONG_SIDE / max(pixels.size)
    return pixels.resize((round(pixels.width * scale), round(pixels.height * scale)))


def _caption(output: Any) -> str:
    if isinstance(output, torch.Tensor):
        return "each pixel's best class"
    number = int((output.scores >= SCORE).sum())
    return f"detections with a score of {SCORE} or more: {number}"


def _draw_truth(
    picture: PIL.Image.Image, image: LabelledImage, classes: Sequence[str]
) -> PIL.Image.Image:
    if image.labels is not None:
        truth = PIL.Image.fromarray(open_labels(image, len(classes)))
        nearest = truth.resize(picture.size, PIL.Image.Resampling.NEAREST)
        return _draw_segments(picture, torch.from_numpy(np.array(nearest)), classes)
    scale = picture.width / image.width
    boxes = torch.tensor([thing.box for thing in image.objects]).reshape(-1, 4) * scale
    categories = [thing.category for thing in image.objects]
    masks = [_outlined(thing, picture.size, scale) for thing in image.objects]
    labels = [classes[category] for category in categories]
    return _draw_objects(picture, boxes, categories, labels, torch.stack(masks) if masks else None)


def _draw_output(picture: PIL.Image.Image, output: Any, classes: Sequence[str]) -> PIL.Image.Image:
    """Draw class scores (K,H,W), or the detections that are sure enough."""
    if isinstance(output, torch.Tensor):
        return _draw_segments(picture, output.argmax(dim=0).cpu(), classes)
    sure = output.scores >= SCORE
    boxes, scores, categories, *masks = (field[sure].cpu() for field in output)
    named = zip(categories.tolist(), scores.tolist())
    labels = [f"{classes[category]} {100 * score:.0f}" for category, score in named]
    return _draw_objects(picture, boxes, categories.tolist(), labels, *masks)


def _draw_objects(
    picture: PIL.Image.Image,
    boxes: torch.Tensor,
    categories: list[int],
    labels: list[str],
    masks: torch.Tensor | None = None,
) -> PIL.Image.Image:
    pixels = pil_to_tensor(picture)
    colours = [colour(category) for category in categories]
    if masks is not None and len(masks):
        pixels = draw_segmentation_masks(pixels, masks, alpha=0.4, colors=colours)
    if len(boxes):
        pixels = draw_bounding_boxes(
            pixels,
            boxes,
            labels,
            colours,
            width=2,
            font=_font(),
            font_size=13,
            label_colors="black",
            fill_labels=True,
        )
    return to_pil_image(pixels)


def _draw_segments(
    picture: PIL.Image.Image, labels: torch.Tensor, classes: Sequence[str]
) -> PIL.Image.Image:
    """Each class but the background in its colour; ignored pixels stay grey."""
    there = [n for n in labels.unique().tolist() if n < len(classes)]
    drawn = [number for number in there if classes[number] != "background"]
    pixels = pil_to_tensor(picture.convert("L").convert("RGB"))
    if drawn:
        masks = torch.stack([labels == number for number in drawn])
        colours = [colour(number) for number in drawn]
        pixels = draw_segmentation_masks(pixels, masks, alpha=0.7, colors=colours)
    names = [(classes[number], colour(number)) for number in drawn]
    return _draw_names(to_pil_image(pixels), names)


def _draw_names(
    picture: PIL.Image.Image, names: Sequence[tuple[str, tuple[int, int, int]]]
) -> PIL.Image.Image:
    """The names, each in its colour, in a band above the image; as many as fit."""
    drawn = PIL.ImageOps.expand(picture, border=(0, 24, 0, 0), fill="black")
    draw, font = PIL.ImageDraw.Draw(drawn), PIL.ImageFont.truetype(_font(), size=14)
    x = 6.0
    for name, fill in names or [("none", (255, 255, 255))]:
        draw.text((x, 3), name, fill=fill, font=font)
        x += font.getlength(name) + 10
    return drawn


def _font() -> str:
    return font_manager.findfont("DejaVu Sans")  # matplotlib brings it along


def _outlined(thing: Instance, size: tuple[int, int], scale: float) -> torch.Tensor:
    """An object's polygons as a mask (H,W); empty where the dataset has none."""
    mask = PIL.Image.new("1", size)
    for polygon in thing.polygons or ():
        PIL.ImageDraw.Draw(mask).polygon([scale * coordinate for coordinate in polygon], fill=1)
    return torch.from_numpy(np.array(mask))


def colour(category: int) -> tuple[int, int, int]:
    """RGB, 0 to 255; neighbouring classes differ most."""
    hue = category * 0.618034 % 1.0  # the golden ratio spreads any number of hues
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
