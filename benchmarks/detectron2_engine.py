"""Benchmarks on Detectron2 itself. The only module of this package that imports it.

FOLDER/
  checkpoints/step_*.pth          model and trainer; the newest good one is continued from
  metrics.jsonl  tensorboard/     as Detectron2 records them
  model_final.pth                 the evaluated model

Detectron2's own checkpointing is left aside: it saves in place, and a damaged newest file or tag
ends a run that older checkpoints could continue.
"""

import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import detectron2
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_pascal_voc
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.data.samplers import TrainingSampler
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import PascalVOCDetectionEvaluator
from detectron2.layers import get_norm
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, Res5ROIHeads
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.voc import VOC_SETS, find_set, read_set
from benchmarks.voc_ap import Prediction, voc_metrics
from benchmarks.weights import Backbone, load_backbone, prove_loaded
from common import distributed
from common.checkpoint import latest_good, load_checkpoint, save_checkpoint
from common.errors import UserError
from common.files import replacing
from common.logs import Metrics
from common.shutdown import StopRequest

log = logging.getLogger(__name__)

_KEEP = 2  # checkpoints


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
    except _Stopped:
        return None
    except FloatingPointError as error:
        raise UserError(
            f"{' '.join(str(error).split())}; stopped before the update: "
            "lower SOLVER.BASE_LR or raise SOLVER.WARMUP_ITERS, in a new output folder"
        ) from None
    except UserError as error:  # from a data loader's worker it comes with that worker's trace
        raise UserError(str(error).splitlines()[-1].partition("UserError: ")[2] or error) from None
    return trainer.finish()


def detectron2_config(config: Any, seed: int, folder: Path) -> CfgNode:
    """Detectron2's defaults, changed as `config` says."""
    resolved = get_cfg()
    resolved.merge_from_other_cfg(config)
    resolved.SEED = seed  # the default, -1, would give all trials one data order
    resolved.OUTPUT_DIR = str(folder)
    resolved.freeze()
    return resolved


def register_datasets() -> None:
    """Make the miniature sets known to Detectron2, which knows the real ones."""
    for name, dataset in VOC_SETS.items():
        if name not in DatasetCatalog.list():
            register_pascal_voc(
                name, str(dataset.path), dataset.split, dataset.year, dataset.classes
            )


@ROI_HEADS_REGISTRY.register()
class Res5ROIHeadsExtraNorm(Res5ROIHeads):
    """The C4 head with a normalisation after res5, for backbones that are not frozen."""

    @classmethod
    def _build_res5_block(cls, cfg: CfgNode) -> tuple[nn.Sequential, int]:
        blocks, channels = super()._build_res5_block(cfg)
        blocks.add_module("norm", get_norm(cfg.MODEL.RESNETS.NORM, channels))
        return blocks, channels


class Trainer(DefaultTrainer):
    """DefaultTrainer with this project's weights, checkpoints, records and data order."""

    def __init__(
        self, cfg: CfgNode, backbone: Backbone | None, folder: Path, stop: StopRequest
    ) -> None:
        self.backbone, self.folder, self.stop = backbone, folder, stop
        path = distributed.on_main(lambda: latest_good(folder / "checkpoints"))
        state = load_checkpoint(path) if path else None
        # Needed already while the data loaders are built; super().__init__ sets it to 0 again.
        self.first = state["trainer"]["iteration"] + 1 if state else 0
        # Not the draws of the iterations that are done.
        seed_all_rng(cfg.SEED + comm.get_rank() + 1_000 * self.first)
        super().__init__(cfg)
        if state:
            self.bare_model.load_state_dict(state["model"])
            self.load_state_dict(state["trainer"])
            log.info("continuing after iteration %d from %s", self.first, path)
        self.start_iter = self.first

    @property
    def bare_model(self) -> nn.Module:
        """The model without the wrapper of several processes."""
        model: nn.Module = self.model
        return model.module if isinstance(model, DistributedDataParallel) else model

    def build_model(self, cfg: CfgNode) -> nn.Module:
        """The model, with every tensor of its backbone proven to be the pickle's."""
        model = build_model(cfg)
        if self.backbone:
            load_backbone(model, self.backbone)
            prove_loaded(model, self.backbone)
        return model

    def build_train_loader(self, cfg: CfgNode) -> Any:
        """Detectron2's loader, continuing the data order where the checkpoint left it."""
        dataset = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        share = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        sampler = _ContinuingSampler(len(dataset), cfg.SEED, skip=self.first * share)
        mapper = _Mapper(cfg, True)
        return build_detection_train_loader(cfg, mapper, dataset=dataset, sampler=sampler)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Detectron2's loader, naming files that cannot be read."""
        return build_detection_test_loader(cfg, dataset_name, _Mapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> "_Evaluator":
        """The VOC evaluator."""
        return _Evaluator(dataset_name)

    def build_hooks(self) -> list[HookBase]:
        """The usual hooks, this project's checkpoints in the place of Detectron2's."""
        usual = [h for h in super().build_hooks() if not isinstance(h, hooks.PeriodicCheckpointer)]
        before_evaluation = [isinstance(hook, hooks.EvalHook) for hook in usual].index(True)
        usual.insert(before_evaluation, _Checkpoints())
        return usual

    def build_writers(self) -> list[EventWriter]:
        """The console's line and the files that all stages write."""
        return [CommonMetricPrinter(self.max_iter), _Writer(self.folder, self.first, self.max_iter)]

    def finish(self) -> dict[str, float]:
        """Write the evaluated model; its metrics, empty but in the main process."""
        if not comm.is_main_process():
            return {}
        with replacing(self.folder / "model_final.pth") as temporary:
            torch.save({"model": self.bare_model.state_dict()}, temporary)
        return {name: float(value) for name, value in self._last_eval_results["bbox"].items()}


class _Stopped(BaseException):
    """Leaves the training loop; not an Exception, so that Detectron2 does not log it as one."""


class _Checkpoints(HookBase):
    """Saves after precise batch norm and before the evaluation; stops when asked to."""

    def after_step(self) -> None:
        """Save when due or asked to stop."""
        trainer = self.trainer
        done, solver = trainer.iter + 1, trainer.cfg.SOLVER
        flag = torch.tensor(float(bool(trainer.stop)), device=trainer.cfg.MODEL.DEVICE)
        stopping = distributed.sum_over_processes(flag).item() > 0
        due = done == trainer.max_iter or stopping or done % solver.CHECKPOINT_PERIOD == 0
        if due and comm.is_main_process():
            state = {"model": trainer.bare_model.state_dict(), "trainer": trainer.state_dict()}
            save_checkpoint(trainer.folder / "checkpoints", done, state, _KEEP)
        if stopping:
            raise _Stopped


class _ContinuingSampler(TrainingSampler):
    """Detectron2's order without the part that a resumed run has already seen."""

    def __init__(self, size: int, seed: int, skip: int) -> None:
        super().__init__(size, seed=seed)
        self.skip = skip

    def __iter__(self) -> Iterator[int]:
        return islice(super().__iter__(), self.skip, None)


class _Mapper(DatasetMapper):
    """Names the file when an image cannot be read."""

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        try:
            return super().__call__(dataset_dict)
        except (OSError, SyntaxError, SizeMismatchError) as error:
            file = dataset_dict["file_name"]
            raise UserError(f"{file}: not a readable image ({error})") from None


class _Evaluator(PascalVOCDetectionEvaluator):
    """Detectron2's AP, AP50 and AP75, and this project's AP50 of each class beside them."""

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        gathered = comm.gather(self._predictions, dst=0)
        result = super().evaluate()
        if result is None:
            return None
        predictions = [
            _parse(category, line)
            for part in gathered
            for category, lines in part.items()
            for line in lines
        ]
        name = self._dataset_name
        dataset = find_set(name)
        ours = voc_metrics(predictions, read_set(name), dataset.classes, dataset.year)
        result["bbox"] = {**ours, **result["bbox"]}
        return result


def _parse(category: int, line: str) -> Prediction:
    image_id, score, *corners = line.split()
    x0, y0, x1, y1 = (float(corner) for corner in corners)
    return Prediction(image_id, category, float(score), (x0, y0, x1, y1))


class _Writer(EventWriter):
    """Detectron2's records in the files that all stages write."""

    def __init__(self, folder: Path, first: int, last: int) -> None:
        self.metrics = Metrics(folder, first)
        self.last = last

    def write(self) -> None:
        storage = get_event_storage()
        values = {name: v for name, (v, _) in storage.latest_with_smoothing_hint(20).items()}
        self.metrics.write(min(storage.iter + 1, self.last), values)

    def close(self) -> None:
        self.metrics.close()
