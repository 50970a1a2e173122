"""The table of parts names each and compares it with the usual way."""

import json
import subprocess
import sys

from pretrain.bench_parts import measure


def test_ratios_are_of_the_first(tmp_path):
    """Work that is three times as much takes longer; by how much, the machine decides."""

    def work(times):
        return lambda: sum(range(100_000 * times))

    found = measure({"slow": work(9), "fast": work(1)}, 5)
    assert found["slow"]["ratio"] == 1 and found["fast"]["ratio"] > 2
    assert found["fast"]["low"] <= found["fast"]["median"] <= found["fast"]["high"]


def test_the_command_writes_what_it_shows(image_folder, tmp_path):
    words = ["--images", str(image_folder), "--rounds", "1", "--json", str(tmp_path / "x.json")]
    command = [sys.executable, "-m", "pretrain.bench_parts", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads((tmp_path / "x.json").read_text())
    assert set(found["parts"]) == {"two views of an image", "InfoNCE, forward and backward"}
    assert "times as fast" in done.stdout.replace("\n", " ")
    assert found["environment"]["packages"]["torch"]
