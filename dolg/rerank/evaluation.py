"""Reranked lists scored by the Revisited protocol: exactly, though nobody ranks a million images."""
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from dolg.core.distributed import gather, is_main, rank, world_size
from dolg.features.store import FeatureStore
from dolg.rerank.interface import PairReranker, Reranker, Stage, rerank_list
from dolg.search.collection import Collection
from dolg.search.rankings import Ranking
from revisitop.evaluation import figures_of, match_names, rank_labelled, result_of
from revisitop.groundtruth import GroundTruth
from revisitop.protocol import protocols_of, remove_junk, split


@dataclass(frozen=True)
class Benchmark:
    """A ground truth in terms of the rows of stores.

    Attributes:
        truth: the ground truth.
        query, database: the stores, a distractor's being behind the database's.
        query_rows: per query of the ground truth its row.
        entries: protocol -> per query {"ok", "junk"}: rows of the database.
        ranks: per query, row -> rank in the whole database by inner product, of all its labelled images
            that did not fail; None where the lists are all that is known.
    """

    truth: GroundTruth
    query: FeatureStore
    database: Collection
    query_rows: np.ndarray
    entries: Mapping[str, list[dict[str, np.ndarray]]]
    ranks: list[dict[int, int]] | None

    @property
    def most_junk(self) -> int:
        """The most images that a protocol takes out of a query's list."""
        return max((len(entry["junk"]) for entries in self.entries.values() for entry in entries),
                   default=0)


def open_benchmark(truth: GroundTruth, query: FeatureStore, database: Collection, ranked: bool,
                   **how: object) -> Benchmark:
    """Match a ground truth to stores, and with `ranked` count the ranks of all labelled images (`how`
    goes to `revisitop.counting.count_ranks`). Raises StoreError where they do not fit."""
    query_index = match_names(query, truth.queries, "queries")
    images = match_names(database.stores[0], truth.images, "database images")
    row_of = np.argsort(images)
    entries = {protocol: [{role: row_of[rows] for role, rows in entry.items()}
                          for entry in split(truth, protocol)] for protocol in protocols_of(truth)}
    ranks = None
    if ranked:
        labelled, counted = rank_labelled(truth, query, database.stores[0], database.stores[1:],
                                          double=True, **how)
        ranks = [{int(row_of[image]): int(place) for image, place in zip(wanted, places) if
                  np.isfinite(place)} for wanted, places in zip(labelled, counted)]
    return Benchmark(truth, query, database, np.argsort(query_index), entries, ranks)


class Timed(Reranker):
    """A reranker, and how long it takes: `seconds` for `images` of lists (pairs that it knew cost
    nothing and do not count)."""

    def __init__(self, reranker: Reranker):
        self.reranker, self.seconds, self.images = reranker, 0.0, 0
        self.name, self.settings = reranker.name, reranker.settings
        self.unit = reranker.unit

    @property
    def bytes_per_image(self) -> float:
        return self.reranker.bytes_per_image

    def rerank(self, query: int, candidates: np.ndarray, scores: np.ndarray) -> np.ndarray:
        before, start = self._pairs(), time.perf_counter()
        new = self.reranker.rerank(query, candidates, scores)
        self.seconds += time.perf_counter() - start
        self.images += len(candidates) if before is None else self._pairs() - before
        return new

    def _pairs(self) -> int | None:
        return self.reranker.pairs_scored if isinstance(self.reranker, PairReranker) else None


def evaluate_lists(benchmark: Benchmark, lists: Ranking, stages: Sequence[Stage],
                   without_junk: bool = True) -> dict:
    """Rerank the lists, for each protocol, and score them.

    lists: of the benchmark's stores; long enough that so many images as the stages rerank are left
    once junk is out. without_junk: take a protocol's junk out of the lists before they are reranked;
    else after.

    Images beyond the reranked ones keep their places: those of the whole database, where the
    benchmark knows them. In a process group each process does its share of the queries; each must
    call this. Returns what `revisitop.evaluation.evaluate_stores` does, with what was done at
    ["protocol"]["reranking"] and its cost at ["reranking"].
    """
    timed = [replace(stage, reranker=Timed(stage.reranker)) for stage in stages]
    mine = range(rank(), len(benchmark.query_rows), world_size())
    work = [(protocol, number) for number in mine for protocol in benchmark.entries]
    title = "+".join(stage.reranker.name for stage in stages) or "global"
    found = {}
    for protocol, number in tqdm(work, desc=f"{title}, first {max((s.k for s in stages), default=0)}",
                                 unit="list", leave=False, disable=None if is_main() and stages else True):
        row = int(benchmark.query_rows[number])
        found[protocol, number] = _places(benchmark, protocol, number, lists.indexes[row],
                                          lists.scores[row], timed, without_junk)
    everyones = gather((found, [_cost(stage) for stage in timed]))
    places = {key: value for found, _ in everyones for key, value in found.items()}
    protocols = {
        protocol: figures_of([places[protocol, number] for number in range(len(entries))],
                             [len(entry["ok"]) for entry in entries])
        for protocol, entries in benchmark.entries.items()}
    result = result_of(benchmark.truth, benchmark.query, benchmark.database.stores[0],
                       benchmark.database.stores[1:], protocols, double=True)
    if not stages:
        return result
    done = {"lists": lists.settings, "junk_before_reranking": "removed" if without_junk else "left in",
            "stages": [_described(stage) for stage in stages]}
    return {**result, "protocol": {**result["protocol"], "reranking": done},
            "reranking": _total([costs for _, costs in everyones], stages)}


def _places(benchmark: Benchmark, protocol: str, number: int, rows: np.ndarray, scores: np.ndarray,
            stages: Sequence[Stage], without_junk: bool) -> np.ndarray:
    """Places of a query's positives, ascending, in its reranked list without junk."""
    entry = benchmark.entries[protocol][number]
    there = rows >= 0
    if without_junk:
        there &= ~np.isin(rows, entry["junk"])
    rows, _ = rerank_list(stages, int(benchmark.query_rows[number]), rows[there], scores[there])
    rows = remove_junk(rows, entry["junk"])
    rows = rows[np.sort(np.unique(rows, return_index=True)[1])]     # an image counts where it comes first
    inside = np.flatnonzero(np.isin(rows, entry["ok"]))
    if benchmark.ranks is None:
        return inside
    ranks = benchmark.ranks[number]
    junk = np.sort([ranks[row] for row in entry["junk"].tolist() if row in ranks])
    beyond = np.sort([ranks[row] for row in np.setdiff1d(entry["ok"], rows).tolist() if row in ranks])
    beyond = beyond - np.searchsorted(junk, beyond)
    # By rounding alone could one of them be counted to a place that the list has given to another
    return np.concatenate([inside, np.maximum(beyond, len(rows) + np.arange(len(beyond)))]).astype(np.int64)


def _cost(stage: Stage) -> tuple[float, int, float]:
    return stage.reranker.seconds, stage.reranker.images, stage.reranker.bytes_per_image


def _total(costs: Sequence[Sequence[tuple[float, int, float]]], stages: Sequence[Stage]) -> dict:
    """Cost of the whole chain, from that of each process's stages: seconds for a list of k images on
    one process, and bytes that a database keeps of an image; None where nothing was left to do or read."""
    seconds, size = 0.0, 0.0
    for stage, parts in zip(stages, zip(*costs)):
        images = sum(part[1] for part in parts)
        if not images:
            seconds = None
        elif seconds is not None:
            seconds += sum(part[0] for part in parts) / images * stage.k
        size += max(part[2] for part in parts)
    return {"seconds_per_query": seconds, "bytes_per_image": size or None}


def _described(stage: Stage) -> dict:
    return {"method": stage.reranker.name, "k": stage.k, "weight": stage.weight,
            "temperature": stage.temperature, "settings": stage.reranker.settings}
