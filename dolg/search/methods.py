"""Methods that rank the images of feature stores by more than an inner product, by name."""
from pathlib import Path

import numpy as np
import torch

from dolg.errors import UserError, choose
from dolg.features.store import FeatureStore
from dolg.search.collection import Collection, store_digest
from dolg.search.diffusion import diffusion, normalised_affinity
from dolg.search.kreciprocal import k_reciprocal
from dolg.search.neighbours import Neighbours, neighbours_of
from dolg.search.rankings import Ranking

# Settings of each, as its function in `kreciprocal` or `diffusion` explains them
DEFAULTS = {
    "kreciprocal": {"k": 1000, "k1": 20, "k2": 6, "lambda_value": 0.3},
    "diffusion": {"k": 1000, "k_graph": 50, "k_query": 10, "gamma": 3.0, "truncate": 1000,
                  "alpha": 0.99, "iterations": 20, "tolerance": 1e-6},
}


def make_ranking(
    method: str, query: FeatureStore, database: Collection, folder: Path, settings: dict,
    device: str | torch.device = "cpu",
) -> Ranking:
    """Rank the database for the queries of a store.

    Args:
        method: "kreciprocal" or "diffusion".
        folder: of the database's neighbours (`neighbours.neighbours_of`), made if it is not there.
        settings: those of DEFAULTS[method] that are others.

    Raises UserError for an unknown method or settings out of range, and for stores or a folder that
    do not fit.
    """
    settings = {**choose(DEFAULTS, method, "the method"), **settings}
    if query.dim != database.dim:
        raise UserError(f"{query.path} has descriptors of {query.dim} dimensions, the database of "
                        f"{database.dim}: both must come from one model")
    needed = (settings["k_graph"] if method == "diffusion"
              else max(settings["k1"], settings["k2"] - 1))
    if needed < 1:
        raise UserError(f"{needed} neighbours of each image are asked for; give at least 1")
    neighbours = neighbours_of(database, needed, folder, device)
    queries = query.rows(np.arange(query.count))
    run = _diffusion if method == "diffusion" else k_reciprocal
    indexes, scores = run(queries, database, neighbours, **settings, device=device)
    return Ranking(indexes, scores, {"method": method, **settings}, store_digest(query),
                   database.digests)


def _diffusion(queries: np.ndarray, database: Collection, neighbours: Neighbours, k_graph: int,
               gamma: float, **settings) -> tuple[np.ndarray, np.ndarray]:
    affinity = normalised_affinity(neighbours, k_graph, gamma)
    return diffusion(queries, database, affinity, gamma=gamma, **settings)
