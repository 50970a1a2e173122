"""Which places of two views a network takes for the same (the paper's Figure 4).

python -m pretrain.correspondence --weights random runs/demo/weights/densecl-MINI.pkl \\
    --images datasets/mini/imagenet/val --output runs/demo/correspondence

A match is a pair of positions of the backbone's last map, one in each view of an image, each the
other's most similar, above a threshold. It agrees with the truth when the place of the one lies
within a cell of the other. --weights takes what `python -m converters` writes, or random.

OUTPUT/
  correspondence.json       for each weights: matches, how many agree, and the pictures
  IMAGE_WEIGHTS.png         both views; a green line for each match that agrees, red for others
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table
from torchvision.transforms.functional import to_pil_image

from common.backbone_file import load_backbone_file, size_of
from common.errors import UserError, run_command
from common.files import replacing, sha256_of, write_json
from common.resnet import ResNet
from pretrain.config import Model
from pretrain.data import decode_image
from pretrain.encoder import initialise, unit_length
from pretrain.images import open_images
from pretrain.matching import Matches, centres, mutual_matches
from pretrain.views import MEAN, STD, Views, random_key

INDEX = "correspondence.json"
RANDOM = "random"
_GREEN, _RED = (0, 158, 115), (213, 94, 0)  # distinct for colour-blind readers
_BETWEEN = 12  # pixels between the two views of a picture


@dataclass(frozen=True)
class Network:
    """A backbone in evaluation mode, and the input it was trained with (of values 0 to 255)."""

    name: str
    sha256: str | None
    trunk: ResNet
    mean: torch.Tensor
    std: torch.Tensor
    channels: list[int]  # of RGB, in the order that the network wants


def load_network(weights: str, like: str | None) -> Network:
    """A pickle's backbone; for "random" a new one of the size of `like`'s, or of full size.

    Raises UserError when the file is not a converted backbone.
    """
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (MEAN, STD))
    if weights == RANDOM:
        depth, width = size_of(load_backbone_file(Path(like)), Path(like)) if like else (50, 64)
        torch.manual_seed(0)
        trunk = ResNet(depth, width)
        initialise(trunk, Model(depth=depth, width=width))
        return Network(RANDOM, None, trunk.eval(), mean, std, [0, 1, 2])
    path = Path(weights)
    tensors = load_backbone_file(path)
    trunk = ResNet(*size_of(tensors, path))
    trunk.load_state_dict(tensors, strict=False)
    manifest = path.with_suffix(".json")
    channels = [0, 1, 2]
    if manifest.exists():
        images = json.loads(manifest.read_text(encoding="utf-8"))["input"]
        mean, std = (torch.tensor(images[f"pixel_{k}"]).view(3, 1, 1) for k in ("mean", "std"))
        channels = [2, 1, 0] if images["format"] == "BGR" else channels
    return Network(path.stem, sha256_of(path), trunk.eval(), mean, std, channels)


@torch.no_grad()
def features(network: Network, views: torch.Tensor) -> torch.Tensor:
    """Views (V,3,H,W) uint8 → (V,C,S²) of unit length."""
    inputs = (views[:, network.channels].float() - network.mean) / network.std
    return unit_length(network.trunk(inputs).flatten(2))


def draw(views: torch.Tensor, matches: Matches) -> Image.Image:
    """Both views (2,3,H,W) side by side, and a line for each match."""
    size = views.shape[-1]
    picture = Image.new("RGB", (2 * size + _BETWEEN, size), "white")
    for number, view in enumerate(views):
        picture.paste(to_pil_image(view), (number * (size + _BETWEEN), 0))
    pen = ImageDraw.Draw(picture)
    unit = torch.tensor([[0.0, 0.0, size, size]])
    side = round(views.shape[-1] / 32)
    places = centres(unit, side**2)[0].tolist()
    for query, key, agrees in zip(matches.query, matches.key, matches.agrees):
        (x0, y0), (x1, y1) = places[int(query)], places[int(key)]
        ends = [(x0, y0), (x1 + size + _BETWEEN, y1)]
        colour = _GREEN if agrees else _RED
        pen.line(ends, fill=colour, width=2)
        for x, y in ends:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour, outline="white")
    return picture


def main() -> None:
    """Draw, count, write, and print the counts."""
    arguments = parse_arguments()
    pickles = [weights for weights in arguments.weights if weights != RANDOM]
    like = pickles[0] if pickles else None
    networks = [load_network(weights, like) for weights in arguments.weights]
    if len({network.name for network in networks}) < len(networks):
        raise UserError("--weights: two of one name; rename one file")
    make_views = Views("moco_v2", arguments.size, 0.2)
    arguments.output.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Matches]] = {network.name: [] for network in networks}
    pictures = []
    chosen = chosen_images(arguments.images, arguments.count)
    for number, (name, image) in enumerate(chosen):
        pair, corners, _ = make_views(image, random_key(0, number))
        views = torch.stack(pair)
        files = {}
        for network in networks:
            query, key = features(network, views)
            matches = mutual_matches(query, key, corners, arguments.threshold)
            found[network.name].append(matches)
            files[network.name] = f"{number}_{network.name}.png"
            with replacing(arguments.output / files[network.name]) as temporary:
                draw(views, matches).save(temporary, "PNG")
        pictures.append({"image": name, "files": files})
    rows = [summary(network, found[network.name]) for network in networks]
    content = {"threshold": arguments.threshold, "size": arguments.size, "rows": rows}
    write_json(arguments.output / INDEX, {**content, "pictures": pictures})
    show(rows, arguments.threshold)


def summary(network: Network, found: list[Matches]) -> dict[str, object]:
    """What correspondence.json says of one network: counts over all images."""
    agrees = torch.cat([matches.agrees for matches in found])
    return {
        "weights": network.name,
        "weights_sha256": network.sha256,
        "images": len(found),
        "matches": len(agrees),
        "agree": int(agrees.sum()),
    }


def show(rows: list[dict[str, object]], threshold: float) -> None:
    """Print the counts."""
    table = Table(title=f"Mutual best matches with a cosine above {threshold}")
    for head in ("weights", "images", "matches", "agree with the truth"):
        table.add_column(head, justify="left" if head == "weights" else "right")
    for row in rows:
        matches, agree = int(str(row["matches"])), int(str(row["agree"]))
        share = f"{agree} ({agree / matches:.0%})" if matches else "0"
        table.add_row(str(row["weights"]), str(row["images"]), str(matches), share)
    Console().print(table)


def chosen_images(given: list[Path], count: int) -> list[tuple[str, Image.Image]]:
    """The files given; of each folder, of images or shards, `count` images evenly over it; in RGB.

    Raises UserError when there is nothing there, or an image cannot be read.
    """
    chosen = []
    for path in given:
        if path.is_dir():
            images = open_images(path)
            step = max(len(images) // count, 1)
            numbers = range(len(images))[::step][:count]
            chosen += [decode(images.name(number), images.read(number)) for number in numbers]
        elif path.is_file():
            chosen.append(decode(str(path), path.read_bytes()))
        else:
            raise UserError(f"{path}: no such file or folder of images")
    return chosen


def decode(name: str, content: bytes) -> tuple[str, Image.Image]:
    """The last part of the name, and the image. Raises UserError when it is not one."""
    try:
        return Path(name).name, decode_image(content)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{name}: cannot be read as an image ({error})") from None


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.correspondence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--weights", nargs="+", required=True, metavar="WEIGHTS.pkl")
    parser.add_argument("--images", nargs="+", type=Path, required=True, help="files or folders")
    parser.add_argument("--count", type=int, default=8, help="images of a folder (default: 8)")
    parser.add_argument(
        "--size", type=int, default=448, help="side of a view; positions lie 32 pixels apart"
    )
    parser.add_argument("--threshold", type=float, default=0.9, help="cosine (default: 0.9)")
    parser.add_argument("--output", type=Path, default=Path("runs/correspondence"))
    arguments = parser.parse_args()
    if arguments.count < 1 or arguments.size < 32 or arguments.size % 32:
        parser.error("--count is at least 1, --size a multiple of 32")
    return arguments


if __name__ == "__main__":
    run_command(main)
