"""Average precision and precision at k as the Revisited protocol defines them, in float64."""
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class MapResult(NamedTuple):
    """Unpacks as the four values of the original `compute_map`.

    map: mean average precision, 0..1; NaN if no query has a positive.
    aps: (queries,) float64, NaN where a query has no positive.
    mpr: (kappas,) mean precision at each k.
    prs: (queries, kappas) float64, NaN where a query has no positive.
    """

    map: float
    aps: np.ndarray
    mpr: np.ndarray
    prs: np.ndarray


def average_precision(positions: np.ndarray, n_positives: int) -> float:
    """Area under the precision-recall curve by the trapezoid rule.

    positions: (found,) places of the positives in the ranking without junk, from 0, ascending.
    n_positives: all positives, found or not: each not found adds recall that is never reached.

    >>> average_precision([0, 2], 2)        # ((1 + 1) + (1/2 + 2/3)) / 4
    0.7916666666666666
    """
    position = np.asarray(positions, np.float64)
    if position.size > n_positives:
        raise ValueError(f"{position.size} positives found of {n_positives}")
    if not position.size:
        return 0.0
    before = np.arange(position.size, dtype=np.float64)     # positives ranked higher
    # The precision just before the first place is 1 by definition
    precision_before = np.divide(before, position, out=np.ones_like(before), where=position > 0)
    precision_after = (before + 1) / (position + 1)
    return float((precision_before + precision_after).sum() / (2 * n_positives))


def precision_at(positions: np.ndarray, kappas: Sequence[int]) -> np.ndarray:
    """Precision (kappas,) among the first min(k, place of the last positive found).

    positions: as in `average_precision`. The shorter list is the original's rule: one positive,
    at place 3, gives P@10 = 1/3. Where nothing was found the precision is 0.
    """
    positions = np.asarray(positions)
    if not positions.size:
        return np.zeros(len(kappas))
    depths = np.minimum(np.asarray(kappas, np.int64), positions[-1] + 1)
    return np.searchsorted(positions, depths, side="left") / depths


def positions_without_junk(ok: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Places (ascending, from 0) of the positives once junk is taken out of the ranking.

    ok, junk: places of the positives and of the junk images in the whole ranking, any order.
    """
    ok = np.sort(np.asarray(ok, np.int64))
    return ok - np.searchsorted(np.sort(np.asarray(junk, np.int64)), ok)


def summarise(
    positions: Sequence[np.ndarray], n_positives: Sequence[int], kappas: Sequence[int] = ()
) -> MapResult:
    """Metrics of all queries from `positions_without_junk` of each, and their means."""
    kappas = _checked(kappas)
    aps = np.full(len(positions), np.nan)
    prs = np.full((len(positions), len(kappas)), np.nan)
    for q, (found, n) in enumerate(zip(positions, n_positives, strict=True)):
        if n:
            aps[q], prs[q] = average_precision(found, n), precision_at(found, kappas)
    scored = np.asarray(n_positives, np.int64) > 0
    if not scored.any():
        return MapResult(float("nan"), aps, np.full(len(kappas), np.nan), prs)
    return MapResult(float(aps[scored].mean()), aps, prs[scored].mean(axis=0), prs)


def compute_map(
    ranks: Sequence[np.ndarray], gnd: Sequence[Mapping[str, Sequence[int]]],
    kappas: Sequence[int] = (),
) -> MapResult:
    """Mean average precision and mean precision at each of `kappas`.

    ranks: rows are queries; `ranks[q]` lists database indexes, best first. It may be cut off
        anywhere, rows may differ in length, and entries of -1 are places without an image.
    gnd: per query a dict with `ok`, the positives, and perhaps `junk`, which is left out of
        the ranking (see `protocol.split`).

    AP divides by all positives, also those that a cut ranking lacks; a query without positives
    is NaN and left out of the means. Where the original code fails, this one is defined: no
    positive in a cut ranking gives AP and P@k 0; no query with positives gives means of NaN.
    Raises ValueError where rows are not queries or list a labelled image twice.
    """
    return summarise(*positives_in(ranks, gnd), kappas)


def positives_in(
    ranks: Sequence[np.ndarray], gnd: Sequence[Mapping[str, Sequence[int]]],
) -> tuple[list[np.ndarray], list[int]]:
    """Per query the places of the positives that a ranking lists, junk taken out of it, and how many
    positives there are. Arguments and errors are those of `compute_map`."""
    if len(ranks) != len(gnd):
        raise ValueError(f"ranks has {len(ranks)} rows for {len(gnd)} queries: rows are queries "
                         "(the original code has them as columns: transpose)")
    places = [_places(np.asarray(row), entry, q) for q, (row, entry) in enumerate(zip(ranks, gnd))]
    return [positions_without_junk(*pair) for pair in places], [len(entry["ok"]) for entry in gnd]


def _places(row: np.ndarray, entry: Mapping, q: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the ranking `row` has the positives, and where the junk, of query `q`."""
    if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
        raise ValueError(f"ranks[{q}] is not a list of database indexes (it has {row.ndim} "
                         f"dimensions of {row.dtype})")
    ok, junk = (np.asarray(entry.get(kind, ()), np.int64) for kind in ("ok", "junk"))
    labelled = np.flatnonzero(np.isin(row, np.concatenate([ok, junk])))
    images = row[labelled]
    if len(np.unique(images)) < len(images):
        raise ValueError(f"ranks[{q}] lists an image more than once")
    return labelled[np.isin(images, ok)], labelled[np.isin(images, junk)]


def _checked(kappas: Sequence[int]) -> list[int]:
    if any(k != int(k) or k < 1 for k in kappas):
        raise ValueError(f"kappas is {list(kappas)}: give whole numbers from 1")
    return [int(k) for k in kappas]
