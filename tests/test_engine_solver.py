"""Learning rate and weight decay are Detectron2's."""

import pytest

from benchmarks.config import find_config, load_config
from benchmarks.torchvision_engine.model import build_model
from benchmarks.torchvision_engine.solver import build_optimizer, build_schedule

VOC = load_config(find_config("voc")).SOLVER


@pytest.mark.parametrize(
    "iteration, rate",
    [
        (0, 0.02 / 1000),  # the warm-up's first
        (50, 0.02 * (0.001 + 0.999 * 50 / 100)),
        (100, 0.02),
        (17_999, 0.02),
        (18_000, 0.002),
        (21_999, 0.002),
        (22_000, 0.0002),
        (23_999, 0.0002),
    ],
)
def test_learning_rate_of_the_voc_schedule(iteration, rate):
    schedule = build_schedule(VOC)
    assert VOC.BASE_LR * schedule(iteration / VOC.MAX_ITER) == pytest.approx(rate, rel=1e-9)


def test_steps_beyond_a_shortened_run_are_left_out():
    short = load_config(find_config("voc"), ["SOLVER.MAX_ITER", "50"]).SOLVER
    assert build_schedule(short)(1.0) > 0


def test_only_norms_are_spared_weight_decay():
    config = load_config(find_config("mini_voc"))
    model = build_model(config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, spared = build_optimizer(config.SOLVER, model).param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.0001, 0.0)
    assert all(".norm." in names[id(p)] for p in spared["params"])
    assert not any(".norm." in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


@pytest.mark.parametrize("name, iterations", [("voc_seg", 20_000), ("cityscapes", 40_000)])
def test_the_segmentation_rate_falls_from_first_to_last(name, iterations):
    solver = load_config(find_config(name)).SOLVER
    schedule = build_schedule(solver)
    for iteration in (0, 1, 7_000, iterations // 2, iterations - 1):
        expected = (0.01 - 1e-4) * (1 - iteration / iterations) ** 0.9 + 1e-4
        assert 0.01 * schedule(iteration / iterations) == pytest.approx(expected, rel=1e-12)


def test_segmentation_spares_no_norms():
    config = load_config(find_config("mini_voc_seg"))
    groups = build_optimizer(config.SOLVER, build_model(config)).param_groups
    assert {group["weight_decay"] for group in groups} == {0.0005}
