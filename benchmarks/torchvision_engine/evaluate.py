"""From the test images to metrics, each process doing its share."""

from typing import Any

import torch
from torch import nn

from benchmarks.torchvision_engine.data import test_batches
from benchmarks.voc import find_set, read_set
from benchmarks.voc_ap import Prediction, make_prediction, voc_metrics
from common import distributed
from common.shutdown import StopRequest


def evaluate(model: nn.Module, config: Any, stop: StopRequest) -> dict[str, float] | None:
    """Metrics of the test set, on every process; None when one of them was asked to stop.

    The model is in evaluation mode afterwards.
    """
    (name,) = config.DATASETS.TEST
    dataset, images = find_set(name), read_set(name)
    # Contiguous shares keep the single process's order, on which equal scores depend.
    share = -(-len(images) // distributed.world_size())
    start = share * distributed.rank()
    predictions = predict(model, images[start : start + share], config, stop)
    gathered = distributed.gather_objects([(bool(stop), predictions)])
    if any(stopped for stopped, _ in gathered):
        return None
    everything = [prediction for _, part in gathered for prediction in part]
    return voc_metrics(everything, images, dataset.classes, dataset.year)


@torch.no_grad()
def predict(model: nn.Module, images: list, config: Any, stop: StopRequest) -> list[Prediction]:
    """The detections of `images`, one image at a time as Detectron2's test loader has them."""
    model.eval()
    predictions = []
    for image, batch in zip(images, test_batches(images, config)):
        if stop:
            break
        (found,) = model(batch)
        for box, score, category in zip(
            found.boxes.cpu().numpy(), found.scores.tolist(), found.classes.tolist()
        ):
            predictions.append(make_prediction(image.image_id, category, score, box))
    return predictions
