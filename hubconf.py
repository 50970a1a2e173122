"""torch.hub's entry: any known checkpoint as torchvision's ResNet.

torch.hub.load("OWNER/REPOSITORY", "backbone", weights="epoch_200.pth")
torch.hub.load(".", "backbone", source="local", weights="epoch_200.pth")     from a clone
"""

from pathlib import Path

import torch
import torchvision

from common.errors import UserError
from converters.convert import read
from converters.source import find_source

dependencies = ["torch", "torchvision", "numpy", "safetensors"]


def backbone(weights: str, layout: str = "auto") -> torchvision.models.ResNet:
    """torchvision's ResNet in evaluation mode, its classifier replaced by the identity.

    weights: a checkpoint of any layout that `python -m converters` knows, or the folder of a
    finished pre-training. Images (B,3,H,W) as that program prints → (B,2048).

    Raises UserError when it is not exactly one known network at the published width.
    """
    found = read(find_source(Path(weights)), layout).backbone
    if found.width != 64:
        raise UserError(f"{weights}: a network of width {found.width}; torchvision's have 64")
    model = getattr(torchvision.models, f"resnet{found.depth}")()
    model.fc = torch.nn.Identity()
    model.load_state_dict(found.tensors)
    return model.eval()
