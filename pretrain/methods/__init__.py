"""The methods; pretrain/method.py says what each has to offer."""

from pretrain.config import PretrainConfig
from pretrain.method import Method
from pretrain.methods.byol import BYOL
from pretrain.methods.densecl import DenseCL
from pretrain.methods.moco import MoCo
from pretrain.methods.resim import ReSim
from pretrain.methods.simclr import SimCLR
from pretrain.methods.supervised import Supervised


def build_method(config: PretrainConfig, classes: int, total_steps: int) -> Method:
    """The model of `config.method`, with weights drawn from torch's generator.

    classes: folders of images, for the supervised. total_steps: for BYOL's momentum.
    """
    match config.method:
        case "densecl":
            return DenseCL(config)
        case "moco":
            return MoCo(config)
        case "resim":
            return ReSim(config)
        case "simclr":
            return SimCLR(config)
        case "byol":
            return BYOL(config, total_steps)
        case _:
            return Supervised(config, classes)
