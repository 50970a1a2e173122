"""Cityscapes' own scores of semantic segmentation, computed by cityscapesscripts itself.

Its evaluation of files counts pixels of all label ids in Python; only the counting is ours. Pixels
whose label it ignores count neither way, so that those of the 19 classes are all it needs.
"""

from types import SimpleNamespace

import numpy as np
from cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling import (
    generateMatrix,
    getIouScoreForCategory,
    getIouScoreForLabel,
    getScoreAverage,
)
from cityscapesscripts.helpers.labels import category2labels, labels, trainId2label


def cityscapes_scores(confusion: np.ndarray) -> dict[str, float]:
    """mIoU over classes and over their seven categories, in percent.

    confusion (19,19): rows are labels, columns predictions, both by training id.
    """
    ids = [trainId2label[train_id].id for train_id in range(len(confusion))]
    settings = SimpleNamespace(evalLabels=[label.id for label in labels if label.id >= 0])
    counts = generateMatrix(SimpleNamespace())
    counts[np.ix_(ids, ids)] = confusion
    of_classes = {i: getIouScoreForLabel(i, counts, settings) for i in ids}
    of_categories = {
        name: getIouScoreForCategory(name, counts, settings) for name in category2labels
    }
    return {
        "mIoU": 100 * getScoreAverage(of_classes, settings),
        "mIoU_category": 100 * getScoreAverage(of_categories, settings),
    }
