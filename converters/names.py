"""torchvision's names of a bottleneck ResNet's tensors → Detectron2's."""

import re

_RULES = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer1\.", "res2."),
    (r"^layer2\.", "res3."),
    (r"^layer3\.", "res4."),
    (r"^layer4\.", "res5."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


def detectron2_name(name: str) -> str:
    """Detectron2's name of the tensor that torchvision calls `name`.

    layer1.0.bn2.weight → res2.0.conv2.norm.weight. Source: Detectron2's
    tools/convert-torchvision-to-d2.py, of which this is the part that concerns the trunk.
    """
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name
