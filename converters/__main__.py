"""python -m converters SOURCE OUTPUT.pkl
python -m converters SOURCE OUTPUT.pth --to torchvision

SOURCE is a checkpoint file or a finished pre-training folder. OUTPUT.pkl is for Detectron2 and
for this project's benchmarks; OUTPUT.json beside it says what it was made from and what was proven.
With --to, OUTPUT is for other programs: torchvision (.pth, also timm), openmmlab (.pth:
MMDetection, MMSegmentation, mmpretrain) or safetensors (.safetensors).
"""

import argparse
from pathlib import Path
from typing import Any

from common.errors import run_command
from converters.convert import convert
from converters.detect import AUTO
from converters.export import TARGETS, export
from converters.layouts import LAYOUTS

DETECTRON2 = "detectron2"


def main() -> None:
    """Convert, and say what was found, kept, dropped and proven."""
    arguments = _parse_arguments()
    if arguments.to == DETECTRON2:
        manifest = convert(arguments.source, arguments.output, arguments.layout)
    else:
        manifest = export(arguments.source, arguments.output, arguments.to, arguments.layout)
    print(_report(manifest))
    print(f"wrote {arguments.output} and {arguments.output.with_suffix('.json').name}")


def _parse_arguments() -> argparse.Namespace:
    names = ", ".join([AUTO, *(layout.name for layout in LAYOUTS)])
    parser = argparse.ArgumentParser(
        prog="python -m converters",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--to", choices=(DETECTRON2, *TARGETS), default=DETECTRON2)
    parser.add_argument("--layout", default=AUTO, help=f"one of {names} (default: %(default)s)")
    return parser.parse_args()


def _report(manifest: dict[str, Any]) -> str:
    dropped = ", ".join(f"{group} {count}" for group, count in manifest["dropped"].items())
    pretrain = manifest["pretrain"]
    lines = [
        f"{manifest['source']}: layout {manifest['layout']}, "
        f"ResNet-{manifest['depth']} at width {manifest['width']}"
        + (f", step {pretrain['step']}" if pretrain else ""),
        f"kept {manifest['tensors']} tensors; dropped {dropped}",
        *(f"verified {proof}" for proof in manifest["verified"]),
        *([f"differs: {manifest['difference']}"] if manifest["difference"] else []),
    ]
    if "use" in manifest:
        images = manifest["input"]
        mean, std = images["pixel_mean"], images["pixel_std"]
        lines += [f"use: {manifest['use']}"]
        lines += [f"input: {images['format']}, 0 to 255, mean {mean}, std {std}"]
    else:
        lines += ["these weights need, in a Detectron2 configuration:"]
        lines += [f"  {line}" for line in manifest["config"]]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
