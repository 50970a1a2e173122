"""A training step on a GPU that need not be there: on tensors that know a device but no values.

PyTorch refuses to mix devices on them, and refuses whatever has the host look at a value. Only the
backward pass does not run without a GPU.
"""

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from common.config import load_config
from pretrain.attention import by_chunks, by_flash
from pretrain.config import PretrainConfig
from pretrain.data import Batch
from pretrain.images import Folder
from pretrain.run import build_optimizer, build_run
from pretrain.train import train_step

GPU = torch.device("cuda")


@pytest.fixture
def values_unknown():
    """The mode in which tensors have no values, whatever the device."""
    overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    yield FakeTensorMode()
    torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


def run_on_gpu(method, mode, settings):
    config = load_config(PretrainConfig, Path(f"configs/pretrain/{method}_mini.yaml"), settings)
    files = [f"{number % 4}/{number}" for number in range(config.optim.batch_size)]
    run = build_run(config, Path("unused"), torch.device("cpu"), Folder(Path("unused"), files))

    def moved(tensor):
        known = mode.from_tensor(tensor.detach())
        with mode:
            return known.to(GPU)

    run.model._apply(moved)
    run.device, run.broken = GPU, moved(run.broken)
    run.query_encoder = run.model.query
    run.optimizer = build_optimizer(config, run.model.query.parameters())
    return run


def make_batch(config, changed):
    views, size = 1 if config.method == "supervised" else 2, config.data.image_size
    count = config.optim.batch_size
    return Batch(
        views=torch.zeros(views, count, 3, size, size, dtype=torch.uint8),
        corners=torch.zeros(views, count, 4),
        labels=torch.zeros(count, dtype=torch.int64),
        unreadable=[],
        drawn=None if changed else torch.zeros(views, count, 13),
    )


@pytest.mark.parametrize(
    "method, settings, attention",
    [
        ("densecl", [], by_chunks),
        ("densecl", ["loss.negatives=local", "loss.matching=geometric"], by_flash),
        ("densecl", ["loss.matching=random", "optim.micro_batch=32"], by_flash),
        ("moco_v2", [], by_flash),
        ("moco_v1", [], by_chunks),
        ("simclr", [], by_chunks),
        ("byol", ["optim.micro_batch=32"], by_chunks),
        ("supervised", [], by_chunks),
    ],
)
@pytest.mark.parametrize("precision, changed", [("fp32", True), ("bf16", False)])
@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_step_mixes_no_devices_and_asks_for_no_value(
    values_unknown, method, settings, attention, precision, changed
):
    """Logged steps too: their numbers are fetched later."""
    run = run_on_gpu(method, values_unknown, [*settings, "launch.log_every=1"])
    run.precision, run.model.attention = precision, attention

    def backward(loss):
        assert loss.device.type == "cuda" and loss.dim() == 0
        for parameter in run.model.query.parameters():
            parameter.grad = torch.zeros_like(parameter)

    event, differentiate = (
        mock.patch("torch.cuda.Event"),
        mock.patch("torch.Tensor.backward", backward),
    )
    with values_unknown, event, differentiate:
        batch = make_batch(run.config, changed)
        for _ in range(2):
            losses, notice = train_step(run, batch, stop=False)
    assert losses.total.device.type == "cuda" and notice.flags.values.device.type == "cpu"
    held = [*run.model.parameters(), *run.model.buffers()]
    assert all(tensor.device.type == "cuda" for tensor in held)


def test_a_value_asked_for_and_devices_mixed_are_seen(values_unknown):
    with values_unknown:
        there, here = torch.zeros(3, device=GPU), torch.zeros(3)
        with pytest.raises(DataDependentOutputException):
            there.sum().item()
        with pytest.raises(RuntimeError, match="device"):
            there + here
