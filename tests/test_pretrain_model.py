"""The model's parts against brute force, and several processes against one."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from processes import run
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pretrain.inputs
import pretrain.methods.moco
from common import distributed
from pretrain.config import Launch, Model, Optim, PretrainConfig
from pretrain.data import Batch
from pretrain.group_bn import GroupBatchNorm, shuffle, shuffling
from pretrain.images import Folder
from pretrain.methods.densecl import DenseCL, DenseEncoder
from pretrain.methods.moco import Queue
from pretrain.run import build_run
from pretrain.train import train_step
from pretrain.views import RECIPES, draw, normalise

FILES = [f"{name}/{number}.jpg" for name in "abc" for number in range(22)]
TINY = Model(width=8, hidden=16, embedding=8, queue_length=37, key_momentum=0.9, bn_group=4)


def make_model(seed=0, config=TINY):
    torch.manual_seed(seed)
    return DenseCL(PretrainConfig(model=config))


def images(count, seed=0, size=64):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_both_encoders_start_equal_and_only_the_query_learns():
    model = make_model()
    for (name, query), (_, key) in zip(
        model.query.state_dict().items(), model.key.state_dict().items(), strict=True
    ):
        assert torch.equal(query, key), name
    assert all(p.requires_grad for p in model.query.parameters())
    assert not any(p.requires_grad for p in model.key.parameters())


def test_initialisation_is_the_official_one():
    torch.manual_seed(0)
    encoder = DenseEncoder(Model())
    conv = encoder.backbone.layer3[0].conv2.weight  # fan_in 256·9
    assert conv.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)
    linear = encoder.global_head[0]
    assert linear.weight.std().item() == pytest.approx((2 / 2048) ** 0.5, rel=0.01)
    assert linear.bias.abs().max() == 0
    dense = encoder.dense_head[0]  # PyTorch's own: uniform within 1/sqrt(fan_in)
    assert dense.weight.abs().max().item() == pytest.approx(2048**-0.5, rel=0.01)
    norms = [m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in norms)


def test_embeddings_have_their_shapes_and_unit_length_and_pool_before_normalising():
    encoder = make_model().query.eval()
    seen = {}
    encoder.backbone.register_forward_hook(lambda m, i, output: seen.update(feature=output))
    encoder.dense_head.register_forward_hook(lambda m, i, output: seen.update(dense=output))
    embeddings = encoder(images(3, size=96))
    shapes = [tuple(part.shape) for part in embeddings]
    assert shapes == [(3, 256, 9), (3, 8), (3, 8, 9), (3, 8)]
    for part in embeddings:
        torch.testing.assert_close(part.norm(dim=1), torch.ones_like(part.norm(dim=1)))
    pooled = seen["dense"].mean((2, 3))
    torch.testing.assert_close(embeddings.pooled, pooled / pooled.norm(dim=1, keepdim=True))
    hidden = F.relu(F.linear(seen["feature"].mean((2, 3)), encoder.global_head[0].weight))
    expected = F.linear(hidden, encoder.global_head[2].weight)
    torch.testing.assert_close(embeddings.global_, F.normalize(expected, dim=1))


def test_key_encoder_follows_the_query_by_parameters_alone():
    model = make_model()
    with torch.no_grad():
        for parameter in model.query.parameters():
            parameter.add_(torch.randn_like(parameter))
        for name, buffer in model.query.named_buffers():
            if "running" in name:
                buffer.add_(1)
    key = {name: p.double() for name, p in model.key.named_parameters()}
    buffers = {name: b.clone() for name, b in model.key.named_buffers()}
    model.update_key_encoder()
    for name, query in model.query.named_parameters():
        expected = 0.9 * key[name] + 0.1 * query.double()
        ours = dict(model.key.named_parameters())[name].double()
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(b, buffers[name]) for name, b in model.key.named_buffers())


@pytest.mark.parametrize("length", [1, 5, 12])
def test_queue_equals_a_list_written_around_its_end(length):
    torch.manual_seed(0)
    queue = Queue(length, 3)
    assert torch.allclose(queue.rows.norm(dim=1), torch.ones(length))
    expected, pointer, added = list(queue.rows.clone()), 0, 0
    for count in [2, 3, 12, 1, 30, 7, 5]:
        keys = torch.randn(count, 3)
        queue.enqueue(keys)
        for key in keys:
            expected[pointer] = key
            pointer = (pointer + 1) % length
        added += count
        assert torch.equal(queue.rows, torch.stack(expected))
        assert (queue.pointer, queue.filled) == (pointer, min(added, length))


def test_queue_state_survives_a_round_trip():
    queue, other = Queue(5, 3), Queue(5, 3)
    queue.enqueue(torch.randn(7, 3))
    other.load_state_dict(queue.state_dict())
    assert (other.pointer, other.filled) == (queue.pointer, queue.filled) == (2, 5)


def test_grouped_batch_norm_equals_one_batch_norm_per_group():
    torch.manual_seed(0)
    ours, batch = GroupBatchNorm(6, group=4), torch.randn(12, 6, 5, 5)
    nn.init.normal_(ours.weight)
    separate = [nn.BatchNorm2d(6) for _ in range(3)]
    for module in separate:
        module.load_state_dict(ours.state_dict())
    expected = torch.cat([m(part) for m, part in zip(separate, batch.split(4))])
    assert torch.equal(ours(batch), expected)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(m, name) for m in separate]).mean(0)
        torch.testing.assert_close(getattr(ours, name), mean)
    ours.eval()
    assert torch.equal(ours(batch), F.batch_norm(
        batch, ours.running_mean, ours.running_var, ours.weight, ours.bias, eps=ours.eps
    ))  # fmt: skip
    with pytest.raises(ValueError, match="groups of 4"):
        ours.train()(batch[:6])


def check_keys_come_back_in_order(model):
    """In eval mode batch norm ignores company, so shuffling must not show at all."""
    model.eval()
    batch = images(8)
    permutation = shuffling(8, seed=3, step=5)
    assert sorted(permutation.tolist()) == list(range(8))
    assert permutation.tolist() != list(range(8))
    for ours, expected in zip(
        model.embed_keys(shuffle(batch, permutation), permutation), model.key(batch)
    ):
        torch.testing.assert_close(ours, expected)


def test_keys_come_back_unshuffled():
    check_keys_come_back_in_order(make_model())


@pytest.mark.parametrize("forgotten", range(4))
def test_forgetting_to_unshuffle_one_part_is_noticed(forgotten, monkeypatch):
    original, calls = pretrain.methods.moco.unshuffle, []

    def forgetful(local, permutation):
        calls.append(local)
        return local if len(calls) == forgotten + 1 else original(local, permutation)

    monkeypatch.setattr(pretrain.methods.moco, "unshuffle", forgetful)
    with pytest.raises(AssertionError):
        check_keys_come_back_in_order(make_model())


def test_shuffling_changes_a_keys_company():
    """In training mode the same image is normalised with other images than its query is."""
    model, batch = make_model(), images(8)
    straight = model.key(batch).global_
    permutation = shuffling(8, seed=0, step=0)
    shuffled = model.embed_keys(shuffle(batch, permutation), permutation).global_
    assert (straight - shuffled).abs().max() > 1e-3


CONFIG = PretrainConfig(model=TINY, optim=Optim(epochs=2, batch_size=8, lr=0.1))


def two_views(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, count, 3, 64, 64), generator=generator, dtype=torch.uint8)


def make_batch(views):
    """A batch whose views all show their whole image, of classes 0, 1, 2, ..."""
    count, size = views.shape[1], views.shape[-1]
    corners = torch.tensor([0.0, 0.0, size, size]).expand(len(views), count, 4)
    return Batch(views, corners, torch.arange(count), [])


def normalise_in_float64(view):
    mean = torch.tensor([0.485, 0.456, 0.406]).double().view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).double().view(3, 1, 1)
    return (view.double() / 255 - mean) / std


def test_normalise_equals_the_definition():
    view = two_views(2)[0]
    ours = normalise(view)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours.double(), normalise_in_float64(view), rtol=0, atol=1e-6)


def make_run(config=CONFIG, dtype=torch.float64):
    """In float32 a fresh ResNet with four images per group amplifies rounding by 10^5."""
    pretrain.inputs.normalise = normalise_in_float64 if dtype == torch.float64 else normalise
    torch.set_default_dtype(dtype)
    training = build_run(config, Path("unused"), torch.device("cpu"), Folder(Path("unused"), FILES))
    torch.set_default_dtype(torch.float32)
    return training


@pytest.fixture(autouse=True)
def restore_normalise():
    yield
    pretrain.inputs.normalise = normalise


def test_one_step_equals_the_algorithm_written_out():
    """Order of operations, losses, gradients, both queues, against an independent copy."""
    training = make_run()
    before = copy.deepcopy(training.model)
    for parameter in before.query.parameters():  # a query that differs from its key
        parameter.data.mul_(1.01)
    training.model.load_state_dict(before.state_dict())
    views = two_views(8)
    losses = train_step(training, make_batch(views), stop=False)[0]

    queries, keys = (normalise_in_float64(view) for view in views)
    permutation = shuffling(8, CONFIG.seed, 0).tolist()
    query = before.query(queries)
    with torch.no_grad():
        for key, parameter in zip(before.key.parameters(), before.query.parameters()):
            key.copy_(0.9 * key + 0.1 * parameter)
        shuffled = before.key(keys[permutation])
        place = [permutation.index(image) for image in range(8)]
        key = [part[place] for part in shuffled]
    global_logits, dense_logits = [], []
    for image in range(8):
        negatives = before.global_queue.rows @ query.global_[image]
        global_logits.append(torch.cat([(query.global_[image] @ key[1][image])[None], negatives]))
        similarity = query.feature[image].T @ key[0][image]
        for position in range(4):
            vector = query.dense[image, :, position]
            positive = key[2][image][:, similarity[position].argmax()]
            negatives = before.dense_queue.rows @ vector
            dense_logits.append(torch.cat([(vector @ positive)[None], negatives]))
    global_loss = F.cross_entropy(torch.stack(global_logits) / 0.2, torch.zeros(8).long())
    dense_loss = F.cross_entropy(torch.stack(dense_logits) / 0.2, torch.zeros(32).long())
    assert losses.values["loss_global"].item() == pytest.approx(global_loss.item(), rel=1e-6)
    assert losses.values["loss_dense"].item() == pytest.approx(dense_loss.item(), rel=1e-6)
    (0.5 * global_loss + 0.5 * dense_loss).backward()
    ours = dict(training.model.query.named_parameters())
    for name, parameter in before.query.named_parameters():
        torch.testing.assert_close(
            ours[name].grad, parameter.grad, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: n + m
        )
    for queue, rows in [("global_queue", key[1]), ("dense_queue", key[3])]:
        filled = getattr(training.model, queue)
        torch.testing.assert_close(filled.rows[:8], rows, rtol=1e-9, atol=1e-12)
        assert torch.equal(filled.rows[8:], getattr(before, queue).rows[8:])
        assert (filled.pointer, filled.filled) == (8, 8)


def step_of_this_process(micro_batch, output):
    """One training step on this process's part of a batch of 16, written to `output`."""
    distributed.start("cpu")
    optim = replace(CONFIG.optim, batch_size=16, micro_batch=micro_batch)
    training = make_run(replace(CONFIG, optim=optim))
    views = torch.stack([distributed.this_process_rows(view) for view in two_views(16)])
    write_step(training, make_batch(views), output)
    distributed.stop()


def write_step(training, batch, output):
    """Do a step; the main process writes the mean loss, its own values and gradients, the model."""
    losses, _ = train_step(training, batch, stop=False)
    total = distributed.sum_over_processes(losses.total.detach()) / distributed.world_size()
    gradients = {n: p.grad for n, p in training.model.query.named_parameters()}
    if distributed.is_main():
        state = {"loss": total.double(), "values": losses.values, "gradients": gradients}
        torch.save({**state, "model": training.model.state_dict()}, output)


def test_two_processes_equal_one(tmp_path):
    """Same groups, same shuffling: same loss, gradients, statistics and queues."""
    results = []
    for world_size in (1, 2):
        path = tmp_path / f"{world_size}.pth"
        run(step_of_this_process, world_size, 0, path)
        results.append(torch.load(path, weights_only=True))
    one, two = results
    assert two["loss"].item() == pytest.approx(one["loss"].item(), rel=1e-12)
    for name, gradient in one["gradients"].items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=0, atol=1e-9 * scale)
    for name, value in one["model"].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(two["model"][name], value, rtol=1e-9, atol=1e-12, msg=name)
        else:
            assert two["model"][name] == value


def exchange_and_gather(output):
    """Rows in another order, as every process received them."""
    distributed.start("cpu")
    found = []
    for shape, dtype in (((12, 3, 2), torch.uint8), ((12,), torch.float64)):
        whole = torch.arange(torch.Size(shape).numel()).view(shape).to(dtype)
        order = shuffling(12, seed=1, step=2)
        mine = distributed.exchange(distributed.this_process_rows(whole), order)
        back = distributed.exchange(mine, order.argsort())
        assert torch.equal(back, distributed.this_process_rows(whole))
        found.append((whole[order], distributed.gather(mine)))
    if distributed.is_main():
        torch.save(found, output)
    distributed.stop()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_exchanged_rows_are_those_of_the_whole_batch(world_size, tmp_path):
    run(exchange_and_gather, world_size, tmp_path / "found.pth")
    for expected, found in torch.load(tmp_path / "found.pth"):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_in_parts_equals_a_whole_one(world_size, tmp_path):
    """Queues, key encoder and shuffling are of the whole step, so only rounding differs."""
    found = []
    for micro_batch in (0, 4):
        path = tmp_path / f"{micro_batch}.pth"
        run(step_of_this_process, world_size, micro_batch, path)
        found.append(torch.load(path, weights_only=True))
    whole, parts = found
    for name, value in whole["values"].items():
        torch.testing.assert_close(parts["values"][name], value, rtol=1e-10, atol=0, msg=name)
    for name, value in whole["gradients"].items():
        atol = 1e-9 * value.abs().max().item()
        torch.testing.assert_close(parts["gradients"][name], value, rtol=0, atol=atol, msg=name)
    for name, value in whole["model"].items():
        # Running statistics are smoothed once for each part.
        if torch.is_tensor(value) and "running" not in name and "tracked" not in name:
            torch.testing.assert_close(parts["model"][name], value, rtol=1e-9, atol=1e-12, msg=name)


class Waits(TorchDispatchMode):
    """The operators called that make a host wait for its device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(word in str(function) for word in self.WAITING):
            self.called.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["densecl", "moco"])
@pytest.mark.parametrize("colours", ["cpu", "device"])
def test_a_step_waits_for_nothing(method, colours):
    config = replace(CONFIG, method=method, launch=Launch(log_every=7))
    training = make_run(config, torch.float32)
    batch = make_batch(two_views(8))
    if colours == "device":
        colours, random = RECIPES["moco_v2"].views[0], torch.Generator()
        drawn = torch.tensor([[draw(colours, random) for _ in range(8)] for _ in range(2)])
        batch = batch._replace(drawn=drawn)
    with Waits() as waits:
        for _ in range(3):
            train_step(training, batch, stop=False)
    assert not waits.called
    with Waits() as waits:
        torch.ones(1).item()
    assert waits.called


def test_nothing_is_updated_from_a_broken_loss_on(tmp_path):
    training = make_run(CONFIG, torch.float32)
    before = [p.detach().clone() for p in training.model.query.parameters()]
    with torch.no_grad():
        training.model.global_queue.rows[0] = torch.inf
    train_step(training, make_batch(two_views(8)), stop=False)
    training.model.global_queue.rows.nan_to_num_(posinf=0)
    losses, _ = train_step(training, make_batch(two_views(8)), stop=False)
    assert losses.total.isfinite()
    for parameter, value in zip(training.model.query.parameters(), before):
        assert torch.equal(parameter, value)
