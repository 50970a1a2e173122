"""A training step on a GPU that need not be there: on tensors that know a device but no values.

PyTorch refuses to mix devices on them, and refuses whatever has the host look at a value. Copies
for which the host would wait are refused here. Only the backward pass and the fused SGD do not run
without a GPU.
"""

import traceback
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from common.config import load_config
from pretrain.attention import by_chunks, by_flash
from pretrain.config import PretrainConfig
from pretrain.data import Batch
from pretrain.images import Folder
from pretrain.run import build_optimizer, build_run
from pretrain.train import train_step

GPU = torch.device("cuda")


class BlockingCopies(TorchDispatchMode):
    """Those between host and device for which the host waits."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], result)
            waits = not (kwargs or {}).get("non_blocking", len(args) > 2 and args[2])
            if source.device.type != target.device.type and waits:
                self.seen.append("".join(traceback.format_stack(limit=12)))
        return result


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
        ("moco_v2", ["optim.optimizer=sgd"], by_flash),
    ],
)
@pytest.mark.parametrize("precision, changed", [("fp32", True), ("bf16", False)])
def test_a_step_mixes_no_devices_and_waits_for_nothing(
    values_unknown, monkeypatch, method, settings, attention, precision, changed
):
    """Logged steps too: their numbers are fetched later."""
    run = run_on_gpu(method, values_unknown, [*settings, "launch.log_every=1"])
    run.precision, run.model.attention = precision, attention

    def backward(loss):
        assert loss.device.type == "cuda" and loss.dim() == 0
        for parameter in run.model.query.parameters():
            parameter.grad = torch.zeros_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", backward)
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *_, **__: None)
    monkeypatch.setattr(torch.cuda, "Event", mock.Mock())
    # Without these autocast switches itself off where there is no GPU.
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    products = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(
        torch.nn.functional, "linear", lambda *a: products.append(linear(*a)) or products[-1]
    )
    with values_unknown, BlockingCopies() as copies:
        batch = make_batch(run.config, changed)
        for _ in range(2):
            losses, notice = train_step(run, batch, stop=False)
    assert not copies.seen, copies.seen[0]
    assert losses.total.device.type == "cuda" and notice.flags.values.device.type == "cpu"
    held = [*run.model.parameters(), *run.model.buffers()]
    assert all(tensor.device.type == "cuda" for tensor in held)
    expected = torch.bfloat16 if precision == "bf16" else torch.float32
    assert {product.dtype for product in products} == {expected}


def test_a_value_asked_for_and_devices_mixed_are_seen(values_unknown):
    with values_unknown:
        there, here = torch.zeros(3, device=GPU), torch.zeros(3)
        with pytest.raises(DataDependentOutputException):
            there.sum().item()
        with pytest.raises(RuntimeError, match="device"):
            there + here
        with BlockingCopies() as copies:
            here.to(GPU, non_blocking=True)
            there.copy_(here, non_blocking=True)
            assert not copies.seen
            torch.tensor([1.0], device=GPU)
            there.copy_(here)
            there.cpu()
        assert len(copies.seen) == 3
