"""Searching one index, or several that together are the database, in one process or in many."""
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dolg.core.distributed import gather, rank, world_size
from dolg.features.store import FeatureStore
from dolg.files import write_atomically
from dolg.search.indexes import Index, merge_results, read_settings


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
    """The k best images of all indexes for each query; equal scores go to the earlier index, then the
    lower row. In a process group each process searches its share of the indexes."""
    sizes = [read_settings(path)["count"] for path in paths]
    offsets = np.cumsum([0, *sizes])
    fine = np.flatnonzero(query.status == 0)
    descriptors, mine = query.rows(fine), []
    names: dict[int, str] = {}
    for number in range(rank(), len(paths), world_size()):
        index = Index(paths[number], probes, on_gpu)
        scores, rows = index.search(descriptors, k)
        found = np.unique(rows[rows >= 0]).tolist()
        names.update({int(offsets[number]) + row: index.names[row] for row in found})
        mine.append((scores, np.where(rows >= 0, rows + offsets[number], -1)))
    everyones = gather((mine, names))
    names = {row: name for _, part in everyones for row, name in part.items()}
    scores, rows = merge_results([part for parts, _ in everyones for part in parts], k)
    images = [[names[row] for row in found if row >= 0] for found in rows.tolist()]
    return Results([query.names[row] for row in fine], images, scores)


def show_results(results: Results, output: Path | None) -> None:
    """Write a .csv, or print it where there is no `output`."""
    if output:
        write_atomically(output, results.csv().encode(errors="surrogateescape"))
        print(f"{output}: {len(results.queries)} queries")
    else:
        print(results.csv(), end="")
