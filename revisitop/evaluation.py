"""From ground truth and feature stores to mAP and mP@k of every protocol."""
import json
import math
import sys
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from revisitop.counting import count_ranks
from revisitop.groundtruth import GroundTruth
from revisitop.metrics import MapResult, positions_without_junk, summarise
from revisitop.names import find_names, names_like, some_names
from revisitop.protocol import PROTOCOLS, protocols_of, split
from revisitop.record import KAPPAS, METRICS, map_heading, notes, title
from revisitop.settings import differing_settings, is_recorded
from revisitop.stores import Store, StoreError

# What a manifest says of its files alone; a result records the rest, which made the descriptors
NOT_RECORDED = {"format", "version", "chunk_size"}
# Descriptors of other lengths than 1 by more than this are told of; float16 needs so much
_LENGTH_TOLERANCE = 1e-3
# Of each store: chunks whose descriptors' lengths are looked at, and rows of each
_SAMPLED_CHUNKS, _SAMPLED_ROWS = 16, 1024


def evaluate_stores(
    ground_truth: GroundTruth, query: Store, database: Store, distractors: Sequence[Store] = (),
    **how: object,
) -> dict:
    """Evaluate descriptors by inner product; exact, by counting (see `counting`).

    `query` and `database` hold the images of the ground truth, in any order; images of
    `distractors` count as wrong for every query. A query whose image failed gets AP 0; a
    database image that failed is never found. `how` goes to `count_ranks`: in which precision, by
    how many threads, processes, on which device.

    Returns what `evaluate.py --json` writes, shares in 0..1:
        {"dataset", "queries", "database", "distractors" (numbers of images),
        "protocols": {"easy" | "medium" | "hard": {"mAP", "mP@1", "mP@5", "mP@10",
            "ap": [per query, None where it has no positive],
            "ranks": [per query the places, from 0, of the positives in the ranking without junk,
                ascending; None where it has no positive]}},
        "query_names": [per query, as "ap"],
        "failed": {"query": [names], "database": [names], "distractors": number},
        "warnings": {"query", "database", "distractors" (numbers of images that were described with a
            warning, such as those of files that are cut off)},
        "lengths": {"query", "database", "distractors": `lengths_of`},
        "protocol": how it was made, see `protocol_record`}.
    A ground truth with ok/junk labels has the one protocol "plain". Raises StoreError where a
    store is damaged, does not hold the images, was made with other settings, or has no image that did
    not fail.
    """
    positions = rank_labelled(ground_truth, query, database, distractors, **how)
    protocols = {protocol: figures_of(*positives_of(ground_truth, protocol, *positions))
                 for protocol in protocols_of(ground_truth)}
    return result_of(ground_truth, query, database, distractors, protocols,
                     bool(how.get("double")))


def rank_labelled(
    ground_truth: GroundTruth, query: Store, database: Store, distractors: Sequence[Store],
    **how: object,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per query its labelled images and their ranks, once stores and ground truth are found to fit;
    a query that failed has none. Arguments and errors are those of `evaluate_stores`."""
    stores = [query, database, *distractors]
    check_made_alike(stores)
    check_described(stores)
    check_different([database, *distractors])
    query_index = match_names(query, ground_truth.queries, "queries")
    images = match_names(database, ground_truth.images, "database images")
    rows = np.argsort(query_index)
    descriptors, broken = query.rows(rows), query.status[rows] != 0
    descriptors[broken] = 0
    everything = [np.concatenate(list(entry.values())) for entry in ground_truth.labels]
    labelled = [indexes[:0] if failed else indexes for indexes, failed in zip(everything, broken)]
    return labelled, count_ranks(descriptors, labelled, database, images, distractors, **how)


def result_of(ground_truth: GroundTruth, query: Store, database: Store,
              distractors: Sequence[Store], protocols: dict, double: bool) -> dict:
    """What `evaluate_stores` returns, with the figures in `protocols`."""
    return {
        "dataset": ground_truth.name,
        "queries": query.count,
        "database": database.count,
        "distractors": sum(store.count for store in distractors),
        "protocols": protocols,
        "query_names": ground_truth.queries,
        "failed": {"query": [name for name, _ in query.errors()],
                   "database": [name for name, _ in database.errors()],
                   "distractors": sum(len(store.errors()) for store in distractors)},
        "warnings": {"query": len(query.warnings()), "database": len(database.warnings()),
                     "distractors": sum(len(store.warnings()) for store in distractors)},
        "lengths": {"query": lengths_of([query]), "database": lengths_of([database]),
                    "distractors": lengths_of(distractors)},
        "protocol": protocol_record(ground_truth, query, database, distractors, double),
    }


def format_table(result: dict) -> str:
    """The result of `evaluate_stores` as text, in percent.

    mAP is called so alone where the queries were cropped to their boxes, as the protocol asks.
    """
    failed = result["failed"]
    heading = map_heading([result])
    widths = [max(8, len(heading) + 2), *(8 for _ in METRICS[1:])]
    lines = [title(result),
             f"failed images: {len(failed['query'])} queries (AP 0), {len(failed['database'])} "
             f"database (never found), {failed['distractors']} distractors",
             "", f"{'':8}" + _row((heading, *METRICS[1:]), widths) + "  queries scored"]
    for protocol, figures in result["protocols"].items():
        cells = ["-" if figures[metric] is None else f"{100 * figures[metric]:.2f}"
                 for metric in METRICS]
        scored = sum(ap is not None for ap in figures["ap"])
        lines.append(f"{protocol.capitalize():8}{_row(cells, widths)}{scored:>16}")
    return "\n".join([*lines, *notes(result)])


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def metrics_of(
    ground_truth: GroundTruth, protocol: str, labelled: list[np.ndarray], ranks: list[np.ndarray]
) -> MapResult:
    """Metrics of one protocol from the ranks of the labelled images."""
    return summarise(*positives_of(ground_truth, protocol, labelled, ranks), KAPPAS)


def positives_of(
    ground_truth: GroundTruth, protocol: str, labelled: list[np.ndarray], ranks: list[np.ndarray]
) -> tuple[list[np.ndarray], list[int]]:
    """Per query the places of the positives that have a descriptor, junk taken out of the ranking,
    and how many positives there are."""
    entries = split(ground_truth, protocol)
    positions = []
    for entry, images, rank in zip(entries, labelled, ranks):
        found = np.isfinite(rank)
        ok, junk = (rank[found & np.isin(images, entry[kind])] for kind in ("ok", "junk"))
        positions.append(positions_without_junk(ok, junk))
    return positions, [len(entry["ok"]) for entry in entries]


def figures_of(positions: Sequence[np.ndarray], n_positives: Sequence[int]) -> dict:
    """A protocol's means, and per query "ap" and "ranks" (see `evaluate_stores`), from the places of
    the positives that were found and the number of all."""
    metrics = summarise(positions, n_positives, KAPPAS)
    figures = dict(zip(METRICS, map(_or_none, (metrics.map, *metrics.mpr.tolist()))))
    ranks = [np.asarray(places).tolist() if n else None for places, n in zip(positions, n_positives)]
    return {**figures, "ap": [_or_none(ap) for ap in metrics.aps.tolist()], "ranks": ranks}


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return None if math.isnan(value) else value


def protocol_record(ground_truth: GroundTruth, query: Store, database: Store,
            distractors: Sequence[Store], double: bool) -> dict:
    """How a result is made, as plain data; None for what is not known.

    {"ground_truth_sha256",
     "labels": {protocol: {"ok": [labels], "junk": [labels]}}, "junk": what is done with these,
     "score_precision": "float32" | "float64",
     "query", "database": `_settings`, "query" always with "cropped"; "distractors": [those],
     "across": [how the stores differ], where these are of unlike settings}
    """
    across = unlike_settings([query, database, *distractors])
    labels = {protocol: {role: list(kinds) for role, kinds in PROTOCOLS[protocol].items()}
              for protocol in protocols_of(ground_truth)}
    return {
        "ground_truth_sha256": ground_truth.sha256 or None,
        "labels": labels,
        "junk": "removed from the ranking",
        "score_precision": "float64" if double else "float32",
        "query": {"cropped": None, **_settings(query)},
        "database": _settings(database),
        "distractors": [_settings(store) for store in distractors],
        **({"across": across} if across else {}),
    }


def _settings(store: Store) -> dict:
    """What a store's manifest says of the images and of what made their descriptors."""
    settings = {key: value for key, value in store.manifest.items() if key not in NOT_RECORDED}
    # A threshold may be infinite, for which JSON has no word
    return json.loads(json.dumps({"image_variant": None, **settings}), parse_constant=str)


def check_made_alike(stores: Sequence[Store], local: bool = False) -> None:
    """Raise StoreError where stores' descriptors cannot be compared with one another: they have different
    dimensions, or were made with different weights or settings and none was opened with `across`.

    local: their local features are compared as well. What a store does not record is not checked:
    commands tell of it by `warn_unrecorded`.
    """
    first = stores[0]
    if not first.dim:
        raise StoreError(f"store {first.path} has local features alone, and no descriptors")
    for other in stores[1:]:
        if other.dim != first.dim:
            raise StoreError(f"store {other.path} has descriptors of {other.dim} dimensions, "
                             f"{first.path} of {first.dim}: both must come from one model")
    found = unlike_settings(stores, local)
    # Entries of an index, and a network that is about to be used, have no `across` of their own
    if found and not any(getattr(store, "across", False) for store in stores):
        raise StoreError(f"{found[0]} (extract both alike, or give --across to compare them all the same)")


def warn_unrecorded(stores: Sequence[Store]) -> None:
    """Name on stderr the stores that do not record what made them, such as imported ones."""
    for store in stores:
        if not is_recorded(store.manifest):
            print(f"WARNING: {store.path} does not record what made its descriptors: whether they may be "
                  "compared with others is not checked", file=sys.stderr)


def unlike_settings(stores: Sequence[Store], local: bool = False) -> list[str]:
    """In words, which of the stores were made with different weights or settings, and which these are."""
    found = ((one, other, differing_settings(one.manifest, other.manifest, local))
             for one, other in combinations(stores, 2))
    return [f"{one.path} and {other.path} were made with different {'; '.join(differing)}"
            for one, other, differing in found if differing]


def check_described(stores: Sequence[Store]) -> None:
    """Raise StoreError for a store whose images have all failed: there is nothing to score."""
    for store in stores:
        if store.count and store.status.all():
            name, reason = store.errors()[0]
            raise StoreError(f"all {store.count} images of {store.path} failed, the first, {name!r}, "
                             f"with: {reason}; extract them again")


def lengths_of(stores: Sequence[Store]) -> dict:
    """Of a sample of the stores' descriptors, all where there are few: {"checked", "zero", "other" (neither
    0 nor 1): numbers, "shortest", "longest": lengths but for zeros, None without any}."""
    found = [np.empty(0, np.float32)]
    for store in stores:
        rows = min(store.chunk_size, store.count, _SAMPLED_ROWS)
        table, status = np.empty((rows, store.dim), np.float32), np.empty(rows, np.uint8)
        for index in sorted({k * store.num_chunks // _SAMPLED_CHUNKS for k in range(_SAMPLED_CHUNKS)}):
            if index < store.num_chunks:
                chunk = store.chunk(index)
                part, of_part = table[:chunk.shape[0]], status[:chunk.shape[0]]
                chunk.read(0, part, of_part)
                found.append(np.sqrt(np.einsum("nd,nd->n", part, part))[of_part == 0])
    lengths = np.concatenate(found)
    lengths, checked = lengths[lengths > 0], len(lengths)
    other = np.abs(lengths - 1) > _LENGTH_TOLERANCE
    return {"checked": checked, "zero": checked - len(lengths), "other": int(other.sum()),
            "shortest": float(lengths.min()) if len(lengths) else None,
            "longest": float(lengths.max()) if len(lengths) else None}


def check_different(stores: Sequence[Store]) -> None:
    """Raise StoreError where a store is among `stores` twice, or a copy of it: its images would
    count twice."""
    for number, store in enumerate(stores):
        for other in stores[:number]:
            if _is_copy(store, other):
                raise StoreError(f"{store.path} has the images of {other.path}: give each store of "
                                 "database images and distractors once")


def _is_copy(store: Store, other: Store) -> bool:
    if store.path.resolve() == other.path.resolve():
        return True
    if not store.count or (store.count, store.chunk_size) != (other.count, other.chunk_size):
        return False
    digest = store.chunk(0).digest
    return digest is not None and digest == other.chunk(0).digest


def match_names(store: Store, expected: list[str], what: str) -> np.ndarray:
    """Index in `expected` of each of the store's rows; StoreError unless both have the same images.

    The ending of an image file may be missing, or another, on either side (see `names`).
    """
    indexes = find_names(store.names, expected)
    present = np.zeros(len(expected), bool)
    present[indexes[indexes >= 0]] = True
    if not present.all():
        missing = [expected[i] for i in np.flatnonzero(~present)]
        raise StoreError(f"store {store.path} lacks {len(missing)} of the {len(expected)} {what} "
                         f"that the ground truth names: {some_names(missing)}; it has "
                         f"{names_like(missing, store.names)}")
    strangers = [store.names[row] for row in np.flatnonzero(indexes < 0)]
    if strangers:
        advice = "; pass them by --distractors" if what == "database images" else ""
        raise StoreError(f"store {store.path} has {len(strangers)} images that are not among the "
                         f"{what} of the ground truth: {some_names(strangers)}{advice}")
    if len(indexes) > len(expected):
        repeated = [expected[i] for i in np.flatnonzero(np.bincount(indexes) > 1)]
        raise StoreError(f"store {store.path} has {len(repeated)} images more than once: "
                         f"{some_names(repeated)}")
    return indexes
