"""Shards hold the images of their folder, and what reads them finds the same batches."""

import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.checkpoint import latest_good, load_checkpoint
from common.errors import UserError, run_command
from pretrain import shards
from pretrain.config import Data, Launch, Optim, PretrainConfig
from pretrain.data import data_loader
from pretrain.images import Folder, list_images, open_images
from pretrain.order import Order
from pretrain.pack import main
from pretrain.shards import Shards, scan

ROOT = Path(__file__).parent.parent


def pack(*words):
    command = [sys.executable, "-m", "pretrain.pack", *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def mistake(monkeypatch, capsys, *words):
    """What the command says of it, in this process."""
    monkeypatch.setattr(sys, "argv", ["pack", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        run_command(main)
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def class_tree(tmp_path_factory):
    """31 images in three class folders, of several formats; one of them is empty."""
    root = tmp_path_factory.mktemp("tree")
    random = np.random.RandomState(0)
    for number in range(31):
        folder = root / ("ant", "bee", "cat")[number % 3] / "deep"
        folder.mkdir(parents=True, exist_ok=True)
        kind = ("jpg", "JPEG", "png")[number % 4 % 3]
        pixels = random.randint(0, 256, (40, 50, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"a.picture {number:02d}.{kind}")
    (root / "bee" / "broken.jpg").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def packed(class_tree, tmp_path_factory):
    target = tmp_path_factory.mktemp("packed") / "shards"
    done = pack(class_tree, target, "--shard-size", 7, "--workers", 2)
    assert done.returncode == 0, done.stderr
    return target


def samples(folder):
    """What WebDataset makes of the tars: members grouped by their name up to its first dot."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                key, _, kind = member.name.partition(".")
                found.setdefault((path.name, key), {})[kind] = archive.extractfile(member).read()
    return list(found.values())


def test_shards_hold_every_image_with_its_class(class_tree, packed):
    files = list_images(class_tree)
    assert (packed / "images.txt").read_text().splitlines() == files
    found = samples(packed)
    assert len(found) == 32 and len(list(packed.glob("*.tar"))) == 5
    for file, sample in zip(files, found):
        (kind,) = set(sample) - {"cls"}
        assert kind == file.rpartition(".")[2].lower()
        assert sample[kind] == (class_tree / file).read_bytes()
        assert int(sample["cls"]) == ["ant", "bee", "cat"].index(file.split("/")[0])


def test_both_readers_give_the_same(class_tree, packed, monkeypatch):
    monkeypatch.setattr(shards, "_MOST_OPEN", 2)  # of five
    folder, images = open_images(class_tree), open_images(packed)
    assert isinstance(folder, Folder) and isinstance(images, Shards)
    assert (len(images), images.classes) == (len(folder), folder.classes)
    assert images.digest == folder.digest
    for number in np.random.RandomState(0).randint(0, 32, 200).tolist():
        assert images.read(number) == folder.read(number)
        assert images.label(number) == folder.label(number)
    assert images.name(15) == f"{packed}/shard-000002.tar sample 1"


@pytest.mark.parametrize("colours, workers, window", [("cpu", 0, 0), ("device", 2, 256)])
def test_batches_are_equal_to_the_bit(class_tree, packed, colours, workers, window):
    def batches(root):
        config = PretrainConfig(
            data=Data(root=str(root), image_size=32, colours=colours, window=window),
            optim=Optim(epochs=2, batch_size=5),
            launch=Launch(workers=workers),
        )
        return list(data_loader(config, open_images(root), 3, pin_memory=False))

    ours, theirs = batches(packed), batches(class_tree)
    assert len(ours) == len(theirs) == 2 * 6 - 3
    for one, other in zip(ours, theirs):
        for name in ("views", "corners", "labels"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert len(one.unreadable) == len(other.unreadable)
    (name,) = {name for batch in ours for name in batch.unreadable}
    (path,) = {name for batch in theirs for name in batch.unreadable}
    number = list_images(class_tree).index(str(Path(path).relative_to(class_tree)))
    assert name == f"{packed}/shard-{number // 7:06d}.tar sample {number % 7}"


def test_a_windowed_order_has_whole_runs_fetched(tmp_path, monkeypatch):
    """Each run of 256 once, all of its images within what the kernel was told, and no more."""
    for shard in range(3):
        members = [(f"{n}.jpg", bytes([n % 256]) * (100 + n)) for n in range(300)]
        write_tar(tmp_path / f"{shard}.tar", members)
    assert pack("--index", tmp_path).returncode == 0
    images, plain = open_images(tmp_path, window=512), open_images(tmp_path)
    told, original = [], os.posix_fadvise

    def fadvise(descriptor, offset, length, advice):
        assert advice == os.POSIX_FADV_WILLNEED
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        told.append((path, offset, offset + length))
        original(descriptor, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", fadvise)
    config = PretrainConfig(data=Data(window=512), optim=Optim(epochs=1, batch_size=10))
    order = Order(900, config, 0).numbers(0, np.arange(900)).tolist()
    for number in order:
        assert images.read(number) == plain.read(number)
    assert len(told) == 4 + 2  # runs 0-255, -511, -767, -899; shards end at 300 and 600
    for shard in range(3):
        ranges = sorted((a, b) for path, a, b in told if path == f"{tmp_path}/{shard}.tar")
        with tarfile.open(tmp_path / f"{shard}.tar") as archive:
            places = [(m.offset_data, m.offset_data + m.size) for m in archive.getmembers()]
        assert all(any(a <= x and y <= b for a, b in ranges) for x, y in places)
        assert (ranges[0][0], ranges[-1][1]) == (places[0][0], places[-1][1])


def test_a_run_on_shards_ends_as_one_on_the_folder(image_folder, tmp_path):
    assert pack(image_folder, tmp_path / "shards", "--shard-size", 10).returncode == 0
    config = tmp_path / "tiny.yaml"
    config.write_text("""
data: {image_size: 32}
model: {width: 4, hidden: 8, embedding: 8, queue_length: 16, bn_group: 4}
optim: {epochs: 1, batch_size: 16, precision: fp32}
launch: {device: cpu, workers: 1}
""")
    states = []
    for root in (image_folder, tmp_path / "shards"):
        output = tmp_path / f"run-{root.name}"
        words = ["pretrain", "--config-file", config, "--output", output, f"data.root={root}"]
        done = subprocess.run(
            [sys.executable, "-m", *map(str, words)], cwd=ROOT, check=True, timeout=60
        )
        assert done.returncode == 0
        states.append(load_checkpoint(latest_good(output / "checkpoints"))["model"])
    tensors = [{k: v for k, v in s.items() if isinstance(v, torch.Tensor)} for s in states]
    assert len(tensors[0]) > 100
    assert all(torch.equal(tensors[0][k], tensors[1][k]) for k in tensors[0])


def test_another_process_gets_the_index_by_its_path(packed):
    images = open_images(packed)
    images.read(3)
    content = pickle.dumps(images)
    assert len(content) < 500
    assert pickle.loads(content).read(20) == images.read(20)


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.suffix in (".tar", ".npy") or path.name == "index.json"
    }


def test_a_killed_pack_is_continued_to_the_same_files(tmp_path):
    source, content = tmp_path / "many", io.BytesIO()
    source.mkdir()
    Image.new("RGB", (8, 8)).save(content, "JPEG")
    for number in range(3000):
        (source / f"{number}.jpg").write_bytes(content.getvalue() + bytes([number % 256]))
    words = ["--shard-size", 50, "--workers", 2]
    assert pack(source, tmp_path / "whole", *words).returncode == 0
    again = pack(source, tmp_path / "whole", *words)
    assert (again.returncode, "already finished" in again.stdout) == (0, True)
    target = tmp_path / "killed"
    command = [sys.executable, "-m", "pretrain.pack", source, target, *words]
    process = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL
    )
    while len(list(target.glob("shard*"))) < 3:
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (target / "index.json").exists()
    (target / ".shard-000009.1.tmp.tar").write_bytes(b"a part")
    assert pack(source, target, *words).returncode == 0
    assert digests(target) == digests(tmp_path / "whole")
    assert not list(target.glob(".shard*"))
    other = pack(source, target, "--shard-size", 60)
    assert other.returncode == 2
    assert "made with shard_size = 50, now 60" in other.stderr


def write_tar(path, members, archive_format=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=archive_format) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("archive_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_shards_of_others_are_indexed_where_they_are(tmp_path, archive_format):
    long = "n" * 150
    first = [
        ("./a.json", b"{}"), ("./a.jpg", b"one"), ("./a.cls", b"7\n"),
        (f"dir/{long}.seg.png", b"mask"), (f"dir/{long}.PNG", b"two"),
        ("c.txt", b"no image"),
    ]  # fmt: skip
    write_tar(tmp_path / "x-0.tar", first, archive_format)
    write_tar(tmp_path / "x-1.tar", [("b.cls", b"2"), ("b.webp", b"three" * 300)], archive_format)
    done = pack("--index", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 images in 2 shards, 1 left out" in done.stdout
    images = open_images(tmp_path)
    assert [images.read(number) for number in range(3)] == [b"one", b"two", b"three" * 300]
    assert [images.label(number) for number in range(3)] == [7, 0, 2]
    assert images.classes == [""]  # one has none
    digest = images.digest
    write_tar(tmp_path / "x-1.tar", [("b.cls", b"2"), ("b.webp", b"four" * 3000)], archive_format)
    with pytest.raises(UserError, match=r"x-1.tar: \d+ bytes long, and its index says"):
        open_images(tmp_path)
    assert pack("--index", tmp_path).returncode == 0
    assert open_images(tmp_path).digest != digest


def test_classes_of_others_shards_are_numbers(tmp_path):
    for number in range(2):
        members = [("a.jpg", b"x"), ("a.cls", str(3 * number).encode())]
        write_tar(tmp_path / f"{number}.tar", members)
    assert pack("--index", tmp_path).returncode == 0
    images = open_images(tmp_path)
    assert images.classes == list("0123") and [images.label(n) for n in range(2)] == [0, 3]


def test_what_lies_behind_a_shards_end_is_seen(tmp_path):
    """tarfile stops in silence at a damaged header, and where another archive follows."""
    whole = write_tar(tmp_path / "a.tar", [(f"{n}.jpg", b"x") for n in range(9)]).read_bytes()
    damaged = bytearray(whole)
    damaged[4 * 1024] ^= 1  # the fifth header
    for content in (bytes(damaged), whole + whole):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"a.tar: not a whole tar file .*after byte"):
            scan(tmp_path / "a.tar")


def test_what_is_left_out_of_a_shard_is_counted(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in [
            ("a.jpg", None), ("b.jpg", tarfile.LNKTYPE), ("c.jpg", tarfile.SYMTYPE), ("a.jpg", None)
        ]:  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind or tarfile.REGTYPE, "a.jpg" if kind else ""
            archive.addfile(member)
    assert (len(scan(tmp_path / "a.tar").rows), scan(tmp_path / "a.tar").left_out) == (1, 3)
    (tmp_path / "b.tar").symlink_to("nowhere.tar")
    with pytest.raises(UserError, match=r"b.tar: not a whole tar file"):
        scan(tmp_path / "b.tar")
    huge = write_tar(tmp_path / "c.tar", [("a.jpg", b""), ("a.cls", b"4294967295")])
    with pytest.raises(UserError, match=r"4294967295 is no class's number"):
        scan(huge)


def test_an_index_of_somebody_else_stays(tmp_path, monkeypatch, capsys):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"x")])
    (tmp_path / "index.json").write_text('{"mine": 1}')
    assert "index.json: not made by this program" in mistake(
        monkeypatch, capsys, "--index", tmp_path
    )
    assert (tmp_path / "index.json").read_text() == '{"mine": 1}'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert len(open_images(tmp_path)) == 1  # a folder of images, with some file of that name


def test_a_finished_folder_that_lost_a_shard_is_mended(class_tree, tmp_path):
    words = class_tree, tmp_path / "out", "--shard-size", 20, "--workers", 1
    assert pack(*words).returncode == 0
    before = (tmp_path / "out" / "shard-000001.tar").read_bytes()
    (tmp_path / "out" / "shard-000001.tar").unlink()
    done = pack(*words)
    assert done.returncode == 0 and "missing" in done.stdout
    assert (tmp_path / "out" / "shard-000001.tar").read_bytes() == before
    assert "already finished" in pack(*words).stdout


def test_names_that_are_no_utf8_are_packed(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "in" / name)
    done = pack(tmp_path / "in", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "images.txt").read_bytes() == b"caf\xe9.png\n"


def test_a_shard_without_images_is_passed_over_in_a_window(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"one")])
    write_tar(tmp_path / "b.tar", [("b.txt", b"")])
    write_tar(tmp_path / "c.tar", [("c.json", b" " * 9000), ("c.jpg", b"three")])
    assert pack("--index", tmp_path).returncode == 0
    images = open_images(tmp_path, window=256)
    assert [images.read(number) for number in range(2)] == [b"one", b"three"]


def test_a_shard_cut_short_is_named(packed, tmp_path):
    whole = (packed / "shard-000001.tar").read_bytes()
    with tarfile.open(packed / "shard-000001.tar") as archive:
        members = archive.getmembers()
    boundary = members[4].offset  # a header of the fifth member: nothing looks amiss there
    for length in (len(whole) // 2, boundary, 100, 0):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        done = pack("--index", tmp_path)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"error: {tmp_path}/cut.tar: not a whole tar file" in done.stderr
        assert not (tmp_path / "index.json").exists()


def test_a_shard_that_shrinks_while_it_is_read_gives_an_unreadable_image(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"x" * 2000), ("b.jpg", b"y" * 2000)])
    assert pack("--index", tmp_path).returncode == 0
    images = open_images(tmp_path)
    os.truncate(tmp_path / "a.tar", 3100)
    assert images.read(0) == b"x" * 2000
    with pytest.raises(OSError, match=r"a.tar sample 1: the shard ends within it"):
        images.read(1)


def test_mistakes_are_one_line(packed, class_tree, tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.txt").write_text("ant/nowhere.jpg\n")
    (tmp_path / "nul.txt").write_bytes(b"a.jpg\0b.jpg\0")
    (tmp_path / "odd.txt").write_text("ant/portrait\n")
    write_tar(tmp_path / "a.tar", [("a.txt", b"")])
    for words, message in [
        ([tmp_path / "nowhere", tmp_path / "out"], "no such folder"),
        ([tmp_path / "empty", tmp_path / "out"], "no images found"),
        ([tmp_path, tmp_path / "out"], f"--index {tmp_path} for tars"),
        ([class_tree, class_tree], "not empty and not made by this program"),
        (["--index", tmp_path / "empty"], "no .tar files there"),
        (["--index", tmp_path], "no images in its 1 tar files"),
        ([class_tree, tmp_path / "out", "--list-file", tmp_path / "list.txt"], "nowhere.jpg"),
        ([class_tree, tmp_path / "no", "--list-file", tmp_path / "nul.txt"], "has a NUL"),
        ([class_tree, tmp_path / "no", "--list-file", tmp_path / "odd.txt"], "ends like no image"),
    ]:
        error = mistake(monkeypatch, capsys, *words)
        assert error.count("\n") == 1 and message in error
    for words in ([class_tree], ["--index", tmp_path, class_tree, tmp_path], ["--shard-size", 0]):
        assert "usage:" in mistake(monkeypatch, capsys, *words)
    with pytest.raises(UserError, match=r"choose images with data.list_file when packing"):
        open_images(packed, tmp_path / "list.txt")


def test_what_is_no_index_is_refused(packed, tmp_path):
    for name in ("index.json", "index.npy"):
        (tmp_path / name).write_bytes((packed / name).read_bytes())
    with pytest.raises(UserError, match=r"shard-000000.tar: missing, and its index says"):
        open_images(tmp_path)
    rows = np.load(tmp_path / "index.npy")
    np.save(tmp_path / "index.npy", rows[:-1])
    with pytest.raises(UserError, match=r"not an index of shards .*of another index"):
        open_images(tmp_path)
    np.save(tmp_path / "index.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"not an index of shards"):
        open_images(tmp_path)
    (tmp_path / "index.json").write_text('{"format": "another"}')
    with pytest.raises(UserError, match=r"not an index of shards .format another"):
        open_images(tmp_path)


def test_a_class_that_is_no_number_is_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b""), ("a.cls", b"cat")])
    with pytest.raises(UserError, match=r"a.tar: not a whole tar file of images .*cat"):
        scan(path)
