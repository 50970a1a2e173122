"""SVMs on a few images per class.

As DenseCL's benchmarks/svm_tools and create_voc_low_shot_challenge_samples.py: k images with the
class and 19 k without it, five samples for each k. There the samples are drawn without a seed and
C is chosen by the test AP; here the samples are committed, and C is chosen by cross-validation
over them unless the settings say "test".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.svm import LinearSVC
from sklearn.utils.parallel import Parallel, delayed

from benchmarks.svm.classifier import average_precision, new_svm, unconverged_is_fine
from benchmarks.svm.features import OneClass
from common.errors import UserError

_ORDERS = Path(__file__).parents[2] / "configs" / "voc07_low_shot_orders.txt"
_NEGATIVES = 19  # for each positive


def read_orders(images: int) -> list[np.ndarray]:
    """For each sample the order (N,) in which it takes the `images` of the training set."""
    lines = _ORDERS.read_text(encoding="utf-8").splitlines()
    orders = [np.array(line.split(), dtype=int) for line in lines if not line.startswith("#")]
    if images > len(orders[0]):
        raise UserError(f"{_ORDERS}: is for {len(orders[0])} training images at most, not {images}")
    return [order[order < images] for order in orders]


def draw(labels: np.ndarray, order: np.ndarray, shots: int) -> np.ndarray:
    """Indices of the first `shots` images with the class (1) and 19 × `shots` without it (-1)."""
    positive, negative = (order[labels[order] == wanted] for wanted in (1, -1))
    return np.concatenate([positive[:shots], negative[: _NEGATIVES * shots]])


def evaluate_class_on_few(
    name: str,
    train: OneClass,
    test: OneClass,
    settings: Any,
    orders: list[np.ndarray],
    seed: int,
    jobs: int,
) -> dict[str, dict[str, Any]]:
    """{k: {"AP": of each sample's SVM, in percent on the test set, "cost": their C}}.

    Raises UserError when there are fewer images of the class than the largest k.
    """
    available, wanted = int((train.labels == 1).sum()), max(settings.SHOTS)
    if available < wanted:
        raise UserError(f"{name}: {available} training images show it, SVM.SHOTS asks for {wanted}")
    result = {}
    for shots in settings.SHOTS:
        samples = [draw(train.labels, order, shots) for order in orders]

        def judge(
            cost: float, samples: list[np.ndarray] = samples
        ) -> tuple[float, list[LinearSVC]]:
            svms = [_fit(train, sample, cost, seed) for sample in samples]
            if settings.CHOOSE_COST_ON == "test":
                return float(np.mean([average_precision(svm, test) for svm in svms])), svms
            return _on_the_others(train, samples, svms), svms

        with unconverged_is_fine():
            judged = Parallel(jobs, prefer="threads")(delayed(judge)(c) for c in settings.COSTS)
        best = int(np.argmax([score for score, _ in judged]))
        aps = [100 * average_precision(svm, test) for svm in judged[best][1]]
        result[str(shots)] = {"AP": aps, "cost": settings.COSTS[best]}
    return result


def mean_over_samples(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """mAP_kK, the mean over the samples, and mAP_kK-min, -max and -std, for each K.

    A sample's own number is its mean over the classes; std is the samples' (n - 1).
    """
    metrics = {}
    for shots in next(iter(found.values())):
        per_sample = np.mean([of_class[shots]["AP"] for of_class in found.values()], axis=0)
        name = f"mAP_k{shots}"
        metrics[name] = float(per_sample.mean())
        metrics[f"{name}-min"] = float(per_sample.min())
        metrics[f"{name}-max"] = float(per_sample.max())
        metrics[f"{name}-std"] = float(per_sample.std(ddof=1))
    return metrics


def _fit(train: OneClass, sample: np.ndarray, cost: float, seed: int) -> LinearSVC:
    return new_svm(cost, seed).fit(train.features[sample], train.labels[sample] == 1)


def _on_the_others(train: OneClass, samples: list[np.ndarray], svms: list[LinearSVC]) -> float:
    """Mean AP of each sample's SVM on the images of the other samples that it was not shown."""
    everything = np.unique(np.concatenate(samples))
    scores = []
    for sample, svm in zip(samples, svms):
        others = np.setdiff1d(everything, sample)
        scores.append(
            average_precision(svm, OneClass(train.features[others], train.labels[others]))
        )
    return float(np.mean(scores))
