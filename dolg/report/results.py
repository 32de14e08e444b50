"""What a report shows, as plain data, and how it is gathered from files."""
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dolg.errors import UserError
from dolg.report.thumbnails import find_image
from dolg.search.exact import top_k
from revisitop.groundtruth import GroundTruth, GroundTruthError, load_ground_truth
from revisitop.record import (
    ResultError, check_comparable, differences, load_result, map_heading,
)
from revisitop.stores import Store, StoreError

PROTOCOLS = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Hit:
    """One database image in the results of a query; `label` is easy, hard, junk or negative."""

    name: str
    image: Path
    score: float
    label: str
    distractor: bool = False


@dataclass(frozen=True)
class Query:
    """One query: its image, its box (x1, y1, x2, y2 in pixels), and how each method did.

    counts: how many database images are easy, hard and junk for it.
    ap: method name -> protocol -> 0..1, or None where the protocol has no positive for it.
    hits: method name -> its first results, best first; methods without stores are absent.
    """

    index: int
    name: str
    image: Path
    box: tuple[float, float, float, float] | None
    counts: dict[str, int]
    ap: dict[str, dict[str, float | None]]
    hits: dict[str, list[Hit]] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One row of the table: what revisitop/evaluate.py wrote, under a name.

    differs: how its protocol differs from the first method's, in words; empty where it does not.
    """

    name: str
    evaluation: dict
    differs: str = ""

    def value(self, protocol: str, metric: str) -> float | None:
        """mAP, mP@1, mP@5 or mP@10 in 0..1; None where it is not defined."""
        return self.evaluation["protocols"][protocol].get(metric)

    def detail(self) -> str:
        """What was searched, where the evaluation says so, and what is unusual in its protocol."""
        counts = [(self.evaluation.get(key), unit) for key, unit in
                  (("database", "images"), ("distractors", "distractors"))]
        parts = [f"{count:,} {unit}" for count, unit in counts
                 if isinstance(count, int) and count > 0]
        if "protocol" in self.evaluation and (heading := map_heading([self.evaluation])) != "mAP":
            parts.append(heading)
        if self.differs:
            parts.append(f"differs from the first in {self.differs}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Report:
    """All that the page shows. The first method is the one others are compared with."""

    dataset: str
    methods: Sequence[Method]
    queries: Sequence[Query]


@dataclass(frozen=True)
class Stores:
    """The descriptors behind a method: stores as revisitop.stores.Store opens them."""

    query: Store
    database: Store
    distractors: Sequence[Store] = ()


@dataclass(frozen=True)
class ImageFolders:
    """Where the images of the benchmark and, if elsewhere, those of the distractors lie."""

    benchmark: Path
    distractors: Path | None = None

    def check(self) -> None:
        """Raise UserError for a folder that is not there."""
        for folder in filter(None, (self.benchmark, self.distractors)):
            if not folder.is_dir():
                raise UserError(f"{folder} is not a folder of images")

    def find(self, name: str, distractor: bool = False) -> Path:
        """The path of an image, which may not exist."""
        return find_image((distractor and self.distractors) or self.benchmark, name)


def summarise(evaluations: dict[str, dict]) -> Report:
    """A report of the table alone, for want of a ground truth: method name -> evaluation."""
    methods = _methods(evaluations)
    return Report(str(methods[0].evaluation.get("dataset", "an unnamed data set")), methods, [])


def gather_report(
    evaluations: dict[str, dict], ground_truth: GroundTruth, stores: dict[str, Stores],
    folders: ImageFolders, top: int = 10,
) -> Report:
    """Put together what the page shows: method name -> evaluation, method name -> stores.

    Only the methods in `stores` show their first `top` results. Raises UserError for folders that
    are not there, for `top` < 1, and for stores that do not hold the images of the ground truth,
    in its order.
    """
    folders.check()
    if top < 1:
        raise UserError(f"asked for the first {top} results of each query; give 1 or more")
    hits = {method: _hits(ground_truth, stores[method], folders, top) for method in stores}
    queries = []
    for q, name in enumerate(ground_truth.queries):
        ap = {method: {protocol: evaluation["protocols"][protocol]["ap"][q]
                       for protocol in PROTOCOLS} for method, evaluation in evaluations.items()}
        counts = {label: len(indexes) for label, indexes in _labelled(ground_truth, q).items()}
        queries.append(Query(q, name, folders.find(name), ground_truth.boxes[q], counts, ap,
                             {method: hits[method][q] for method in hits}))
    return Report(ground_truth.name, _methods(evaluations), queries)


def _methods(evaluations: dict[str, dict]) -> list[Method]:
    first = next(iter(evaluations.values()))
    return [Method(name, evaluation, "; ".join(differences(first, evaluation)))
            for name, evaluation in evaluations.items()]


def _hits(
    ground_truth: GroundTruth, stores: Stores, folders: ImageFolders, top: int
) -> list[list[Hit]]:
    """The first results of every query; none for a query whose image failed."""
    _check_names(stores.query, ground_truth.queries, "queries")
    _check_names(stores.database, ground_truth.images, "database images")
    queries = np.concatenate([np.asarray(chunk) for chunk in stores.query.chunks()])
    usable = np.flatnonzero(np.isfinite(queries).all(axis=1))
    searched = (stores.database, *stores.distractors)
    chunks = itertools.chain.from_iterable(store.chunks() for store in searched)
    scores, indexes = top_k(queries[usable], chunks, top)
    names = list(itertools.chain.from_iterable(store.names for store in searched))
    hits: list[list[Hit]] = [[] for _ in ground_truth.queries]
    for row, q in enumerate(usable):
        label_of = {int(i): label for label, found in _labelled(ground_truth, q).items()
                    for i in found}
        for score, index in zip(scores[row].tolist(), indexes[row].tolist()):
            distractor = index >= len(ground_truth.images)
            image = folders.find(names[index], distractor)
            label = label_of.get(index, "negative")
            hits[q].append(Hit(names[index], image, score, label, distractor))
    return hits


def _labelled(ground_truth: GroundTruth, q: int) -> dict[str, Sequence[int]]:
    """Database indexes of query `q` by label; all others are negatives."""
    return {"easy": ground_truth.easy[q], "hard": ground_truth.hard[q],
            "junk": ground_truth.junk[q]}


def _check_names(store: Store, names: Sequence[str], what: str) -> None:
    """A store must hold exactly the images of the ground truth, in its order."""
    if len(store.names) != len(names):
        raise UserError(f"store {store.path} holds {len(store.names)} images, the ground truth "
                        f"has {len(names)} {what}")
    for i, (found, expected) in enumerate(zip(store.names, names)):
        if found != expected:
            raise UserError(f"store {store.path} has {found!r} as image {i}, the ground truth's "
                            f"{what} have {expected!r} there")


def open_ground_truth(path: Path) -> GroundTruth:
    """The ground-truth file at `path`; UserError if it cannot be read."""
    try:
        return load_ground_truth(path)
    except GroundTruthError as error:
        raise UserError(str(error)) from error


def open_stores(groups: Sequence[Sequence[str]], methods: Sequence[str]) -> dict[str, Stores]:
    """Open groups of NAME QUERY DATABASE [DISTRACTORS ...]; each NAME must be in `methods`."""
    opened = {}
    for name, *paths in groups:
        if name not in methods:
            raise UserError(f"stores are given for {name!r}, which is no result; results are: "
                            + ", ".join(methods))
        if name in opened:
            raise UserError(f"stores are given twice for {name!r}")
        if len(paths) < 2:
            raise UserError(f"stores of {name!r} need a QUERY and a DATABASE store, given: "
                            + (" ".join(paths) or "nothing"))
        try:
            query, database, *distractors = (Store(path) for path in paths)
        except StoreError as error:
            raise UserError(str(error)) from error
        opened[name] = Stores(query, database, distractors)
    return opened


def load_evaluations(
    pairs: Sequence[tuple[str, Path]], queries: int | None = None, across: bool = False,
) -> dict[str, dict]:
    """The evaluation of each (name, file), in the order given; checked as load_evaluation does.

    Raises UserError also for a name given twice and, unless `across`, for evaluations of different
    data sets, or made by protocols that differ.
    """
    evaluations: dict[str, dict] = {}
    for name, path in pairs:
        if name in evaluations:
            raise UserError(f"two results are called {name!r}; give each its own name")
        evaluations[name] = load_evaluation(path, queries)
    if not across:
        _check_comparable(evaluations)
    return evaluations


def _check_comparable(evaluations: dict[str, dict]) -> None:
    datasets = {name: evaluation.get("dataset") for name, evaluation in evaluations.items()}
    if len(set(map(str, datasets.values()))) > 1:
        raise UserError("results of different data sets cannot be compared: " + ", ".join(
            f"{name} is of {dataset}" for name, dataset in datasets.items()))
    try:
        check_comparable(evaluations)
    except ResultError as error:
        raise UserError(str(error)) from None


def load_evaluation(path: Path, queries: int | None = None) -> dict:
    """The JSON that revisitop/evaluate.py wrote, checked.

    queries: how many the ground truth has. Raises UserError for a file that is missing or not
    such a result, and where its lists of AP have another length than `queries`.
    """
    try:
        return load_result(path, PROTOCOLS, queries)
    except ResultError as error:
        raise UserError(str(error)) from None
