"""Half precision: off wherever a result counts, near full precision where it is asked for."""

from pathlib import Path

import pytest
import torch
from benchmark_fixtures import TINY, TINY_FPN

from benchmarks.config import FOLDER, config_sha256, find_config, load_config
from benchmarks.tables.paper import read_paper
from benchmarks.torchvision_engine.loader import training_batches
from benchmarks.torchvision_engine.train import build_run, train_step
from common.errors import UserError
from common.shutdown import StopRequest

ON = ["SOLVER.AMP.ENABLED", "True"]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_it_is_off_in_every_configuration(file):
    config = load_config(file)
    assert "SVM" in config or config.SOLVER.AMP.ENABLED is False


def test_its_results_have_other_settings_than_the_published():
    published = read_paper().conditions["voc_r50_c4_24k"].config_sha256
    voc = find_config("voc")
    assert config_sha256(load_config(voc)) == published
    assert config_sha256(load_config(voc, ON)) != published


@pytest.mark.parametrize("name, words", [("mini_voc", TINY), ("mini_coco", TINY_FPN)])
def test_losses_are_near_and_all_that_is_kept_is_in_full_precision(
    datasets, monkeypatch, name, words
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    losses = []
    for precision in ([], ON):
        config = load_config(find_config(name), [*words, *precision])
        run = build_run(config, None, 0, Path("unused"), torch.device("cpu"), StopRequest())
        torch.manual_seed(1)
        batch = next(training_batches(run.images, config, 0, 0))
        before = [parameter.detach().clone() for parameter in run.model.parameters()]
        losses.append(train_step(run, run.model, batch, 0)[0])
        after = list(run.model.parameters())
        assert all(p.dtype == p.grad.dtype == torch.float32 for p in after)
        assert any(not torch.equal(old, new) for old, new in zip(before, after))
    full, half = losses
    assert full.keys() == half.keys()
    assert all(loss.dtype == torch.float32 for loss in half.values())
    assert any(full[name].item() != half[name].item() for name in full)
    for name in ("loss_rpn_cls", "loss_cls"):
        assert half[name].item() == pytest.approx(full[name].item(), rel=0.03)


def test_boxes_keep_their_fractions_of_a_pixel(datasets, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(datasets))
    config = load_config(find_config("mini_voc"), [*TINY, *ON])
    run = build_run(config, None, 0, Path("unused"), torch.device("cpu"), StopRequest())
    feature = torch.randn(1, 64, 5, 5)
    rpn = run.model.proposal_generator.eval()
    with torch.autocast("cpu", torch.bfloat16):
        ((proposals,), _) = rpn([feature], [(80, 80)], None)
    expected, _ = rpn([feature], [(80, 80)], None)
    assert proposals.dtype == torch.float32
    assert not torch.equal(proposals, proposals.bfloat16().float())
    # Equal up to the order of near-equal scores.
    distance = torch.cdist(proposals, expected[0]).min(dim=1).values
    assert distance.median() < 0.1


@pytest.mark.detectron2
def test_detectron2_on_a_cpu_refuses_it():
    pytest.importorskip("detectron2")
    from benchmarks.detectron2_engine import detectron2_config

    with pytest.raises(UserError, match=r"AMP\.ENABLED: Detectron2 needs a GPU"):
        detectron2_config(load_config(find_config("mini_voc"), ON), 0, Path("unused"))
