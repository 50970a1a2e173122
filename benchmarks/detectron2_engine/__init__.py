"""Benchmarks on Detectron2 itself. Only this package and one module of converters import it.

FOLDER/
  checkpoints/step_*.pth          model and trainer; the newest good one is continued from
  metrics.jsonl  tensorboard/     as Detectron2 records them
  model_final.pth                 the evaluated model

Detectron2's own checkpointing is left aside: it saves in place, and a damaged newest file or tag
ends a run that older checkpoints could continue.
"""

import logging
import os
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm

from benchmarks.detectron2_engine.data import register_datasets
from benchmarks.detectron2_engine.trainer import Stopped, Trainer
from benchmarks.weights import Backbone
from common import distributed
from common.errors import UserError
from common.shutdown import StopRequest

log = logging.getLogger(__name__)


def version() -> str:
    """The version that results record."""
    return f"detectron2 {detectron2.__version__}"


def run(
    config: Any,
    backbone: Backbone | None,
    seed: int,
    folder: Path,
    device: torch.device,
    stop: StopRequest,
) -> dict[str, float] | None:
    """Train from the newest checkpoint in `folder`, or from `backbone`, and evaluate.

    Returns the metrics in percent (in the main process), or None when asked to stop: then a
    checkpoint is written. Raises UserError for unreadable data and a loss that is not finite.
    """
    register_datasets()
    if distributed.world_size() > 1:
        if device.type == "cpu":
            raise UserError("Detectron2 needs GPUs for several processes: --engine torchvision")
        comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    # The errors below say what a trace in the log would say at length.
    logging.getLogger("detectron2.engine.train_loop").addFilter(lambda line: not line.exc_info)
    trainer = Trainer(detectron2_config(config, seed, folder), backbone, folder, stop)
    log.info("%s, iterations %d to %d", version(), trainer.start_iter, trainer.max_iter)
    try:
        trainer.train()
    except Stopped:
        return None
    except FloatingPointError as error:
        raise UserError(
            f"{' '.join(str(error).split())}; stopped before the update: "
            "a lower SOLVER.BASE_LR helps, or a longer warm-up; in a new output folder"
        ) from None
    except UserError as error:  # from a data loader's worker it comes with that worker's trace
        raise UserError(str(error).splitlines()[-1].partition("UserError: ")[2] or error) from None
    return trainer.finish()


def detectron2_config(config: Any, seed: int, folder: Path) -> CfgNode:
    """Detectron2's defaults, changed as `config` says. Raises UserError for AMP on a CPU."""
    resolved = get_cfg()
    # load_config has refused unknown keys; those that remain and that Detectron2 does not have
    # are read by this project's own parts.
    resolved.set_new_allowed(True)
    resolved.merge_from_other_cfg(config)
    resolved.SEED = seed  # the default, -1, would give all trials one data order
    resolved.OUTPUT_DIR = str(folder)
    if resolved.SOLVER.AMP.ENABLED and resolved.MODEL.DEVICE == "cpu":
        raise UserError("SOLVER.AMP.ENABLED: Detectron2 needs a GPU for it: --engine torchvision")
    resolved.freeze()
    return resolved
