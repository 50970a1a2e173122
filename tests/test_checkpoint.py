"""Checkpoints under kill -9, damage and a full disk."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from processes import join, start

from common.checkpoint import latest_good, load_checkpoint, save_checkpoint
from common.errors import UserError


def state_of(step):
    return {"step": step, "tensor": torch.full((300_000,), float(step)), "names": ["a", "b"]}


def test_what_is_saved_is_loaded(tmp_path):
    path = save_checkpoint(tmp_path, 7, state_of(7), keep=2)
    assert latest_good(tmp_path) == path
    loaded = load_checkpoint(path)
    assert torch.equal(loaded["tensor"], state_of(7)["tensor"])
    assert loaded["names"] == ["a", "b"]
    sums = subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=tmp_path, check=False)
    assert sums.returncode == 0


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10, 11):
        save_checkpoint(tmp_path, step, state_of(step), keep=2)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [
        f"step_000000{step}.pth{suffix}" for step in (10, 11) for suffix in ("", ".sha256")
    ]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "no hash", "other hash"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, damage, caplog):
    good = save_checkpoint(tmp_path, 1, state_of(1), keep=2)
    bad = save_checkpoint(tmp_path, 2, state_of(2), keep=2)
    content = bad.read_bytes()
    hash_file = bad.with_name(bad.name + ".sha256")
    if damage == "truncate":
        bad.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        bad.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif damage == "empty":
        bad.write_bytes(b"")
    elif damage == "no hash":
        hash_file.unlink()
    else:
        hash_file.write_text("")
    assert latest_good(tmp_path) == good
    assert f"{bad} is damaged" in caplog.text


def test_nothing_good_is_nothing(tmp_path):
    assert latest_good(tmp_path / "absent") is None
    save_checkpoint(tmp_path, 1, state_of(1), keep=1).write_bytes(b"")
    assert latest_good(tmp_path) is None


def save_for_ever(folder, first_step):
    for step in range(first_step, 100_000):
        save_checkpoint(folder, step, state_of(step), keep=2)


def test_a_hundred_kills_while_saving_never_lose_the_checkpoint(tmp_path):
    """Saves follow one another without a pause, so nearly every kill lands inside one."""
    chance = random.Random(0)
    interrupted, newest = 0, tmp_path / "step_00000000.pth"
    for _ in range(100):
        (process,) = start(save_for_ever, 1, tmp_path, int(newest.stem[5:]) + 1)
        while max(tmp_path.glob("step_*.pth"), default=newest) == newest:
            time.sleep(0.001)
        newest = max(tmp_path.glob("step_*.pth"))
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        join([process])
        interrupted += any(tmp_path.glob(".*.tmp*"))
        found = latest_good(tmp_path)
        assert found is not None and found >= newest
        loaded = load_checkpoint(found)
        assert torch.equal(loaded["tensor"], state_of(loaded["step"])["tensor"])
        assert not any(tmp_path.glob(".*.tmp*"))
        newest = max(tmp_path.glob("step_*.pth"))
    assert interrupted > 10  # 60 were seen; the rest fell between two saves


class Evil:
    def __reduce__(self):
        return (os.system, ("echo ran > ran.txt",))


def test_a_malicious_checkpoint_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, "evil.pth")
    with pytest.raises(UserError, match=r"evil.pth: refused as a checkpoint: .*system"):
        load_checkpoint("evil.pth")
    assert not (tmp_path / "ran.txt").exists()


def test_other_files_are_refused_in_one_line(tmp_path):
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "text.pth").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("empty", "text", "list", "absent"):
        with pytest.raises(UserError) as caught:
            load_checkpoint(tmp_path / f"{name}.pth")
        assert f"{name}.pth" in str(caught.value)
        assert "\n" not in str(caught.value).strip()


def test_a_full_disk_loses_nothing(tmp_path):
    """A real 4 MB file system; needs root."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        good = save_checkpoint(disk, 1, state_of(1), keep=3)
        save_checkpoint(disk, 2, state_of(2), keep=3)
        with pytest.raises(OSError) as caught:
            for step in (3, 4, 5):
                save_checkpoint(disk, step, state_of(step), keep=5)
        assert caught.value.errno == 28
        assert not list(disk.glob(".*"))
        found = latest_good(disk)
        assert found is not None and found > good
    finally:
        subprocess.run(["umount", str(disk)], check=True)
