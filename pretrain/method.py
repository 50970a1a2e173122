"""What the training loop needs of a method, whichever it is."""

from torch import nn

from common.resnet import ResNet
from pretrain.data import Inputs
from pretrain.loss import Losses


class Network(nn.Module):
    """A network that is trained."""

    backbone: ResNet
    """What conversion takes out of it."""


class Method(nn.Module):
    """Everything that a checkpoint has to hold of the model."""

    query: Network

    def losses(self, query_encoder: nn.Module, inputs: Inputs) -> Losses:
        """One step's loss, and all else that happens before the update.

        query_encoder: `query`, wrapped where there are several processes.
        """
        raise NotImplementedError
