"""Where the time of training goes: network, update, loader, and all of them together."""
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from dolg.core.distributed import gather
from dolg.core.trainer import Trainer

# Images made for the occasion where there is no data set: as large as photographs usually are
_HEIGHT, _WIDTH, _QUALITY, _DISTINCT = 768, 1024, 90, 16


def time_parts(trainer: Trainer, steps: int) -> dict[str, float]:
    """Seconds per step of each part, the slowest process's (each must call this).

    "forward" without gradients, "forward and backward", "update" (both and the optimizer), all
    with one batch that is on the device; "loader" alone; "training" (loader and update), which
    takes as long as the slower of the two where they overlap well.
    """
    trainer.parallel.train()
    batch = next(iter(trainer.train_loader.epoch(0)))
    parts = {
        "forward": lambda: _repeat(lambda: _forward(trainer, batch), steps, trainer.device),
        "forward and backward": lambda: _repeat(lambda: _backward(trainer, batch), steps,
                                                trainer.device),
        "update": lambda: _repeat(lambda: trainer.step(batch), steps, trainer.device),
        "loader": lambda: _over_batches(trainer, steps, lambda batch: None),
        "training": lambda: _over_batches(trainer, steps, trainer.step),
    }
    return {name: max(gather(measure())) for name, measure in parts.items()}


def _forward(trainer: Trainer, batch) -> None:
    inputs, labels = next(iter(trainer.task.parts(batch, 1)))
    with torch.no_grad(), trainer.autocast():
        trainer.module(inputs, labels)


def _backward(trainer: Trainer, batch) -> None:
    inputs, labels = next(iter(trainer.task.parts(batch, 1)))
    with trainer.autocast():
        total = trainer.parallel(inputs, labels)["total"]
    total.backward()


def _repeat(job: Callable[[], None], steps: int, device: torch.device) -> float:
    """Seconds per call, after two to warm up."""
    for _ in range(2):
        job()
    _wait_for(device)
    start = time.perf_counter()
    for _ in range(steps):
        job()
    _wait_for(device)
    return (time.perf_counter() - start) / steps


def _over_batches(trainer: Trainer, steps: int, job: Callable) -> float:
    """Seconds per batch from the loader, after those that its workers had ready at the start."""
    ready = min(steps, 2 * max(trainer.validation.workers, 1))
    batches = _endless(trainer)
    for batch in islice(batches, ready):
        job(batch)
    _wait_for(trainer.device)
    start = time.perf_counter()
    for batch in islice(batches, steps):
        job(batch)
    _wait_for(trainer.device)
    seconds = (time.perf_counter() - start) / steps
    batches.close()
    return seconds


def _endless(trainer: Trainer):
    epoch = 0
    while True:
        yield from trainer.train_loader.epoch(epoch)
        epoch += 1


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def make_photographs(folder: Path, count: int, num_classes: int) -> None:
    """`folder`/list.txt with `count` lines over a few noisy JPEGs, 1024 x 768 pixels, about
    200 kB each."""
    rng, names = np.random.default_rng(0), []
    for number in range(_DISTINCT):
        coarse = rng.integers(0, 256, (_HEIGHT // 16, _WIDTH // 16, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        names.append(f"{number}.jpg")
        cv2.imwrite(str(folder / names[-1]), noisy, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    lines = [f"{names[i % _DISTINCT]} {i % num_classes}\n" for i in range(count)]
    (folder / "list.txt").write_text("".join(lines), encoding="utf-8")
