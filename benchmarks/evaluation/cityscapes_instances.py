"""Cityscapes' instance segmentation scores, by its own script.

APm is the mean over classes and overlaps 50, 55 ... 95 % of the masks' average precision, APm50
that at 50 %. Cityscapes defines no AP of boxes. cityscapesscripts' evaluation reads predictions
from files, so they are written to a temporary folder.
"""

import copy
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official  # noqa: N813
from cityscapesscripts.helpers.labels import name2label
from PIL import Image

from benchmarks.evaluation.coco_ap import MASKS
from benchmarks.evaluation.image_ids import check_image_ids

if not hasattr(np, "in1d"):  # the script calls this old name of isin, which numpy 2.4 removed
    np.in1d = np.isin  # type: ignore[attr-defined]


def cityscapes_predictions(
    image_id: str, scores: np.ndarray, classes: np.ndarray, masks: np.ndarray
) -> list[dict[str, Any]]:
    """One image's detections, small: scores (D,), classes (D,), masks (D,H,W) bool."""
    return [
        {
            "image_id": image_id,
            "category_id": category,
            "score": score,
            "segmentation": pycocotools.mask.encode(np.asfortranarray(mask, np.uint8)),
        }
        for score, category, mask in zip(scores.tolist(), classes.tolist(), masks)
    ]


def cityscapes_metrics(
    predictions: Sequence[dict[str, Any]], truths: Mapping[str, Path], classes: Sequence[str]
) -> dict[str, float]:
    """APm, APm50, APm-CLASS and APm50-CLASS in percent, of classes that the ground truth has.

    truths: each image's id (its file's name) and image of instance ids. Raises UserError for a
    prediction whose image is none of them.
    """
    check_image_ids((p["image_id"] for p in predictions), truths)
    with tempfile.TemporaryDirectory(prefix="cityscapes_") as name:
        folder = Path(name)
        lines: dict[str, list[str]] = {image_id: [] for image_id in truths}
        for number, prediction in enumerate(predictions):
            mask = pycocotools.mask.decode(prediction["segmentation"])
            Image.fromarray(mask * 255).save(folder / f"{number}.png")
            label = name2label[classes[prediction["category_id"]]].id
            line = f"{number}.png {label} {prediction['score']}\n"
            lines[prediction["image_id"]].append(line)
        for image_id, written in lines.items():
            _predictions_file(folder, image_id).write_text("".join(written))
        return score_folder(folder, truths, classes)


def score_folder(
    folder: Path, truths: Mapping[str, Path], classes: Sequence[str]
) -> dict[str, float]:
    """`cityscapes_metrics` of the files in `folder`: for each image NAME_pred.txt and its masks."""
    # The steps of evaluateImgLists, which also prints and leaves a file where it was called.
    settings = copy.copy(official.args)
    settings.predictionPath = str(folder.resolve())
    settings.gtInstancesFile = str(folder / "gtInstances.json")
    settings.quiet = True
    official.setInstanceLabels(settings)
    files = [str(_predictions_file(folder, image_id).resolve()) for image_id in truths]
    images = [str(truth) for truth in truths.values()]
    instances = official.getGtInstances(images, settings)
    matches = official.matchGtWithPreds(files, images, instances, settings)
    averages = official.computeAverages(official.evaluateMatches(matches, settings), settings)
    metrics = {MASKS: averages["allAp"], f"{MASKS}50": averages["allAp50%"]}
    for name in classes:
        metrics[f"{MASKS}-{name}"] = averages["classes"][name]["ap"]
        metrics[f"{MASKS}50-{name}"] = averages["classes"][name]["ap50%"]
    return {name: 100 * float(v) for name, v in metrics.items() if not math.isnan(v)}


def _predictions_file(folder: Path, image_id: str) -> Path:
    """Named as Detectron2 names it."""
    return folder / f"{Path(image_id).stem}_pred.txt"
