"""VOC07 classification: linear SVMs on the features of a backbone that is not trained further.

features → full        an SVM per class on all training images
         → low_shot    on a few images per class, several samples of each number
classifier             one SVM, and the average precision of its scores

FOLDER/classes/NAME.json   each class's result: an interrupted run goes on with the next class

The protocol is that of DenseCL's benchmarks (svm_tools, extract_info/voc07.py), after Goyal et
al., Scaling and Benchmarking Self-Supervised Visual Representation Learning (arXiv:1905.01235).
"""

import json
import logging
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.datasets.catalog import find_set
from benchmarks.examples import choose, write_classified
from benchmarks.svm.features import FrozenBackbone, Labelled, extract
from benchmarks.svm.full import evaluate_class, mean_over_classes
from benchmarks.svm.low_shot import evaluate_class_on_few, mean_over_samples, read_orders
from benchmarks.weights import Backbone, load_backbone, prove_loaded
from common import distributed
from common.files import write_json
from common.parallel import cores
from common.shutdown import StopRequest

log = logging.getLogger(__name__)


def version() -> str:
    """The versions that results record."""
    versions = (f"{name} {metadata.version(name)}" for name in ("torchvision", "scikit-learn"))
    return ", ".join(versions)


def run(
    config: Any,
    backbone: Backbone | None,
    seed: int,
    folder: Path,
    device: torch.device,
    stop: StopRequest,
) -> dict[str, float] | None:
    """Extract features with `backbone`, or a random one, and fit and score the SVMs.

    Returns the metrics in percent (in the main process), or None when asked to stop. Raises
    UserError for unreadable data and classes with too few images.
    """
    torch.manual_seed(seed)
    model = FrozenBackbone(config)
    if backbone:
        load_backbone(model, backbone)
    model.to(device)
    if backbone:
        prove_loaded(model, backbone)
    (train_name,), (test_name,) = config.DATASETS.TRAIN, config.DATASETS.TEST
    train = extract(model, find_set(train_name), config, stop)
    test = extract(model, find_set(test_name), config, stop)
    if train is None or test is None:
        return None
    log.info("features of %d training and %d test images", *map(len, (train, test)))
    if not distributed.is_main():
        return {}
    found = _fit(train, test, config, seed, folder, stop)
    if found is None:
        return None
    if config.SVM.SHOTS:
        return mean_over_samples(found)
    scores = np.array([result["examples"] for result in found.values()]).T
    write_classified(folder, choose(find_set(test_name).read()), scores, test.classes)
    return mean_over_classes(found)


def _fit(
    train: Labelled, test: Labelled, config: Any, seed: int, folder: Path, stop: StopRequest
) -> dict[str, Any] | None:
    """Each class's result; None when asked to stop."""
    shots, orders = config.SVM.SHOTS, read_orders(len(train))
    jobs = cores()
    found: dict[str, Any] = {}
    for number, name in enumerate(train.classes):
        file = folder / "classes" / f"{name}.json"
        if not file.is_file():
            if stop:
                return None
            one_class = train.of_class(number), test.of_class(number)
            file.parent.mkdir(exist_ok=True)
            if shots:
                few = evaluate_class_on_few(name, *one_class, config.SVM, orders, seed, jobs)
                write_json(file, few)
            else:
                write_json(file, evaluate_class(name, *one_class, config.SVM, seed, jobs))
        found[name] = json.loads(file.read_text())
        log.info("%s: AP %s", name, _rounded(found[name]))
    return found


def _rounded(result: dict[str, Any]) -> str:
    """For the log: the AP, or each k's mean over the samples."""
    if "AP" in result:
        return f"{result['AP']:.2f}"
    return ", ".join(f"k={k} {np.mean(few['AP']):.2f}" for k, few in result.items())
