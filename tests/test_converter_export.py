"""Backbones for other programs, and back again: the same tensors to the bit."""

import json

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from converter_sources import MAKERS, run_converter, thin_backbone

from common.files import sha256_of
from common.pickles import load_pickle
from converters.export import TARGETS
from converters.source import load_file

ROOT = __file__.rpartition("/tests/")[0]


def arrays(path):
    """What a converted pickle holds, by Detectron2's names."""
    return load_pickle(path)["model"]


def assert_equal_arrays(ours, expected):
    assert ours.keys() == expected.keys()
    for name, array in expected.items():
        assert ours[name].tobytes() == array.tobytes(), name


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("layout", ["densecl-official-raw", "lightly"])
def test_there_and_back_is_bit_equal(tmp_path, target, layout):
    torch.save(MAKERS[layout](thin_backbone()), tmp_path / "source.pth")
    out = tmp_path / f"exported{TARGETS[target].suffix}"
    code, printed = run_converter(tmp_path / "source.pth", out, "--to", target)
    assert code == 0, printed
    for source, pickle in ((tmp_path / "source.pth", "one.pkl"), (out, "two.pkl")):
        code, printed = run_converter(source, tmp_path / pickle)
        assert code == 0, printed
    assert_equal_arrays(arrays(tmp_path / "two.pkl"), arrays(tmp_path / "one.pkl"))
    manifest = json.loads(out.with_suffix(".json").read_text())
    assert manifest["file_sha256"] == sha256_of(out) and manifest["layout"] == layout
    assert manifest["input"]["pixel_mean"] == [123.675, 116.28, 103.53]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A checkpoint of MoCo's with a full-size ResNet-50, and the network in it."""
    torch.manual_seed(0)
    network = torchvision.models.resnet50()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    network.fc = torch.nn.Identity()
    state = {f"module.encoder_q.{n}": t for n, t in network.state_dict().items()}
    state |= {"module.encoder_q.fc.0.weight": torch.ones(2, 2048), "module.queue": torch.ones(2)}
    path = tmp_path_factory.mktemp("published") / "moco_v2_200ep.pth.tar"
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": state}, path)
    return path, network.eval()


def test_torchvision_timm_and_the_hub_load_the_network(published, tmp_path):
    path, network = published
    out = tmp_path / "backbone.pth"
    code, printed = run_converter(path, out, "--to", "torchvision")
    assert code == 0, printed
    tensors = torch.load(out, weights_only=True)
    models = [torchvision.models.resnet50(), timm.create_model("resnet50", num_classes=0)]
    models[0].fc = torch.nn.Identity()
    for model in models:
        model.load_state_dict(tensors)  # strict
    models.append(torch.hub.load(ROOT, "backbone", source="local", weights=str(path)))
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images)
        for model in models:
            torch.testing.assert_close(model.eval()(images), expected, rtol=1e-5, atol=1e-5)
    # What timm saves of its model converts back to the same tensors.
    torch.save(models[1].state_dict(), tmp_path / "timm.pth")
    for source, name in ((path, "one.pkl"), (tmp_path / "timm.pth", "two.pkl")):
        code, printed = run_converter(source, tmp_path / name)
        assert code == 0, printed
    assert_equal_arrays(arrays(tmp_path / "two.pkl"), arrays(tmp_path / "one.pkl"))


def test_timms_own_safetensors_convert(tmp_path):
    model = timm.create_model("resnet50", num_classes=10)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    code, printed = run_converter(tmp_path / "model.safetensors", tmp_path / "out.pkl")
    assert code == 0 and "layout torchvision" in printed
    deep = timm.create_model("resnet50d", num_classes=10)
    safetensors.torch.save_file(deep.state_dict(), tmp_path / "deep.safetensors")
    code, printed = run_converter(tmp_path / "deep.safetensors", tmp_path / "deep.pkl")
    assert code == 2 and "a deep stem" in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    "words, message",
    [
        (["out.pkl", "--to", "torchvision"], "ends in .pth"),
        (["out.pth", "--to", "safetensors"], "ends in .safetensors"),
        (["source.pth", "--to", "torchvision"], "is the source itself"),
    ],
)
def test_a_wrong_output_is_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    torch.save(MAKERS["moco"](thin_backbone()), "source.pth")
    before = sha256_of(tmp_path / "source.pth")
    code, printed = run_converter("source.pth", *words)
    assert code == 2 and message in printed and printed.count("\n") == 1
    assert sha256_of(tmp_path / "source.pth") == before
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]


def test_the_checkpoint_inside_a_folder_is_not_overwritten(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step_00000006.pth"
    checkpoint.parent.mkdir()
    torch.save(MAKERS["densecl-pipeline"](thin_backbone()), checkpoint)
    digest = sha256_of(checkpoint)
    done = {"checkpoint": "checkpoints/step_00000006.pth", "checkpoint_sha256": digest}
    (tmp_path / "DONE").write_text(json.dumps(done))
    code, printed = run_converter(tmp_path, checkpoint, "--to", "torchvision")
    assert code == 2 and "is the source itself" in printed and sha256_of(checkpoint) == digest


@pytest.mark.parametrize("kept", [9, 100, 0.5])
def test_a_torn_safetensors_file_is_one_line(tmp_path, kept):
    path = tmp_path / "torn.safetensors"
    safetensors.torch.save_file(thin_backbone(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if kept < 1 else kept])
    code, printed = run_converter(path, tmp_path / "out.pkl")
    assert code == 2 and "not a whole safetensors file" in printed and printed.count("\n") == 1


def test_the_hub_refuses_another_width(tmp_path):
    import hubconf
    from common.errors import UserError

    torch.save(MAKERS["moco"](thin_backbone()), tmp_path / "thin.pth")
    assert len(load_file(tmp_path / "thin.pth")) == 4
    with pytest.raises(UserError, match="width 8"):
        hubconf.backbone(str(tmp_path / "thin.pth"))
