"""Loaders for training: what is seen depends on the seed and the epoch alone.

Neither the number of processes nor that of workers changes an image's augmentation, nor
which images make up a step.
"""
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import cv2
import torch
from torch.utils.data import DataLoader

from dolg.data.augment import render
from dolg.data.datasets import CentredImages, Sample, TrainingImages
from dolg.data.decode import ImageError, jpeg_decoder
from dolg.data.on_device import Packed, check_decoder, cut_of, pack, unpack
from dolg.data.preprocess import preprocess
from dolg.data.sampler import BalancedStepSampler, StepSampler


@dataclass
class Batch:
    """`images` (B,3,S,S) float32, channels last, and `labels` (B,) int64 on the loader's device;
    `indexes` (B,) int64 into the image list, on the CPU. B is 0 where a step has no image for
    this process. `cut`: the indexes of images that are cut short. `replaced`: (index, reason) of unreadable
    images, in whose place others are."""

    images: torch.Tensor
    labels: torch.Tensor
    indexes: torch.Tensor
    cut: list[int] = field(default_factory=list)
    replaced: Sequence[tuple[int, str]] = ()

    def pin_memory(self) -> "Batch":
        return replace(self, images=self.images.pin_memory(), labels=self.labels.pin_memory())


def worker_count(asked: int, local_processes: int) -> int:
    """Worker processes per process: as many as asked for, or with -1 this process's share of the
    cores that the machine's `local_processes` may use, at least 1."""
    if asked >= 0:
        return asked
    return max(1, len(os.sched_getaffinity(0)) // local_processes)


def leave_signals(worker: int) -> None:
    """For a worker process: signals that ask a job to stop, and often come to all its processes,
    are for the one that it works for, which still needs it for a step."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class StepLoader:
    """Batches of the steps of a sampler, on a device.

    Args:
        dataset: images as TrainingImages or CentredImages see them.
        sampler: this process's share of each step.
        input_spec: colour order, mean and sd that the network takes (`colour`, `mean`, `sd`).
        workers: processes that read and decode; 0 does so in this one.
        pin_memory: page-locked batches, for copies that do not wait.
        device: where the batches are to be.

    `cut` are the indexes of the images of the last epoch, as far as this process has read it, that are cut
    short.

    Raises UserError if the device is to decode JPEGs and cannot.
    """

    def __init__(self, dataset: TrainingImages | CentredImages,
                 sampler: StepSampler | BalancedStepSampler, input_spec, workers: int,
                 pin_memory: bool, device: torch.device | str):
        self.dataset, self.sampler, self.device = dataset, sampler, torch.device(device)
        self.cut: set[int] = set()
        self._collate = _Collate(input_spec, dataset.size, dataset.on_device)
        jpeg_decoder()      # once, before the workers start
        if dataset.on_device == "decode":
            check_decoder(self.device)
        # Copies have a stream of their own, so that they run beside the step before
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        # A generator of its own: the loader draws a seed whenever an epoch is begun or gone on with, which
        # would change what the network's dropout draws after it
        # Forked workers share the image list; Python 3.14 would start them otherwise and send each
        # a copy
        self._loader = DataLoader(
            dataset, batch_sampler=sampler, num_workers=workers, pin_memory=pin_memory,
            collate_fn=self._collate, persistent_workers=workers > 0,
            worker_init_fn=leave_signals, multiprocessing_context="fork" if workers else None,
            generator=torch.Generator())

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from step `start` on; no image of a step before is read.

        Raises ImageError, in the process that asks, at an image that cannot be read. (Raised inside
        a worker it would arrive with the worker's traceback as its message.)
        """
        self.sampler.epoch, self.sampler.start, self.cut = epoch, start, set()
        with one_opencv_thread():
            batches = iter(self._loader)        # starts the workers, the first time
        for batch, replaced in batches:
            if isinstance(batch, ImageError):
                try:
                    raise batch
                finally:
                    del batch       # or it would refer, through its traceback, to itself
            self.cut.update(batch.cut)
            yield replace(self._to_device(batch), replaced=replaced)

    def _to_device(self, sent: Batch | Packed) -> Batch:
        if self._copies is None:
            return self._move(sent)
        with torch.cuda.stream(self._copies):
            batch = self._move(sent)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._copies)
        for tensor in (batch.images, batch.labels):
            tensor.record_stream(current)       # its memory is not the copies' to use again yet
        return batch

    def _move(self, sent: Batch | Packed) -> Batch:
        labels = sent.labels.to(self.device, non_blocking=True)
        if isinstance(sent, Batch):
            return Batch(sent.images.to(self.device, non_blocking=True), labels, sent.indexes)
        shifts = sent.shifts.to(self.device, non_blocking=True)
        names = [self.dataset.images.name(index) for index in sent.indexes.tolist()]
        views = self._collate.empty(len(names), self.device)
        for place, pixels, view in zip(views, unpack(sent, self.device, names), sent.views):
            place.copy_(render(pixels, view))
        return Batch(self._collate.normalise(views, shifts), labels, sent.indexes)


class _Collate:
    """In a worker: samples -> what it sends, or the first ImageError among them; and what was replaced.

    (No method of the loader, which would then be freed, and its workers ended, only when Python
    looks for objects that refer to each other.)
    """

    def __init__(self, spec, size: int, on_device: str):
        self.spec, self.size, self.on_device = spec, size, on_device

    def __call__(self, samples: list[Sample | ImageError]) -> tuple[Batch | Packed | ImageError, list]:
        for sample in samples:
            if isinstance(sample, ImageError):
                return sample, []
        return self._sent(samples), [found for sample in samples for found in sample.replaced]

    def _sent(self, samples: list[Sample]) -> Batch | Packed:
        if self.on_device:
            return pack(samples)
        images = self.empty(len(samples), "cpu")
        for image, sample in zip(images, samples):      # one by one: each fits the CPU's cache
            image.copy_(self.normalise(sample.pixels[None], torch.tensor([sample.view.shift]))[0])
        return Batch(images, torch.tensor([sample.label for sample in samples], dtype=torch.int64),
                     torch.tensor([sample.index for sample in samples], dtype=torch.int64),
                     cut_of(samples))

    def empty(self, count: int, device: torch.device | str) -> torch.Tensor:
        """Room for `count` views."""
        return torch.empty((count, 3, self.size, self.size), device=device,
                           memory_format=torch.channels_last)

    def normalise(self, views: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
        """Rendered views (B,3,S,S) in 0..255 as the network takes them."""
        spec = self.spec
        return preprocess(views, (self.size, self.size), spec.colour, spec.mean, spec.sd,
                          shift=shifts)


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """For what is forked meanwhile: OpenCV's threads are not forked, and a worker would wait for
    them forever; nor should every worker start some for all cores."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)        # which ends those there are
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
