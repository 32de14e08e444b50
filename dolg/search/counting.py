"""Counting of ranks (revisitop/counting.py) on a GPU, and by several processes."""
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from dolg.core.distributed import gather, rank, world_size
from revisitop.counting import Block, Wanted, check_finite
from revisitop.stores import StoreError


class DeviceCounter:
    """`revisitop.counting.Counter`, on a device: `ahead` are the images ahead of each labelled one."""

    def __init__(self, wanted: Wanted, block_rows: int, device: torch.device):
        self.wanted, self.device = wanted, device
        dtype = torch.float64 if wanted.double else torch.float32
        self._queries = torch.from_numpy(wanted.queries).to(device, dtype)
        self._twins = torch.from_numpy(wanted.twins.scores).to(device)
        # A row per query, as long as the longest; what fills it up scores higher than anything
        self._counts = np.diff(wanted.ends)
        self._mask = np.arange(self._counts.max(initial=0)) < self._counts[:, None]
        self._scores = self._padded(wanted.scores, torch.inf)
        self._images = self._padded(wanted.images, -1)
        self._rows = self._padded(wanted.rows, -1)
        self._ahead = torch.zeros_like(self._images)

    @property
    def ahead(self) -> np.ndarray:
        return self._ahead.cpu().numpy()[self._mask]

    def add(self, block: Block) -> None:
        """Count the images of a block."""
        descriptors = torch.from_numpy(block.descriptors).to(self.device, self._queries.dtype)
        scores = (self._queries @ descriptors.T).float()
        check_finite(block, scores[0].isfinite().cpu().numpy())
        rows, columns = self.wanted.twins.find(block.descriptors)
        scores[:, rows] = self._twins[:, columns]
        scores[:, torch.from_numpy(block.failed).to(self.device)] = -torch.inf
        ascending = scores.sort(dim=1).values
        ends = torch.searchsorted(ascending, self._scores, right=True)
        self._ahead += ascending.shape[1] - ends
        if block.images is not None:
            self._add_ties(scores, ends - torch.searchsorted(ascending, self._scores), block)

    def _add_ties(self, scores: torch.Tensor, equal: torch.Tensor, block: Block) -> None:
        """Count the images of a block that score the same (`equal` of them) and have lower indexes."""
        images = torch.from_numpy(np.ascontiguousarray(block.images)).to(self.device)
        itself = (self._rows >= block.start) & (self._rows < block.start + len(images))
        for q, i in (equal > itself.long()).nonzero().tolist():
            lower = images < self._images[q, i]
            self._ahead[q, i] += ((scores[q] == self._scores[q, i]) & lower).sum()

    def _padded(self, values: np.ndarray, fill: float) -> torch.Tensor:
        table = np.full(self._mask.shape, fill, values.dtype)
        table[self._mask] = values
        return torch.from_numpy(table).to(self.device)


def counting_options(device: torch.device) -> dict:
    """Options of `count_ranks` for this process: its share of the work, and its device."""
    options = {"share": (rank(), world_size()), "together": _count_together}
    if device.type != "cpu":
        # Two threads, so that one reads while the other's block is counted
        options.update(counter=partial(DeviceCounter, device=device), threads=2)
    return options


def _count_together(count: Callable[[], np.ndarray]) -> np.ndarray:
    """The sum of what `count` gives in all processes; what one of them raises, all do."""
    if world_size() == 1:
        return count()
    counts = error = None
    try:
        counts = count()
    except StoreError as caught:
        error = str(caught)
    for message in gather(error):
        if message:
            raise StoreError(message)
    total = torch.from_numpy(counts)        # on the CPU, where all backends can add them
    dist.all_reduce(total)
    return total.numpy()
