"""The lists that are reranked: what a search by descriptors finds, or somebody else's."""
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.search.collection import Collection, store_digest
from dolg.search.neighbours import nearest
from dolg.search.queries import Results
from dolg.search.rankings import Ranking
from revisitop.evaluation import check_made_alike
from revisitop.names import NameIndex, names_like, some_names

_COLUMNS = ("query", "image", "score")


def search_lists(query: FeatureStore, database: Collection, k: int,
                 device: str | torch.device = "cpu") -> Ranking:
    """The k images of the largest inner product with each query, exact; equal ones by index."""
    check_made_alike([query, *database.stores])
    descriptors = np.concatenate(list(Collection([query])))
    found = nearest(descriptors, database, min(k, len(database)), device=device)
    return _ranking(found.indexes, found.similarities, {"method": "global"}, query, database)


def read_lists(path: Path, query: FeatureStore, database: Collection) -> Ranking:
    """Lists from a file: a ranking of tools/expand.py (.npz), or a table (.csv) with the columns query,
    image and score, perhaps more, as tools/search.py query writes it.

    A table's lines of one query are in order, best first; its names are those of the stores, with the
    endings of files or without. A query
    without lines has an empty list. Raises UserError for a file that cannot be read, a ranking of other
    stores, and names that the stores do not have.
    """
    if path.suffix == ".npz":
        ranking = Ranking.load(path)
        if (ranking.query, ranking.database) != (store_digest(query), database.digests):
            raise UserError(f"{path} was made of other stores than {query.path} and its database: give "
                            "those that it was made of")
        return ranking
    lists: list[list[tuple[int, float]]] = [[] for _ in range(query.count)]
    known = {"query": NameIndex(query.names),
             "image": NameIndex([name for store in database.stores for name in store.names])}
    unknown: dict[str, set[str]] = {"query": set(), "image": set()}
    for line, (name, image, score) in enumerate(_lines(path), 2):
        rows = {"query": known["query"].find(name), "image": known["image"].find(image)}
        if min(rows.values()) < 0:
            what, which = ("query", name) if rows["query"] < 0 else ("image", image)
            unknown[what].add(which)
            continue
        lists[rows["query"]].append((rows["image"], _number(score, path, line)))
    for what, names in unknown.items():
        if names:
            raise UserError(f"{path} names {len(names)} of column {what} that the stores do not have: "
                            f"{some_names(sorted(names))}; they have {names_like(names, known[what].names)}")
    width = max(map(len, lists), default=0)
    indexes = np.full((query.count, width), -1, np.int64)
    scores = np.full(indexes.shape, -np.inf)
    for row, entries in enumerate(lists):
        if entries:
            indexes[row, :len(entries)], scores[row, :len(entries)] = zip(*entries)
    return _ranking(indexes, scores, {"method": path.name}, query, database)


def named(ranking: Ranking, query: FeatureStore, database: Collection) -> Results:
    """A ranking with the names of its queries and images."""
    names = [name for store in database.stores for name in store.names]
    images = [[names[row] for row in rows if row >= 0] for rows in ranking.indexes.tolist()]
    return Results(list(query.names), images, ranking.scores)


def _ranking(indexes: np.ndarray, scores: np.ndarray, settings: dict, query: FeatureStore,
             database: Collection) -> Ranking:
    return Ranking(np.asarray(indexes, np.int64), np.asarray(scores, np.float64), settings,
                   store_digest(query), database.digests)


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Query, image and score of each line of a table."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                raise UserError(f"{path} lacks the columns {', '.join(lacking)}: its first line must name "
                                f"{', '.join(_COLUMNS)}")
            for line in reader:
                yield tuple(line[name] or "" for name in _COLUMNS)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except csv.Error as error:
        raise UserError(f"{path} is no table: {error}") from None


def _number(text: str, path: Path, line: int) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"{path}, line {line}: the score {text!r} is no number") from None
