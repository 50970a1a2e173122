"""DenseCL put together of lightly's parts (MIT; PyPI: lightly), as its documentation shows.

lightly holds the queues inside its losses, as (D,K), and adds all dense keys to the dense one. It
does not shuffle keys, and its batch norms see the whole batch.
"""

import copy
from types import ModuleType
from typing import Any

import torch
from torch import nn

from common.errors import UserError
from common.resnet import ResNet
from pretrain.bench.parts import AT_ONCE, batches_of
from pretrain.bench.rounds import Row, Way, compare
from pretrain.bench.steps import make_batch, pinned, runs, stepping
from pretrain.config import PretrainConfig
from pretrain.data import decode_image
from pretrain.images import Folder
from pretrain.views import normalise


def peers(config: PretrainConfig, images: Folder, rounds: int, device: torch.device) -> list[Row]:
    """Rows for two views of an image, on one CPU thread, and for a step of `config`."""
    _lightly()
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    torch.set_num_threads(1)
    rows = [
        {"part": "two views of an image"} | row
        for row in compare(_viewing(images), AT_ONCE, rounds, cpu)
    ]
    torch.set_num_threads(threads)
    with runs({"run": config}, device) as found:
        run = found["run"]
        step, batch = stepping(run), make_batch(run.config)
        # As floats, which lightly's loader gives.
        views = [pinned(normalise(view).contiguous()) for view in batch.views]
        ways: dict[str, Way] = {}
        for name, half in {"lightly, fp32": False, "lightly, bf16 by autocast": True}.items():
            theirs = LightlyStep(config, device, half)
            ways[name] = lambda theirs=theirs: theirs(*views)  # type: ignore[misc]
        ways[f"this one, {run.precision}"] = lambda: step(batch)
        compared = compare(ways, config.optim.batch_size, rounds, device)
    return rows + [{"part": "a training step"} | row for row in compared]


def _lightly() -> ModuleType:
    try:
        import lightly.loss
        import lightly.models.modules
        import lightly.models.utils
        import lightly.transforms
    except ImportError:
        raise UserError("peers: lightly is not installed: pip install --no-deps lightly") from None
    return lightly


def _viewing(images: Folder) -> dict[str, Way]:
    make_views = _lightly().transforms.DenseCLTransform()
    contents = [images.read(number % len(images)) for number in range(AT_ONCE)]

    def by_lightly() -> list[torch.Tensor]:
        pairs = [make_views(decode_image(content)) for content in contents]
        return [torch.stack(views) for views in zip(*pairs)]

    return {
        "lightly, normalised floats": by_lightly,
        "this one by PIL": batches_of(images, "cpu"),
        "this one, crops, colours left to the device": batches_of(images, "device"),
    }


class LightlyStep:
    """One update on two views (B,3,H,W), normalised floats of the host."""

    def __init__(self, config: PretrainConfig, device: torch.device, half: bool) -> None:
        lightly, model = _lightly(), config.model
        self.parts, self.device, self.half = lightly.models.utils, device, half
        trunk = ResNet(model.depth, model.width)
        sizes = trunk.out_channels, model.hidden, model.embedding
        heads = [lightly.models.modules.DenseCLProjectionHead(*sizes) for _ in range(2)]
        self.query = nn.ModuleList([trunk, *heads]).to(device)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        queue = (model.queue_length, model.embedding)
        self.losses = [
            lightly.loss.NTXentLoss(config.loss.temperature, queue).to(device) for _ in range(2)
        ]
        optim = config.optim
        self.optimizer = torch.optim.SGD(
            self.query.parameters(), optim.lr, optim.momentum, weight_decay=optim.weight_decay
        )
        self.momentum, self.weight = model.key_momentum, config.loss.dense_weight

    def __call__(self, query_view: torch.Tensor, key_view: torch.Tensor) -> float:
        """The loss."""
        query_view, key_view = (
            view.to(self.device, non_blocking=True) for view in (query_view, key_view)
        )
        self.parts.update_momentum(self.query, self.key, self.momentum)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            feature, global_, dense = embed(self.query, query_view)
            with torch.no_grad():
                key_feature, key_global, key_dense = embed(self.key, key_view)
            matched = self.parts.select_most_similar(feature, key_feature, key_dense)
            global_loss = self.losses[0](global_, key_global)
            dense_loss = self.losses[1](dense.flatten(0, 1), matched.flatten(0, 1))
            loss = (1 - self.weight) * global_loss + self.weight * dense_loss
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def embed(encoder: Any, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Trunk and two heads: the feature (B,S²,C), the image (B,D), its positions (B,S²,D)."""
    trunk, global_head, dense_head = encoder
    feature = trunk(images)
    positions = feature.flatten(2).transpose(1, 2)
    return positions, global_head(feature.mean((2, 3))), dense_head(positions)
