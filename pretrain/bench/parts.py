"""The parts of pre-training beside the usual way of doing them; the usual way comes first."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, resized_crop, to_pil_image

from pretrain.bench.rounds import Row, Way, compare
from pretrain.bench.steps import repeated
from pretrain.config import Data, Launch, Model, Optim, PretrainConfig
from pretrain.data import data_loader, decode_image, decode_tensor
from pretrain.device_views import augment
from pretrain.images import Folder
from pretrain.loss import info_nce
from pretrain.methods.moco import MoCo
from pretrain.views import RECIPES, Views, change, draw

AT_ONCE = 16  # images of a round
_ROWS, _QUEUE, _WIDTH = 392, 65536, 128  # 8 images of 7×7 positions
_SIZE = 224  # side of a view
_GENERATED = 48


def parts(images: Folder, rounds: int, device: torch.device) -> list[Row]:
    """A row for each way of each part. Those that read and cut images run on one CPU thread."""
    cpu = torch.device("cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for name, ways in {
        "decode an image": _decoding(images),
        "cut two views": _cutting(images),
        "two views of an image, whole": _viewing(images),
    }.items():
        rows += [{"part": name} | row for row in compare(ways, AT_ONCE, rounds, cpu)]
    torch.set_num_threads(1 if device == cpu else threads)
    for name, (ways, count) in {
        "colours, blur and mirroring of a view": (_colouring(device), AT_ONCE),
        "InfoNCE, 392 rows, 65,536 negatives": (_losses(device), 8),
        "key encoder follows the query's": (_following(device), 1),
    }.items():
        rows += [{"part": name} | row for row in compare(ways, count, rounds, device)]
    torch.set_num_threads(threads)
    for row in rows:
        if row["part"].startswith("key"):
            del row["images/s"]
    return rows


def generate(folder: Path) -> Path:
    """JPEGs as large and as detailed as ImageNet's: about 80 kB each."""
    generator = np.random.RandomState(0)
    for number in range(_GENERATED):
        coarse = generator.randint(0, 256, (12, 16, 3)).astype(np.uint8)
        pixels = np.array(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC))
        noise = generator.normal(0, 12, pixels.shape)
        noisy = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
        noisy.save(folder / f"{number}.jpg", "JPEG", quality=90)
    return folder


def _chosen(images: Folder) -> list[int]:
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(len(images), generator=generator)[:AT_ONCE].tolist()


def _decoding(images: Folder) -> dict[str, Way]:
    contents = [images.read(number) for number in _chosen(images)]
    return {
        "PIL": lambda: [decode_image(content) for content in contents],
        "libjpeg-turbo by simplejpeg": lambda: [decode_tensor(content) for content in contents],
    }


def _cutting(images: Folder) -> dict[str, Way]:
    contents = [images.read(number) for number in _chosen(images)]
    pictures, tensors = map(decode_image, contents), map(decode_tensor, contents)
    pairs = list(zip(pictures, tensors))
    make_views = Views("moco_v2", _SIZE, 0.2)
    box = (40, 60, 250, 280)  # top, left, height, width: about 0.4 of the image
    return {
        "PIL": lambda: [resized_crop(p, *box, [_SIZE, _SIZE]) for p, _ in pairs for _ in "12"],
        "uint8 tensors": lambda: [make_views.cut(t, *box) for _, t in pairs for _ in "12"],
    }


def _viewing(images: Folder) -> dict[str, Way]:
    return {
        "PIL": batches_of(images, "cpu"),
        "crops, colours left to the device": batches_of(images, "device"),
    }


def batches_of(images: Folder, colours: str) -> Way:
    """One more batch of two views of `AT_ONCE` images, by this process."""
    optim, launch = Optim(epochs=10_000, batch_size=AT_ONCE), Launch(workers=0)
    config = PretrainConfig(data=Data(colours=colours), optim=optim, launch=launch)
    enough = repeated(images, max(len(images), AT_ONCE))
    batches = iter(data_loader(config, enough, 0, pin_memory=False))
    return lambda: next(batches)


def _colouring(device: torch.device) -> dict[str, Way]:
    colours = RECIPES["moco_v2"].views[0]
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(AT_ONCE, 3, 12, 12, generator=generator) * 255
    crops = F.interpolate(small, (_SIZE, _SIZE), mode="bilinear").byte()
    drawn = [draw(colours, generator) for _ in range(AT_ONCE)]
    pictures = [to_pil_image(crop) for crop in crops]
    there, changes = crops.to(device), torch.tensor(drawn).to(device)
    return {
        "PIL, one by one": lambda: [
            pil_to_tensor(change(picture, values, False))
            for picture, values in zip(pictures, drawn)
        ],
        "a batch on the device, normalised too": lambda: augment(there, changes, colours),
    }


def _losses(device: torch.device) -> dict[str, Way]:
    generator = torch.Generator().manual_seed(0)
    shapes = (_ROWS, _ROWS, _QUEUE)
    given = [F.normalize(torch.randn(n, _WIDTH, generator=generator)).to(device) for n in shapes]
    query, key, queue = given[0].requires_grad_(), given[1], given[2]

    def naive() -> None:
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ queue.T], 1) / 0.2
        F.cross_entropy(logits, torch.zeros(_ROWS, dtype=torch.long, device=device)).backward()

    return {
        "a matrix of logits": naive,
        "chunk by chunk": lambda: info_nce(query, key, queue, 0.2).backward(),
    }


def _following(device: torch.device) -> dict[str, Way]:
    model = MoCo(PretrainConfig(model=Model(queue_length=64))).to(device)

    @torch.no_grad()
    def loop() -> None:
        for key, query in zip(model.key.parameters(), model.query.parameters()):
            key.data = key.data * 0.999 + query.data * 0.001

    return {"a loop": loop, "at once": model.update_key_encoder}
