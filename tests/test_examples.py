"""Pictures of predictions beside the truth."""

import json

import numpy as np
import pytest
import torch
from benchmark_fixtures import tiny_config, write_annotation, write_tiny_voc
from PIL import Image

from benchmarks.datasets.catalog import read_set
from benchmarks.examples import colour, write_classified, write_examples
from benchmarks.torchvision_engine.model import build_model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    voc = write_tiny_voc(tmp_path, train=1, test=6)
    for number in range(2, 8):  # 80 x 64 pixels, black, with one object in the middle
        Image.new("RGB", (80, 64)).save(voc / "JPEGImages" / f"{number:06d}.jpg")
        write_annotation(voc, f"{number:06d}", 64, 80, [("square", (21, 17, 60, 48), 0)])
    return tmp_path


def entries(folder):
    for entry in json.loads((folder / "examples/examples.json").read_text()):
        files = {kind: Image.open(folder / "examples" / f) for kind, f in entry["files"].items()}
        yield entry, {kind: np.asarray(file.convert("RGB")) for kind, file in files.items()}


def test_the_truth_is_drawn_where_it_is(folder):
    config = tiny_config("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "1.0")  # no score is above
    model = build_model(config)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    write_examples(folder, config, torch.device("cpu"))
    found = list(entries(folder))
    assert [entry["image"] for entry, _ in found] == ["000002", "000003", "000005", "000006"]
    for entry, pictures in found:
        assert entry["caption"].endswith("more: 0")
        assert pictures["prediction"].shape == pictures["truth"].shape == (256, 320, 3)
        assert pictures["prediction"].max() < 30  # nothing drawn
        drawn = pictures["truth"].max(axis=2) > 100
        rows, columns = np.where(drawn)
        # Four times the size; the outline is two pixels wide, and JPEG smears a little.
        edges = (columns.min(), rows.min(), columns.max(), rows.max())
        np.testing.assert_allclose(edges, (80, 64, 240, 192), atol=4)
        assert not drawn[100:180, 100:220].any()
        np.testing.assert_allclose(pictures["truth"][190:193, 160].max(axis=0), colour(1), atol=60)


def test_classifiers_say_what_they_see(folder):
    images = read_set("mini_voc_2007_test")[:2]
    scores = np.array([[-1.0, 2.0, -3.0, 0.5], [-1.0, -1.0, -1.0, -1.0]])
    write_classified(folder, images, scores, ("disk", "square", "triangle", "cross"))
    longer = []
    for _, pictures in entries(folder):
        assert pictures["truth"].shape == (256 + 24, 320, 3)
        ends = {
            kind: np.where(picture[:24].max(axis=(0, 2)) > 100)[0].max()
            for kind, picture in pictures.items()
        }
        longer.append(ends["prediction"] > ends["truth"])
    assert longer == [True, False]  # "square cross" and "none", where the truth is "square"
