"""The torchvision engine's model beside Detectron2's: equal weights, batches and random draws.

Imports Detectron2: only for tests that have made sure that it is there.
"""

from itertools import islice
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model as build_theirs
from detectron2.solver import build_lr_scheduler
from detectron2.solver import build_optimizer as build_their_optimizer
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from benchmarks import detectron2_engine
from benchmarks.torchvision_engine import loader
from benchmarks.torchvision_engine.model import build_model
from benchmarks.torchvision_engine.solver import build_optimizer, build_schedule, set_learning_rate


def their_config(config):
    return detectron2_engine.detectron2_config(config, 0, Path("unused"))


def their_batch(batch):
    """Our images as Detectron2's models take them."""
    result = []
    for image in batch:
        instances = Instances(tuple(image["image"].shape[-2:]))
        instances.gt_boxes = Boxes(image["target"].boxes)
        instances.gt_classes = image["target"].classes
        if image["target"].polygons is not None:
            instances.gt_masks = PolygonMasks(image["target"].polygons)
        result.append({"image": image["image"], "instances": instances, "height": 99, "width": 77})
    return result


def both(config):
    """Our model and Detectron2's, from one seed."""
    torch.manual_seed(0)
    ours = build_model(config)
    torch.manual_seed(0)
    theirs = build_theirs(their_config(config))
    return ours.train(), theirs.train()


def assert_equal_states(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def assert_equal_losses_and_gradients(ours, theirs, batch):
    torch.manual_seed(5)
    our_losses = ours(batch)
    torch.manual_seed(5)
    with EventStorage():
        their_losses = theirs(their_batch(batch))
    assert our_losses.keys() == their_losses.keys()
    for name, value in our_losses.items():
        assert torch.equal(value, their_losses[name]), name
    sum(our_losses.values()).backward()
    sum(their_losses.values()).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (gradients[name] is None), name
        assert parameter.grad is None or torch.equal(parameter.grad, gradients[name]), name


def assert_equal_detections(ours, theirs, batch):
    for image in batch:
        image.update(height=99, width=77)
    with torch.no_grad():
        for found, expected in zip(ours.eval()(batch), theirs.eval()(their_batch(batch))):
            instances = expected["instances"]
            assert torch.equal(found.boxes, instances.pred_boxes.tensor)
            assert torch.equal(found.scores, instances.scores)
            assert torch.equal(found.classes, instances.pred_classes)
            if instances.has("pred_masks"):
                assert len(found.masks) and torch.equal(found.masks, instances.pred_masks)


def train_together(ours, theirs, images, config):
    """Train both models for SOLVER.MAX_ITER iterations; the losses stay equal."""
    our_optimizer = build_optimizer(config.SOLVER, ours)
    their_optimizer = build_their_optimizer(their_config(config), theirs)
    schedule = build_schedule(config.SOLVER)
    their_scheduler = build_lr_scheduler(their_config(config), their_optimizer)
    batches = islice(loader.training_batches(images, config, 0, 0), config.SOLVER.MAX_ITER)
    with EventStorage():
        for step, batch in enumerate(batches):
            rate = set_learning_rate(our_optimizer, config.SOLVER, schedule, step)
            assert rate == their_optimizer.param_groups[0]["lr"]
            torch.manual_seed(step)
            our_loss = sum(ours(batch).values())
            torch.manual_seed(step)
            their_loss = sum(theirs(their_batch(batch)).values())
            assert our_loss.item() == pytest.approx(their_loss.item(), rel=1e-5), step
            for loss, optimizer in ((our_loss, our_optimizer), (their_loss, their_optimizer)):
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            their_scheduler.step()
    assert step == config.SOLVER.MAX_ITER - 1
