"""Metrics of rankings that are cut off at k, as large-scale benchmarks report them.

    mAP@k    mean of AP@k: the sum of the precision at each positive among the first k, divided by
             min(positives, k). ILIAS (Kordopatis-Zilos et al., CVPR 2025) has k = 1000, Google
             Landmarks v2 (Weyand et al., CVPR 2020) k = 100. It is not the trapezoid of Revisited
             Oxford and Paris, and does not become it for large k.
    hit@k    share of the queries with at least one positive among the first k; Recall@K in metric
             learning and place recognition.
    found@k  mean share of a query's positives that are among the first k; recall in information
             retrieval, and the "oracle" of ILIAS.
    mP@k     mean of (positives among the first k) / k. Unlike mP@k of the Revisited protocol it
             divides by k where there are fewer positives too.

Junk is taken out of the ranking first; queries without positives are left out of all means.
"""
from collections.abc import Sequence

import numpy as np

from revisitop.evaluation import positives_of, rank_labelled, result_of
from revisitop.groundtruth import GroundTruth
from revisitop.metrics import average_precision
from revisitop.protocol import protocols_of
from revisitop.record import notes, title
from revisitop.stores import Store

METRICS = ("mAP", "hit", "found", "mP")


def cut_average_precision(positions: np.ndarray, n_positives: int, k: int) -> float:
    """AP@k, without the trapezoid rule.

    positions: (found,) places of the positives in the ranking without junk, from 0, ascending.
    n_positives: all positives, found or not, at least 1.

    >>> cut_average_precision([0, 2, 9], 4, k=3)       # (1/1 + 2/3) / min(4, 3)
    0.5555555555555555
    """
    position = np.asarray(positions, np.float64)
    position = position[position < k]
    return float((np.arange(1, position.size + 1) / (position + 1)).sum() / min(n_positives, k))


def cut_metrics(
    positions: Sequence[np.ndarray], n_positives: Sequence[int], cutoffs: Sequence[int]
) -> dict:
    """Metrics of one protocol, in 0..1.

    positions: per query, as in `cut_average_precision`. n_positives: per query; those with 0 are
    left out of the means, and None in the lists.

    Returns {"mAP": of the whole rankings by the trapezoid rule, "mAP@k", "hit@k", "found@k",
    "mP@k" for each cutoff, "ap": [per query, trapezoid], "ap@k": [per query]}; means of no query
    are None.
    """
    scored = [(place, n) for place, n in zip(positions, n_positives, strict=True) if n]
    whole = [average_precision(place, n) if n else None for place, n in zip(positions, n_positives)]
    means, per_query = {"mAP": _mean(whole)}, {"ap": whole}
    for k in cutoffs:
        counts = [int((np.asarray(place) < k).sum()) for place, _ in scored]
        aps = [cut_average_precision(place, n, k) if n else None
               for place, n in zip(positions, n_positives)]
        per_query[f"ap@{k}"] = aps
        means[f"mAP@{k}"] = _mean(aps)
        means[f"hit@{k}"] = _mean([float(count > 0) for count in counts])
        means[f"found@{k}"] = _mean([count / n for count, (_, n) in zip(counts, scored)])
        means[f"mP@{k}"] = _mean([count / k for count in counts])
    return {**means, **per_query}


def evaluate_lists(
    ground_truth: GroundTruth, query: Store, database: Store, distractors: Sequence[Store] = (),
    cutoffs: Sequence[int] = (100, 1000), **how: object,
) -> dict:
    """Evaluate descriptors by inner product at each of `cutoffs`; exact, by counting.

    Stores and `how` are as in `evaluation.evaluate_stores`, and so is what is returned, but for
    the metrics: {..., "cutoffs", "protocols": {"plain": what `cut_metrics` returns}, ...}. Ground
    truths with easy and hard labels have their three protocols. Raises ValueError for cutoffs
    below 1, and StoreError where a store is damaged, does not hold the images, or was made by
    another model.
    """
    if not cutoffs or any(k != int(k) or k < 1 for k in cutoffs):
        raise ValueError(f"cutoffs are {list(cutoffs)}: give whole numbers from 1")
    positions = rank_labelled(ground_truth, query, database, distractors, **how)
    protocols = {protocol: cut_metrics(*positives_of(ground_truth, protocol, *positions), cutoffs)
                 for protocol in protocols_of(ground_truth)}
    result = result_of(ground_truth, query, database, distractors, protocols,
                       bool(how.get("double")))
    return {**result, "cutoffs": list(cutoffs)}


def format_table(result: dict) -> str:
    """The result of `evaluate_lists` as text, in percent."""
    failed = result["failed"]
    lines = [title(result),
             f"failed images: {len(failed['query'])} queries (AP 0), {len(failed['database'])} "
             f"database (never found), {failed['distractors']} distractors"]
    for protocol, figures in result["protocols"].items():
        scored = sum(ap is not None for ap in figures["ap"])
        lines += ["", f"{protocol.capitalize()}: {scored} queries scored, mAP of the whole ranking "
                      f"(trapezoid) {_percent(figures['mAP'])}",
                  f"{'':8}" + "".join(f"{f'@{k}':>9}" for k in result["cutoffs"])]
        for metric in METRICS:
            cells = (_percent(figures[f"{metric}@{k}"]) for k in result["cutoffs"])
            lines.append(f"{metric:8}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join([*lines, *notes(result)])


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of those that are not None."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
