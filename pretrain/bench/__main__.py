"""What pre-training costs on this machine, beside the usual way of doing the same.

python -m pretrain.bench                       parts, steps, end to end, roofline: some minutes
python -m pretrain.bench --only step --config-file configs/pretrain/densecl_imagenet_200ep.yaml \\
    --config-file configs/pretrain/moco_v2_imagenet_200ep.yaml optim.batch_size=32
python -m pretrain.bench --only growth,reading,ordering     larger and larger: half an hour

parts       decoding, cutting, colours, InfoNCE, key encoder: each beside the usual way
step        a training step of each configuration; a plain DenseCL step before them
end-to-end  from files and from shards to updated weights, with launch.workers processes
roofline    FLOPs and bytes of a step, what the device could do, and the share reached
agreement   200 steps on data.root, the step as it is beside the plain one
peers       views and a step beside lightly's DenseCL, where lightly is installed
growth      a step as batch, queue and processes grow, with the fitted exponents
reading     10^3 to 10^6 tiny images from shards, in three orders
ordering    which images make a batch, of up to 10^9

Ways of one thing are timed in turn, in one process: medians, and the middle half of the rounds.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

from common import distributed
from common.config import load_config
from common.environment import describe_environment
from common.errors import UserError, did_you_mean, run_command
from common.files import write_json
from pretrain.bench.agreement import agreement
from pretrain.bench.growth import growth
from pretrain.bench.parts import generate, parts
from pretrain.bench.peers import peers
from pretrain.bench.reading import ordering, reading
from pretrain.bench.roofline import roofline
from pretrain.bench.rounds import Row
from pretrain.bench.steps import end_to_end, steps
from pretrain.config import PretrainConfig, check
from pretrain.images import Folder, list_images

SECTIONS = (
    *("parts", "step", "end-to-end", "roofline"),
    *("agreement", "peers", "growth", "reading", "ordering"),
)
_USUAL = SECTIONS[:4]
_CONFIGS = [Path(f"configs/pretrain/{name}_mini.yaml") for name in ("densecl", "moco_v2")]
_READ, _ORDERED = [10**n for n in range(3, 7)], [10**n for n in range(3, 10)]


def main() -> None:
    """Measure, print, and write."""
    arguments = parse_arguments()
    configs = {
        path.stem: load_config(PretrainConfig, path, arguments.settings)
        for path in arguments.config_file
    }
    device = distributed.start(next(iter(configs.values())).launch.device)
    for config in configs.values():
        check(config, distributed.world_size())
    if len({config.optim.batch_size for config in configs.values()}) > 1:
        raise UserError("--config-file: batches of different sizes: add optim.batch_size=N")
    found: dict[str, object] = {}
    try:
        for section in arguments.only:
            rows = measure(section, arguments, configs, device)
            found[section] = rows
            if distributed.is_main():
                show(section, rows)
    finally:
        distributed.stop()
    if arguments.json and distributed.is_main():
        settings = {name: config.identity() for name, config in configs.items()}
        about = {"device": str(device), "settings": settings}
        write_json(arguments.json, {**found, **about, "environment": describe_environment()})


def measure(
    section: str,
    arguments: argparse.Namespace,
    configs: dict[str, PretrainConfig],
    device: torch.device,
) -> list[Row]:
    """The rows of one section."""
    config, rounds = next(iter(configs.values())), arguments.rounds
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        place = Path(folder)
        measures: dict[str, Callable[[], list[Row]]] = {
            "parts": lambda: parts(sample_images(arguments.images, place), rounds, device),
            "step": lambda: steps(configs, rounds, device),
            "end-to-end": lambda: end_to_end(
                config, sample_images(arguments.images, place), max(rounds // 4, 1), device
            ),
            "roofline": lambda: roofline(config, rounds, device),
            "agreement": lambda: agreement(config, device),
            "peers": lambda: peers(config, sample_images(arguments.images, place), rounds, device),
            "growth": lambda: growth(
                config, arguments.config_file[0], arguments.settings, rounds, device
            ),
            "reading": lambda: reading(_READ, place),
            "ordering": lambda: ordering(_ORDERED),
        }
        return measures[section]()


def sample_images(folder: Path | None, place: Path) -> Folder:
    """The user's, or some generated at `place`."""
    folder = folder or generate(place)
    return Folder(folder, list_images(folder))


def show(section: str, rows: list[Row]) -> None:
    """A table in Markdown, as docs/performance.md holds it; columns that a row lacks stay blank."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = Table(box=MARKDOWN, title=section)
    for column in columns:
        numbers = any(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(_text(row.get(column, "")) for column in columns))
    Console(width=None if Console().is_terminal else 200).print(table)


def _text(value: object) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _sections(words: str) -> list[str]:
    """The sections in "step,roofline"."""
    chosen = words.split(",")
    for word in chosen:
        if word not in SECTIONS:
            raise UserError(
                f"--only {word}: no such section{did_you_mean(word, SECTIONS)}: "
                f"choose of {','.join(SECTIONS)}"
            )
    return chosen


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config-file", type=Path, action="append", help="one or more; default: the miniature's"
    )
    parser.add_argument("--only", type=_sections, default=_USUAL, help="default: the first four")
    parser.add_argument("--rounds", type=int, default=15, help="of each way (default: 15)")
    parser.add_argument("--images", type=Path, help="default: generated JPEGs of 500 x 375 pixels")
    parser.add_argument("--folder", type=Path, help="where to put shards to read; default: /tmp")
    parser.add_argument("--json", type=Path, help="where to write the numbers as well")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings to change")
    arguments = parser.parse_intermixed_args()
    arguments.config_file = arguments.config_file or _CONFIGS
    if arguments.rounds < 1:
        parser.error("--rounds is at least 1")
    return arguments


if __name__ == "__main__":
    run_command(main)
