"""Files that ask to run something: nothing runs, and what they wanted to call is named."""

import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from converter_sources import run_converter

from common.checkpoint import load_checkpoint
from common.errors import UserError
from common.pickles import load_pickle


class Call:
    """Unpickling this calls `function(argument)`."""

    def __init__(self, function, argument):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


def evil(target):
    """A state dict that runs a shell command when it is unpickled."""
    return {"state_dict": {"conv1.weight": Call(os.system, f"touch {target}")}, "author": "x"}


def torch_save(path, value):
    torch.save(value, path)


def write_legacy(path, value):
    torch.save(value, path, _use_new_zipfile_serialization=False)


def write_plain(path, value, protocol=2):
    path.write_bytes(pickle.dumps(value, protocol=protocol))


def write_plain_5(path, value):
    write_plain(path, value, protocol=5)


@pytest.mark.parametrize("write", [torch_save, write_legacy, write_plain, write_plain_5])
@pytest.mark.parametrize("name", ["source.pth", "source.pkl", "source.pth.tar"])
def test_converter_runs_nothing(tmp_path, write, name):
    write(tmp_path / name, evil(tmp_path / "ran"))
    code, printed = run_converter(tmp_path / name, tmp_path / "out.pkl")
    assert code == 2 and printed.count("\n") == 1
    assert "posix.system" in printed or "os.system" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("write", [torch_save, write_legacy, write_plain])
def test_checkpoint_reader_runs_nothing(tmp_path, write):
    write(tmp_path / "x.pth", evil(tmp_path / "ran"))
    with pytest.raises(UserError, match=r"posix\.system"):
        load_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def test_pickle_reader_runs_nothing(tmp_path):
    write_plain(tmp_path / "x.pkl", evil(tmp_path / "ran"))
    with pytest.raises(UserError, match=r"it wants to call posix\.system"):
        load_pickle(tmp_path / "x.pkl")
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "x.pkl").read_bytes())  # the file does what it is feared for
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("function", [eval, exec, getattr, __import__, os.popen, torch.load])
def test_pickle_reader_names_the_function(tmp_path, function):
    write_plain(tmp_path / "x.pkl", Call(function, "1"))
    with pytest.raises(UserError, match=function.__name__):
        load_pickle(tmp_path / "x.pkl")


def test_reads_arrays_of_both_numpy_generations(tmp_path):
    value = {"model": {"a": np.arange(6, dtype="float32").reshape(2, 3), "b": np.float32(2)}}
    for protocol in range(2, 6):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
        read = load_pickle(tmp_path / "x.pkl")["model"]
        assert (read["a"] == value["model"]["a"]).all() and read["b"] == 2


def test_names_foreign_objects_of_official_files(tmp_path, monkeypatch):
    """mmcv and mmengine save such beside the tensors; they are no reason to run a file's code."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    HistoryBuffer = type("HistoryBuffer", (), {"__module__": module.__name__})  # noqa: N806
    module.HistoryBuffer = HistoryBuffer
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.logging", types.ModuleType("mmengine.logging"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    torch.save({"state_dict": {}, "meta": HistoryBuffer()}, tmp_path / "source.pth")
    code, printed = run_converter(tmp_path / "source.pth", tmp_path / "out.pkl")
    assert code == 2 and "mmengine.logging.history_buffer.HistoryBuffer" in printed
    assert printed.count("\n") == 1


def test_names_numpy_scalars_in_official_files(tmp_path):
    torch.save({"state_dict": {}, "meta": {"lr": np.float64(0.03)}}, tmp_path / "source.pth")
    code, printed = run_converter(tmp_path / "source.pth", tmp_path / "out.pkl")
    assert code == 2 and "multiarray.scalar" in printed and printed.count("\n") == 1


def test_refuses_an_archive_without_tensors(tmp_path):
    with zipfile.ZipFile(tmp_path / "source.pth", "w") as archive:
        archive.writestr("data.txt", "no pickle here")
    code, printed = run_converter(tmp_path / "source.pth", tmp_path / "out.pkl")
    assert code == 2 and printed.count("\n") == 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["zip", "legacy", "numpy"])
def test_damaged_bytes_end_in_a_clear_error(tmp_path, kind):
    """300 files with random bytes changed or cut: read, or refused as a user's mistake."""
    path, random = tmp_path / "x.pth", np.random.default_rng(0)
    if kind == "numpy":
        path.write_bytes(pickle.dumps({"model": {"a": np.ones((3, 4), "float32")}}, protocol=4))
    else:
        state = {"model": {"a": torch.ones(3, 4)}, "config": {"seed": 3, "x": [1.5, None]}}
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    read, whole = (load_pickle if kind == "numpy" else load_checkpoint), path.read_bytes()
    refused = 0
    for _ in range(300):
        damaged = np.frombuffer(whole, "uint8").copy()
        damaged[random.integers(min(len(whole), 1500), size=3)] = random.integers(256, size=3)
        path.write_bytes(damaged[: random.integers(len(whole) // 2, 2 * len(whole))].tobytes())
        try:
            read(path)
        except UserError:
            refused += 1
    assert refused > 100
