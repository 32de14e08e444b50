"""What a report shows, as plain data, and how it is gathered from files."""
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dolg.errors import UserError
from dolg.report.thumbnails import find_image
from dolg.search.exact import top_k
from revisitop.groundtruth import GroundTruth, GroundTruthError, load_ground_truth
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
    """One row of the table: what revisitop/evaluate.py wrote, under a name."""

    name: str
    evaluation: dict

    def value(self, protocol: str, metric: str) -> float | None:
        """mAP, mP@1, mP@5 or mP@10 in 0..1; None where it is not defined."""
        return self.evaluation["protocols"][protocol].get(metric)

    def detail(self) -> str:
        """The sizes of what was searched, where the evaluation gives them."""
        counts = [(self.evaluation.get(key), unit) for key, unit in
                  (("database", "images"), ("distractors", "distractors"))]
        return ", ".join(f"{count:,} {unit}" for count, unit in counts
                         if isinstance(count, int) and count > 0)


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
    methods = [Method(name, evaluation) for name, evaluation in evaluations.items()]
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
    methods = [Method(name, evaluation) for name, evaluation in evaluations.items()]
    return Report(ground_truth.name, methods, queries)


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
    pairs: Sequence[tuple[str, Path]], queries: int | None = None
) -> dict[str, dict]:
    """The evaluation of each (name, file), in the order given; checked as load_evaluation does.

    Raises UserError also for a name given twice and for evaluations of different data sets.
    """
    evaluations: dict[str, dict] = {}
    for name, path in pairs:
        if name in evaluations:
            raise UserError(f"two results are called {name!r}; give each its own name")
        evaluations[name] = load_evaluation(path, queries)
    datasets = {name: evaluation.get("dataset") for name, evaluation in evaluations.items()}
    if len(set(map(str, datasets.values()))) > 1:
        raise UserError("results of different data sets cannot be compared: " + ", ".join(
            f"{name} is of {dataset}" for name, dataset in datasets.items()))
    return evaluations


def load_evaluation(path: Path, queries: int | None = None) -> dict:
    """The JSON that revisitop/evaluate.py wrote, checked.

    queries: how many the ground truth has. Raises UserError for a file that is missing or not
    such a result, and where its lists of AP have another length than `queries`.
    """
    try:
        evaluation = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); give what revisitop/evaluate.py "
                        "--json wrote") from error
    problem = _problem(evaluation, queries)
    if problem:
        raise UserError(f"{path} is not a result of revisitop/evaluate.py"
                        f"{' for this ground truth' if queries else ''}: {problem}")
    return evaluation


def _problem(evaluation: object, queries: int | None) -> str:
    """What is wrong with an evaluation, in words; empty if nothing is."""
    protocols = evaluation.get("protocols") if isinstance(evaluation, dict) else None
    if not isinstance(protocols, dict):
        return 'it has no "protocols"'
    for name in PROTOCOLS:
        protocol = protocols.get(name)
        if not isinstance(protocol, dict) or not isinstance(protocol.get("ap"), list):
            return f'protocol "{name}" has no list "ap"'
        if "mAP" not in protocol:
            return f'protocol "{name}" has no "mAP"'
        figures = [*protocol["ap"], *(protocol.get(m) for m in ("mAP", "mP@1", "mP@5", "mP@10"))]
        if not all(_is_share(figure) for figure in figures):
            return f'protocol "{name}" holds a figure that is not in 0..1 or null'
        if queries is not None and len(protocol["ap"]) != queries:
            return (f'protocol "{name}" has AP for {len(protocol["ap"])} queries, '
                    f"the ground truth has {queries}")
    return ""


def _is_share(figure: object) -> bool:
    if figure is None:
        return True
    is_number = isinstance(figure, (int, float)) and not isinstance(figure, bool)
    return is_number and 0 <= figure <= 1 + 1e-6  # a sum of trapezoids may round to above 1
