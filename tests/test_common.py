"""Files, folders, errors, configuration and logs that every stage relies on."""

import errno
import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from common import run_folder
from common.config import describe, load_config, option, to_yaml
from common.errors import UserError, did_you_mean, run_command
from common.files import fingerprint, remove_temporary_files, replacing, sha256_of, write_json
from common.logs import Metrics
from common.run_folder import claim, mark_done


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_json_with_nan_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"AP": 1.5})
    with pytest.raises(ValueError):
        write_json(path, {"AP": float("nan")})
    assert json.loads(path.read_text()) == {"AP": 1.5}


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".step_1.123.tmp.pth").write_text("half")
    (tmp_path / "step_1.pth").write_text("whole")
    remove_temporary_files(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step_1.pth"]


def test_hashes(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_of(tmp_path / "empty").startswith("e3b0c44298fc1c14")
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})


def test_a_folder_belongs_to_what_made_it(tmp_path):
    folder = tmp_path / "run"
    identity = {"optim": {"lr": 0.1}, "images": 3}
    assert claim(folder, identity, "lr: 0.1") is False
    assert claim(folder, identity, "lr: 0.1") is False  # interrupted: the same may go on
    with pytest.raises(UserError, match=r"made with optim.lr = 0.1, now 0.2: choose another"):
        claim(folder, {"optim": {"lr": 0.2}, "images": 3}, "")
    with pytest.raises(UserError, match="made with images = 3, now nothing"):
        claim(folder, {"optim": {"lr": 0.1}}, "")
    assert not (folder / "DONE").exists()
    (folder / "x").touch()
    mark_done(folder, identity, checkpoint="x")
    assert claim(folder, identity, "") is True
    assert json.loads((folder / "DONE").read_text())["fingerprint"] == fingerprint(identity)
    (folder / "x").unlink()
    assert claim(folder, identity, "") is False and not (folder / "DONE").exists()


def test_a_folder_has_one_writer(tmp_path, monkeypatch):
    """Until its process ends, however it ends."""
    program = (
        "import sys; from pathlib import Path; from common.run_folder import claim\n"
        "claim(Path(sys.argv[1]), {}, ''); print('has it', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "run")]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "has it\n"
    monkeypatch.setattr(run_folder, "_WAIT", 0)
    with pytest.raises(UserError, match=rf"run: in use by process {other.pid} on .*: wait until"):
        claim(tmp_path / "run", {}, "")
    other.kill()
    other.wait()
    assert claim(tmp_path / "run", {}, "") is False


@pytest.mark.parametrize(
    "error,words",
    [
        (UserError("file: what\nto do"), "error: file: what to do\n"),
        (OSError(errno.ENOSPC, "no space", "/data/x"), "error: /data/x: the disk is full"),
        (PermissionError(errno.EACCES, "denied", "/root/x"), "error: /root/x: no permission"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(error, words, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as left:
        run_command(main)
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith(words)
    assert printed.count("\n") == 1


def test_a_programs_mistake_keeps_its_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(main)


def test_did_you_mean():
    assert did_you_mean("optim.lrr", ["optim.lr", "seed"]) == " (did you mean optim.lr?)"
    assert did_you_mean("zzz", ["optim.lr", "seed"]) == ""


@dataclass(frozen=True)
class Inner:
    rate: float = option(0.5, "how fast")
    names: list[str] = field(default_factory=list, metadata={"help": "which"})


@dataclass(frozen=True)
class Settings:
    seed: int = option(0, "where to start")
    inner: Inner = field(default_factory=Inner)


def test_defaults_then_file_then_command_line(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("seed: 3\ninner: {rate: 1e-4, names: [a, b]}\n")
    loaded = load_config(Settings, file, ["seed=4"])
    assert loaded == Settings(4, Inner(1e-4, ["a", "b"]))
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(loaded))
    assert load_config(Settings, again) == loaded


def test_every_setting_is_described_with_its_default():
    lines = describe(Settings)
    assert lines[0].split() == ["seed", "=", "0", "where", "to", "start"]
    assert lines[1].split()[:3] == ["inner.rate", "=", "0.5"]


def test_metrics_of_repeated_steps_are_kept_once(tmp_path):
    metrics = Metrics(tmp_path, 0)
    for step in (10, 20, 30):
        metrics.write(step, {"loss": step})
    metrics.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4')  # a line that a kill cut off
    metrics = Metrics(tmp_path, 20)
    metrics.write(30, {"loss": -30})
    metrics.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(10, 10), (20, 20), (30, -30)]
