"""Rerankers for queries that come one after another, and those that cannot be had, with the reason."""
from pathlib import Path

import numpy as np
import torch

from dolg.errors import UserError
from dolg.features.store import FeatureStore, LocalTable
from dolg.rerank.builders import RERANKERS, build_reranker, build_stage, parse_method
from dolg.rerank.images import StoredImages
from dolg.rerank.interface import PairReranker, Reranker, rerank_list
from dolg.rerank.pairs import PairScores
from dolg.serve.database import Database

# Those that compare local features
LOCAL = ("rrt", "spatial", "asmk")


class NewestQuery:
    """Queries of which only the newest is there, as `dolg.rerank.images.Images`: each has a row of its own,
    so that nothing that a reranker keeps of one is taken for another's."""

    def __init__(self, dim: int, local_dim: int):
        self.dim, self.local_dim, self._row = dim, local_dim, -1
        self._store: FeatureStore | None = None

    def ask(self, store: FeatureStore) -> int:
        """The row of the image in a store of one."""
        self._store, self._row = store, self._row + 1
        return self._row

    def __len__(self) -> int:
        return self._row + 1

    def descriptors(self, rows: np.ndarray) -> np.ndarray:
        assert self._store is not None and set(rows.tolist()) <= {self._row}
        return np.repeat(self._store.rows(np.array([0])), len(rows), axis=0)

    def local(self, row: int) -> LocalTable:
        assert self._store is not None and row == self._row
        return self._store.local(0)


class Rerankers:
    """The rerankers of a database, each made when it is first wanted.

    Args:
        cfg: its RERANK, and MODEL.RRT.
        dim, local_dim: of the queries' descriptors and local features; 0: they have none.
        settings: of the network that makes these, as a store's manifest has them.
        place: where they compute.
    """

    def __init__(self, cfg, database: Database, dim: int, local_dim: int, settings: dict,
                 place: torch.device):
        self._cfg, self._database, self._settings, self._place = cfg, database, settings, place
        self._query = NewestQuery(dim, local_dim)
        self._made: dict[str, Reranker] = {}

    @property
    def depth(self) -> int:
        """Images of a list that are reordered."""
        return self._cfg.RERANK.TOP_K[0]

    def offer(self) -> dict[str, str]:
        """Name -> why it cannot be had; "": it can. Makes those that can."""
        return {name: self._why_not(name) for name in RERANKERS}

    def rerank(self, methods: str, store: FeatureStore, rows: np.ndarray,
               scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The list (n,) of the query in a store, reordered by a chain such as "spatial@0.5" or
        "rrt+spatial": rows (n,) int64, scores (n,) float64. Raises UserError for one that cannot be had."""
        parsed = [parse_method(self._cfg, method) for method in methods.split("+")]
        stages = [build_stage(self._cfg, self._reranker(name), self.depth, weight)
                  for name, weight in parsed]
        return rerank_list(stages, self._query.ask(store), rows, scores)

    def check(self, methods: str) -> None:
        """Raise UserError for a chain that cannot be had."""
        for method in methods.split("+"):
            self._reranker(parse_method(self._cfg, method)[0])

    def _why_not(self, name: str) -> str:
        try:
            self._reranker(name)
        except UserError as error:
            return str(error)
        return ""

    def _reranker(self, name: str) -> Reranker:
        if name not in self._made:
            if self._database.no_stores:
                raise UserError(f"{name} reads the stores of the database: {self._database.no_stores}")
            self._check_local(name)
            folder = Path(self._cfg.RERANK.OUT_DIR or Path(self._cfg.OUT_DIR) / "rerank")
            self._check_learned(name, folder)
            images = StoredImages(self._database.stores)
            self._made[name] = build_reranker(self._cfg, name, self._query, images, folder, self._place)
        reranker = self._made[name]
        if isinstance(reranker, PairReranker):
            reranker.known = PairScores()       # of the query before, which never comes again
        return reranker

    def _check_local(self, name: str) -> None:
        if name not in LOCAL:
            return
        for store in self._database.stores:
            if not store.local_dim:
                raise UserError(f"{name} compares local features, and {store.path} has none: extract it "
                                "with INFER.LOCAL True")
            if not self._query.local_dim:
                raise UserError(f"{name} compares local features: give INFER.LOCAL True, as {store.path} "
                                "was made with")
            for key in ("local", "local_whitening"):
                if store.manifest.get(key) != self._settings.get(key) and "config_digest" in store.manifest:
                    raise UserError(f"{name} compares local features, and those of {store.path} were made "
                                    f"with other INFER.LOCAL_* keys than these ({key} differs)")

    def _check_learned(self, name: str, folder: Path) -> None:
        """What takes longer than a question may must be there already."""
        keys = self._cfg.RERANK
        if name == "rrt" and not keys.RRT.WEIGHTS:
            raise UserError("rrt needs a trained transformer: give RERANK.RRT.WEIGHTS FILE")
        words = Path(keys.ASMK.FOLDER or folder / "asmk") / "codebook.npz"
        if name == "asmk" and not words.exists():
            raise UserError(f"asmk needs visual words, and {words} is not there: learn them by "
                            "tools/rerank.py with these stores, and give RERANK.ASMK.FOLDER")
