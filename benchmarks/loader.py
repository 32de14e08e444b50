"""The loader on one core, against the originals' way. python benchmarks/loader.py [--images DIR]

Training crops of 224 pixels from JPEGs of 1024 x 768: cv2.imread and the transforms as DOLG and
DELG have them, and ours. All take the same images in the same order, from files that the system has
in memory, and cut the same boxes out of them.
"""
import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
import torchvision

from dolg.core.memory import keep_freed_memory
from dolg.data.augment import random_crop_box
from dolg.data.datasets import TrainingImages
from dolg.data.image_list import ImageList, read_image_list
from dolg.data.loader import StepLoader
from dolg.data.on_device import pack
from dolg.data.sampler import StepSampler

WIDTH, HEIGHT, QUALITY, COUNT = 1024, 768, 92, 48
SIZE, AREA, LIGHTING, BATCH, SEED, ROUNDS = 224, 0.08, 0.1, 16, 1, 9
# Of DOLG and DELG: BGR, and the principal axes of ImageNet's colours with their variances
MEAN, SD = (0.406, 0.456, 0.485), (0.225, 0.224, 0.229)
AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140],
                 [-0.5836, -0.6948, 0.4203]])
VARIANCES = np.array([0.2175, 0.0188, 0.0045])


class Spec:
    """What the network takes."""

    colour, mean, sd = "bgr", MEAN, SD


def drawn_image(rng: np.random.Generator) -> np.ndarray:
    """Noise of all scales, coarse ones strongest as in photographs, and some shapes."""
    image = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    for cells in (4, 8, 16, 32, 64, 128, 256, 512):
        noise = rng.normal(0, 90 / cells ** 0.42, (cells * 3 // 4, cells, 3)).astype(np.float32)
        image += cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        corner = rng.integers((0, 0), (WIDTH - 200, HEIGHT - 200))
        end = corner + rng.integers(40, 300, 2)
        colour = rng.integers(0, 255, 3).tolist()
        cv2.rectangle(image, corner.tolist(), end.tolist(), colour, int(rng.integers(2, 9)))
    return image.clip(0, 255).astype(np.uint8)


def make_images(folder: Path, source: Path | None) -> ImageList:
    rng, photos = np.random.default_rng(0), []
    if source:
        photos = sorted(path for path in source.iterdir() if path.suffix in (".jpg", ".png"))
    for number in range(COUNT):
        if photos:
            image = cv2.resize(cv2.imread(str(photos[number % len(photos)])), (WIDTH, HEIGHT),
                               interpolation=cv2.INTER_CUBIC)
        else:
            image = drawn_image(rng)
        cv2.imwrite(str(folder / f"{number}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    (folder / "list.txt").write_text("".join(f"{i}.jpg {i}\n" for i in range(COUNT)))
    return read_image_list(folder / "list.txt")


def originals_sample(path: str, rng: np.random.Generator) -> np.ndarray:
    """An image as the originals' data set gives it: float32 (3,224,224), BGR, normalised."""
    image = cv2.imread(path).astype(np.float32)
    top, left, height, width = random_crop_box(*image.shape[:2], AREA, rng)
    image = cv2.resize(image[top:top + height, left:left + width], (SIZE, SIZE),
                       interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        image = image[:, ::-1]
    image = image.transpose(2, 0, 1) / 255
    shift = (AXES @ (rng.normal(0, LIGHTING, 3) * VARIANCES)).tolist()
    for channel in range(3):
        image[channel] = (image[channel] + shift[2 - channel] - MEAN[channel]) / SD[channel]
    return np.ascontiguousarray(image, dtype=np.float32)


def originals_epoch(images: ImageList, epoch: int) -> Iterator[torch.Tensor]:
    for step in steps(epoch):
        batch = [originals_sample(images.name(i), np.random.default_rng([1, SEED, e, i]))
                 for e, i in step]
        yield torch.stack([torch.from_numpy(image) for image in batch])


def steps(epoch: int) -> StepSampler:
    sampler = StepSampler(COUNT, BATCH, 0, 1, SEED, shuffle=True)
    sampler.epoch = epoch
    return sampler


def ways(images: ImageList) -> dict[str, Callable[[int], Iterator]]:
    """What is measured: name -> the batches of an epoch."""
    def ours(reduced: bool) -> Callable[[int], Iterator]:
        data = TrainingImages(images, SIZE, AREA, SEED, LIGHTING, reduced=reduced)
        loader = StepLoader(data, steps(0), Spec, workers=0, pin_memory=False, device="cpu")
        return lambda epoch: (batch.images for batch in loader.epoch(epoch))

    def workers_part(on_device: str) -> Callable[[int], Iterator]:
        data = TrainingImages(images, SIZE, AREA, SEED, LIGHTING, reduced=True, on_device=on_device)
        return lambda epoch: (pack([data[key] for key in step]) for step in steps(epoch))

    return {"cv2.imread, the originals' transforms": lambda epoch: originals_epoch(images, epoch),
            "ours, REDUCED_DECODE False": ours(False), "ours, REDUCED_DECODE True": ours(True),
            "  ON_DEVICE augment, the worker's part": workers_part("augment"),
            "  ON_DEVICE decode, the worker's part": workers_part("decode")}


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second of the loader on one core.")
    parser.add_argument("--images", type=Path, metavar="DIR",
                        help="photographs to resize and take (default: drawn ones)")
    source = parser.parse_args().images
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    keep_freed_memory()
    with TemporaryDirectory() as folder:
        images = make_images(Path(folder), source)
        size = np.mean([len(images.read(i)) for i in range(COUNT)]) / 1024
        print(f"1 thread; opencv {cv2.__version__}, torch {torch.__version__}, torchvision "
              f"{torchvision.__version__}; {COUNT} JPEGs of {WIDTH} x {HEIGHT}, quality {QUALITY}, "
              f"{size:.0f} KB each, {source or 'drawn'}; crops of {SIZE}, areas of {AREA} to 1, "
              f"batches of {BATCH}; by CPU time, alternating, median of {ROUNDS}")
        table = ways(images)
        first = next(table["cv2.imread, the originals' transforms"](0))
        same = next(table["ours, REDUCED_DECODE False"](0))
        print(f"largest difference of the normalised pixels, originals' and ours with "
              f"REDUCED_DECODE False: {(first - same).abs().max():.4f}")
        times = {name: [] for name in table}
        for round_ in range(1 + ROUNDS):        # the first one warms up
            for name, epoch in table.items():
                start = time.process_time()
                for _ in epoch(round_):
                    pass
                times[name].append(time.process_time() - start)
    medians = {name: float(np.median(found[1:])) for name, found in times.items()}
    slowest = next(iter(medians.values()))
    for name, seconds in medians.items():
        print(f"{name:40} {COUNT / seconds:7.1f} images/s  {slowest / seconds:5.2f}x")


if __name__ == "__main__":
    main()
