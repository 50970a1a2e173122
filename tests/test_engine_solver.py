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
