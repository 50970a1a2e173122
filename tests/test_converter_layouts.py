"""Every known layout: recognised by its content alone, and a twin of it that is refused."""

import json
import pickle
import sys
import types
from collections import namedtuple

import numpy as np
import pytest
import torch
from converter_sources import MAKERS, run_converter, tensors_in, thin_backbone


def convert(tmp_path, file, *options):
    """Exit code, what was printed, and the manifest if there is one."""
    torch.save(file, tmp_path / "source")
    code, printed = run_converter(tmp_path / "source", tmp_path / "out.pkl", *options)
    manifest = tmp_path / "out.json"
    return code, printed, json.loads(manifest.read_text()) if manifest.exists() else None


@pytest.mark.parametrize("layout", MAKERS)
def test_refuses_a_twin_with_a_tensor_too_few(tmp_path, layout):
    file = MAKERS[layout](thin_backbone())
    tensors, prefix = tensors_in(file, layout)
    number = prefix + ("5" if layout == "lightly" else "layer2")
    del tensors[f"{number}.0.conv2.weight"]
    code, printed, manifest = convert(tmp_path, file)
    assert code == 2 and "layer2.0.conv2.weight" in printed and printed.count("\n") == 1
    assert manifest is None


@pytest.mark.parametrize("layout", MAKERS)
def test_refuses_a_twin_with_a_tensor_that_nobody_knows(tmp_path, layout):
    file = MAKERS[layout](thin_backbone())
    tensors, prefix = tensors_in(file, layout)
    wrapped = "module." if prefix.startswith("module.") else ""
    tensors[f"{wrapped}projection.weight"] = torch.ones(2)
    code, printed, _ = convert(tmp_path, file)
    assert code == 2 and "projection.weight" in printed and printed.count("\n") == 1


@pytest.mark.parametrize("layout", ["moco", "densecl-coincheung"])
def test_module_prefix_is_optional(tmp_path, layout):
    file = MAKERS[layout](thin_backbone())
    file["state_dict"] = {n.removeprefix("module."): t for n, t in file["state_dict"].items()}
    code, printed, manifest = convert(tmp_path, file)
    assert code == 0, printed
    assert manifest["layout"] == layout and manifest["dropped"]["key encoder"] > 318


def test_refuses_two_names_for_one_tensor(tmp_path):
    """lightly numbers the stem's convolution 0; a file that also names it is two files in one."""
    file = MAKERS["lightly"](thin_backbone())
    file["backbone.conv1.weight"] = file["backbone.0.weight"] + 1
    code, printed, _ = convert(tmp_path, file)
    assert code == 2 and "conv1.weight is in the file twice" in printed


def test_asks_where_content_cannot_tell_simclr_from_a_supervised_network(tmp_path):
    file = {"state_dict": MAKERS["torchvision"](thin_backbone())}
    code, printed, _ = convert(tmp_path, file)
    assert code == 2 and "torchvision and simclr-v1-converted both fit" in printed
    code, _, manifest = convert(tmp_path, file, "--layout", "simclr-v1-converted")
    assert code == 0
    # x / 255, so images in 0..1 without mean and deviation.
    assert manifest["input"]["pixel_mean"] == [0.0] * 3
    assert manifest["input"]["pixel_std"] == [255.0] * 3
    code, _, manifest = convert(tmp_path, file, "--layout", "torchvision")
    assert code == 0 and manifest["input"]["pixel_std"] == [58.395, 57.12, 57.375]


def _deep_stem(state):
    """timm's resnet50d: conv1 holds three convolutions."""
    del state["conv1.weight"]
    shapes = {"0": (4, 3, 3, 3), "3": (4, 4, 3, 3), "6": (8, 4, 3, 3)}
    state |= {f"conv1.{index}.weight": torch.ones(shape) for index, shape in shapes.items()}


def _average_pooled_shortcuts(state):
    """timm's avg_down: downsample holds a pooling, a convolution and its norm."""
    for name in [name for name in state if ".downsample." in name]:
        index = int(name.split(".")[3])
        new = name.replace(f".downsample.{index}.", f".downsample.{index + 1}.")
        state[f"{new}_"] = state.pop(name)
    for name in [name for name in state if name.endswith("_")]:
        state[name.removesuffix("_")] = state.pop(name)


def _cifar_stem(state):
    state["conv1.weight"] = torch.ones(8, 3, 3, 3)


@pytest.mark.parametrize(
    "change, reason",
    [
        (_deep_stem, "a deep stem"),
        (_average_pooled_shortcuts, "shortcuts that average-pool"),
        (_cifar_stem, "a 3x3 stem"),
    ],
)
@pytest.mark.parametrize("layout", ["torchvision", "solo-learn"])
def test_says_why_another_network_does_not_convert(tmp_path, change, reason, layout):
    backbone = thin_backbone()
    change(backbone)
    code, printed, _ = convert(tmp_path, MAKERS[layout](backbone))
    assert code == 2 and reason in printed and printed.count("\n") == 1


def test_manifest_holds_the_configuration_that_the_weights_need(tmp_path):
    code, printed, manifest = convert(tmp_path, MAKERS["moco"](thin_backbone(101)))
    assert code == 0
    assert dict(line.split(" ", 1) for line in manifest["config"]) == {
        "INPUT.FORMAT": "RGB",
        "MODEL.PIXEL_MEAN": "[123.675, 116.28, 103.53]",
        "MODEL.PIXEL_STD": "[58.395, 57.12, 57.375]",
        "MODEL.RESNETS.DEPTH": "101",
        "MODEL.RESNETS.STEM_OUT_CHANNELS": "8",
        "MODEL.RESNETS.RES2_OUT_CHANNELS": "32",
        "MODEL.RESNETS.WIDTH_PER_GROUP": "8",
        "MODEL.RESNETS.STRIDE_IN_1X1": "False",
    }
    assert all(line in printed for line in manifest["config"])


@pytest.mark.detectron2
def test_detectron2_takes_the_configuration_lines(tmp_path):
    config = pytest.importorskip("detectron2.config")
    manifest = convert(tmp_path, MAKERS["moco"](thin_backbone()))[2]
    words = [word for line in manifest["config"] for word in line.split(" ", 1)]
    taken = config.get_cfg()
    taken.merge_from_list(words)
    assert taken.MODEL.RESNETS.STEM_OUT_CHANNELS == 8
    assert taken.MODEL.RESNETS.STRIDE_IN_1X1 is False
    assert taken.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]


FIELDS = ("online_params", "target_params", "online_state", "target_state", "opt_state")


def _haiku(backbone):
    """Parameters and state of BYOL's online network, by haiku's names and with its shapes."""
    params, state = {}, {"projector/batch_norm/~/mean_ema": {"average": np.ones((1, 4))}}
    for name, tensor in backbone.items():
        *parts, value = name.split(".")
        if parts[0].startswith("layer"):
            module = f"res_net50/~/block_group_{int(parts[0][-1]) - 1}/~/block_{parts[1]}/~/"
            if parts[2] == "downsample":
                module += ("shortcut_conv", "shortcut_batchnorm")[int(parts[3])]
            else:
                kind = "conv" if parts[2].startswith("conv") else "batchnorm"
                module += f"{kind}_{int(parts[2][-1]) - 1}"
        else:
            module = "res_net50/~/initial_" + ("conv" if parts[0] == "conv1" else "batchnorm")
        array = tensor.numpy()
        if array.ndim == 4:
            params.setdefault(module, {})["w"] = array.transpose(2, 3, 1, 0)
        elif value in ("weight", "bias"):
            key = {"weight": "scale", "bias": "offset"}[value]
            params.setdefault(module, {})[key] = array.reshape(1, 1, 1, -1)
        elif value in ("running_mean", "running_var"):
            average = {"running_mean": "mean_ema", "running_var": "var_ema"}[value]
            arrays = {"average": array.reshape(1, 1, 1, -1), "counter": np.int32(7)}
            state[f"{module}/~/{average}"] = arrays
    params["projector/linear"] = {"w": np.ones((4, 4), "float32"), "b": np.ones(4, "float32")}
    return params, state


def _write_byol(path, backbone, monkeypatch):
    """As byol/utils/checkpointing.py does, the named tuples under their modules' names."""
    module, optimizers = map(types.ModuleType, ("byol.byol_experiment", "byol.utils.optimizers"))
    kind = namedtuple("_ByolExperimentState", FIELDS)
    kind.__module__, module._ByolExperimentState = module.__name__, kind
    lars = namedtuple("LarsState", ("momenta",))
    lars.__module__, optimizers.LarsState = optimizers.__name__, lars
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "byol", types.ModuleType("byol"))
        context.setitem(sys.modules, "byol.utils", types.ModuleType("byol.utils"))
        for each in (module, optimizers):
            context.setitem(sys.modules, each.__name__, each)
        params, state = _haiku(backbone)
        value = {"experiment_state": kind(params, params, state, state, lars({})), "step": 9}
        path.write_bytes(pickle.dumps(value, protocol=2))


def test_converts_the_jax_pickle_of_byol(tmp_path, monkeypatch):
    _write_byol(tmp_path / "source", thin_backbone(), monkeypatch)
    code, printed = run_converter(tmp_path / "source", tmp_path / "out.pkl")
    assert code == 0, printed
    manifest = json.loads((tmp_path / "out.json").read_text())
    assert manifest["layout"] == "byol-haiku" and "SAME padding" in manifest["difference"]
    torch.save(MAKERS["torchvision"](thin_backbone()), tmp_path / "other")
    run_converter(tmp_path / "other", tmp_path / "other.pkl")
    assert (tmp_path / "other.pkl").read_bytes() == (tmp_path / "out.pkl").read_bytes()


def test_refuses_a_jax_pickle_with_a_tensor_too_few(tmp_path, monkeypatch):
    backbone = thin_backbone()
    del backbone["layer3.5.conv2.weight"]
    _write_byol(tmp_path / "source", backbone, monkeypatch)
    code, printed = run_converter(tmp_path / "source", tmp_path / "out.pkl")
    assert code == 2 and "layer3.5.conv2.weight is missing" in printed
