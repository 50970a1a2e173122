"""Which benchmarks there are: for the package that runs them and for the plan of a whole run."""

from pathlib import Path

from common.code import ROOT
from common.files import read_yaml

BENCHMARK_CONFIGS = Path("configs", "benchmarks")  # below the repository's root

# Where and how fast a benchmark goes, never what it computes.
LAUNCH_KEYS = ("MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD", "VERSION")


def benchmark_files() -> dict[str, Path]:
    """Each short name of configs/benchmarks.yaml whose file exists, and the file, in that order.

    The paths are relative to the repository's root.
    """
    names = read_yaml(ROOT / f"{BENCHMARK_CONFIGS}.yaml")
    files = {name: BENCHMARK_CONFIGS / f"{stem}.yaml" for name, stem in names.items()}
    return {name: file for name, file in files.items() if (ROOT / file).is_file()}
