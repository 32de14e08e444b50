"""A million images through extraction into a store and back: python benchmarks/scale.py [COUNT ...]

The network is a stub, and all images are one small file, which is read and decoded anew for each: what
is measured is the machinery around them. Each count runs in a process of its own, whose peak memory is
reported.
"""
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from dolg.features.extract import Extractor
from dolg.features.sources import ImageSource, Names
from dolg.features.store import FeatureStore, StoreWriter
from dolg.models.backbones.input_spec import PYCLS

DIM, CHUNK, WORKERS = 512, 256, 1


class Stub(nn.Module):
    """Mean colours, spread over the dimensions of a descriptor."""

    dim, input_spec = DIM, PYCLS

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, DIM)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"global": self.fc(images.mean(dim=(2, 3)))}


class Same(Sequence):
    """One file name, so many times."""

    def __init__(self, name: str, count: int):
        self.name, self.count = name, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> str:
        return self.name


def measure(count: int, folder: Path, pipe) -> None:
    torch.set_num_threads(1)
    cv2.imwrite(str(folder / "tiny.jpg"), np.full((24, 32, 3), 90, np.uint8))
    source = ImageSource(Names(f"{i // 1000:04d}/{i:07d}.jpg" for i in range(count)), folder,
                         Same("tiny.jpg", count))
    writer = StoreWriter(folder / "store", source.names, DIM, CHUNK, {})
    extractor = Extractor(Stub(), [1.0], torch.float32, 0, WORKERS, 10 ** 8, strict=True)
    start = time.perf_counter()
    extractor.fill(writer, source, writer.missing_chunks())
    written = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send((count / (written - start), peak))


def read(folder: Path, pipe) -> None:
    start = time.perf_counter()
    store = FeatureStore(folder / "store")
    opened = time.perf_counter()
    total = sum(float(chunk[:, 0].sum()) for chunk in store.chunks())     # touches every page
    for chunk in store.chunks():
        np.add.reduce(chunk, axis=None)
    streamed = time.perf_counter()
    names = len(store.names)
    named = time.perf_counter()
    assert names == store.count and np.isfinite(total)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = store.count * store.dim * 4
    pipe.send((opened - start, size / (streamed - opened) / 1e9, named - streamed, peak))


def in_a_process(job, *args):
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=job, args=(*args, theirs))
    process.start()
    answer = ours.recv()
    process.join()
    return answer


def main() -> None:
    print(f"torch {torch.__version__}, cpu, 1 thread and 1 decoding process, {DIM} dimensions, chunks of "
          f"{CHUNK}\n{'images':>9} {'images/s':>9} {'peak MB':>8} {'open s':>7} {'read GB/s':>9} "
          f"{'names s':>8} {'peak MB':>8}")
    for count in map(int, sys.argv[1:] or ("10000", "100000", "1000000")):
        with tempfile.TemporaryDirectory() as folder:
            rate, peak = in_a_process(measure, count, Path(folder))
            opened, speed, named, reading = in_a_process(read, Path(folder))
        print(f"{count:9,} {rate:9.0f} {peak:8.0f} {opened:7.3f} {speed:9.2f} {named:8.2f} "
              f"{reading:8.0f}", flush=True)


if __name__ == "__main__":
    main()
