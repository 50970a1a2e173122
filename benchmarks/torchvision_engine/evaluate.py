"""From the test images to metrics, each process doing its share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from benchmarks.datasets.catalog import Dataset, find_set
from benchmarks.datasets.cityscapes import CityscapesSet
from benchmarks.datasets.coco import CocoSet
from benchmarks.datasets.records import LabelledImage
from benchmarks.datasets.segmentation import SegmentationSet
from benchmarks.evaluation.cityscapes_instances import (
    cityscapes_metrics,
    cityscapes_predictions,
)
from benchmarks.evaluation.coco_ap import coco_metrics, coco_predictions
from benchmarks.evaluation.mean_iou import image_confusion, segmentation_metrics
from benchmarks.evaluation.voc_ap import voc_metrics, voc_predictions
from benchmarks.torchvision_engine.loader import test_batches
from common import distributed
from common.shutdown import StopRequest


def evaluate(model: nn.Module, config: Any, stop: StopRequest | bool) -> dict[str, float] | None:
    """Metrics of the test set, on every process; None when one of them was asked to stop.

    The model is in evaluation mode afterwards.
    """
    (name,) = config.DATASETS.TEST
    dataset = find_set(name)
    images = dataset.read()
    # Contiguous shares keep the single process's order, on which equal scores depend.
    predictions = predict(model, dataset, distributed.contiguous_share(images), config, stop)
    gathered = distributed.gather_objects([(bool(stop), predictions)])
    if any(stopped for stopped, _ in gathered):
        return None
    everything = [prediction for _, part in gathered for prediction in part]
    return distributed.on_main(lambda: score(dataset, images, everything, config))


@torch.no_grad()
def predict(
    model: nn.Module,
    dataset: Dataset,
    images: list[LabelledImage],
    config: Any,
    stop: StopRequest | bool,
) -> list[Any]:
    """What the dataset's evaluation needs of the model's outputs, image by image.

    One image at a time, as Detectron2's test loader has them.
    """
    model.eval()
    predictions: list[Any] = []
    for image, batch in zip(images, test_batches(images, config)):
        if stop:
            break
        (output,) = model(batch)
        predictions += keep(dataset, image, output)
    return predictions


def keep(dataset: Dataset, image: LabelledImage, output: Any) -> list[Any]:
    """The part of one image's output, small and without tensors, that is scored at the end."""
    if isinstance(dataset, SegmentationSet):
        return [image_confusion(image, output.argmax(0).cpu().numpy(), len(dataset.classes))]
    boxes, scores, classes, *masks = (x.cpu().numpy() for x in output)
    found = image.image_id, boxes, scores, classes
    if isinstance(dataset, CocoSet):
        return coco_predictions(*found, *masks)
    if isinstance(dataset, CityscapesSet):
        return cityscapes_predictions(image.image_id, scores, classes, *masks)
    return voc_predictions(*found)


def score(
    dataset: Dataset, images: Sequence[LabelledImage], predictions: Sequence[Any], config: Any
) -> dict[str, float]:
    """Metrics in percent of everything kept from all `images`."""
    if isinstance(dataset, SegmentationSet):
        return segmentation_metrics(dataset, sum(predictions))
    if isinstance(dataset, CocoSet):
        ids = [image.image_id for image in images]
        mask_on = config.MODEL.MASK_ON
        return coco_metrics(predictions, dataset.annotations, ids, dataset.classes, mask_on)
    if isinstance(dataset, CityscapesSet):
        truths = {image.image_id: dataset.truth(image.file) for image in images}
        return cityscapes_metrics(predictions, truths, dataset.classes)
    return voc_metrics(predictions, images, dataset.classes, dataset.year)
