"""Whether the mAP of two methods differs by more than chance, from the AP of each query.

Both methods answer the same queries, so the differences are taken per query. Two answers, each
without assuming a distribution:

- an interval for the difference of mAP: percentile bootstrap over queries (Efron and Tibshirani,
  An Introduction to the Bootstrap, 1993, chapter 13);
- a p value, two-sided: paired permutation test. Were the methods alike, each query's difference
  might as well have the other sign (Smucker, Allan and Carterette, CIKM 2007).
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

LEVEL = 0.95

# Up to so many queries all signs are tried, 65,536 of them at most
_MOST_EXACT = 16
# Values of a block of samples: 8 MiB
_BLOCK_VALUES = 2**20
# Differences below this are of rounding
_SAME = 1e-9


@dataclass(frozen=True)
class Comparison:
    """The second of two methods against the first.

    queries: (n,) int64 indexes of the queries that both score.
    changes: (n,) float64, AP of the second less that of the first, in -1..1.
    interval: for the mean change, at LEVEL. p_value: two-sided.
    """

    queries: np.ndarray
    changes: np.ndarray
    interval: tuple[float, float]
    p_value: float

    @cached_property
    def mean(self) -> float:
        """The difference of mAP over these queries, in -1..1."""
        return float(self.changes.mean())

    @property
    def wins(self) -> int:
        return int((self.changes > _SAME).sum())

    @property
    def losses(self) -> int:
        return int((self.changes < -_SAME).sum())

    @property
    def ties(self) -> int:
        return len(self.changes) - self.wins - self.losses

    @property
    def is_distinguishable(self) -> bool:
        """Whether interval and p value agree that the difference is not chance's."""
        low, high = self.interval
        return self.p_value <= 1 - LEVEL and (low > 0 or high < 0)

    def largest(self, count: int, sign: int) -> list[tuple[int, float]]:
        """The `count` largest wins (sign 1) or losses (sign -1): (query, change), largest first."""
        order = np.argsort(-sign * self.changes, kind="stable")[:count]
        return [(int(self.queries[i]), float(self.changes[i])) for i in order
                if sign * self.changes[i] > _SAME]

    def sentence(self, metric: str) -> str:
        """In words, in points (percent); `metric` is such as "mAP Medium"."""
        low, high = map(points, self.interval)
        verdict = "" if self.is_distinguishable else "not "
        queries = "1 query" if len(self.changes) == 1 else f"{len(self.changes)} queries"
        return (f"{points(self.mean)} {metric} ({100 * LEVEL:.0f} % interval {low} to {high}, "
                f"p = {self.p_value:.2g}): {verdict}distinguishable from chance with {queries}")


def compare_aps(first: Sequence[float | None], second: Sequence[float | None],
                samples: int = 10_000, seed: int = 0) -> Comparison:
    """Compare the AP (queries,) of two methods, 0..1, None or NaN where a query has no positive.

    Queries that one of them does not score are left out. Raises ValueError where that leaves
    none, where the lists differ in length, and for `samples` < 1 or `seed` < 0.
    """
    if samples < 1 or seed < 0:
        raise ValueError(f"asked for {samples} samples with seed {seed}: give at least 1, and a "
                         "seed from 0")
    before, after = (np.array(aps, np.float64) for aps in (first, second))     # None becomes NaN
    if before.shape != after.shape:
        raise ValueError(f"one method has AP for {len(before)} queries, the other for {len(after)}")
    queries = np.flatnonzero(~np.isnan(before) & ~np.isnan(after))
    if not queries.size:
        raise ValueError("there is no query that both methods score")
    changes = after[queries] - before[queries]
    rng = np.random.default_rng(seed)
    return Comparison(queries, changes, bootstrap_interval(changes, samples, rng),
                      permutation_p_value(changes, samples, rng))


def bootstrap_interval(changes: np.ndarray, samples: int,
                       rng: np.random.Generator) -> tuple[float, float]:
    """Percentile interval, at LEVEL, of the mean of `changes` (n,) over resampled queries."""
    means = np.concatenate([changes[rng.integers(0, len(changes), (rows, len(changes)))].mean(1)
                            for rows in _blocks(samples, len(changes))])
    low, high = np.percentile(means, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


def permutation_p_value(changes: np.ndarray, samples: int, rng: np.random.Generator) -> float:
    """How probable a mean is that lies as far from 0, were the signs of `changes` (n,) chance's.

    Exact for up to 16 changes. Else (count + 1) / (samples + 1) of random signs: those observed
    are one of the possible, so that it is never 0 (Phipson and Smyth, 2010).
    """
    if len(changes) <= _MOST_EXACT:
        bits = np.arange(2 ** len(changes))[:, None] >> np.arange(len(changes)) & 1
        return float(_as_extreme(changes, bits).mean())
    count = sum(np.count_nonzero(_as_extreme(changes, rng.integers(0, 2, (rows, len(changes)),
                                                                   np.int8)))
                for rows in _blocks(samples, len(changes)))
    return (int(count) + 1) / (samples + 1)


def points(share: float) -> str:
    """A difference of shares, in percent, with its sign."""
    return f"{round(100 * share, 2) + 0.0:+.2f}"        # + 0.0 makes 0 of -0


def _as_extreme(changes: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Whether the sum lies as far from 0 as it does (rows,), with the signs that `bits` (rows,n),
    0 or 1, stand for."""
    sums = (2.0 * bits - 1) @ changes
    return np.abs(sums) >= abs(changes.sum()) - _SAME


def _blocks(samples: int, queries: int) -> Iterator[int]:
    """Sizes of blocks that make up `samples`, so that memory stays bounded."""
    size = max(_BLOCK_VALUES // queries, 1)
    yield from (min(size, samples - start) for start in range(0, samples, size))
