"""An SVM per class on all training images, as DenseCL's benchmarks/svm_tools/train_svm_kfold.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.model_selection import cross_val_score
from sklearn.utils.parallel import Parallel, delayed

from benchmarks.examples import positions
from benchmarks.svm.classifier import average_precision, new_svm, unconverged_is_fine
from benchmarks.svm.features import OneClass
from common.errors import UserError


def evaluate_class(
    name: str, train: OneClass, test: OneClass, settings: Any, seed: int, jobs: int
) -> dict[str, Any]:
    """{"AP": in percent on the test set, "cost": the SVM's C, "examples": some scores}.

    C is the best by cross-validation on the training set, or, where settings say so, by the test
    AP itself. A difficult training image counts as one without the class, as published.
    Raises UserError when there are too few images of the class.
    """
    positive = train.labels == 1
    if positive.sum() < settings.FOLDS or not (test.labels == 1).any():
        raise UserError(
            f"{name}: {positive.sum()} training and {(test.labels == 1).sum()} test images show "
            f"it: {settings.FOLDS} and 1 are needed"
        )

    def score(cost: float) -> float:
        svm = new_svm(cost, seed)
        if settings.CHOOSE_COST_ON == "test":
            return average_precision(svm.fit(train.features, positive), test)
        scoring, folds = "average_precision", settings.FOLDS
        return cross_val_score(svm, train.features, positive, scoring=scoring, cv=folds).mean()

    with unconverged_is_fine():
        # The solver leaves Python's lock alone, so that threads do run at once.
        scores = Parallel(jobs, prefer="threads")(delayed(score)(c) for c in settings.COSTS)
        cost = settings.COSTS[int(np.argmax(scores))]
        svm = new_svm(cost, seed).fit(train.features, positive)
    examples = svm.decision_function(test.features[positions(len(test.features))])
    return {"AP": 100 * average_precision(svm, test), "cost": cost, "examples": examples.tolist()}


def mean_over_classes(found: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """mAP, and AP-CLASS of each class."""
    per_class = {f"AP-{name}": result["AP"] for name, result in found.items()}
    return {"mAP": float(np.mean(list(per_class.values()))), **per_class}
