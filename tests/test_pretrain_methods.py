"""One step of each method against the algorithm written out, and what they have in common."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from converter_sources import run_converter
from processes import run
from test_pretrain_model import (
    make_batch,
    make_run,
    normalise_in_float64,
    restore_normalise,
    write_step,
)
from torch import nn

from common import distributed
from common.backbone_file import load_backbone_file
from common.checkpoint import latest_good
from common.errors import UserError
from pretrain.config import Data, Loss, Model, Optim, PretrainConfig, check
from pretrain.data import Batch
from pretrain.group_bn import shuffling
from pretrain.lars import LARS
from pretrain.matching import centres, distances, match_by_place, match_randomly
from pretrain.methods.resim import LEVELS, mapped, windows
from pretrain.run import save
from pretrain.train import learning_rate, train_step

__all__ = ["restore_normalise"]

AUGMENTATIONS = {"simclr": "simclr", "byol": "byol", "supervised": "supervised"}
METHODS = ("densecl", "moco", "resim", "simclr", "byol", "supervised")
CURVES = Path(__file__).parent / "golden" / "pretrain_curves.json"


def make_config(method, batch_size=8, loss=None, **model):
    sizes = {"width": 8, "hidden": 16, "embedding": 8, "queue_length": 37, "key_momentum": 0.9}
    return PretrainConfig(
        method=method,
        data=Data(augmentation=AUGMENTATIONS.get(method, "moco_v2")),
        model=Model(**{**sizes, "bn_group": 4, **model}),
        loss=loss or Loss(),
        optim=Optim(epochs=2, batch_size=batch_size, lr=0.1),
    )


def make_views(count, size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (2, count, 3, size, size), generator=generator, dtype=torch.uint8)


def one_step(config, batch):
    """A step, and a copy of the model from before it in which the query is not its key."""
    training = make_run(config)
    for parameter in training.model.query.parameters():
        parameter.data.mul_(1.01)
    before = copy.deepcopy(training.model)
    return training, before, train_step(training, batch, stop=False)[0]


def assert_same(training, before, losses, expected):
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-9)
    expected.backward()
    ours = dict(training.model.query.named_parameters())
    for name, parameter in before.query.named_parameters():
        # A bias before a batch norm has no gradient but rounding's.
        atol = 1e-7 * parameter.grad.abs().max().item() + 1e-12
        torch.testing.assert_close(
            ours[name].grad, parameter.grad, rtol=0, atol=atol, msg=lambda m, n=name: n + m
        )


def cross_entropy(row, positive, negatives, temperature):
    logits = torch.stack([row @ positive, *(row @ negative for negative in negatives)])
    return (logits / temperature).logsumexp(0) - (row @ positive) / temperature


def keys_of(before, views, config):
    """The key encoder moved, and its embeddings of images that were shuffled and put back."""
    momentum = config.model.key_momentum
    with torch.no_grad():
        for key, query in zip(before.key.parameters(), before.query.parameters()):
            key.copy_(momentum * key + (1 - momentum) * query)
        permutation = shuffling(len(views), config.seed, 0).tolist()
        shuffled = before.key(views[permutation])
        place = [permutation.index(image) for image in range(len(views))]
        return [part[place] for part in shuffled]


@pytest.mark.parametrize("head", ["mlp", "linear"])
def test_moco(head):
    config = make_config("moco", head=head, loss=Loss(temperature=0.07))
    views = make_views(8)
    training, before, losses = one_step(config, make_batch(views))
    (query,) = before.query(normalise_in_float64(views[0]))
    (key,) = keys_of(before, normalise_in_float64(views[1]), config)
    rows = [cross_entropy(q, k, before.global_queue.rows, 0.07) for q, k in zip(query, key)]
    assert_same(training, before, losses, torch.stack(rows).mean())
    torch.testing.assert_close(training.model.global_queue.rows[:8], key, rtol=1e-9, atol=1e-12)
    assert isinstance(training.model.query.global_head[-1], nn.Linear)
    assert len(training.model.query.global_head) == (1 if head == "linear" else 3)


CORNERS = torch.tensor([[0.0, 0, 60, 60], [90, 10, 30, 70], [20, 20, 80, 50], [0, 0, 64, 64]])
OTHERS = torch.tensor([[10.0, 0, 70, 60], [30, 10, 90, 70], [80, 10, 20, 60], [200, 0, 136, 64]])


def some_corners():
    return torch.stack([CORNERS.repeat(2, 1), OTHERS.repeat(2, 1)])


@pytest.mark.parametrize("matching", ["backbone", "head", "random", "geometric"])
@pytest.mark.parametrize("negatives", ["pooled", "local"])
@pytest.mark.parametrize("grid", [0, 1, 3])
def test_densecl_by_every_choice(matching, negatives, grid):
    loss = Loss(matching=matching, negatives=negatives, dense_weight=0.3)
    config = make_config("densecl", loss=loss, grid=grid)
    views = make_views(8, size=64)
    batch = make_batch(views)._replace(corners=some_corners())
    training, before, losses = one_step(config, batch)
    query = before.query(normalise_in_float64(views[0]))
    feature, global_, dense, pooled = keys_of(before, normalise_in_float64(views[1]), config)
    side = grid or 2
    assert dense.shape[2] == side**2 == query.feature.shape[2] == feature.shape[2]
    draws = match_randomly(8, side**2, config.seed, 0)
    rows = []
    for image in range(8):
        for position in range(side**2):
            if matching == "random":
                chosen = int(draws[image, position])
            elif matching == "geometric":
                chosen = nearest(*some_corners()[:, image].tolist(), position, side)
            else:
                ours, keys = (
                    (query.feature, feature) if matching == "backbone" else (query.dense, dense)
                )
                similar = [(ours[image, :, position] @ k).item() for k in keys[image].T]
                chosen = similar.index(max(similar))
            rows.append(
                cross_entropy(
                    query.dense[image, :, position],
                    dense[image, :, chosen],
                    before.dense_queue.rows,
                    0.2,
                )
            )
    whole = [
        cross_entropy(q, k, before.global_queue.rows, 0.2) for q, k in zip(query.global_, global_)
    ]
    expected = 0.7 * torch.stack(whole).mean() + 0.3 * torch.stack(rows).mean()
    assert_same(training, before, losses, expected)
    added = torch.cat([k.T for k in dense]) if negatives == "local" else pooled
    count = min(len(added), 37)
    queue = training.model.dense_queue
    assert queue.filled == count
    newest = torch.arange(queue.pointer - count, queue.pointer) % 37
    torch.testing.assert_close(queue.rows[newest], added[-count:], rtol=1e-9, atol=1e-12)


def nearest(query, key, position, side):
    """The key position whose centre is nearest in the image, by plain arithmetic."""

    def centre(corners, index):
        left, top, right, bottom = corners
        row, column = divmod(index, side)
        x = left + (column + 0.5) / side * (right - left)
        return x, top + (row + 0.5) / side * (bottom - top)

    here = centre(query, position)
    away = [math.dist(here, centre(key, other)) for other in range(side**2)]
    return away.index(min(away))


def test_places_of_a_known_warp_are_exact():
    """The same crop, mirrored; and a crop of one half, whose cells are quarters of the other's."""
    whole, mirrored, half = [0.0, 0, 90, 60], [90.0, 0, 0, 60], [0.0, 0, 45, 30]
    straight = torch.arange(9).view(3, 3)
    found = match_by_place(torch.tensor([whole, whole]), torch.tensor([whole, mirrored]), 9)
    assert torch.equal(found[0].view(3, 3), straight)
    assert torch.equal(found[1].view(3, 3), straight.flip(1))
    away = distances(torch.tensor([half]), torch.tensor([whole]), 16)
    assert away.argmin(2)[0].view(4, 4).tolist() == [[0, 0, 1, 1]] * 2 + [[4, 4, 5, 5]] * 2
    assert centres(torch.tensor([mirrored]), 9)[0, 0].tolist() == [75, 10]


def test_the_authors_warm_up_is_a_step():
    model = make_run(make_config("densecl", loss=Loss(dense_weight=1.0, dense_from=3))).model
    assert [model.dense_weight(step) for step in range(5)] == [0, 0, 0, 1, 1]


def test_densecl_without_its_dense_term_is_moco_v2_to_the_bit():
    dense = make_run(make_config("densecl", loss=Loss(dense_weight=0.0)), torch.float32)
    moco = make_run(make_config("moco"), torch.float32)
    for step in range(6):
        batch = make_batch(make_views(8, seed=step))
        losses = [train_step(training, batch, stop=False)[0] for training in (dense, moco)]
        for training in (dense, moco):
            training.step += 1
        assert torch.equal(losses[0].total, losses[1].total), step
    ours = dense.model.state_dict()
    for name, value in moco.model.state_dict().items():
        same = torch.equal(ours[name], value) if torch.is_tensor(value) else ours[name] == value
        assert same, name
    assert dense.model.dense_queue.filled == 37


def test_resim():
    config = make_config("resim", batch_size=4, bn_group=2)
    views = make_views(4, size=96)
    corners = torch.stack([CORNERS, OTHERS])
    batch = make_batch(views)._replace(corners=corners)
    training, before, losses = one_step(config, batch)
    query = before.query(normalise_in_float64(views[0]))
    key = keys_of(before, normalise_in_float64(views[1]), config)
    rows = [
        cross_entropy(q, k, before.global_queue.rows, 0.2) for q, k in zip(query.global_, key[0])
    ]
    expected = torch.stack(rows).mean()
    for number, (stride, window, step) in enumerate([(16, 48, 32), (8, 32, 24)], start=1):
        cells = window // stride
        negatives = [
            F.normalize(key[number][i, :, y : y + cells, x : x + cells].mean((1, 2)), dim=0)
            for i in range(4)
            for y in range(96 // stride - cells + 1)
            for x in range(96 // stride - cells + 1)
        ]
        rows = []
        for image in range(4):
            for top in range(0, 96 - window, step):
                for left in range(0, 96 - window, step):
                    box = (left, top, left + window, top + window)
                    other = other_views_box(box, *corners[:, image].double().tolist())
                    if min(other) < 0 or max(other) > 96:
                        continue
                    one = box_mean(query[number][image], box, stride)
                    two = box_mean(key[number][image], other, stride)
                    rows.append(cross_entropy(one, two, negatives, 0.2))
        assert 0 < len(rows) < 4 * len(windows(96, LEVELS[number - 1]))
        expected = expected + torch.stack(rows).mean()
    assert_same(training, before, losses, expected)


def other_views_box(box, query, key):
    """Through the image: left, top, right, bottom in the key view's pixels of 96."""
    points = []
    for x, y in (box[:2], box[2:]):
        image = [query[i] + c / 96 * (query[i + 2] - query[i]) for i, c in enumerate((x, y))]
        points.append([(image[i] - key[i]) / (key[i + 2] - key[i]) * 96 for i in range(2)])
    (x0, y0), (x1, y1) = points
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def box_mean(feature, box, stride):
    """Of 4 × 4 points evenly in the box, each between its four nearest cells' centres."""
    total = 0
    for row in range(4):
        for column in range(4):
            x = (box[0] + (column + 0.5) / 4 * (box[2] - box[0])) / stride - 0.5
            y = (box[1] + (row + 0.5) / 4 * (box[3] - box[1])) / stride - 0.5
            x, y = max(x, 0), max(y, 0)
            x0, y0 = min(int(x), feature.shape[2] - 1), min(int(y), feature.shape[1] - 1)
            x1, y1 = min(x0 + 1, feature.shape[2] - 1), min(y0 + 1, feature.shape[1] - 1)
            fx, fy = (x - x0 if x1 > x0 else 0), (y - y0 if y1 > y0 else 0)
            above = feature[:, y0, x0] * (1 - fx) + feature[:, y0, x1] * fx
            below = feature[:, y1, x0] * (1 - fx) + feature[:, y1, x1] * fx
            total = total + above * (1 - fy) + below * fy
    return F.normalize(total / 16, dim=0)


def test_windows_are_the_published_ones_and_are_mapped_exactly():
    assert [len(windows(224, level)) for level in LEVELS] == [36, 64]
    boxes = windows(96, LEVELS[0])
    corners = torch.tensor([[0.0, 0, 96, 96]])
    mirrored = torch.tensor([[96.0, 0, 0, 96]])
    found, shared = mapped(boxes, 96, corners, mirrored)
    assert shared.all()
    assert found[0].tolist() == [[96 - x1, y0, 96 - x0, y1] for x0, y0, x1, y1 in boxes.tolist()]
    shifted = torch.tensor([[32.0, 0, 128, 96]])
    found, shared = mapped(boxes, 96, corners, shifted)
    assert shared[0].tolist() == [left >= 32 for left in boxes[:, 0].tolist()]


def test_views_without_a_common_window_have_no_region_loss():
    config = make_config("resim", batch_size=4, bn_group=2)
    corners = torch.tensor([[[0.0, 0, 20, 20]] * 4, [[50.0, 50, 90, 90]] * 4])
    batch = make_batch(make_views(4, size=96))._replace(corners=corners)
    training, _, losses = one_step(config, batch)
    assert losses.values["loss_stride16"].item() == losses.values["loss_stride8"].item() == 0
    assert losses.total.item() == losses.values["loss_global"].item()
    assert training.model.query.pyramid.lateral[0].weight.grad.abs().max() == 0


def test_simclr():
    config = make_config("simclr", loss=Loss(temperature=0.1))
    views = make_views(8)
    training, before, losses = one_step(config, make_batch(views))
    rows = before.query(torch.cat([normalise_in_float64(view) for view in views]))
    terms = []
    for number, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j not in (number, (number + 8) % 16)]
        terms.append(cross_entropy(row, rows[(number + 8) % 16], others, 0.1))
    assert_same(training, before, losses, torch.stack(terms).mean())


def test_byol():
    config = make_config("byol")
    views = make_views(8)
    training, before, losses = one_step(config, make_batch(views))
    first, second = (normalise_in_float64(view) for view in views)
    predictions = before.query([first, second])
    with torch.no_grad():
        query = dict(before.query.named_parameters())
        for name, target in before.key.named_parameters():
            target.copy_(0.9 * target + 0.1 * query[name])  # at step 0 of the momentum's cosine
        targets = [before.key(first), before.key(second)]
    terms = [
        ((p - F.normalize(t, dim=1)) ** 2).sum(1).mean()
        for p, t in zip(predictions, reversed(targets))
    ]
    assert_same(training, before, losses, terms[0] + terms[1])
    moved = dict(before.key.named_parameters())
    for name, value in training.model.key.named_parameters():
        torch.testing.assert_close(value, moved[name])


def test_byols_momentum_rises_to_one():
    model = make_run(make_config("byol")).model
    target, online = model.key.global_head[0].bias, model.query.global_head[0].bias
    for step, share in [(0, 0.1), (8, 0.05), (16, 0.0)]:  # two epochs of eight steps
        with torch.no_grad():
            target.zero_()
            online.fill_(1)
        model.update_target(step)
        torch.testing.assert_close(target, torch.full_like(target, share))


def test_supervised():
    config = make_config("supervised")
    views = make_views(8)[:1]
    labels = torch.arange(8) % 3
    batch = make_batch(views)._replace(labels=labels)
    training, before, losses = one_step(config, batch)
    logits = before.query(normalise_in_float64(views[0]))
    assert logits.shape == (8, 3)
    chances = logits.exp() / logits.exp().sum(1, keepdim=True)
    expected = -torch.stack([chances[i, c].log() for i, c in enumerate(labels)]).mean()
    # The logits leave as float32, so that a bfloat16 network has a float32 loss.
    assert losses.total.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    ours = training.model.query.classifier.weight.grad
    torch.testing.assert_close(ours, before.query.classifier.weight.grad, rtol=1e-5, atol=1e-8)


def step_of_this_process(method, output):
    """One training step on this process's part of a batch of 16, written to `output`."""
    distributed.start("cpu")
    training = make_run(make_config(method, batch_size=16))
    views = make_views(16, size=96)[: 1 if method == "supervised" else 2]
    whole = Batch(views, some_corners().repeat(1, 2, 1)[: len(views)], torch.arange(16) % 3, [])
    mine = distributed.this_process_rows
    batch = Batch(
        torch.stack([mine(view) for view in whole.views]),
        torch.stack([mine(corners) for corners in whole.corners]),
        mine(whole.labels),
        [],
    )
    write_step(training, batch, output)
    distributed.stop()


@pytest.mark.parametrize("method", ["moco", "simclr", "byol", "supervised"])
def test_two_processes_equal_one(method, tmp_path):
    """DenseCL's are in test_pretrain_model.py; ReSim's images have each process's windows alone."""
    results = []
    for world_size in (1, 2):
        path = tmp_path / f"{world_size}.pth"
        run(step_of_this_process, world_size, method, path)
        results.append(torch.load(path, weights_only=True))
    one, two = results
    tolerance = 1e-6 if method == "supervised" else 1e-11
    assert two["loss"].item() == pytest.approx(one["loss"].item(), rel=tolerance)
    for name, gradient in one["gradients"].items():
        atol = 1e3 * tolerance * gradient.abs().max().item() + 1e-12
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=0, atol=atol)


def twenty_losses(method):
    """Of blocks that start as the identity: other blocks amplify rounding by 50 a step."""
    config = make_config(method, bn_group=8, zero_init_residual=True)
    training = make_run(replace(config, optim=replace(config.optim, epochs=4, lr=0.002)))
    losses = []
    for step in range(20):
        views = make_views(8, seed=step % 4)[: 1 if method == "supervised" else 2]
        batch = make_batch(views)._replace(corners=some_corners()[: len(views)])
        batch = batch._replace(labels=torch.arange(8) % 3)
        losses.append(train_step(training, batch, stop=False)[0].total.item())
        training.step += 1
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_twenty_losses_are_the_stored_ones(method):
    assert twenty_losses(method) == pytest.approx(json.loads(CURVES.read_text())[method], rel=1e-6)


def test_lars_equals_the_formula_in_float64():
    torch.manual_seed(0)
    weight, bias = (nn.Parameter(torch.randn(*s, dtype=torch.float64)) for s in ((3, 4), (3,)))
    optimizer = LARS([weight, bias], lr=0.5, momentum=0.9, weight_decay=0.01)
    expected = [weight.detach().numpy().copy(), bias.detach().numpy().copy()]
    velocity = [0 * expected[0], 0 * expected[1]]
    for step in range(4):
        lr = optimizer.param_groups[0]["lr"] = 0.5 / (step + 1)
        for number, parameter in enumerate((weight, bias)):
            parameter.grad = torch.randn_like(parameter)
            change = parameter.grad.numpy().copy()
            if number == 0:
                change += 0.01 * expected[0]
                change *= 0.001 * (expected[0] ** 2).sum() ** 0.5 / (change**2).sum() ** 0.5
            velocity[number] = 0.9 * velocity[number] + lr * change
            expected[number] = expected[number] - velocity[number]
        optimizer.step()
        for parameter, value in zip((weight, bias), expected):
            torch.testing.assert_close(parameter.detach().numpy(), value, rtol=1e-12, atol=0)
    zero = nn.Parameter(torch.zeros(2, 2))
    zero.grad = torch.ones(2, 2)
    LARS([zero], lr=0.1, momentum=0.9, weight_decay=0.0).step()
    assert torch.equal(zero.detach(), torch.full((2, 2), -0.1))


def test_learning_rates():
    drops = Optim(epochs=200, lr=0.03, drop_at=(120, 160))
    found = [learning_rate(drops, epoch * 10, 10) for epoch in (0, 119, 120, 159, 160, 199)]
    assert found == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    warm = Optim(epochs=110, lr=4.8, warmup_epochs=10)
    assert learning_rate(warm, 0, 5) == pytest.approx(4.8 / 50)
    assert learning_rate(warm, 49, 5) == pytest.approx(4.8)
    assert learning_rate(warm, 50, 5) == pytest.approx(4.8)
    assert learning_rate(warm, 60 * 5 + 3, 5) == pytest.approx(2.4)
    cosine = Optim(epochs=4, lr=1.0)
    found = [learning_rate(cosine, step, 2) for step in range(8)]
    expected = [(1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "changes,words",
    [
        ({"method": "mocco"}, "method = mocco: choose one of densecl, moco"),
        ({"method": "supervised"}, "data.augmentation = moco_v2"),
        ({"loss": Loss(matching="nearest")}, "loss.matching = nearest: choose one of backbone"),
        ({"model": Model(grid=-1)}, "model.grid = -1: it must be 0 or more"),
        (
            {"optim": Optim(optimizer="adam")},
            "optim.optimizer = adam: choose one of sgd, lars, adamw",
        ),
    ],
)
def test_mistakes_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        check(replace(PretrainConfig(), **changes), world_size=1)


@pytest.mark.parametrize("method", METHODS)
def test_every_methods_checkpoint_converts(method, tmp_path):
    training = make_run(make_config(method), torch.float32)
    training.folder = tmp_path
    save(training)
    checkpoint = latest_good(tmp_path / "checkpoints")
    code, printed = run_converter(checkpoint, tmp_path / "out.pkl")
    assert code == 0, printed
    assert "layout densecl-pipeline" in printed
    trunk = load_backbone_file(tmp_path / "out.pkl")
    for name, value in training.model.query.backbone.state_dict().items():
        assert "num_batches" in name or torch.equal(trunk[name], value), name


def test_starts_from_a_converted_backbone_or_refuses_another(tmp_path):
    donor = make_run(make_config("supervised"), torch.float32)
    donor.folder = tmp_path
    save(donor)
    run_converter(latest_good(tmp_path / "checkpoints"), tmp_path / "donor.pkl")
    config = make_config("densecl", init_backbone=str(tmp_path / "donor.pkl"))
    model = make_run(config, torch.float32).model
    given = donor.model.query.backbone.state_dict()
    for trunk in (model.query.backbone, model.key.backbone):
        for name, value in trunk.state_dict().items():
            assert "num_batches" in name or torch.equal(value, given[name]), name
    with pytest.raises(UserError, match=r"not a trunk of .*width = 16"):
        make_run(replace(config, model=replace(config.model, width=16)), torch.float32)
