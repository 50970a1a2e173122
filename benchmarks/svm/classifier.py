"""One class's linear SVM, and the average precision of its scores.

Settings of DenseCL's benchmarks/svm_tools: squared hinge loss, positives weighted twice.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from benchmarks.evaluation.voc_ap import area_under_curve
from benchmarks.svm.features import OneClass


def new_svm(cost: float, seed: int) -> LinearSVC:
    """An SVM to be fitted to features (N,D) and (N,) bool."""
    return LinearSVC(
        C=cost,
        class_weight={True: 2, False: 1},
        penalty="l2",
        loss="squared_hinge",
        dual=True,
        tol=1e-4,
        max_iter=2000,
        random_state=seed,
    )


@contextmanager
def unconverged_is_fine() -> Iterator[None]:
    """The published protocol stops after 2000 iterations, converged or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def average_precision(svm: LinearSVC, images: OneClass) -> float:
    """Area (0 to 1) under the interpolated precision, not VOC2007's 11 points.

    Difficult images are skipped. Best scores first, equal ones in the images' order.
    """
    counted = images.labels != 0
    scores = svm.decision_function(images.features[counted])
    positive = (images.labels[counted] == 1)[np.argsort(-scores, kind="stable")]
    true = np.cumsum(positive)
    return area_under_curve(true / max(true[-1], 1), true / np.arange(1, len(true) + 1))
