"""What the training loop needs of a method, whichever it is."""

from typing import Any

from torch import nn

from common.resnet import ResNet
from pretrain.attention import Attention, by_chunks
from pretrain.inputs import Inputs
from pretrain.loss import Losses


class Network(nn.Module):
    """A network that is trained."""

    backbone: ResNet
    """What conversion takes out of it."""


class Method(nn.Module):
    """Everything that a checkpoint has to hold of the model.

    A step asks for the targets of all its images, then for the losses of as many of them at a
    time as fit the device, and in the end hands the targets back to be remembered.
    """

    query: Network
    attention: Attention = staticmethod(by_chunks)
    """How queries are compared with a queue."""

    def targets(self, inputs: Inputs) -> Any:
        """What the query is compared with, without gradient: a named tuple, a row per image."""
        return ()

    def losses(self, query_encoder: nn.Module, inputs: Inputs, targets: Any) -> Losses:
        """The mean loss of these images.

        query_encoder: `query`, wrapped where there are several processes.
        """
        raise NotImplementedError

    def remember(self, targets: Any) -> None:
        """After the losses of all images: what the next step is to know of them."""
