"""Tar shards: made, indexed, read in any order, and refused where they are damaged."""
import io
import multiprocessing
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dolg.data import shard_index, shards
from dolg.data.datasets import TrainingImages
from dolg.data.decode import ImageError
from dolg.data.image_list import read_image_list
from dolg.data.images import check_images, open_images
from dolg.data.loader import StepLoader
from dolg.data.sampler import StepSampler
from dolg.errors import UserError


class _Spec:
    colour, mean, sd = "bgr", (0.4, 0.45, 0.5), (0.2, 0.21, 0.22)


@pytest.fixture(scope="module")
def packed(run_tool, toy_images, tmp_path_factory) -> Path:
    """The toy list's 24 images in three shards, train-000000.tar to train-000002.tar."""
    folder = tmp_path_factory.mktemp("shards")
    done = run_tool("tools/make_shards.py", "--list", toy_images / "toy" / "train_list.txt",
                    "--output", folder, "--size", 10, "--name", "train")
    assert done.returncode == 0, done.stderr
    assert "24 images in 3 shards, 3 made now; TRAIN.SPLIT 'train-*.tar'" in done.stdout
    return folder


def _write(file: Path, members: dict[str, bytes], **options) -> Path:
    with tarfile.open(file, "w", **options) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def _error(folder: Path, split: str, num_classes: int | None = None) -> str:
    with pytest.raises(UserError) as error:
        open_images(folder, split, num_classes)
    assert "\n" not in str(error.value)
    return str(error.value)


def _copy(packed: Path, folder: Path) -> None:
    for file in packed.glob("train-*.tar"):
        (folder / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("split", ["train-*.tar", "train-{000000..000002}.tar",
                                   "train-00000{0..2}.tar", "train-00000[0-2].tar"])
def test_shards_hold_what_the_list_does(packed, toy_images, split):
    listed = read_image_list(toy_images / "toy" / "train_list.txt")
    images = open_images(packed, split, num_classes=4)
    assert len(images) == len(listed) == 24
    assert images.labels.tolist() == listed.labels.tolist()
    for i in np.random.default_rng(0).permutation(24).tolist():
        assert images.read(i) == listed.read(i)
    assert images.name(13) == str(packed / "train-000001.tar") + ":000000013.jpg"
    part = open_images(packed / "elsewhere" / "..", str(packed / "train-000001.tar"))
    assert part.labels.tolist() == listed.labels[10:20].tolist() and part.read(3) == listed.read(13)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_files_bit_for_bit(packed, toy_images, workers):
    batches = []
    for images in (open_images(packed, "train-*.tar"),
                   open_images(toy_images / "toy", "train_list.txt")):
        data = TrainingImages(images, 32, 0.08, seed=3, reduced=True)
        sampler = StepSampler(len(images), 8, 0, 1, seed=5, shuffle=True)
        loader = StepLoader(data, sampler, _Spec, workers, False, "cpu")
        batches.append([batch for epoch in (0, 1) for batch in loader.epoch(epoch)])
    assert len(batches[0]) == len(batches[1]) == 6
    for shard, file in zip(*batches):
        for name in ("images", "labels", "indexes"):
            assert getattr(shard, name).equal(getattr(file, name))


def test_making_shards_again_makes_those_that_lack(run_tool, packed, toy_images, tmp_path):
    _copy(packed, tmp_path)
    (tmp_path / "train.json").write_text((packed / "train.json").read_text())
    files = sorted(tmp_path.glob("*.tar"))
    assert [file.name for file in files] == [f"train-00000{i}.tar" for i in range(3)]
    before = [file.stat().st_mtime_ns for file in files]
    files[1].unlink()
    command = ["tools/make_shards.py", "--list", toy_images / "toy" / "train_list.txt", "--output",
               tmp_path, "--name", "train", "--size"]
    again = run_tool(*command, 10)
    assert "1 made now" in again.stdout and again.stderr == ""
    assert files[0].stat().st_mtime_ns == before[0] and files[2].stat().st_mtime_ns == before[2]
    # The same list, the same bytes
    assert files[1].read_bytes() == (packed / "train-000001.tar").read_bytes()
    other = run_tool(*command, 7, fresh=True)
    assert other.returncode == 1 and "shards 'train' of another list than" in other.stderr
    assert other.stderr.count("\n") == 1


def test_a_shard_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "list.txt").write_text("a.png 0\nabsent.jpg 0\nb.heic 1\n")
    for name in ("a.png", "b.heic"):
        (tmp_path / name).write_bytes(b"x")
    images = read_image_list(tmp_path / "list.txt")
    with pytest.raises(ImageError, match="absent.jpg: No such file"):
        shards.write_shard(tmp_path / "out" / "a.tar", images, range(3))
    with pytest.raises(UserError, match="b.heic: a shard's images end in .jpg, .jpeg, .*, .avif"):
        shards.write_shard(tmp_path / "out" / "a.tar", images, [0, 2])
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_labels_and_other_members(tmp_path, form):
    long = f"{'x' * 60}/{'y' * 90}" if form == tarfile.USTAR_FORMAT else "z" * 300
    _write(tmp_path / "a.tar", {
        "0.note.txt": b"no part of any image", "b/0.JPG": b"first", "b/0.cls": b" 5\n",
        f"{long}.webp": b"second", f"{long}.json": b'{"label": 7, "x": [1]}',
        "both ü.json": b'{"label": 1}', "both ü.cls": b"2",
        "both ü.jpeg": b"third",
        "m.json": b'{"caption": "a bridge"}', "m.gif": b"fourth", "m.cls": b"3",    # metadata
        "n.cls": b"4", "n.json": b"[" * 10_000, "n.jfif": b"fifth",
        "of_the_shard.json": b'{"made": 2024}'}, format=form)
    images = open_images(tmp_path, "a.tar")
    assert images.labels.tolist() == [5, 7, 2, 3, 4]
    assert [images.read(i) for i in range(5)] == [b"first", b"second", b"third", b"fourth", b"fifth"]
    assert [images.name(i) for i in range(5)] == [
        f"{tmp_path}/a.tar:{name}" for name in ("b/0.JPG", f"{long}.webp", "both ü.jpeg", "m.gif", "n.jfif")]


def test_cls_is_the_label_beside_metadata(run_tool, tiny, tmp_path):
    """The last of the labels 0, 1, 2, 3 is too high for three classes; all are read, those of JSON none."""
    members = {f"{i}.{kind}": content for i in range(4) for kind, content in
               (("jpg", b"x"), ("json", b'{"caption": "x"}'), ("cls", b"%d" % i))}
    _write(tmp_path / "a.tar", members)
    done = run_tool("tools/train.py", *tiny, "DATA_DIR", tmp_path, "TRAIN.DATASET", ".",
                    "TRAIN.SPLIT", "a.tar", "MODEL.NUM_CLASSES", 3, "OUT_DIR", tmp_path / "out")
    assert done.returncode == 1
    assert "a.tar:3.jpg: label 3 is outside 0 .. 2" in done.stderr


def test_shards_that_are_not_there(packed, tmp_path):
    assert f"no shard {packed}/val-*.tar" in _error(packed, "val-*.tar")
    assert "make_shards.py makes them" in _error(packed, "val.tar")
    lacking = _error(packed, "train-{000000..000003}.tar")
    assert f"no shard {packed}/train-000003.tar" in lacking


def test_labels_out_of_range(packed):
    message = _error(packed, "train-*.tar", num_classes=3)
    assert "train-000001.tar:000000018.jpg: label 3 is outside 0 .. 2" in message
    assert "MODEL.NUM_CLASSES is 3" in message


@pytest.mark.parametrize("members, message", [
    ({"a.jpg": b"x"}, "has no label (cls or json) for a"),
    ({"a.jpg": b"x", "a.cls": b"1", "b.cls": b"1"}, "has no image (jpg, jpeg, "),
    ({"a.jpg": b"x", "a.cls": b"one"}, "has no label in a.cls: give a whole number"),
    ({"a.jpg": b"x", "a.cls": b"-1"}, "has no label in a.cls"),
    ({"a.jpg": b"x", "a.cls": b""}, "has no label in a.cls"),
    ({"a.jpg": b"x", "a.json": b"{"}, "has no label in a.json"),
    ({"a.jpg": b"x", "a.json": b"[1]"}, "has no label in a.json"),
    ({"a.jpg": b"x", "a.json": b'{"label": true}'}, "has no label in a.json"),
    ({"a.jpg": b"x", "a.json": b'{"class": 1}'},
     'has no label in a.json: give a whole number, 0 or more as "label", or in a.cls'),
    ({"a.jpg": b"x", "a.png": b"x", "a.cls": b"1"}, "has two images of the name a"),
    ({"a.txt": b"x"}, "there is no image in"),
])
def test_shards_without_what_they_need(tmp_path, members, message):
    _write(tmp_path / "a.tar", members)
    assert message in _error(tmp_path, "a.tar") and "a.tar" in _error(tmp_path, "a.tar")


def test_damaged_shards(packed, tmp_path):
    whole = (packed / "train-000000.tar").read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512         # of the last member's data
    with tarfile.open(packed / "train-000000.tar") as tar:
        fifth = tar.getmembers()[5].offset
    cuts = [0, 100, 512, 700, fifth, fifth + 200, fifth + 512, end - 100, end]
    for content in [whole[:cut] for cut in cuts] + [
            whole[:fifth] + b"garbage!" * 64 + whole[fifth + 512:], b"no tar file" * 100]:
        (tmp_path / "a.tar").write_bytes(content)
        message = _error(tmp_path, "a.tar")
        assert f"the shard {tmp_path}/a.tar" in message and "damaged" in message, len(content)
    (tmp_path / "a.tar").write_bytes(whole)
    assert len(open_images(tmp_path, "a.tar")) == 10


def test_the_index_is_kept_while_the_shards_stay(packed, tmp_path, monkeypatch):
    _copy(packed, tmp_path)
    scanned, scan = [], shard_index._scan
    monkeypatch.setattr(shard_index, "_scan", lambda file: scanned.append(file.name) or scan(file))
    first = open_images(tmp_path, "train-*.tar")
    assert len(scanned) == 3
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    again = open_images(moved, "train-*.tar")
    assert len(scanned) == 3
    assert again.labels.tolist() == first.labels.tolist() and again.read(17) is not None
    os.utime(moved / "train-000001.tar", ns=(1, 1))
    open_images(moved, "train-*.tar")
    assert len(scanned) == 6
    cache, = moved.glob(".*.npz")
    for content in (b"", b"nonsense", cache.read_bytes()[:-50], cache.read_bytes()[:300]):
        cache.write_bytes(content)
        before = len(scanned)
        assert open_images(moved, "train-*.tar").labels.tolist() == first.labels.tolist()
        assert len(scanned) == before + 3
    (moved / "train-000002.tar").unlink()
    assert len(open_images(moved, "train-*.tar")) == 20


def test_a_folder_that_may_only_be_read(packed, tmp_path, monkeypatch):
    _copy(packed, tmp_path)

    def refuse(path):
        raise PermissionError(f"no writing in {path}")

    monkeypatch.setattr(shard_index, "atomic_file", refuse)
    assert len(open_images(tmp_path, "train-*.tar")) == 24
    assert not list(tmp_path.glob(".*"))


def test_an_index_that_holds_a_pickle_is_not_run(packed, tmp_path):
    _copy(packed, tmp_path)
    images = open_images(tmp_path, "train-*.tar")
    cache, = tmp_path.glob(".*.npz")

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "pwned"), "w")

    np.savez(cache, shards=np.array([Evil()], dtype=object))
    assert open_images(tmp_path, "train-*.tar").labels.tolist() == images.labels.tolist()
    assert not (tmp_path / "pwned").exists()


def _open_and_report(folder, ready, results):
    ready.wait()
    results.put(open_images(folder, "train-*.tar").labels.tolist())


def test_several_processes_index_at_once(packed, tmp_path):
    _copy(packed, tmp_path)
    context = multiprocessing.get_context("fork")
    ready, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_open_and_report, args=(tmp_path, ready, results))
                 for _ in range(4)]
    for process in processes:
        process.start()
    expected = open_images(packed, "train-*.tar").labels.tolist()
    assert [results.get(timeout=30) for _ in processes] == [expected] * 4
    for process in processes:
        process.join()
    assert len(list(tmp_path.glob(".*"))) == 1


def test_only_some_shards_are_open_at_a_time(packed, monkeypatch):
    monkeypatch.setattr(shards, "_OPEN_FILES", 2)
    images = open_images(packed, "train-*.tar")
    contents = [images.read(i) for i in range(24)]
    for i in np.random.default_rng(1).integers(0, 24, 100).tolist():
        assert images.read(i) == contents[i]
        assert len(images._open) <= 2


def test_a_shard_that_changes_while_it_is_used(packed, tmp_path):
    _copy(packed, tmp_path)
    images = open_images(tmp_path, "train-*.tar")
    for how in ("sample", "all", "none"):
        check_images(images, how)
    file = tmp_path / "train-000001.tar"
    os.truncate(file, 5000)
    with pytest.raises(ImageError, match="train-000001.tar:000000019.jpg: the shard has become"):
        images.read(19)
    with pytest.raises(UserError, match="^10 of the 24 images looked for, of 24, .*000000010.jpg"):
        check_images(images, "sample", tmp_path / "missing.txt")
    assert len((tmp_path / "missing.txt").read_text().splitlines()) == 10
    images = open_images(tmp_path, "train-000002.tar")
    (tmp_path / "train-000002.tar").unlink()
    with pytest.raises(ImageError, match="train-000002.tar:000000021.jpg: No such file"):
        images.read(1)
