"""Searching one index, or several that together are the database, in one process or in many."""
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dolg.core.distributed import gather, rank, world_size
from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.files import write_atomically
from dolg.search.indexes import Index, merge_results
from revisitop.evaluation import check_made_alike
from revisitop.printing import write_data
from revisitop.stores import StoreError


@dataclass(frozen=True)
class Results:
    """What was found for each query that did not fail.

    Attributes:
        queries: their names.
        images: per query the names of what was found, best first.
        scores: (Q,K) float32 inner products; -inf beyond the end of a shorter list.
    """

    queries: list[str]
    images: list[list[str]]
    scores: np.ndarray

    def csv(self) -> str:
        """A line per result: query, place from 1, image, score."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["query", "place", "image", "score"])
        for query, images, scores in zip(self.queries, self.images, self.scores.tolist()):
            writer.writerows([query, place, image, f"{score:.6f}"]
                             for place, (image, score) in enumerate(zip(images, scores), 1))
        return text.getvalue()


def search_indexes(paths: Sequence[Path], query: FeatureStore, k: int, probes: int = 16,
                   on_gpu: bool = False) -> Results:
    """The k best images of all indexes for each query; of what they find, equal scores go to the
    earlier index, then the lower row. In a process group each process searches its share of the
    indexes, which the others need not have; what one raises, all do.

    Raises UserError for an index that is damaged or of another model than the query, and for images
    that are in two indexes; StoreError for a damaged query store.
    """
    numbers = range(rank(), len(paths), world_size())
    found, error = [], None
    try:
        fine = np.flatnonzero(query.status == 0)
        found = [_search(number, paths[number], query, fine, k, probes, on_gpu) for number in numbers]
    except (UserError, StoreError) as caught:
        error = caught
    everyones = gather((found, error))
    for _, error in everyones:
        if error:
            raise error
    parts = sorted((part for found, _ in everyones for part in found), key=lambda part: part.number)
    _check_different(parts, paths)
    starts = np.cumsum([0, *(part.count for part in parts)]).tolist()
    names = {start + row: name for start, part in zip(starts, parts) for row, name in part.names.items()}
    scores, rows = merge_results([
        (part.scores, np.where(part.rows >= 0, part.rows + start, -1))
        for start, part in zip(starts, parts)], k)
    images = [[names[row] for row in row_list if row >= 0] for row_list in rows.tolist()]
    return Results([query.names[row] for row in fine], images, scores)


@dataclass(frozen=True)
class _Part:
    """What one index has: its number and its images' count, its stores' digests, the scores (Q,k) and
    rows (Q,k) found, and these rows' names."""

    number: int
    count: int
    digests: list[str]
    scores: np.ndarray
    rows: np.ndarray
    names: dict[int, str]


def _search(number: int, path: Path, query: FeatureStore, fine: np.ndarray, k: int, probes: int,
            on_gpu: bool) -> _Part:
    index = Index(path, probes, on_gpu)
    check_made_alike([query, *index.stores()])
    scores, rows = index.search(query.rows(fine), k)
    names = {row: index.names[row] for row in np.unique(rows[rows >= 0]).tolist()}
    digests = [entry["digest"] for entry in index.settings["stores"]]
    return _Part(number, index.settings["count"], digests, scores, rows, names)


def _check_different(parts: Sequence[_Part], paths: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for part in parts:
        for digest in part.digests:
            if digest in seen:
                raise UserError(f"{paths[part.number]} has images that {seen[digest]} has as well: give "
                                "each once")
            seen[digest] = paths[part.number]


def show_results(results: Results, output: Path | None) -> None:
    """Write a .csv, or print it where there is no `output`."""
    if output:
        write_atomically(output, results.csv().encode(errors="surrogateescape"))
        print(f"{output}: {len(results.queries)} queries")
    else:
        write_data(results.csv())
