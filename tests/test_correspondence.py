"""Matches of two views: on a known warp, against loops, and as a command."""

import json
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from converter_sources import MAKERS, run_converter, thin_backbone
from PIL import Image

from common.errors import run_command
from pretrain import correspondence
from pretrain.images import Folder, list_images
from pretrain.matching import mutual_matches
from pretrain.pack import pack

SIDE = 6
WHOLE, MIRRORED = [0.0, 0, 60, 60], [60.0, 0, 0, 60]


def distinct_features():
    """(C,S²): an own direction for each position."""
    return torch.eye(SIDE**2)


def mirrored(features):
    return features.view(-1, SIDE, SIDE).flip(2).flatten(1)


def test_matches_of_a_known_warp_are_all_true():
    """The key view is the query view mirrored, and so are its features."""
    features = distinct_features()
    found = mutual_matches(features, mirrored(features), torch.tensor([WHOLE, MIRRORED]), 0.9)
    assert found.query.tolist() == list(range(SIDE**2))
    assert found.key.view(SIDE, SIDE).tolist() == [
        [row * SIDE + SIDE - 1 - column for column in range(SIDE)] for row in range(SIDE)
    ]
    assert found.agrees.all() and found.similarity.min() == 1
    # The same matches are false where the views are said to lie straight, but in the middle.
    found = mutual_matches(features, mirrored(features), torch.tensor([WHOLE, WHOLE]), 0.9)
    assert found.agrees.view(SIDE, SIDE).tolist() == [[False, False, True, True, False, False]] * 6


def test_a_shift_by_more_than_a_cell_is_seen():
    features = distinct_features()
    for shift, true in [(0, True), (10, True), (11, False)]:  # a cell has 10 pixels
        corners = torch.tensor([WHOLE, [shift + x for x in WHOLE]])
        assert mutual_matches(features, features, corners, 0.9).agrees.all() == true


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.8])
def test_matches_equal_loops(threshold):
    torch.manual_seed(0)
    query, key = (F.normalize(torch.randn(4, 9, dtype=torch.float64), dim=0) for _ in range(2))
    found = mutual_matches(query, key, torch.tensor([WHOLE, WHOLE]), threshold)
    similar = {(i, j): float(query[:, i] @ key[:, j]) for i, j in product(range(9), range(9))}
    expected = [
        (i, j)
        for (i, j), value in similar.items()
        if value > threshold
        and value == max(similar[i, other] for other in range(9))
        and value == max(similar[other, j] for other in range(9))
    ]
    assert list(zip(found.query.tolist(), found.key.tolist())) == expected


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """The command in this process → exit code, output and errors."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["correspondence", *map(str, words)])
        code = 0
        try:
            run_command(correspondence.main)
        except SystemExit as left:
            code = left.code or 0
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def weights(tmp_path):
    torch.save(MAKERS["densecl-official-backbone"](thin_backbone()), tmp_path / "source.pth")
    run_converter(tmp_path / "source.pth", tmp_path / "thin.pkl")
    return tmp_path / "thin.pkl"


def test_the_command_counts_and_draws(call, weights, image_folder, tmp_path):
    words = ["--weights", "random", weights, "--images", image_folder, "--count", 3]
    code, out, _ = call(*words, "--size", 96, "--threshold", 0.2, "--output", tmp_path / "out")
    assert code == 0
    content = json.loads((tmp_path / "out" / "correspondence.json").read_text())
    assert [row["weights"] for row in content["rows"]] == ["random", "thin"]
    for row in content["rows"]:
        assert row["images"] == 3 and 0 <= row["agree"] <= row["matches"] <= 3 * 9
        assert row["matches"] > 0 and f" {row['matches']} " in out
    assert len(content["pictures"]) == 3
    for entry in content["pictures"]:
        for file in entry["files"].values():
            assert Image.open(tmp_path / "out" / file).size == (2 * 96 + 12, 96)


def test_shards_show_what_their_folder_shows(call, weights, image_folder, tmp_path):
    pack(Folder(image_folder, list_images(image_folder)), tmp_path / "shards", 10, 1)
    rows = []
    for images in (image_folder, tmp_path / "shards"):
        output = tmp_path / f"of-{images.name}"
        words = ["--weights", weights, "--images", images, "--count", 3, "--size", 96]
        assert call(*words, "--threshold", 0.2, "--output", output)[0] == 0
        rows.append(json.loads((output / "correspondence.json").read_text())["rows"])
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--weights", "nowhere.pkl", "--images", "."], "nowhere.pkl: no such file"),
        (["--weights", "random", "--images", "nowhere"], "nowhere: no such file or folder"),
        (["--weights", "random", "--images", __file__], "cannot be read as an image"),
        (["--weights", "random", "random", "--images", "."], "two of one name"),
        (["--weights", "random", "--images", ".", "--size", "100"], "--size a multiple of 32"),
    ],
)
def test_a_mistake_is_one_line(call, words, message):
    code, _, errors = call(*words)
    assert code == 2
    assert message in errors and "Traceback" not in errors
