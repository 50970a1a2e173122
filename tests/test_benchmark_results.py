"""results.json: round trip, and a number changed by hand is noticed."""

import json

import pytest

from benchmarks.results import Results, read_results, write_results
from common.errors import UserError

EXAMPLE = Results(
    benchmark="voc_r50_c4_24k",
    row="densecl-IN",
    seed=1,
    metrics={"AP": 58.7, "AP50": 82.8, "AP75": 65.2},
    engine="torchvision",
    engine_version="torchvision 0.29.2",
    weights_sha256="ab" * 32,
    config_sha256="cd" * 32,
    schedule={"iterations": 24000, "batch": 16},
    trained_on=["voc_2007_trainval", "voc_2012_trainval"],
    device="1 x cpu",
    environment={"python": "3.11"},
    seconds=12.5,
    restarts=0,
    commit=None,
)


def test_reads_back_what_was_written(tmp_path):
    write_results(tmp_path / "results.json", EXAMPLE)
    assert read_results(tmp_path / "results.json") == EXAMPLE


@pytest.mark.parametrize("field, value", [("seed", 2), ("metrics", {"AP": 60.0}), ("row", "x")])
def test_notices_a_change_made_by_hand(tmp_path, field, value):
    path = tmp_path / "results.json"
    write_results(path, EXAMPLE)
    content = json.loads(path.read_text())
    content[field] = value
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="changed after it was written"):
        read_results(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"benchmark": "voc"}', "{"])
def test_refuses_what_is_not_a_results_file(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"results\.json"):
        read_results(path)


def test_names_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_results(tmp_path / "results.json")
