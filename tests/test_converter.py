"""The converter on whole sources: what it writes, what it proves, what it says."""

import hashlib
import json
import pickle

import pytest
import torch
from converter_sources import MAKERS, run_converter, thin_backbone

from common.backbone_file import detectron2_name
from common.checkpoint import save_checkpoint
from common.pickles import load_pickle
from common.resnet import ResNet
from converters.verify import expected_shapes, forward, probe_images


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.pth"
    torch.save(MAKERS["densecl-pipeline"](thin_backbone()), path)
    return path


@pytest.mark.parametrize("layout", MAKERS)
def test_converts_each_layout_to_the_same_bytes(tmp_path, layout):
    source, output = tmp_path / "any_name", tmp_path / "out.pkl"
    torch.save(MAKERS[layout](thin_backbone()), source)
    code, printed = run_converter(source, output)
    assert code == 0, printed
    assert f"layout {layout}, ResNet-50 at width 8" in printed
    manifest = json.loads((tmp_path / "out.json").read_text())
    assert manifest["layout"] == layout
    assert manifest["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert manifest["pickle_sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()

    other = tmp_path / "other.pkl"
    torch.save(MAKERS["densecl-pipeline"](thin_backbone()), tmp_path / "ours.pth")
    run_converter(tmp_path / "ours.pth", other)
    assert other.read_bytes() == output.read_bytes()


def test_pickle_is_what_detectron2_expects(tmp_path, source):
    assert run_converter(source, tmp_path / "out.pkl")[0] == 0
    file = load_pickle(tmp_path / "out.pkl")
    assert file.keys() == {"model", "__author__", "matching_heuristics"}
    assert file["matching_heuristics"] is True
    assert file["__author__"] == "densecl-pipeline"
    original = thin_backbone()
    kept = [name for name in original if not name.endswith("num_batches_tracked")]
    assert len(file["model"]) == len(kept) == 265
    for name in kept:
        array = file["model"][detectron2_name(name)]
        assert array.dtype == "float32" and (array == original[name].numpy()).all()


def test_manifest_accounts_for_every_tensor(tmp_path, source):
    assert run_converter(source, tmp_path / "out.pkl")[0] == 0
    manifest = json.loads((tmp_path / "out.json").read_text())
    assert manifest["tensors"] == 265
    assert manifest["dropped"] == {
        "heads": 8,
        "key encoder": 326,
        "num_batches_tracked": 53,
        "queues": 4,
    }
    assert manifest["input"]["format"] == "RGB"
    assert manifest["input"]["pixel_mean"] == [123.675, 116.28, 103.53]
    assert manifest["stride_in_1x1"] is False
    assert manifest["pretrain"] == {"step": 7, "config": {"seed": 3}}
    in_model = len(torch.load(source, weights_only=True)["model"])
    assert manifest["tensors"] + sum(manifest["dropped"].values()) == in_model
    assert len(list(tmp_path.iterdir())) == 3  # source, pickle and manifest: nothing else


@pytest.mark.parametrize("depth, count", [(50, 265), (101, 520), (152, 775)])
def test_lists_every_tensor_of_each_depth(depth, count):
    ours = expected_shapes(depth, 8)
    theirs = {
        detectron2_name(name): tuple(tensor.shape)
        for name, tensor in ResNet(depth, 8).state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert len(ours) == count
    assert ours == theirs


@pytest.mark.parametrize("depth", [50, 101])
def test_forward_from_detectron2_names_is_the_source_network(depth):
    weights = thin_backbone(depth)
    network = ResNet(depth, 8).eval()
    network.load_state_dict(weights)
    renamed = {detectron2_name(name): tensor for name, tensor in weights.items()}
    with torch.inference_mode():
        ours, theirs = forward(renamed, probe_images()), network(probe_images())
    assert theirs.abs().max() > 0.1
    assert torch.equal(ours, theirs)


def test_converts_full_resnet_50(tmp_path):
    torch.manual_seed(0)
    state = {"state_dict": ResNet(50).state_dict(), "author": "someone"}
    torch.save(state, tmp_path / "source.pth")
    code, printed = run_converter(tmp_path / "source.pth", tmp_path / "out.pkl")
    assert code == 0, printed
    manifest = json.loads((tmp_path / "out.json").read_text())
    assert (manifest["depth"], manifest["width"], manifest["tensors"]) == (50, 64, 265)


def test_converts_half_precision_and_channels_last_losslessly(tmp_path):
    weights = {n: t.half() if t.is_floating_point() else t for n, t in thin_backbone().items()}
    for name, tensor in weights.items():
        if tensor.dim() == 4:
            weights[name] = tensor.to(memory_format=torch.channels_last)
    torch.save({"state_dict": weights, "author": "x"}, tmp_path / "source.pth")
    assert run_converter(tmp_path / "source.pth", tmp_path / "out.pkl")[0] == 0
    array = load_pickle(tmp_path / "out.pkl")["model"]["res3.0.conv2.weight"]
    assert (array == weights["layer2.0.conv2.weight"].float().numpy()).all()
    assert array.flags.c_contiguous


def _finished_folder(folder):
    state = MAKERS["densecl-pipeline"](thin_backbone())
    path = save_checkpoint(folder / "checkpoints", 7, state, keep=1)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    facts = {"checkpoint": f"checkpoints/{path.name}", "checkpoint_sha256": sha256}
    (folder / "DONE").write_text(json.dumps({"fingerprint": "f", **facts}))
    return path


def test_takes_a_finished_pretraining_folder(tmp_path):
    _finished_folder(tmp_path / "run")
    assert run_converter(tmp_path / "run", tmp_path / "out.pkl")[0] == 0
    manifest = json.loads((tmp_path / "out.json").read_text())
    assert manifest["source"] == "step_00000007.pth"
    assert manifest["source_sha256_recorded_in"] == "DONE"


def test_refuses_an_unfinished_folder(tmp_path):
    _finished_folder(tmp_path / "run")
    (tmp_path / "run" / "DONE").unlink()
    code, printed = run_converter(tmp_path / "run", tmp_path / "out.pkl")
    assert (code, printed.count("\n")) == (2, 1)
    assert "not a finished pre-training folder" in printed
    assert not (tmp_path / "out.pkl").exists()


@pytest.mark.parametrize("given", ["folder", "checkpoint"])
def test_refuses_a_checkpoint_that_differs_from_its_recorded_hash(tmp_path, given):
    path = _finished_folder(tmp_path / "run")
    state = torch.load(path, weights_only=True)
    names = [f"query.backbone.layer3.{block}.conv1.weight" for block in (1, 2)]
    first, second = (state["model"][name] for name in names)
    state["model"] |= {names[0]: second, names[1]: first}  # nothing in the file shows this
    torch.save(state, path)
    source = path if given == "checkpoint" else tmp_path / "run"
    code, printed = run_converter(source, tmp_path / "out.pkl")
    assert code == 2 and "not the file that was written" in printed
    assert not (tmp_path / "out.pkl").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"checkpoint": "../x.pth", "checkpoint_sha256": "0"}']
)
def test_refuses_a_broken_done_file(tmp_path, text):
    _finished_folder(tmp_path / "run")
    torch.save({}, tmp_path / "x.pth")
    (tmp_path / "run" / "DONE").write_text(text)
    code, printed = run_converter(tmp_path / "run", tmp_path / "out.pkl")
    assert code == 2 and "DONE" in printed and printed.count("\n") == 1


def test_failure_leaves_an_earlier_output_as_it_was(tmp_path, source):
    output, manifest = tmp_path / "out.pkl", tmp_path / "out.json"
    assert run_converter(source, output)[0] == 0
    before = output.read_bytes(), manifest.read_bytes()
    source.write_bytes(source.read_bytes()[:-100])
    assert run_converter(source, output)[0] == 2
    assert (output.read_bytes(), manifest.read_bytes()) == before


def test_a_proof_that_fails_leaves_no_output(tmp_path, source, monkeypatch):
    """The mapping exchanges two tensors of equal shape: only the forward pass sees it."""
    swap = {"res4.1.conv1.weight": "res4.2.conv1.weight"}
    swap |= {second: first for first, second in swap.items()}

    def wrong(name):
        right = detectron2_name(name)
        return swap.get(right, right)

    monkeypatch.setattr("converters.convert.detectron2_name", wrong)
    monkeypatch.setattr("converters.verify.detectron2_name", wrong)
    code, printed = run_converter(source, tmp_path / "out.pkl")
    assert code == 2 and "a proof failed: res5 differs from the source's" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]


@pytest.mark.parametrize("output", ["out.pth", "out", "folder.pkl", "source.pth"])
def test_refuses_an_output_that_cannot_serve(tmp_path, source, output):
    (tmp_path / "folder.pkl").mkdir()
    code, printed = run_converter(source, tmp_path / output)
    assert code == 2 and printed.startswith("error:") and printed.count("\n") == 1


def test_says_so_where_writing_is_not_permitted(tmp_path, source, monkeypatch):
    def refuse(self, *_arguments, **_named):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    code, printed = run_converter(source, tmp_path / "closed" / "out.pkl")
    assert code == 2 and "no permission" in printed and printed.count("\n") == 1


def test_says_so_where_reading_is_not_permitted(tmp_path, source, monkeypatch):
    def refuse(self, *_arguments, **_named):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    code, printed = run_converter(source, tmp_path / "out.pkl")
    assert code == 2 and "no permission" in printed and "source.pth" in printed


def test_layout_can_be_named(tmp_path, source):
    code, printed = run_converter(source, tmp_path / "out.pkl", "--layout", "densecl-pipelin")
    assert code == 2 and "did you mean densecl-pipeline?" in printed
    code, printed = run_converter(source, tmp_path / "out.pkl", "--layout", "densecl-official-raw")
    assert code == 2 and "not of layout densecl-official-raw" in printed
    assert run_converter(source, tmp_path / "out.pkl", "--layout", "densecl-pipeline")[0] == 0


def test_works_without_detectron2(tmp_path, source, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "converters.detectron2_check", None)
    code, printed = run_converter(source, tmp_path / "out.pkl")
    assert code == 0 and "Detectron2: not checked" in printed


@pytest.mark.detectron2
def test_detectron2_loads_every_tensor(tmp_path, source):
    pytest.importorskip("detectron2")
    code, printed = run_converter(source, tmp_path / "out.pkl")
    assert code == 0 and "Detectron2: all 265 backbone tensors loaded" in printed


@pytest.mark.detectron2
def test_detectron2_check_notices_a_tensor_that_does_not_load(tmp_path, source):
    pytest.importorskip("detectron2")
    from common.errors import UserError
    from converters.detectron2_check import prove_detectron2_loads

    assert run_converter(source, tmp_path / "out.pkl")[0] == 0
    file = load_pickle(tmp_path / "out.pkl")
    file["model"]["head.weight"] = file["model"].pop("res5.2.conv3.weight")
    with (tmp_path / "out.pkl").open("wb") as opened:
        pickle.dump(file, opened)
    with pytest.raises(UserError, match="alone has it"):
        prove_detectron2_loads(tmp_path / "out.pkl", 50, 8)
