"""The backbone is loaded whole and bit by bit, or the run does not start."""

import os
import pickle

import numpy as np
import pytest
import torch
from benchmark_fixtures import tiny_config, trunk, write_pickle

from benchmarks.torchvision_engine.model import build_model
from benchmarks.weights import load_backbone, prove_loaded, read_backbone
from common.errors import UserError


@pytest.fixture(scope="module")
def config():
    return tiny_config()


@pytest.fixture
def tensors(config):
    return trunk(config)


def load(path, config):
    backbone = read_backbone(path, config)
    model = build_model(config)
    load_backbone(model, backbone)
    return model, backbone


def test_all_265_tensors_arrive_bit_by_bit(tmp_path, config, tensors):
    model, backbone = load(write_pickle(tmp_path / "a.pkl", tensors), config)
    assert prove_loaded(model, backbone) == len(tensors) == 265
    state = model.state_dict()
    for name, expected in tensors.items():
        where = "roi_heads" if name.startswith("res5") else "backbone"
        assert state[f"{where}.{name}"].numpy().tobytes() == expected.tobytes()


def dropped(tensors):
    del tensors["res5.2.conv3.norm.running_var"]


def renamed(tensors):
    tensors["res3.0.convl.weight"] = tensors.pop("res3.0.conv1.weight")


def reshaped(tensors):
    tensors["res2.0.conv2.weight"] = tensors["res2.0.conv2.weight"][:2]


def halved(tensors):
    tensors["res2.0.conv2.weight"] = tensors["res2.0.conv2.weight"].astype(np.float16)


def added(tensors):
    tensors["head.weight"] = np.zeros(3, np.float32)


def not_a_number(tensors):
    tensors["res4.5.conv3.weight"].flat[7] = np.nan


@pytest.mark.parametrize(
    "change, message",
    [
        (dropped, "1 backbone tensors are missing.*res5.2.conv3.norm.running_var"),
        (renamed, "missing in the file.*res3.0.conv1.weight"),
        (reshaped, r"res2.0.conv2.weight is float32 \[2, 4, 3, 3\], the model wants"),
        (halved, "res2.0.conv2.weight is float16"),
        (added, "unknown to the model.*head.weight"),
        (not_a_number, "res4.5.conv3.weight holds values that are not finite"),
    ],
)
def test_refuses_anything_but_the_whole_backbone(tmp_path, config, tensors, change, message):
    change(tensors)
    with pytest.raises(UserError, match=message):
        load(write_pickle(tmp_path / "a.pkl", tensors), config)


def test_a_refused_file_changes_nothing(tmp_path, config, tensors):
    dropped(tensors)
    backbone = read_backbone(write_pickle(tmp_path / "a.pkl", tensors), config)
    model = build_model(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError):
        load_backbone(model, backbone)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_names_the_wrong_depth(tmp_path, config):
    deeper = trunk(tiny_config("MODEL.RESNETS.DEPTH", "101"))
    path = write_pickle(tmp_path / "a.pkl", deeper)
    with pytest.raises(UserError, match="weights are for depth 101, the config says 50"):
        read_backbone(path, config)


def test_names_the_wrong_width(tmp_path, tensors):
    path = write_pickle(tmp_path / "a.pkl", tensors)
    with pytest.raises(UserError, match="weights are for stem width 4, the config says 8"):
        read_backbone(path, tiny_config("MODEL.RESNETS.STEM_OUT_CHANNELS", "8"))


@pytest.mark.parametrize(
    "words, message",
    [
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT RGB, the config: BGR"),
        (["MODEL.PIXEL_STD", "[1.0, 1.0, 1.0]"], "MODEL.PIXEL_STD"),
        (["MODEL.PIXEL_MEAN", "[103.53, 116.28, 123.675]"], "MODEL.PIXEL_MEAN"),
        (["MODEL.RESNETS.STRIDE_IN_1X1", "True"], "STRIDE_IN_1X1 False, the config: True"),
    ],
)
def test_refuses_another_input_than_pre_training_had(tmp_path, tensors, words, message):
    path = write_pickle(tmp_path / "a.pkl", tensors)
    with pytest.raises(UserError, match=message):
        read_backbone(path, tiny_config(*words))


def test_refuses_another_file_than_the_manifest_describes(tmp_path, config, tensors):
    path = write_pickle(tmp_path / "a.pkl", tensors, pickle_sha256="0" * 64)
    with pytest.raises(UserError, match=r"not the file that a\.json describes"):
        read_backbone(path, config)


def test_a_missing_manifest_is_a_warning(tmp_path, config, tensors, caplog):
    path = write_pickle(tmp_path / "a.pkl", tensors)
    path.with_suffix(".json").unlink()
    load(path, config)
    assert "has no manifest" in caplog.text


def test_counters_and_a_classifier_of_other_converters_are_ignored(tmp_path, config, tensors):
    tensors["stem.conv1.norm.num_batches_tracked"] = np.array(7)
    tensors["stem.fc.weight"] = np.zeros((10, 4), np.float32)
    path = write_pickle(tmp_path / "a.pkl", tensors)
    path.with_suffix(".json").unlink()
    load(path, config)


class Malicious:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_a_malicious_pickle_runs_nothing(tmp_path, config):
    trap = tmp_path / "trap"
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": Malicious(trap)}))
    with pytest.raises(UserError, match="refused as a weights file"):
        read_backbone(tmp_path / "a.pkl", config)
    assert not trap.exists()


@pytest.mark.parametrize(
    "content", [b"", b"garbage", pickle.dumps([1]), pickle.dumps({"model": {"a": [1]}})]
)
def test_refuses_what_is_not_a_weights_file(tmp_path, config, content):
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.pkl"):
        read_backbone(tmp_path / "a.pkl", config)


def test_a_tensor_that_changed_after_loading_is_noticed(tmp_path, config, tensors):
    model, backbone = load(write_pickle(tmp_path / "a.pkl", tensors), config)
    with torch.no_grad():
        model.roi_heads.res5[0].conv1.weight.flatten()[3] += 1e-3
    with pytest.raises(UserError, match=r"1 backbone tensors are different.*res5\.0\.conv1"):
        prove_loaded(model, backbone)
