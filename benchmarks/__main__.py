"""Fine-tune a pre-trained backbone on a benchmark, evaluate it, and write results.json.

One process:    python -m benchmarks voc --weights runs/NAME/weights/densecl-IN.pkl
Several GPUs:   torchrun --nproc-per-node 8 -m benchmarks voc --weights FILE.pkl --seed 2
Tiny, on CPU:   python -m common.miniature datasets/mini
                python -m benchmarks mini_voc --weights random SOLVER.MAX_ITER 100

The same command continues an interrupted run, and says so when nothing is left to do. SIGTERM,
SIGINT and SIGUSR2 save first. Datasets are looked for in $DETECTRON2_DATASETS (default: datasets).
"""

import argparse
from pathlib import Path

from benchmarks.run import RANDOM, Request, run_benchmark
from common import distributed
from common.benchmarks import benchmark_files
from common.errors import run_command
from common.shutdown import StopRequest


def main() -> None:
    """Parse, run, leave."""
    stop = StopRequest()
    request = parse_arguments()
    try:
        run_benchmark(request, stop)
    finally:
        distributed.stop()


def parse_arguments() -> Request:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("benchmark", help=f"{', '.join(benchmark_files())}, or a YAML file")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE.pkl",
        help=f"what python -m converters wrote, or {RANDOM} for random initialisation",
    )
    parser.add_argument("--row", help="the table's row; default: the pickle's name")
    parser.add_argument(
        "--engine",
        choices=("auto", "detectron2", "torchvision"),
        default="auto",
        help="auto is Detectron2 where it is importable, torchvision otherwise",
    )
    parser.add_argument(
        "--seed",
        type=_seed,
        default=0,
        help="the trial: initialisation, data order and augmentation follow from it (default 0)",
    )
    parser.add_argument("--output", type=Path, help="default: runs/benchmarks/BENCHMARK/ROW/seed_N")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="KEY VALUE",
        help="configuration keys to change, for example SOLVER.IMS_PER_BATCH 8",
    )
    return Request(**vars(parser.parse_intermixed_args()))


def _seed(word: str) -> int:
    seed = int(word)
    if seed < 0:
        raise argparse.ArgumentTypeError("a seed is 0 or more")
    return seed


if __name__ == "__main__":
    run_command(main)
