"""Rankings that are no order by inner product: kept in files, and evaluated."""
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import sparse

from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.files import atomic_file
from dolg.search.collection import store_digest
from revisitop.evaluation import (
    check_described, check_different, check_made_alike, figures_of, match_names, result_of)
from revisitop.groundtruth import GroundTruth
from revisitop.metrics import positives_in
from revisitop.protocol import protocols_of, split


@dataclass(frozen=True)
class Ranking:
    """The images that a method found for each query of a store.

    Attributes:
        indexes: (Q,k) int64, best first; rows of the database store, then of the distractors' stores,
            which count on; -1 where there are fewer than k.
        scores: (Q,k) float64, falling; -inf there.
        settings: the method and what it was told, as JSON has it.
        query: digest of the query store (`collection.store_digest`).
        database: those of the database store and the distractors' stores, in order.
    """

    indexes: np.ndarray
    scores: np.ndarray
    settings: dict
    query: str
    database: list[str]

    def save(self, path: Path) -> None:
        """To an .npz file with the tables, and the rest in JSON as "about"."""
        about = {"settings": self.settings, "query": self.query, "database": self.database}
        with atomic_file(path) as file:
            np.savez_compressed(file, indexes=np.asarray(self.indexes, np.int64),
                                scores=np.asarray(self.scores, np.float64),
                                about=np.array(json.dumps(about)))

    @staticmethod
    def load(path: str | Path) -> "Ranking":
        """From a file. Raises UserError for one that is not there, or holds no ranking."""
        try:
            with np.load(path, allow_pickle=False) as tables:
                about = json.loads(str(tables["about"]))
                ranking = Ranking(tables["indexes"], tables["scores"], about["settings"],
                                  about["query"], about["database"])
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        except (ValueError, LookupError, TypeError, AttributeError, EOFError,
                zipfile.BadZipFile) as error:
            raise UserError(f"{path} is no ranking as tools/expand.py writes it ({error})") from None
        if (ranking.indexes.ndim != 2 or ranking.indexes.shape != ranking.scores.shape
                or ranking.indexes.dtype != np.int64):
            raise UserError(f"{path} is no ranking: its tables are {ranking.indexes.dtype} "
                            f"{ranking.indexes.shape} and {ranking.scores.shape}")
        return ranking


def best_of(scores: sparse.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indexes (Q,k) int64 and scores (Q,k) float64 of the best entries, best first, in each row of
    scores (Q,N); equal ones go to the lower index. Where a row has fewer than k, -1 and -inf; an entry
    that is not stored is none."""
    entries = scores.tocoo()
    order = np.lexsort((entries.col, -entries.data, entries.row))
    rows = entries.row[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    order, rows, place = order[place < k], rows[place < k], place[place < k]
    indexes = np.full((scores.shape[0], k), -1, np.int64)
    best = np.full(indexes.shape, -np.inf)
    indexes[rows, place], best[rows, place] = entries.col[order], entries.data[order]
    return indexes, best


def evaluate_ranking(
    ground_truth: GroundTruth, ranking: Ranking, query_store: FeatureStore,
    database_store: FeatureStore, distractor_stores: Sequence[FeatureStore] = (),
) -> dict:
    """Evaluate a ranking that was made of these stores.

    Returns what `revisitop.evaluation.evaluate_stores` does, with the ranking's settings at
    ["protocol"]["reranking"]. Average precision divides by all positives, also those that a ranking
    cut to k images lacks. Raises UserError where the ranking was made of other stores or lists images
    that these have not, and StoreError as `evaluate_stores` does.
    """
    stores = [database_store, *distractor_stores]
    check_made_alike([query_store, *stores])
    check_described([query_store, *stores])
    check_different(stores)
    _check_made_of(ranking, query_store, stores)
    query_index = match_names(query_store, ground_truth.queries, "queries")
    images = match_names(database_store, ground_truth.images, "database images")
    # Distractors keep their indexes, which are above those of all labelled images
    is_database = (ranking.indexes >= 0) & (ranking.indexes < database_store.count)
    indexes = ranking.indexes.copy()
    indexes[is_database] = images[indexes[is_database]]
    ranks = indexes[np.argsort(query_index)]
    protocols = {protocol: figures_of(*positives_in(ranks, split(ground_truth, protocol)))
                 for protocol in protocols_of(ground_truth)}
    # Inner products are summed in float64 in every search (see `exact`)
    result = result_of(ground_truth, query_store, database_store, distractor_stores, protocols,
                       double=True)
    return {**result, "protocol": {**result["protocol"], "reranking": ranking.settings}}


def _check_made_of(ranking: Ranking, query: FeatureStore, stores: list[FeatureStore]) -> None:
    for store, digest in zip((query, *stores), (ranking.query, *ranking.database)):
        if store_digest(store) != digest:
            raise UserError(f"the ranking was made of another store than {store.path}: give the "
                            "stores it was made of, or make it again")
    if len(stores) != len(ranking.database):
        raise UserError(f"the ranking was made of {len(ranking.database)} stores of database images "
                        f"and distractors, {len(stores)} are given")
    count = sum(store.count for store in stores)
    inside = (ranking.indexes >= -1) & (ranking.indexes < count)
    ordered = np.sort(ranking.indexes, axis=1)
    repeated = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if len(ranking.indexes) != query.count or not inside.all() or repeated.any():
        raise UserError(f"the ranking is damaged: it must list different images of {count}, for "
                        f"{query.count} queries")
