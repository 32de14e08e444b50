"""Stored features of images as reranking transformers take them: sides of pairs, padded and in batches."""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from dolg.data.loader import leave_signals
from dolg.errors import UserError
from revisitop.stores import StoreError

# float32 scales (n,) -> int64 rows (n,) of an embedding
ScaleIndexes = Callable[[np.ndarray], np.ndarray]


class Locals(Protocol):
    """Local features of one image, as `FeatureStore.local` gives them: descriptors (n,C), columns and
    rows in pixels (n,2), scales (n,), all float32, the highest attention first."""

    descriptors: np.ndarray
    xy: np.ndarray
    scales: np.ndarray


class Features(Protocol):
    """What is read of a feature store: descriptors (n,D) of rows (n,), local features of one row."""

    def rows(self, wanted: np.ndarray) -> np.ndarray: ...

    def local(self, index: int) -> Locals: ...


def side_of(descriptors: np.ndarray, tables: Sequence[Locals], most: int,
            scale_indexes: ScaleIndexes) -> dict[str, torch.Tensor]:
    """Images as one side of as many pairs, padded to the N local features of the one that has most.

    Args:
        descriptors: (B,D) float32, as stored.
        tables: the local features of each image; of one that has more than `most`, the first so many.
        scale_indexes: gives the row of the scale embedding for each scale.

    Returns `global` (B,D), `local` (B,N,C), `positions` (B,N,2), float32; `mask` (B,N) bool, True where
    padded; `scales` (B,N) int64. Padded slots are zeros. Raises what `scale_indexes` raises.
    """
    counts = np.array([min(most, len(table.scales)) for table in tables], np.int64)
    shape = len(tables), int(counts.max(initial=0))
    mask = np.arange(shape[1]) >= counts[:, None]
    side = {"global": torch.from_numpy(np.ascontiguousarray(descriptors)), "mask": torch.from_numpy(mask)}
    for name, column in (("local", "descriptors"), ("positions", "xy")):
        padded = np.zeros((*shape, getattr(tables[0], column).shape[1]), np.float32)
        for image, table, count in zip(padded, tables, counts):
            image[:count] = getattr(table, column)[:count]
        side[name] = torch.from_numpy(padded)
    scales = np.zeros(shape, np.int64)
    scales[~mask] = scale_indexes(np.concatenate([t.scales[:n] for t, n in zip(tables, counts)]))
    return {**side, "scales": torch.from_numpy(scales)}


def take(side: dict[str, torch.Tensor], rows: torch.Tensor | slice) -> dict[str, torch.Tensor]:
    """A side with some of its images, in the order of `rows`."""
    return {name: tensor[rows] for name, tensor in side.items()}


class Sample(NamedTuple):
    """An image on its way into a batch: its descriptor (D,), its local features, its class, its row."""

    descriptor: np.ndarray
    local: Locals
    label: int
    row: int


class StoredFeatures(Dataset):
    """The features of a store's images, read when they are asked for, and their labels (N,).

    Keys are (view, row); a stored image looks the same in every view. What cannot be read comes as a
    UserError.
    """

    def __init__(self, store: Features, labels: np.ndarray):
        self.store, self.labels = store, labels

    def __getitem__(self, key: tuple[int, int]) -> Sample | UserError:
        _, row = key
        try:
            return Sample(self.store.rows(np.array([row]))[0], self.store.local(row),
                          int(self.labels[row]), row)
        except StoreError as error:
            return UserError(str(error))


@dataclass
class FeatureBatch:
    """`side` (see `side_of`) of B images and their `labels` (B,) int64, on the loader's device;
    `indexes` (B,) int64, their rows, on the CPU. `replaced`: of stored features, nothing is."""

    side: dict[str, torch.Tensor]
    labels: torch.Tensor
    indexes: torch.Tensor
    replaced: tuple = ()

    def pin_memory(self) -> "FeatureBatch":
        return FeatureBatch({name: tensor.pin_memory() for name, tensor in self.side.items()},
                            self.labels.pin_memory(), self.indexes)


class FeatureLoader:
    """Batches of the steps of a sampler, on a device.

    Args:
        dataset: what the sampler's keys are of.
        sampler: this process's share of each step, with `epoch` and `start`.
        most, scale_indexes: see `side_of`.
        workers: processes that read and pad; 0 does so in this one.
        pin_memory: page-locked batches, for copies that do not wait.
        device: where the batches are to be.
    """

    def __init__(self, dataset: StoredFeatures, sampler: Sampler, most: int,
                 scale_indexes: ScaleIndexes, workers: int, pin_memory: bool,
                 device: torch.device | str):
        self.sampler, self.device = sampler, torch.device(device)
        # Copies have a stream of their own, so that they run beside the step before
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        # Forked workers share the labels and what is known of the store. Their seed, which nobody uses, is
        # drawn anew whenever an epoch is begun or gone on with: not from the generator that dropout has
        self._loader = DataLoader(
            dataset, batch_sampler=sampler, num_workers=workers, pin_memory=pin_memory,
            collate_fn=_Collate(most, scale_indexes), persistent_workers=workers > 0,
            worker_init_fn=leave_signals, multiprocessing_context="fork" if workers else None,
            generator=torch.Generator())

    def __len__(self) -> int:
        return len(self.sampler)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[FeatureBatch]:
        """The batches of one epoch from step `start` on; nothing of a step before is read.

        Raises UserError, in the process that asks, for a damaged store, or scales that are unknown.
        (Raised inside a worker it would arrive with the worker's traceback as its message.)
        """
        self.sampler.epoch, self.sampler.start = epoch, start
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            yield self._to_device(batch)

    def _to_device(self, sent: FeatureBatch) -> FeatureBatch:
        if self._copies is None:
            return self._move(sent)
        with torch.cuda.stream(self._copies):
            batch = self._move(sent)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._copies)
        for tensor in (*batch.side.values(), batch.labels):
            tensor.record_stream(current)       # its memory is not the copies' to use again yet
        return batch

    def _move(self, sent: FeatureBatch) -> FeatureBatch:
        side = {name: tensor.to(self.device, non_blocking=True) for name, tensor in sent.side.items()}
        return FeatureBatch(side, sent.labels.to(self.device, non_blocking=True), sent.indexes)


class _Collate:
    """In a worker: samples -> a batch, or the first UserError. (No method of the loader: see
    `dolg.data.loader`.)"""

    def __init__(self, most: int, scale_indexes: ScaleIndexes):
        self.most, self.scale_indexes = most, scale_indexes

    def __call__(self, samples: list[Sample | UserError]) -> FeatureBatch | UserError:
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
        descriptors, tables, labels, rows = zip(*samples)
        try:
            side = side_of(np.stack(descriptors), tables, self.most, self.scale_indexes)
        except UserError as error:
            return error
        return FeatureBatch(side, torch.tensor(labels), torch.tensor(rows))
