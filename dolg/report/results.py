"""What a report shows, as plain data, and the results it is made of."""
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dolg.errors import UserError
from dolg.report.training import TrainingLog
from revisitop.record import (
    ResultError, check_comparable, differences, load_result, map_heading, queries_cropped,
)


@dataclass(frozen=True)
class Image:
    """A database image as the page names it, and the file it lies in, which may not exist; no path
    where the name leads out of the folder. part: 0, or of which store of distractors, from 1."""

    name: str
    path: Path | None
    part: int = 0

    @property
    def distractor(self) -> bool:
        return self.part > 0


@dataclass(frozen=True)
class Hit:
    """One place in the results of a query; `label` is easy, hard, ok, junk or negative."""

    image: Image
    score: float
    label: str


@dataclass(frozen=True)
class Query:
    """One query: its image, its box (x1, y1, x2, y2 in pixels) or None, and what was found.

    counts: label -> how many database images have it for this query.
    hits: method name -> its first results, best first; methods without lists are absent.
    """

    name: str
    path: Path | None
    box: tuple[float, float, float, float] | None
    counts: Mapping[str, int]
    hits: Mapping[str, Sequence[Hit]] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """One row of the table: what revisitop/evaluate.py wrote, under a name.

    differs: how its protocol differs from the first method's, in words; empty where it does not.
    reranked: its lists are another's, reranked: they show what a search without labels would.
    reasons: image name -> why its extraction failed, as far as the stores could be asked.
    """

    name: str
    evaluation: Mapping
    differs: str = ""
    reranked: bool = False
    reasons: Mapping[str, str] = field(default_factory=dict)

    def value(self, protocol: str, metric: str) -> float | None:
        """mAP, mP@1, mP@5 or mP@10 in 0..1; None where it is not defined."""
        return self.evaluation["protocols"][protocol].get(metric)

    def aps(self, protocol: str) -> Sequence[float | None]:
        """AP per query, None where the protocol has no positive for it."""
        return self.evaluation["protocols"][protocol]["ap"]

    def ranks(self, protocol: str) -> Sequence[Sequence[int] | None] | None:
        """Per query the places of its positives, from 0 and junk left out; None where the result
        does not have them."""
        return self.evaluation["protocols"][protocol].get("ranks")

    def failed(self, kind: str) -> Sequence[str]:
        """Names of the `kind` ("query", "database") of images whose extraction failed."""
        return self.evaluation.get("failed", {}).get(kind, [])

    def detail(self) -> str:
        """What was searched, as far as the result says, and what is unusual in its protocol."""
        counts = [(self.evaluation.get(key), unit) for key, unit in
                  (("database", "images"), ("distractors", "distractors"))]
        parts = [f"{count:,} {unit}" for count, unit in counts
                 if isinstance(count, int) and count > 0]
        if queries_cropped(self.evaluation) is False:
            parts.append("queries not cropped")
        if self.differs:
            parts.append(f"differs from the first in {self.differs}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Report:
    """All that the page shows. The first method is the one others are compared with.

    queries: none where the ground truth is not known. notes: what could not be shown, and why.
    """

    dataset: str
    methods: Sequence[Method]
    queries: Sequence[Query] = ()
    training: Sequence[TrainingLog] = ()
    notes: Sequence[str] = ()

    @property
    def protocols(self) -> list[str]:
        """Those of all methods, in order."""
        return list(self.methods[0].evaluation["protocols"])

    @property
    def heading(self) -> str:
        """What mAP is called: it says so where queries were not cropped."""
        return map_heading([method.evaluation for method in self.methods])


def counted(count: int, what: str) -> str:
    """A number and what it counts: "1 query", "2 queries", "1 method", "2 methods"."""
    many = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{count} {what if count == 1 else many}"


def methods_of(evaluations: Mapping[str, Mapping], reranked: Sequence[str] = (),
               reasons: Mapping[str, Mapping[str, str]] | None = None) -> list[Method]:
    """The methods of evaluations by name; `reasons` by method."""
    first = next(iter(evaluations.values()))
    return [Method(name, evaluation, "; ".join(differences(first, evaluation)), name in reranked,
                   (reasons or {}).get(name, {})) for name, evaluation in evaluations.items()]


def named_results(results: Sequence[str], pairs: Sequence[Sequence[str]] = ()) -> dict[str, Path]:
    """Name -> file of RESULT.json or NAME=RESULT.json, and of (NAME, FILE) pairs after them.

    Raises UserError for a name given twice, and where there is none at all.
    """
    named: dict[str, Path] = {}
    for name, path in [*map(_split, results), *((name, Path(path)) for name, path in pairs)]:
        if name in named:
            raise UserError(f"two results are called {name!r} ({named[name]} and {path}); give each "
                            "its own name: NAME=RESULT.json")
        named[name] = path
    if not named:
        raise UserError("there is no result to show: give what revisitop/evaluate.py --json wrote")
    return named


def load_evaluations(named: Mapping[str, Path], across: bool = False) -> dict[str, dict]:
    """The evaluation of each name, in order, checked.

    Raises UserError for a file that is missing or no such result, for other protocols than the
    first's, and, unless `across`, for evaluations of different data sets, or made by protocols that
    differ.
    """
    evaluations: dict[str, dict] = {}
    for name, path in named.items():
        required = tuple(next(iter(evaluations.values()))["protocols"]) if evaluations else ()
        evaluations[name] = load_evaluation(path, required)
    if not across:
        _check_comparable(evaluations)
    return evaluations


def load_evaluation(path: Path, protocols: Sequence[str] = ()) -> dict:
    """The JSON that revisitop/evaluate.py wrote, checked; UserError where it is not such a result."""
    try:
        result = load_result(path, protocols)
    except ResultError as error:
        why = str(error)
        if why.endswith('it has no "protocols"'):
            why += " (results on GLDv2 have none, and are not shown by this report)"
        raise UserError(why) from None
    if problem := _problem(result):
        raise UserError(f"{path} is not a result of revisitop/evaluate.py: {problem}")
    for name, figures in result["protocols"].items():
        if not _are_ranks(figures.get("ranks"), len(figures["ap"])):
            raise UserError(f'{path}: "ranks" of protocol "{name}" are not a list of ascending '
                            "places for each query")
    return result


def _problem(result: Mapping) -> str:
    """What is wrong with what a result says beside its figures, in words; empty if nothing is."""
    if not isinstance(result.get("protocol") or {}, Mapping):
        return '"protocol" is no table'
    failed = result.get("failed", {})
    if not isinstance(failed, Mapping) or type(failed.get("distractors", 0)) is not int or not all(
            _are_names(failed.get(kind, [])) for kind in ("query", "database")):
        return '"failed" is no table of names of images and a number of distractors'
    files = result.get("files") or {}
    if not isinstance(files, Mapping) or not _are_names(files.get("distractors") or []) or not all(
            isinstance(files.get(kind) or "", str)
            for kind in ("ground_truth", "query", "database", "lists")):
        return '"files" is no table of paths'
    return ""


def _are_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_ranks(ranks: object, queries: int) -> bool:
    """Whether these are ascending places per query, or nothing at all, as in older results."""
    if ranks is None:
        return True
    return isinstance(ranks, list) and len(ranks) == queries and all(
        places is None or (
            isinstance(places, list) and all(type(place) is int for place in places)
            and all(a < b for a, b in zip([-1, *places], places)))
        for places in ranks)


def _split(result: str) -> tuple[str, Path]:
    """Name and path of RESULT.json or NAME=RESULT.json."""
    name, equals, path = result.partition("=")
    if equals and name and path and not os.path.exists(result):
        return name, Path(path)
    return Path(result).stem, Path(result)


def _check_comparable(evaluations: Mapping[str, Mapping]) -> None:
    datasets = {name: evaluation.get("dataset") for name, evaluation in evaluations.items()}
    if len(set(map(str, datasets.values()))) > 1:
        raise UserError("results of different data sets cannot be compared: " + ", ".join(
            f"{name} is of {dataset}" for name, dataset in datasets.items())
            + " (--across compares them all the same)")
    try:
        check_comparable(evaluations)
    except ResultError as error:
        raise UserError(str(error)) from None
