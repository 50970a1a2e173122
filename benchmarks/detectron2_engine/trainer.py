"""The training run: Detectron2's trainer with this project's weights, checkpoints and records."""

import logging
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter, get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from benchmarks import poly_schedule
from benchmarks.detectron2_engine import data
from benchmarks.detectron2_engine.evaluators import METRICS, evaluator
from benchmarks.detectron2_engine.models import pretrained_model
from benchmarks.weights import Backbone
from common import distributed
from common.checkpoint import latest_good, load_checkpoint, save_checkpoint
from common.files import replacing
from common.logs import Metrics
from common.shutdown import StopRequest

log = logging.getLogger(__name__)

_KEEP = 2  # checkpoints


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
        return pretrained_model(cfg, self.backbone)

    def build_train_loader(self, cfg: CfgNode) -> Any:
        """Detectron2's loader, continuing the data order where the checkpoint left it."""
        return data.train_loader(cfg, self.first)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        """Detectron2's loader, naming files that cannot be read."""
        return data.test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of the dataset's kind."""
        return evaluator(dataset_name)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """Detectron2's, or the PolyLR of segmentation."""
        if cfg.SOLVER.LR_SCHEDULER_NAME == poly_schedule.NAME:
            return LRMultiplier(
                optimizer, poly_schedule.PolySchedule(cfg.SOLVER), cfg.SOLVER.MAX_ITER
            )
        return super().build_lr_scheduler(cfg, optimizer)

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
        return {name: float(value) for name, value in self._last_eval_results[METRICS].items()}


class Stopped(BaseException):
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
            raise Stopped


class _Writer(EventWriter):
    """Detectron2's records in the files that all stages write."""

    def __init__(self, folder: Path, first: int, last: int) -> None:
        self.metrics = Metrics(folder, first)
        self.written, self.last = first - 1, last

    def write(self) -> None:
        # The storage keeps an evaluation until the next one: only what is new is a record.
        fresh: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(20).items():
            if iteration > self.written:
                fresh.setdefault(iteration, {})[name.removeprefix(f"{METRICS}/")] = value
        for iteration, values in sorted(fresh.items()):
            self.metrics.write(min(iteration + 1, self.last), values)
            self.written = iteration

    def close(self) -> None:
        self.metrics.close()
