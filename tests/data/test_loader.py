"""The loader: where a batch is rendered, where an epoch begins, and who gets nothing."""
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dolg.data.datasets import CentredImages, TrainingImages
from dolg.data.decode import ImageError
from dolg.data.image_list import ImageList, read_image_list
from dolg.data.loader import StepLoader, worker_count
from dolg.data.sampler import BalancedStepSampler, StepSampler

KINDS = ["random", "random squares", "centre", "square"]


class _Spec:
    colour, mean, sd = "bgr", (0.4, 0.45, 0.5), (0.2, 0.21, 0.22)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> ImageList:
    """26 images: JPEGs of many sizes, upright, turned, grey and CMYK, and some of other kinds."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    names = []
    for number in range(26):
        height, width = rng.integers(40, 300, 2).tolist()
        noise = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        image = Image.fromarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))
        name, exif = f"{number}.jpg", Image.Exif()
        if number in (3, 7):
            name = f"{number}.{'png' if number == 3 else 'webp'}"
        elif number in (5, 9):
            image = image.convert("L" if number == 5 else "CMYK")
        elif number > 17:
            exif[0x0112] = number - 17          # 1 to 8
        image.save(folder / name, quality=95, exif=exif)
        names.append(name)
    (folder / "list.txt").write_text("".join(f"{name} {i % 5}\n" for i, name in enumerate(names)))
    return read_image_list(folder / "list.txt", num_classes=5)


def _dataset(images, kind: str = "random", **options):
    if kind == "random":
        return TrainingImages(images, 32, 0.08, seed=1, **options)
    if kind == "random squares":
        return TrainingImages(images, 32, 0.08, seed=1, lighting=0.1, resize=40, **options)
    return CentredImages(images, 40, 32, square=kind == "square", **options)


def _loader(dataset, workers: int = 0, sampler=None, device: str = "cpu") -> StepLoader:
    if sampler is None:
        sampler = StepSampler(len(dataset.images), 8, 0, 1, seed=5, shuffle=False)
    return StepLoader(dataset, sampler, _Spec, workers, device != "cpu", device)


def _assert_close(batches, expected, tolerance: float) -> None:
    batches, expected = list(batches), list(expected)
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected):
        assert torch.equal(batch.labels.cpu(), other.labels)
        assert torch.equal(batch.indexes, other.indexes)
        assert batch.images.dtype == torch.float32 and batch.images.shape == other.images.shape
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert (batch.images.cpu() - other.images).abs().max() <= tolerance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduced", [False, True])
def test_the_device_renders_what_a_worker_does(mixed, kind, reduced):
    worker = _loader(_dataset(mixed, kind, reduced=reduced))
    device = _loader(_dataset(mixed, kind, reduced=reduced, on_device="augment"))
    # Pixels are normalised by 0.2 of 255; the quick way of a worker differs by 0.001 of them
    _assert_close(device.epoch(3), worker.epoch(3), 1e-4 if reduced else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_device_decodes_what_a_worker_does(mixed, kind):
    worker = _loader(_dataset(mixed, kind))
    _assert_close(_loader(_dataset(mixed, kind, on_device="decode")).epoch(3), worker.epoch(3), 0)
    # Those that a worker decodes, being turned or of other kinds, are reduced
    encoded = [_dataset(mixed, kind, on_device="decode")[0, i].pixels.ndim == 1 for i in range(26)]
    assert [i for i in range(26) if not encoded[i]] == [3, 7, 9, *range(19, 26)]


@pytest.mark.parametrize("on_device", ["", "augment", "decode"])
def test_workers_change_nothing(mixed, on_device):
    dataset = _dataset(mixed, reduced=True, on_device=on_device)
    cv2.setNumThreads(4)        # threads that a forked worker would wait for in vain
    cv2.GaussianBlur(np.zeros((1000, 1000, 3), np.uint8), (31, 31), 3)
    several = _loader(dataset, workers=2)
    _assert_close(several.epoch(1), _loader(dataset).epoch(1), 0)
    assert cv2.getNumThreads() == 4
    _assert_close(several.epoch(2), _loader(dataset).epoch(2), 0)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_device", ["", "augment", "decode"])
def test_on_a_gpu(mixed, kind, on_device):
    expected = _loader(_dataset(mixed, kind))
    loader = _loader(_dataset(mixed, kind, on_device=on_device), workers=2, device="cuda")
    for batch, other in zip(loader.epoch(0), expected.epoch(0), strict=True):
        assert batch.images.is_cuda and batch.labels.is_cuda and not batch.indexes.is_cuda
        assert torch.equal(batch.labels.cpu(), other.labels)
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        difference = (batch.images.cpu() - other.images).abs()
        # nvJPEG spreads the colours of 4:2:0 otherwise than libjpeg: a few of 255 grey levels
        assert difference.mean() < 0.05 if on_device == "decode" else difference.max() < 1e-3


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("balanced", [False, True])
def test_starting_later_skips_batches(mixed, workers, balanced):
    if balanced:
        sampler = BalancedStepSampler(mixed.labels, 6, 2, 0, 1, seed=3)
    else:
        sampler = StepSampler(len(mixed), 5, 0, 1, seed=3, shuffle=True)
    loader = _loader(_dataset(mixed), workers, sampler)
    undisturbed = {epoch: list(loader.epoch(epoch)) for epoch in (0, 1)}
    assert len(undisturbed[0]) == len(loader) >= 4
    for epoch, start in ((1, 2), (0, 1), (0, 3), (1, 0)):
        _assert_close(loader.epoch(epoch, start), undisturbed[epoch][start:], 0)
    abandoned = loader.epoch(0)
    next(abandoned)
    _assert_close(loader.epoch(1, 3), undisturbed[1][3:], 0)
    assert list(loader.epoch(0, len(loader))) == []
    _assert_close(loader.epoch(1), undisturbed[1], 0)


class _Counted:
    """An image list that notes what is read of it."""

    def __init__(self, images: ImageList):
        self.images, self.labels, self.seen = images, images.labels, []

    def name(self, index: int) -> str:
        return self.images.name(index)

    def read(self, index: int) -> bytes:
        self.seen.append(index)
        return self.images.read(index)


def test_skipped_images_are_not_read(mixed):
    counted = _Counted(mixed)
    sampler = StepSampler(26, 5, 0, 1, seed=3, shuffle=True)
    batches = list(_loader(_dataset(counted), 0, sampler).epoch(0, 3))
    assert counted.seen == torch.cat([batch.indexes for batch in batches]).tolist()
    assert len(counted.seen) == 10


@pytest.mark.parametrize("on_device, workers", [("", 0), ("", 2), ("augment", 0), ("decode", 2)])
def test_a_process_without_an_image_gets_an_empty_batch(mixed, on_device, workers):
    dataset = _dataset(mixed, on_device=on_device)
    sizes, seen = [], []
    for rank in range(4):
        sampler = StepSampler(26, 8, rank, 4, seed=5, shuffle=False)
        batches = list(_loader(dataset, workers, sampler).epoch(0))
        sizes.append([len(batch.images) for batch in batches])
        seen += torch.cat([batch.indexes for batch in batches]).tolist()
        empty = batches[-1]
        if rank > 1:
            assert empty.images.shape == (0, 3, 32, 32) and empty.images.dtype == torch.float32
            assert empty.labels.shape == empty.indexes.shape == (0,)
            assert empty.labels.dtype == empty.indexes.dtype == torch.int64
    assert sizes == [[2, 2, 2, 1], [2, 2, 2, 1], [2, 2, 2, 0], [2, 2, 2, 0]]
    assert sorted(seen) == list(range(26))


def _with_bad_image(mixed: ImageList, folder: Path, content: bytes) -> ImageList:
    shutil.copytree(mixed.file.parent, folder, dirs_exist_ok=True)
    (folder / "11.jpg").write_bytes(content)
    return read_image_list(folder / "list.txt")


@pytest.mark.parametrize("on_device", ["", "augment", "decode"])
@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_names_itself(mixed, tmp_path, on_device, workers):
    data = mixed.read(11)
    tables = data.index(b"\xff\xc4") + 5        # the lengths of a Huffman table's codes
    impossible = data[:tables] + b"\xff" * 16 + data[tables + 16:]
    for content, reason in ((data[:100], "only headers"), (b"text", "not an image"),
                            (b"", "is empty"), (impossible, "uffman")):
        images = _with_bad_image(mixed, tmp_path, content)
        seen, error = [], None
        try:
            for batch in _loader(_dataset(images, on_device=on_device), workers).epoch(0):
                seen += batch.indexes.tolist()
        except ImageError as found:     # not by pytest.raises: that would keep the workers
            error = ImageError(found.path, found.reason)
        assert seen == list(range(8)) and error.path == str(tmp_path / "11.jpg")
        assert reason in error.reason and "\n" not in error.reason


def test_worker_count():
    cores = len(os.sched_getaffinity(0))
    assert worker_count(-1, 1) == cores
    assert worker_count(-1, 10 * cores) == 1
    assert worker_count(-1, 2) == max(1, cores // 2)
    assert (worker_count(0, 8), worker_count(5, 8)) == (0, 5)
