"""Where Detectron2 is installed: it must load the pickle whole. The only import of it here."""

import logging
from pathlib import Path

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_resnet_backbone

from common.errors import UserError
from common.pickles import load_pickle
from converters.verify import forward, probe_images, relative_difference


def prove_detectron2_loads(pickle: Path, depth: int, width: int) -> str:
    """Detectron2's own backbone takes every tensor bit-equal and computes the same res5.

    Raises UserError naming the first tensor that it did not take.
    """
    network = _backbone(depth, width)
    logging.getLogger("detectron2").setLevel(logging.ERROR)
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    DetectionCheckpointer(network).load(str(pickle))
    loaded = network.state_dict()
    weights = {name: torch.from_numpy(a) for name, a in load_pickle(pickle)["model"].items()}
    for name in sorted(loaded.keys() ^ weights.keys()):
        raise UserError(f"{name}: {'Detectron2' if name in loaded else 'the pickle'} alone has it")
    for name, tensor in weights.items():
        if not torch.equal(loaded[name], tensor):
            raise UserError(f"{name}: Detectron2 did not load it")
    with torch.inference_mode():
        theirs = network(probe_images())["res5"]
        difference = relative_difference(forward(weights, probe_images()), theirs)
    if not difference <= 1e-5:  # its frozen norm multiplies and adds in another order
        raise UserError(f"Detectron2's res5 differs by {difference:.1e} (relative)")
    return f"Detectron2: all {len(weights)} backbone tensors loaded, res5 within {difference:.1e}"


def _backbone(depth: int, width: int) -> torch.nn.Module:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = "FrozenBN"  # as many buffers as the pickle has, no batch counters
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = width
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4 * width
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = width
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    return build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
