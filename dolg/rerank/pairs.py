"""Scores of (query, image) pairs, each computed once, in memory or in a folder that outlives the run."""
import zipfile
from pathlib import Path

import numpy as np

from dolg.files import atomic_file


class PairScores:
    """What is known of pairs.

    folder: where a file per query keeps its scores, written whole after each addition; None: they are
    in memory alone. A file that is damaged counts as none.
    """

    def __init__(self, folder: Path | None = None):
        self.folder = folder
        self._known: dict[int, dict[int, float]] = {}

    def of(self, query: int) -> dict[int, float]:
        """Database row -> score, of one query."""
        if query not in self._known:
            self._known[query] = self._read(query) if self.folder else {}
        return self._known[query]

    def add(self, query: int, rows: np.ndarray, scores: np.ndarray) -> None:
        """Scores (n,) of database rows (n,)."""
        known = self.of(query)
        known.update(zip(rows.tolist(), scores.tolist(), strict=True))
        if self.folder:
            with atomic_file(self._file(query)) as file:
                np.savez(file, rows=np.fromiter(known, np.int64), scores=np.fromiter(known.values(), float))

    def _file(self, query: int) -> Path:
        return self.folder / f"query-{query:06d}.npz"

    def _read(self, query: int) -> dict[int, float]:
        try:
            with np.load(self._file(query), allow_pickle=False) as tables:
                return dict(zip(tables["rows"].tolist(), tables["scores"].tolist(), strict=True))
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return {}       # what a failing disk left: the pairs are scored again
