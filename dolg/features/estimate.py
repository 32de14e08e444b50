"""What an extraction will take, from a few of its images."""
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dolg.features.extract import Extractor
from dolg.features.sources import ImageSource
from dolg.features.store import StoreWriter

# Images tried: some before the clock starts, then parts of so many each, until so many seconds are over
_WARM_UP, _PARTS, _SECONDS = 2, (8, 8, 16, 32, 64), 30


def estimate(extractor: Extractor, writer: StoreWriter, source: ImageSource, workers: int) -> str:
    """Time, memory and disk that a store will take of `workers` like this one, in a few lines.

    Describes some images, drawn at random; nothing is written.
    """
    missing = len(source) - writer.count_written()
    count = min(_WARM_UP + sum(_PARTS), len(source))
    looked_at = np.random.default_rng(0).choice(len(source), count, replace=False)
    images = extractor.decoded(source, looked_at.tolist())
    extractor.next_table(images, min(_WARM_UP, count))
    start, tried, failed = time.perf_counter(), 0, 0
    with tqdm(total=max(0, count - _WARM_UP), desc=f"trying {writer.path.name}", unit="image",
              leave=False, disable=None) as bar:
        for part in _PARTS:
            part = min(part, count - _WARM_UP - tried)
            if part > 0 and time.perf_counter() - start < _SECONDS:
                table = extractor.next_table(images, part, bar.update)
                tried += part
                failed += int(np.isnan(table[:, 0]).sum())
    rate = tried / (time.perf_counter() - start) if tried else float("nan")
    disk = missing * _bytes_per_image(extractor, writer, source)
    lines = [f"{writer.path}: {missing} of {len(source)} images to do",
             f"  time    {_duration(missing / rate / workers)} with {workers} worker(s) like this one, "
             f"at {rate:.1f} images/s each ({tried} images tried, {failed} failed)",
             f"  memory  {_gigabytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)} a "
             f"worker{_gpu_memory(extractor.device)}",
             f"  disk    {_gigabytes(disk)}, {_gigabytes(_free(writer.path))} free"]
    return "\n".join(lines)


def _bytes_per_image(extractor: Extractor, writer: StoreWriter, source: ImageSource) -> float:
    """The most that an image takes in a store, with its name."""
    sample = [len(source.names[index]) for index in range(0, len(source), -(-len(source) // 1000))]
    size = 4 * writer.dim + 1 + float(np.mean(sample)) + 4
    if extractor.local:
        entry = {"float16": 2, "int8": 1}[writer.local_dtype]
        size += 8 + extractor.local.topk * (entry * writer.local_dim + 16)
    return size


def _gpu_memory(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return f", {_gigabytes(torch.cuda.max_memory_allocated(device))} of its GPU"


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _duration(seconds: float) -> str:
    if not seconds < 1e9:
        return "unknown"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60:.0f} s"
