"""One benchmark run: check everything, claim the folder, train and evaluate, record the result.

FOLDER/  (runs/benchmarks/BENCHMARK/ROW/seed_N unless --output says otherwise)
  config.yaml  owner.json   what the run is
  env.json  log.txt         on what it ran and what it said
  attempts.jsonl            when it was started, for the time over all restarts
  examples/                 pictures of predictions beside the truth
  results.json  DONE        the outcome
and what the engine writes.
"""

import importlib.util
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks.checks import check
from benchmarks.config import config_sha256, find_config, identity, load_config
from benchmarks.examples import write_examples
from benchmarks.results import Results, write_results
from benchmarks.weights import read_backbone
from common import distributed
from common.environment import describe_environment
from common.errors import UserError
from common.files import write_json
from common.logs import set_up_logging
from common.parallel import data_loading
from common.run_folder import claim, mark_done
from common.shutdown import StopRequest

log = logging.getLogger("benchmarks")

RANDOM = "random"


@dataclass(frozen=True)
class Request:
    """A command line."""

    benchmark: str
    weights: str
    row: str | None
    engine: str
    seed: int
    output: Path | None
    settings: list[str]


def run_benchmark(request: Request, stop: StopRequest) -> None:
    """Run, resume, or notice that there is nothing left to do.

    Raises UserError, before anything is written, for whatever is wrong with the request.
    """
    file = find_config(request.benchmark)
    config = load_config(file, request.settings)
    engine_name, engine = find_engine(request.engine, config)
    device = distributed.start(device_type(config))
    check(config, device)
    backbone = None
    if request.weights != RANDOM:
        backbone = read_backbone(Path(request.weights), config)
    row = request.row or (backbone.path.stem if backbone else RANDOM)
    name = file.stem
    folder = request.output or Path("runs/benchmarks", name, row, f"seed_{request.seed}")
    what = {
        "benchmark": name,
        "row": row,
        "seed": request.seed,
        "engine": engine_name,
        "weights_sha256": backbone.sha256 if backbone else None,
        "config": identity(config),
    }
    if distributed.on_main(lambda: claim(folder, what, config.dump())):
        print(f"{folder}: already finished, nothing to do")
        return
    if distributed.is_main():
        _begin_attempt(folder)
    set_up_logging(folder, distributed.is_main())
    log.info("%s, row %s, seed %d, %s engine, in %s", name, row, request.seed, engine_name, folder)
    if distributed.is_main():
        write_json(folder / "env.json", describe_environment())
    with data_loading():
        metrics = engine.run(config, backbone, request.seed, folder, device, stop)
    if metrics is None:
        reason = stop.requested_by or "another process"
        log.info("stopped by %s: the same command continues", reason)
    elif distributed.is_main():
        if "SVM" not in config:
            write_examples(folder, config, device)
        _record(folder, what, config, engine.version(), device, metrics)


def find_engine(name: str, config: Any) -> tuple[str, ModuleType]:
    """The engine called `name`; "auto" is Detectron2 where it is importable, else torchvision.

    Raises UserError when Detectron2 is asked for and cannot be imported, or has no part in it.
    """
    if config.MODEL.get("META_ARCHITECTURE") == "LinearSVM":
        if name == "detectron2":
            raise UserError("--engine detectron2: frozen features and SVMs are torchvision's only")
        return "torchvision", importlib.import_module("benchmarks.svm")
    if name in ("auto", "detectron2"):
        try:
            return "detectron2", importlib.import_module("benchmarks.detectron2_engine")
        except ImportError as error:
            if name == "detectron2":
                raise UserError(
                    f"Detectron2 is not importable ({error}): install it as README says, "
                    "or use --engine torchvision"
                ) from None
            if importlib.util.find_spec("detectron2"):
                log.warning("Detectron2 is installed but cannot be imported: %s", error)
    return "torchvision", importlib.import_module("benchmarks.torchvision_engine")


def device_type(config: Any) -> str:
    """MODEL.DEVICE. Raises UserError for one that there is not."""
    wanted = config.MODEL.DEVICE
    if wanted not in ("cpu", "cuda"):
        raise UserError(f"MODEL.DEVICE is {wanted}: choose cpu or cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "MODEL.DEVICE is cuda, but no GPU is visible: run on a GPU, or add MODEL.DEVICE cpu "
            "MODEL.RESNETS.NORM BN (very slow for a full-size benchmark)"
        )
    return wanted


def _record(
    folder: Path,
    what: dict[str, Any],
    config: Any,
    engine_version: str,
    device: torch.device,
    metrics: dict[str, float],
) -> None:
    environment = describe_environment()
    seconds, restarts = _attempts(folder)
    results = Results(
        benchmark=what["benchmark"],
        row=what["row"],
        seed=what["seed"],
        metrics=metrics,
        engine=what["engine"],
        engine_version=engine_version,
        weights_sha256=what["weights_sha256"],
        config_sha256=config_sha256(config),
        schedule=_schedule(config),
        trained_on=list(config.DATASETS.TRAIN),
        device=_describe(device),
        environment=environment,
        seconds=round(seconds, 1),
        restarts=restarts,
        commit=environment["commit"],
    )
    write_results(folder / "results.json", results)
    mark_done(folder, what, results="results.json")
    log.info("finished: %s", folder / "results.json")


def _schedule(config: Any) -> dict[str, int]:
    """Iterations and images in each; empty where nothing is trained."""
    if "SVM" in config:
        return {}
    return {"iterations": config.SOLVER.MAX_ITER, "batch": config.SOLVER.IMS_PER_BATCH}


def _describe(device: torch.device) -> str:
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{distributed.world_size()} x {kind}"


def _begin_attempt(folder: Path) -> None:
    """Note the start; a killed attempt before it ended when it last logged something."""
    logged = folder / "log.txt"
    last_sign_of_life = logged.stat().st_mtime if logged.exists() else None
    with (folder / "attempts.jsonl").open("a") as attempts:
        line = {"started": time.time(), "previous_ended": last_sign_of_life}
        attempts.write(json.dumps(line) + "\n")


def _attempts(folder: Path) -> tuple[float, int]:
    """Seconds over all attempts, the last one ending now, and the number of restarts."""
    attempts = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]
    ends = [attempt["previous_ended"] for attempt in attempts[1:]] + [time.time()]
    seconds = sum(
        max(end - attempt["started"], 0.0)
        for attempt, end in zip(attempts, ends)
        if end is not None
    )
    return seconds, len(attempts) - 1
