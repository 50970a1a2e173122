"""Pre-train a ResNet with DenseCL, MoCo, ReSim, SimCLR, BYOL or labels.

One process:      python -m pretrain --config-file configs/pretrain/densecl_imagenet_200ep.yaml
Several GPUs:     torchrun --nproc-per-node 8 -m pretrain --config-file ...
SLURM tasks:      srun python -m pretrain --config-file ...
Tiny, on a CPU:   python -m common.miniature datasets/mini
                  python -m pretrain --config-file configs/pretrain/densecl_mini.yaml

The same command continues an interrupted run. SIGTERM, SIGINT and SIGUSR2 save first.
"""

import argparse
import logging
from pathlib import Path

import torch

from common import distributed
from common.config import describe, load_config, to_yaml
from common.environment import describe_environment
from common.errors import UserError, run_command
from common.files import sha256_of, write_json
from common.logs import set_up_logging
from common.parallel import data_loading
from common.run_folder import claim, mark_done
from common.shutdown import StopRequest
from pretrain import config as settings
from pretrain.data import data_loader, images_of
from pretrain.encoder import initial_backbone
from pretrain.images import Images
from pretrain.monitor import Monitor
from pretrain.precision import choose
from pretrain.run import build_run, resume
from pretrain.train import train

log = logging.getLogger("pretrain")


def main() -> None:
    """Parse, join the other processes, train, leave."""
    stop = StopRequest()
    arguments = parse_arguments()
    config = load_config(settings.PretrainConfig, arguments.config_file, arguments.settings)
    folder = arguments.output or Path("runs/pretrain", arguments.config_file.stem)
    device = distributed.start(config.launch.device)
    try:
        pretrain(config, folder, device, stop)
    finally:
        distributed.stop()


def pretrain(
    config: settings.PretrainConfig, folder: Path, device: torch.device, stop: StopRequest
) -> None:
    """Everything between the command line and the loop."""
    settings.check(config, distributed.world_size())
    check_synchronised(config, device)
    config = settings.with_colours(config, device.type)
    images = distributed.on_main(lambda: find_images(config))
    identity = {**config.identity(), "images": len(images), "image_list": images.digest}
    if file := config.model.init_backbone:
        identity["init_sha256"] = distributed.on_main(lambda: check_backbone(file, config.model))
    if distributed.on_main(lambda: claim(folder, identity, to_yaml(config))):
        print(f"{folder}: already finished, nothing to do")
        return
    set_up_logging(folder, distributed.is_main())
    log.info("training on %s, %d process(es)", device, distributed.world_size())
    warn(config, len(images), device)

    run = build_run(config, folder, device, images)
    choose(run)
    resume(run)
    if distributed.is_main():
        write_json(folder / "env.json", describe_environment())
    loader = data_loader(config, images, run.step, pin_memory=device.type == "cuda")
    with Monitor(folder, run.step, run.total_steps) as monitor, data_loading():
        finished = train(run, loader, monitor, stop)
    if not finished:
        reason = stop.requested_by or "another process"
        log.info("stopped by %s after step %d: the same command continues", reason, run.step)
    elif distributed.is_main():
        checkpoint = folder / "checkpoints" / f"step_{run.step:08d}.pth"
        digest = sha256_of(checkpoint)
        name = str(checkpoint.relative_to(folder))
        mark_done(folder, identity, checkpoint=name, checkpoint_sha256=digest)
        log.info("finished: %s", checkpoint)


def find_images(config: settings.PretrainConfig) -> Images:
    """The images, at least one batch of them."""
    images = images_of(config.data)
    if len(images) < config.optim.batch_size:
        raise UserError(
            f"{config.data.root}: {len(images)} images do not fill one batch of "
            f"optim.batch_size = {config.optim.batch_size}: use a smaller batch or more images"
        )
    if config.method == "supervised" and (names := images.classes)[0] in ("", names[-1]):
        raise UserError(
            f"{config.data.root}: {len(names) - (names[0] == '')} class folders; "
            "method = supervised needs every image in one of at least two"
        )
    return images


def check_backbone(file: str, config: settings.Model) -> str:
    """The SHA-256 of a file that `config` can start from. Raises UserError for any other."""
    initial_backbone(file, config)
    return sha256_of(Path(file))


def check_synchronised(config: settings.PretrainConfig, device: torch.device) -> None:
    """Batch norms over all processes are PyTorch's, which have no CPU version."""
    if config.model.bn_group == 0 and distributed.world_size() > 1 and device.type == "cpu":
        raise UserError(
            "model.bn_group = 0 over several processes needs GPUs: set the size of a group"
        )


def warn(config: settings.PretrainConfig, images: int, device: torch.device) -> None:
    """Settings that work but rarely mean well."""
    without_gpu = config.launch.device == "auto" and device.type == "cpu"
    if without_gpu and config.model.width >= settings.Model().width:
        log.warning(
            "no GPU that PyTorch %s can use: a network of the published width takes months on a "
            "CPU; launch.device=cuda refuses to start without a GPU",
            torch.__version__,
        )
    queue = config.method in settings.QUEUE_METHODS
    if queue and config.optim.batch_size <= (config.model.bn_group or config.optim.batch_size):
        log.warning(
            "the whole batch of %d is one batch-norm group (model.bn_group = %d): shuffling the "
            "keys protects nothing, and the loss may fall without learning; lower model.bn_group",
            config.optim.batch_size,
            config.model.bn_group,
        )
    if queue and config.model.queue_length > images:
        log.warning(
            "model.queue_length = %d is more than the %d images: each image would be its own "
            "negative; use at most half as many",
            config.model.queue_length,
            images,
        )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m pretrain",
        description=__doc__,
        epilog="\n".join(["settings:", *describe(settings.PretrainConfig)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", type=Path, required=True, help="YAML of differences")
    parser.add_argument("--output", type=Path, help="default: runs/pretrain/NAME_OF_CONFIG")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="for example optim.lr=0.1")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
