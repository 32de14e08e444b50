"""Exact inner-product search: one pass over a database of any size."""
from collections.abc import Iterable

import numpy as np
import torch

from dolg.errors import UserError

# One block of work, whatever the number of queries and images: it sets the memory in use
# (the scores take 32 MiB) and not the results.
BLOCK_QUERIES = 1024
BLOCK_ROWS = 4096
_LOW_32_BITS = (1 << 32) - 1


def top_k(
    queries: np.ndarray, chunks: Iterable[np.ndarray], k: int, device: str | torch.device = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` database rows with the largest inner product, for each query, best first.

    queries: (Q, D) float, finite. chunks: arrays (n, D) float, in database order; row indexes
    count on from one chunk to the next. A row that holds NaN (the mark of an image that failed)
    keeps its index and is never returned.

    Inner products are summed in float64 and rounded to float32, so scores, and with them ties,
    do not depend on the size of the chunks or on the order in which a device adds. Equal scores
    go to the lower index, always. faiss promises no order among equal scores, so torch is used.

    Returns scores (Q, m) float32 and indexes (Q, m) int64, where m is `k` or, if smaller, the
    number of database rows without NaN. Raises UserError for k < 1, for queries that are not
    finite, for infinite database rows, and for descriptors of different lengths.
    """
    if k < 1:
        raise UserError(f"k is {k}; it must be at least 1")
    if queries.ndim != 2:
        raise UserError(f"queries have shape {queries.shape}; they must be (queries, dimensions)")
    if not np.isfinite(queries).all():
        row = int(np.flatnonzero(~np.isfinite(queries).all(axis=1))[0])
        raise UserError(f"query {row} holds NaN or infinity: leave out images that failed")
    dim = queries.shape[1]
    device = torch.device(device)
    starts = range(0, max(1, len(queries)), BLOCK_QUERIES)
    searches = [_BestSoFar(_tensor(queries[i:i + BLOCK_QUERIES], device), k) for i in starts]
    offset = 0
    for chunk in chunks:
        if chunk.ndim != 2 or chunk.shape[1] != dim:
            raise UserError(f"queries have {dim} dimensions, a chunk has shape {chunk.shape}")
        for start in range(0, len(chunk), BLOCK_ROWS):
            descriptors = _tensor(chunk[start:start + BLOCK_ROWS], device)
            valid, descriptors = _without_failed(descriptors, offset + start)
            for search in searches:
                search.add(descriptors, valid)
        offset += len(chunk)
    results = [search.result() for search in searches]
    return tuple(np.concatenate(parts) for parts in zip(*results))


class _BestSoFar:
    """The best rows of the database part seen so far, for one block of queries.

    A score and its index are packed into one int64 key: the score's bits above, ordered as
    the scores are, and below them the index counted down. Keys are all different and a larger key
    is a better result, which makes topk exact about ties.
    """

    def __init__(self, queries: torch.Tensor, k: int):
        self.queries, self.k = queries, k
        self.keys = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)

    def add(self, descriptors: torch.Tensor, indexes: torch.Tensor) -> None:
        """Merge descriptors (n, D) whose database indexes (n,) are above all seen before."""
        scores = (self.queries @ descriptors.T).float()
        if self.keys.shape[1] == self.k:
            # An equal score loses: its index is higher. Few columns survive, late in a database.
            better = (scores > _scores(self.keys[:, -1:])).any(dim=0)
            scores, indexes = scores[:, better], indexes[better]
        keys = torch.cat([self.keys, _keys(scores, indexes)], dim=1)
        self.keys = keys.topk(min(self.k, keys.shape[1]), dim=1).values  # sorted, best first

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Scores (Q, m) float32 and database indexes (Q, m) int64."""
        indexes = _LOW_32_BITS - (self.keys & _LOW_32_BITS)
        return _scores(self.keys).cpu().numpy(), indexes.cpu().numpy()


def _keys(scores: torch.Tensor, indexes: torch.Tensor) -> torch.Tensor:
    """int64 (Q, n) that order as (score, then lower index) do; scores are float32 (Q, n)."""
    bits = (scores + 0.0).view(torch.int32)  # adding 0 makes -0.0 equal to 0.0
    # A float's bits read as an integer fall as a negative float rises: flip all but the sign.
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered.long() << 32) | (_LOW_32_BITS - indexes)


def _scores(keys: torch.Tensor) -> torch.Tensor:
    """The float32 scores inside the keys."""
    ordered = (keys >> 32).int()
    return torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered).view(torch.float32)


def _without_failed(descriptors: torch.Tensor, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indexes (m,) and descriptors (m, D) of the rows that hold no NaN."""
    sums = descriptors.sum(dim=1)
    indexes = torch.arange(first, first + len(descriptors), device=descriptors.device)
    if sums.isfinite().all():
        return indexes, descriptors
    valid = ~descriptors.isnan().any(dim=1)
    infinite = descriptors.isinf().any(dim=1) & valid
    if infinite.any():
        raise UserError(f"database row {int(indexes[infinite][0])} holds an infinite value")
    return indexes[valid], descriptors[valid]


def _tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """float64 on the device; copies, because a memory-mapped chunk is read-only."""
    return torch.from_numpy(np.array(array)).to(device).double()
