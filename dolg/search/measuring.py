"""What an index costs and loses: mAP, recall against the exact search, bytes, seconds."""
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.files import write_atomically
from dolg.search.collection import Collection, store_digest
from dolg.search.exact import top_k
from dolg.search.indexes import Index
from dolg.search.rankings import Ranking, evaluate_ranking
from revisitop import GroundTruth, evaluate_stores
from revisitop.evaluation import check_described, check_made_alike

RECALLS = (1, 10, 100)
# Images of a ranking by an index that mAP looks at; positives farther down count as not found
DEPTH = 10_000


def measure(indexes: Sequence[Index], query: FeatureStore, stores: Sequence[FeatureStore],
            ground_truth: GroundTruth | None, depth: int = DEPTH) -> list[dict]:
    """A row per index, after one of the exact search, of database and distractors' stores.

    Each has "name", "bytes" per image, "build_seconds", "ms" per query (all at once), "recall" (K ->
    share of the exact search's first K that are among the index's first K) and, with a ground truth,
    "mAP" (protocol -> 0..1). Raises UserError for an index of other stores.
    """
    check_made_alike([query, *stores])
    check_described([query, *stores])
    database, depth = Collection(stores), min(depth, sum(store.count for store in stores))
    fine = np.flatnonzero(query.status == 0)
    queries = query.rows(fine)
    start = time.perf_counter()
    _, exact = top_k(queries, database, min(max(RECALLS), depth))
    rows = [{"name": "exact", "bytes": 4.0 * query.dim, "build_seconds": 0.0,
             "ms": 1000 * (time.perf_counter() - start) / len(queries),
             "recall": {k: 1.0 for k in RECALLS if k <= exact.shape[1]}}]
    if ground_truth:
        rows[0]["mAP"] = _maps(evaluate_stores(ground_truth, query, stores[0], stores[1:]))
    digests = [store_digest(store) for store in stores]
    for index in indexes:
        _check_of(index, stores, digests)
        start = time.perf_counter()
        scores, found = index.search(queries, exact.shape[1])
        row = {"name": index.path.name, "bytes": index.bytes_per_image,
               "build_seconds": index.settings["train_seconds"] + index.settings["add_seconds"],
               "ms": 1000 * (time.perf_counter() - start) / len(queries),
               "recall": {k: recall(exact, found, k) for k in rows[0]["recall"]}}
        if ground_truth:
            ranking = _ranking(index, query, fine, depth, digests)
            row["mAP"] = _maps(evaluate_ranking(ground_truth, ranking, query, stores[0], stores[1:]))
        rows.append(row)
    return rows


def recall(exact: np.ndarray, found: np.ndarray, k: int) -> float:
    """Share of the first k of `exact` (Q,n) that are among the first k of `found` (Q,n)."""
    shares = [np.isin(wanted, have).mean() for wanted, have in zip(exact[:, :k], found[:, :k])]
    return float(np.mean(shares))


def show_measures(rows: Sequence[dict], output: Path | None) -> None:
    """Print a table of `measure`'s rows; write them to a .json if asked to."""
    print(format_measures(rows))
    if output:
        write_atomically(output, json.dumps(rows, indent=1) + "\n")


def format_measures(rows: Sequence[dict]) -> str:
    """A table of `measure`'s rows."""
    protocols = list(rows[0].get("mAP", ()))
    head = ["", *(f"mAP {name.capitalize()}" for name in protocols),
            *(f"R@{k}" for k in rows[0]["recall"]), "bytes/image", "build s", "ms/query"]
    lines = [[row["name"], *(_percent(row["mAP"][name]) for name in protocols),
              *(f"{100 * value:.1f}" for value in row["recall"].values()), f"{row['bytes']:.1f}",
              f"{row['build_seconds']:.1f}", f"{row['ms']:.2f}"] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *lines)]
    return "\n".join("  ".join([cells[0].ljust(widths[0]), *(
        cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]) for cells in (head, *lines))


def _ranking(index: Index, query: FeatureStore, fine: np.ndarray, depth: int,
             digests: list[str]) -> Ranking:
    """What the index finds for all queries, the failed ones nothing."""
    indexes = np.full((query.count, depth), -1, np.int64)
    scores = np.full(indexes.shape, -np.inf)
    scores[fine], indexes[fine] = index.search(query.rows(fine), depth)
    settings = {"method": "index", **{key: index.settings[key] for key in ("kind", "factory")}}
    return Ranking(indexes, scores, settings, store_digest(query), digests)


def _maps(result: dict) -> dict[str, float | None]:
    return {protocol: figures["mAP"] for protocol, figures in result["protocols"].items()}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _check_of(index: Index, stores: Sequence[FeatureStore], digests: list[str]) -> None:
    if [entry["digest"] for entry in index.settings["stores"]] != digests:
        have = ", ".join(entry["path"] for entry in index.settings["stores"])
        raise UserError(f"the index {index.path} is of {have}: give these stores, in this order, "
                        f"not {', '.join(str(Path(store.path)) for store in stores)}")
