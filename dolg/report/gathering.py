"""From results, ground truth and stores to what the page shows."""
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dolg.errors import UserError
from dolg.report.results import (
    Hit, Image, Query, Report, counted, load_evaluations, methods_of,
)
from dolg.report.sources import (
    ImageFolders, Stores, find_ground_truth, find_stores, image_folders, open_ground_truth,
)
from dolg.report.training import read_training
from dolg.rerank.lists import read_lists, search_lists
from dolg.search.collection import Collection
from revisitop.evaluation import match_names
from revisitop.names import without_ending
from revisitop.groundtruth import GroundTruth
from revisitop.stores import StoreError


def make_report(
    named: Mapping[str, Path], ground_truth: Path | None = None,
    groups: Sequence[Sequence[str]] = (), images: Path | None = None,
    distractor_images: Path | None = None, top: int = 10, across: bool = False,
    training: Sequence[Path] = (),
) -> tuple[Report, dict[str, dict]]:
    """The report of results by name, and the results.

    What is not given is looked for where the results say: without a ground truth the report has no
    queries. Raises UserError for what does not fit together.
    """
    if top < 1:
        raise UserError(f"asked for the first {top} results of each query; give 1 or more")
    logs = [read_training(folder) for folder in training]
    torn = [note for log in logs for note in log.notes]
    evaluations = load_evaluations(named, across=across)
    path = ground_truth or find_ground_truth(named, evaluations)
    if path is None:
        if groups or images or distractor_images:
            raise UserError("--stores and image folders need --gnd, the ground truth")
        first = next(iter(evaluations.values()))
        dataset = str(first.get("dataset", "an unnamed data set"))
        notes = ["Queries are not shown: no result says where its ground truth lies, or it is not "
                 "there (--gnd gives it)"]
        return Report(dataset, methods_of(evaluations), (), logs, [*torn, *notes]), evaluations
    truth = open_ground_truth(path)
    _check_queries(evaluations, truth)
    stores, notes = find_stores(named, evaluations, groups)
    notes += _strange_truths(evaluations, truth)
    report = gather_report(evaluations, truth, stores, image_folders(path, images, distractor_images),
                           top)
    return replace(report, training=logs, notes=[*torn, *notes, *report.notes]), evaluations


def gather_report(
    evaluations: Mapping[str, Mapping], truth: GroundTruth, stores: Mapping[str, Stores],
    folders: ImageFolders, top: int = 10,
) -> Report:
    """Method name -> evaluation and, for those whose first `top` results are shown, -> stores.

    Stores and lists that do not hold the images of the ground truth give a note. Raises UserError for
    those of them that the user has given, and for folders that are not there.
    """
    folders.check()
    known: dict[tuple[str, int], Image] = {}
    hits, reasons, notes = {}, {}, []
    for name, opened in stores.items():
        try:
            reasons[name] = opened.reasons()
            hits[name] = _hits(truth, opened, folders, top, known)
        except (StoreError, UserError) as error:
            if opened.given:
                raise UserError(str(error)) from None
            notes.append(f"{name}: its lists are not shown: {error}")
    queries = [Query(name, folders.find(name), truth.boxes[q],
                     {label: len(rows) for label, rows in truth.labels[q].items()},
                     {method: found[q] for method, found in hits.items()})
               for q, name in enumerate(truth.queries)]
    reranked = [name for name in hits if stores[name].lists]
    return Report(truth.name, methods_of(evaluations, reranked, reasons), queries, notes=notes)


def _hits(truth: GroundTruth, stores: Stores, folders: ImageFolders, top: int,
          known: dict[tuple[str, int], Image]) -> list[list[Hit]]:
    """The first results of every query; none for a query whose image failed. `known` images, by name
    and which store they are of, are shared. Raises StoreError and UserError."""
    query_rows = np.argsort(match_names(stores.query, truth.queries, "queries"))
    images = match_names(stores.database, truth.images, "database images")
    database = Collection([stores.database, *stores.distractors])
    ranking = (read_lists(stores.lists, stores.query, database) if stores.lists
               else search_lists(stores.query, database, top))
    strangers = [(name, part) for part, store in enumerate(stores.distractors, 1) for name in store.names]
    found = []
    for q, row in enumerate(query_rows.tolist()):
        label_of = {int(i): label for label, rows in truth.labels[q].items() for i in rows}
        hits = []
        for index, score in zip(ranking.indexes[row, :top].tolist(), ranking.scores[row, :top].tolist()):
            if index < 0:
                break
            inside = index < len(images)
            number = int(images[index]) if inside else -1
            key = name, part = (truth.images[number], 0) if inside else strangers[index - len(images)]
            if key not in known:
                known[key] = Image(name, folders.find(name, not inside), part)
            hits.append(Hit(known[key], score, label_of.get(number, "negative")))
        found.append(hits)
    return found


def _strange_truths(evaluations: Mapping[str, Mapping], truth: GroundTruth) -> list[str]:
    """A note for each result that was scored by another ground truth than the one that is shown."""
    digests = {name: (evaluation.get("protocol") or {}).get("ground_truth_sha256")
               for name, evaluation in evaluations.items()}
    return [f"{name}: it was scored by another ground truth than the one whose labels are shown"
            for name, digest in digests.items() if digest not in (None, truth.sha256)]


def _check_queries(evaluations: Mapping[str, Mapping], truth: GroundTruth) -> None:
    """Raise UserError where a result is of other queries than the ground truth's."""
    for name, evaluation in evaluations.items():
        lengths = {len(figures["ap"]) for figures in evaluation["protocols"].values()}
        if lengths != {len(truth.queries)}:
            raise UserError(f"{name} has AP for {counted(lengths.pop(), 'query')}, the ground truth of "
                            f"{truth.name} has {len(truth.queries)}")
        names = evaluation.get("query_names")
        for q, (found, expected) in enumerate(zip(names or [], truth.queries)):
            if without_ending(found) != without_ending(expected):
                raise UserError(f"{name} has {found!r} as query {q}, the ground truth of {truth.name} "
                                f"has {expected!r} there: it is a result of another")
