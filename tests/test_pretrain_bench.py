"""The step timer: every configuration is stepped equally often, and the ratio is of the medians."""

import sys

import pytest

from common.errors import run_command
from pretrain import bench

TINY = """
method: {method}
data: {{image_size: 32, augmentation: {augmentation}}}
model: {{width: 4, hidden: 8, embedding: 8, queue_length: 16, bn_group: 4}}
optim: {{batch_size: 8, precision: fp32}}
launch: {{device: cpu}}
"""


def test_steps_of_all_configurations_are_timed(tmp_path, monkeypatch, capsys):
    words = []
    for method, augmentation in (("densecl", "moco_v2"), ("byol", "byol")):
        path = tmp_path / f"{method}.yaml"
        path.write_text(TINY.format(method=method, augmentation=augmentation))
        words.append(str(path))
    stepped, original = [], bench.train_step
    monkeypatch.setattr(
        bench, "train_step", lambda run, *rest: (stepped.append(run), original(run, *rest))[1]
    )
    monkeypatch.setattr(sys, "argv", ["bench", *words, "--rounds", "2", "--batch-size", "4"])
    bench.main()
    assert len(stepped) == 2 * (3 + 2)
    assert [run.config.method for run in stepped[:4]] == ["densecl", "byol"] * 2
    assert {run.config.optim.batch_size for run in stepped} == {4}
    first, second = (line.split() for line in capsys.readouterr().out.splitlines()[3:5])
    assert "1.000" in first
    ratio = float(second[-2]) / 1  # the table's last column
    assert ratio == pytest.approx(float(second[3]) / float(first[3]), rel=0.2)


def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(SystemExit) as left:
        run_command(bench.main)
    assert left.value.code == 2 and capsys.readouterr().err.count("\n") == 1
