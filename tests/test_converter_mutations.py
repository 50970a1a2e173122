"""Damaged sources: each ends with exit code 2, one clear line and no output file.

A swap of two equal shapes inside a file that holds the backbone once cannot be seen by anyone;
with a recorded hash (test_converter.py) or a second copy it can, and both are tested.
"""

import pytest
import torch
from converter_sources import MAKERS, run_converter, tensors_in, thin_backbone

from common.resnet import ResNet

NAME = "layer2.0.conv2.weight"
# Every damage on each way of holding the trunk: once, twice, and without a prefix. The other
# layouts share this code and are each refused once in test_converter_layouts.py.
LAYOUTS = ("densecl-pipeline", "densecl-official-raw", "densecl-official-backbone")


def dropped(tensors, prefix):
    del tensors[prefix + NAME]


def renamed(tensors, prefix):
    tensors[prefix + NAME.replace("conv2", "conv4")] = tensors.pop(prefix + NAME)


def reshaped(tensors, prefix):
    tensors[prefix + NAME] = tensors[prefix + NAME].reshape(-1, 3, 3, 1)


def duplicated(tensors, prefix):
    tensors[f"module.{prefix}{NAME}"] = tensors[prefix + NAME] + 1


def swapped(tensors, prefix):
    names = [prefix + NAME, f"{prefix}layer2.0.conv3.weight"]
    tensors[names[0]], tensors[names[1]] = tensors[names[1]], tensors[names[0]]


def head_only(tensors, prefix):
    backbone = tuple(thin_backbone())
    for name in [n for n in tensors if n.endswith(backbone)]:
        del tensors[name]
    tensors[f"{prefix}fc.weight"] = torch.ones(2, 2)


def not_a_tensor(tensors, prefix):
    tensors[prefix + NAME] = 3


def integers(tensors, prefix):
    tensors[prefix + NAME] = tensors[prefix + NAME].double()


def not_finite(tensors, prefix):
    for name in [n for n in tensors if n.endswith(NAME)]:
        tensors[name] = tensors[name] / 0


def negative_variance(tensors, prefix):
    for name in [n for n in tensors if n.endswith("layer1.0.bn1.running_var")]:
        tensors[name] = -tensors[name]


def unknown_head(tensors, prefix):
    tensors["projection.weight"] = torch.ones(2)


# The layer that is named, or the reason that must be given, for each way to damage a source.
MUTATIONS = {
    dropped: "layer2.0.conv2.weight is missing",
    renamed: "did you mean layer2.0.conv2.weight?",
    reshaped: "layer2.0.conv2.weight: shape (",
    duplicated: NAME,
    swapped: "layer2.0.conv",
    head_only: "",
    not_a_tensor: "layer2.0.conv2.weight: expected a dense tensor",
    integers: "torch.float64 does not fit into float32",
    not_finite: "not finite",
    negative_variance: "a variance below zero",
    unknown_head: "projection.weight",
}


def refusal(tmp_path, source):
    """The line printed; asserts all that is common to refusals."""
    output = tmp_path / "out" / "weights.pkl"
    code, printed = run_converter(source, output)
    assert code == 2, printed
    assert printed.startswith("error: ") and printed.count("\n") == 1, printed
    assert not output.parent.exists() or not any(output.parent.iterdir())
    return printed


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda mutate: mutate.__name__)
def test_refuses_a_mutated_source(tmp_path, layout, mutate):
    state = MAKERS[layout](thin_backbone())
    mutate(*tensors_in(state, layout))
    torch.save(state, tmp_path / "source.pth")
    assert MUTATIONS[mutate] in refusal(tmp_path, tmp_path / "source.pth")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99, -1])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_refuses_an_empty_or_truncated_file(tmp_path, layout, kept, legacy):
    path = tmp_path / "source.pth"
    torch.save(MAKERS[layout](thin_backbone()), path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    path.write_bytes(whole[: kept if isinstance(kept, int) else int(kept * len(whole))])
    assert "source.pth" in refusal(tmp_path, path)


def test_refuses_a_copy_in_which_two_equal_shapes_changed_places(tmp_path):
    state = MAKERS["densecl-official-raw"](thin_backbone())
    names = [f"backbone.layer3.{block}.conv1.weight" for block in (1, 2)]
    first, second = (state["state_dict"][name] for name in names)
    state["state_dict"] |= {names[0]: second, names[1]: first}
    torch.save(state, tmp_path / "source.pth")
    assert "differs from its copy" in refusal(tmp_path, tmp_path / "source.pth")


def test_refuses_a_raw_file_that_lacks_the_copy(tmp_path):
    state = MAKERS["densecl-official-raw"](thin_backbone())
    del state["state_dict"]["encoder_q.0.bn1.bias"]
    torch.save(state, tmp_path / "source.pth")
    assert "backbone.bn1.bias has no copy" in refusal(tmp_path, tmp_path / "source.pth")


def _without(names_starting_with, state):
    return {n: t for n, t in state.items() if not n.startswith(names_starting_with)}


@pytest.mark.parametrize(
    "change",
    [
        lambda state: _without("layer3.5.", state),  # a block too few
        lambda state: state | {f"{n}x": t for n, t in state.items()},
        lambda state: {n.replace("layer4.", "layer5."): t for n, t in state.items()},
        lambda state: state | {"conv1.weight": torch.ones(8, 3, 3, 3)},  # CIFAR's stem
        lambda state: {n: torch.zeros(()) for n in state},
        lambda state: {n: torch.zeros(0) for n in state},
    ],
)
def test_refuses_networks_that_are_not_a_bottleneck_resnet(tmp_path, change):
    torch.save({"state_dict": change(thin_backbone()), "author": "x"}, tmp_path / "source.pth")
    refusal(tmp_path, tmp_path / "source.pth")


def test_refuses_a_deeper_network_with_a_block_of_a_shallower_one(tmp_path):
    state = ResNet(101, 8).state_dict()
    del state["layer3.22.bn3.bias"]
    torch.save({"state_dict": state, "author": "x"}, tmp_path / "source.pth")
    printed = refusal(tmp_path, tmp_path / "source.pth")
    assert "layer3.22.bn3.bias is missing (1 of ResNet-101" in printed


@pytest.mark.parametrize("value", [{}, {"a": 1}, {1: {2: 3}}, [1, 2], 3, torch.ones(2), "text"])
def test_refuses_what_is_no_checkpoint(tmp_path, value):
    torch.save(value, tmp_path / "source.pth")
    refusal(tmp_path, tmp_path / "source.pth")


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", b"\x80\x02.", b"\0" * 5000, b"{}"])
def test_refuses_other_files(tmp_path, content):
    (tmp_path / "source.pth").write_bytes(content)
    refusal(tmp_path, tmp_path / "source.pth")


def test_refuses_a_missing_file(tmp_path):
    assert "no such file" in refusal(tmp_path, tmp_path / "nothing.pth")
