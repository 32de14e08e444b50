"""Figures behind the charts: precision at levels of recall, the spread of AP, intervals of mAP."""
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dolg.report.results import Method
from revisitop.comparison import bootstrap_interval, compare_aps
from revisitop.metrics import average_precision

LEVELS = np.linspace(0, 1, 101)     # of recall
BINS = 10                           # of AP, in a distribution
SAMPLES = 10_000                    # of the bootstrap


def count_positives(places: Sequence[int], ap: float) -> int:
    """How many positives a query has, those that were never ranked among them.

    places: of the ranked ones, from 0, ascending. Their number times the AP is what `places` alone
    tell; so it follows from both. Where the AP is 0, nothing was ranked, and 1 is as good as any.
    """
    if not len(places) or not ap:
        return 1
    return max(len(places), round(average_precision(np.asarray(places), len(places)) * len(places) / ap))


def interpolated_precision(places: Sequence[int], positives: int,
                           levels: np.ndarray = LEVELS) -> np.ndarray:
    """The highest precision (levels,) at any recall from each level up (Manning et al., Introduction
    to Information Retrieval, 2008, section 8.4); 0 above the highest recall that is reached.

    places: of the positives that were ranked, from 0, ascending, junk left out. positives: all.
    """
    places = np.asarray(places, np.float64)
    precision = np.arange(1, len(places) + 1) / (places + 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    # The first positive whose recall is the level's or more; the recall of a level may be rounded
    needed = np.ceil(np.asarray(levels) * positives - 1e-9).astype(np.int64)
    return best[np.clip(needed - 1, 0, len(places))]


def mean_curve(ranks: Sequence[Sequence[int] | None] | None,
               aps: Sequence[float | None]) -> np.ndarray | None:
    """Interpolated precision (101,) at LEVELS, its mean over the queries that have a positive; None
    where there is none, or the places are not known."""
    if ranks is None:
        return None
    curves = [interpolated_precision(places, count_positives(places, ap))
              for places, ap in zip(ranks, aps, strict=True) if places is not None and ap is not None]
    return np.mean(curves, axis=0) if curves else None


@dataclass(frozen=True)
class Distribution:
    """How AP is spread over the queries that have a positive.

    counts: (BINS,) queries with AP in [0, 0.1), [0.1, 0.2), ..., [0.9, 1]. median: None without any.
    """

    counts: Sequence[int]
    median: float | None


def distribution(aps: Sequence[float | None]) -> Distribution:
    """Of AP in 0..1."""
    values = known(aps)
    counts = np.bincount(np.minimum((values * BINS + 1e-9).astype(np.int64), BINS - 1), minlength=BINS)
    return Distribution(counts.tolist(), float(np.median(values)) if values.size else None)


@dataclass(frozen=True)
class Figure:
    """A mean and how sure it is; shares in 0..1, intervals at revisitop.comparison.LEVEL,
    None for fewer than two queries.

    change: the mean change against the first method, over the queries that both score; None for the
    first. sure: whether interval and permutation test agree that the change is not chance's.
    """

    value: float | None
    interval: tuple[float, float] | None
    change: float | None = None
    change_interval: tuple[float, float] | None = None
    sure: bool = False


def map_figure(method: Method, first: Method, protocol: str) -> Figure:
    """mAP of a method and its change from the first one's, with bootstrap intervals over queries."""
    aps, value = method.aps(protocol), method.value(protocol, "mAP")
    values = known(aps)
    interval = bootstrap_interval(values, SAMPLES, np.random.default_rng(0)) if values.size > 1 else None
    others = first.aps(protocol)
    both = [pair for pair in zip(others, aps) if None not in pair]
    if method is first or len(others) != len(aps) or not both:
        return Figure(value, interval)
    compared = compare_aps(others, aps, SAMPLES)
    if len(both) < 2:
        return Figure(value, interval, compared.mean)
    return Figure(value, interval, compared.mean, compared.interval, compared.is_distinguishable)


def known(aps: Sequence[float | None]) -> np.ndarray:
    """The AP (n,), float64, of the queries that have one."""
    return np.array([ap for ap in aps if ap is not None], np.float64)
