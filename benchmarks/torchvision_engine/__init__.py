"""Benchmarks on stock torchvision, giving Detectron2's numbers.

batch, layers → rpn, roi_heads (boxes) → model   the detector, under Detectron2's names
         fpn → standard_heads (masks) → model
                              semseg → model     the semantic segmentor
data, solver, precise_bn, progress → train       the run
evaluate                                         the metrics
"""

from importlib import metadata

from benchmarks.torchvision_engine.train import run

__all__ = ["run", "version"]


def version() -> str:
    """The version that results record."""
    return f"torchvision {metadata.version('torchvision')}"
