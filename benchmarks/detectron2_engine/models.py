"""What Detectron2 does not have of its own, registered under the names that configurations use."""

from detectron2.config import CfgNode
from detectron2.layers import get_norm
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from torch import nn

from benchmarks.weights import Backbone, load_backbone, prove_loaded


def pretrained_model(cfg: CfgNode, backbone: Backbone | None) -> nn.Module:
    """The model on its device, with every tensor of its backbone proven to be the pickle's."""
    model = build_model(cfg)
    if backbone:
        load_backbone(model, backbone)
        prove_loaded(model, backbone)
    return model


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """The C4 head with a normalisation after res5, for backbones that are not frozen."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        blocks, channels = super()._build_res5_block(cfg)
        blocks.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return blocks, channels
