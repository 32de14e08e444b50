"""Methods that rank the images of feature stores by more than an inner product, by name."""
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from dolg.errors import UserError, choose
from dolg.features.store import FeatureStore
from dolg.search.collection import Collection, gather, store_digest
from dolg.search.diffusion import check_settings as check_diffusion
from dolg.search.diffusion import diffusion, normalised_affinity
from dolg.search.kreciprocal import check_settings as check_k_reciprocal
from dolg.search.kreciprocal import k_reciprocal
from dolg.search.neighbours import Neighbours, neighbours_of
from dolg.search.rankings import Ranking, evaluate_ranking
from revisitop import GroundTruth, format_table, load_ground_truth
from revisitop.commands import show
from revisitop.evaluation import check_different, check_made_alike, match_names

# Settings of each, as its function in `kreciprocal` or `diffusion` explains them
DEFAULTS = {
    "kreciprocal": {"k": 1000, "k1": 20, "k2": 6, "lambda_value": 0.3},
    "diffusion": {"k": 1000, "k_graph": 50, "k_query": 10, "gamma": 3.0, "truncate": 1000,
                  "alpha": 0.99, "iterations": 20, "tolerance": 1e-6},
}
# And those of the commands of tools/expand.py that write stores (see `expansion`)
SETTINGS = {"aqe": {"n": 10}, **dict.fromkeys(("alpha", "dba"), {"n": 10, "alpha": 3.0}), **DEFAULTS}


def make_ranking(
    method: str, query: FeatureStore, database: Collection, folder: Path, settings: dict,
    device: str | torch.device = "cpu",
) -> Ranking:
    """Rank the database for the queries of a store.

    Args:
        method: "kreciprocal" or "diffusion".
        folder: of the database's neighbours (`neighbours.neighbours_of`), made if it is not there.
        settings: those of DEFAULTS[method] that are others.

    Raises UserError for an unknown method, settings out of range or a folder that does not fit, and
    StoreError for stores that are damaged or were made by different models.
    """
    settings = {**choose(DEFAULTS, method, "the method"), **settings}
    needed = _neighbours_needed(method, settings)
    check_made_alike([query, *database.stores])
    # In one collection a query that failed is NaN, whatever its row holds
    queries = gather(Collection([query]), np.arange(query.count), query.dim)
    neighbours = neighbours_of(database, needed, folder, device)
    run = _diffusion if method == "diffusion" else k_reciprocal
    indexes, scores = run(queries, database, neighbours, **settings, device=device)
    return Ranking(indexes, scores, {"method": method, **settings}, store_digest(query),
                   database.digests)


def check_outputs(ranking: Path | None, figures: Path | None, truth: Path | None) -> None:
    """Raise UserError for a file to write that is a folder, and for figures without a ground truth."""
    for file in filter(None, (ranking, figures)):
        if file.is_dir():
            raise UserError(f"cannot write {file}: it is a folder")
    if figures and not truth:
        raise UserError("--json needs the ground truth: give --gnd, too")


def load_truth(path: Path | None, query: FeatureStore, database: Collection) -> GroundTruth | None:
    """A ground truth, if one is given. Raises GroundTruthError, and StoreError where
    `rankings.evaluate_ranking` could not evaluate a ranking of these stores by it."""
    if path is None:
        return None
    ground_truth = load_ground_truth(path)
    check_different(database.stores)
    match_names(query, ground_truth.queries, "queries")
    match_names(database.stores[0], ground_truth.images, "database images")
    return ground_truth


def _neighbours_needed(method: str, settings: dict) -> int:
    """How many of each image a method needs. Raises UserError for settings out of range: the search
    for neighbours may take hours, and is not to be in vain."""
    if method == "kreciprocal":
        check_k_reciprocal(**settings)
        return max(settings["k1"], settings["k2"] - 1)
    others = dict(settings)
    needed = others.pop("k_graph")
    check_diffusion(**others)
    if needed < 1:
        raise UserError(f"k_graph is {needed}: give the number of neighbours, 1 or more")
    return needed


def _diffusion(queries: np.ndarray, database: Collection, neighbours: Neighbours, k_graph: int,
               gamma: float, **settings) -> tuple[np.ndarray, np.ndarray]:
    affinity = normalised_affinity(neighbours, k_graph, gamma)
    return diffusion(queries, database, affinity, gamma=gamma, **settings)


def show_scores(ground_truth: GroundTruth, ranking: Ranking, query: FeatureStore,
                database: Collection, path: Path | None, files: Mapping) -> None:
    """Print what a ranking scores, and write it to a .json where there is a `path`; there it names the
    `files` that it was made of."""
    result = evaluate_ranking(ground_truth, ranking, query, database.stores[0], database.stores[1:])
    show(format_table(result), result, path, files)
