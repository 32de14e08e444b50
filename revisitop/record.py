"""What a result says of how it was made, and whether results may be compared.

A result is what `evaluate_stores` returns and evaluate.py --json writes; its "protocol" is the
record. Results of older versions have less of it, or none: what they lack is unknown.
"""
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

KAPPAS = (1, 5, 10)
METRICS = ("mAP", *(f"mP@{k}" for k in KAPPAS))

# How mAP is called by whether the queries were cropped to their boxes, as the protocol asks; None:
# not known
_HEADINGS = {True: "mAP", False: "mAP (queries not cropped)", None: "mAP (cropping unknown)"}

# Kinds of images of a result, and what becomes of those that failed
_KINDS = {"query": ("queries", "their AP is 0, and is part of the means"),
          "database": ("database images", "they are never found, also where they are right"),
          "distractors": ("distractors", "they are ahead of no image")}
_COUNTS = {"query": "queries", "database": "database", "distractors": "distractors"}


class ResultError(ValueError):
    """A file that is no result, or results that cannot be compared; one line says why."""


def load_result(
    path: str | Path, protocols: Sequence[str] = (), queries: int | None = None
) -> dict:
    """The result in a file, checked.

    protocols: those that it must have; by default those that it has are checked. queries: how
    many the ground truth has. Raises ResultError for a file that is missing or no such result,
    and where its lists of AP have another length than `queries`.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path} is not JSON ({error}); give what revisitop/evaluate.py "
                          "--json wrote") from None
    problem = _problem(result, protocols, queries)
    if problem:
        raise ResultError(f"{path} is not a result of revisitop/evaluate.py"
                          f"{' for this ground truth' if queries else ''}: {problem}")
    return result


def differences(first: Mapping, second: Mapping) -> list[str]:
    """What differs between two results, in words, of what must be the same to compare methods.

    That is the data set, its labels and what is done with them, which images were queries,
    database and distractors, in which variant, and whether queries were cropped; not the model,
    its weights, scales, whitening or precision, which are the methods. What neither result
    records is no difference; what one alone records is "unknown" in the other.
    """
    facts, others = _facts(first), _facts(second)
    if first.get("distractors") == second.get("distractors"):
        facts, others = ({**some, **_distractor_facts(result)}
                         for some, result in ((facts, first), (others, second)))
    return [f"{what}: {_shown(value)} and {_shown(others[what])}"
            for what, value in facts.items() if value != others[what]]


def check_comparable(results: Mapping[str, Mapping]) -> None:
    """Raise ResultError, in one line, where one of `results` (by name) differs from the first."""
    (name, first), *others = results.items()
    for other, result in others:
        if found := differences(first, result):
            raise ResultError(f"{name} and {other} cannot be compared, they differ in "
                              f"{'; '.join(found)} (--across compares them all the same)")


def queries_cropped(result: Mapping) -> bool | None:
    """Whether the queries were cropped to their boxes; None where the result does not know."""
    cropped = _table(_record(result).get("query")).get("cropped")
    return cropped if isinstance(cropped, bool) else None


def map_heading(results: Iterable[Mapping]) -> str:
    """"mAP" where all queries were cropped, as the protocol asks; else it says what was done."""
    kinds = {queries_cropped(result) for result in results}
    return _HEADINGS[kinds.pop()] if len(kinds) == 1 else "mAP (cropping differs)"


def title(result: Mapping) -> str:
    """The data set and how many images it has, as far as the result says."""
    counts = [(result.get("queries"), "queries"), (result.get("database"), "database images"),
              (result.get("distractors"), "distractors")]
    sizes = ", ".join(f"{count} {unit}" for count, unit in counts if count is not None)
    return f"{result.get('dataset', 'an unnamed data set')}{': ' if sizes else ''}{sizes}"


def notes(result: Mapping) -> list[str]:
    """Lines to be read with a result's metrics: of images that failed, or were described with a warning,
    of descriptors that are not of unit length, and of stores that were made differently."""
    lines = []
    for kind, (what, effect) in _KINDS.items():
        failed = _table(result.get("failed")).get(kind) or 0
        failed, count = len(failed) if isinstance(failed, list) else failed, result.get(_COUNTS[kind])
        warned = _table(result.get("warnings")).get(kind)
        lengths = _table(_table(result.get("lengths")).get(kind))
        if failed:
            lines.append(f"{failed} of {count} {what} failed: {effect}")
        if warned:
            lines.append(f"{warned} of {count} {what} were described with a warning, such as those of files "
                         "that are cut off; python tools/info.py STORE names them")
        if lengths.get("zero"):
            lines.append(f"{lengths['zero']} of {lengths['checked']} {what} that were looked at have a "
                         "descriptor of zeros: its every score is 0")
        if lengths.get("other"):
            lines.append(f"{lengths['other']} of {lengths['checked']} {what} that were looked at have a "
                         f"descriptor not of unit length ({lengths['shortest']:.3g} to "
                         f"{lengths['longest']:.3g}): scores are inner products, not cosine similarities")
    across = _record(result).get("across")
    return [f"NOTE: {line}" for line in [*lines, *(across if isinstance(across, list) else ())]]


def _facts(result: Mapping) -> dict[str, str | None]:
    """What decides whether results may be compared, by what it is called; None: not known."""
    record = _record(result)
    cropped = queries_cropped(result)
    labels = record.get("labels")
    return {
        "data set": _text(result.get("dataset")),
        "ground truth (SHA-256)": _text(record.get("ground_truth_sha256")),
        "number of queries": _text(result.get("queries")),
        "number of database images": _text(result.get("database")),
        "number of distractors": _text(result.get("distractors")),
        "queries cropped": None if cropped is None else "yes" if cropped else "no",
        "image variant of the queries": _variant([record.get("query")]),
        "image variant of the database": _variant([record.get("database")]),
        "labels of the protocols": json.dumps(labels, sort_keys=True) if labels else None,
        "junk images": _text(record.get("junk")),
    }


def _distractor_facts(result: Mapping) -> dict[str, str | None]:
    """Which distractors, and in which variant; None where there are none, too."""
    stores = _record(result).get("distractors")
    stores = stores if isinstance(stores, list) else []
    digests = [_text(_table(store).get("images_digest")) for store in stores]
    known = digests and None not in digests
    return {"which distractors (digest of the images)": " + ".join(digests) if known else None,
            "image variant of the distractors": _variant(stores)}


def _variant(stores: Sequence) -> str | None:
    """The image variants of stores' settings, each once."""
    found = [_text(_table(store).get("image_variant")) for store in stores]
    if not any(found):
        return None
    return " + ".join(dict.fromkeys(variant or "unknown" for variant in found))


def _record(result: Mapping) -> Mapping:
    return _table(result.get("protocol"))


def _table(value: object) -> Mapping:
    """A table of a result, empty where the result has something else there, or nothing."""
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def _shown(value: str | None) -> str:
    """A fact for reading: of a digest the beginning tells enough."""
    return "unknown" if value is None else re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", value)


def _problem(result: object, required: Sequence[str], queries: int | None) -> str:
    """What is wrong with a result, in words; empty if nothing is."""
    protocols = result.get("protocols") if isinstance(result, dict) else None
    if not isinstance(protocols, dict) or not protocols:
        return 'it has no "protocols"'
    for name in required or protocols:
        if problem := _protocol_problem(protocols.get(name), queries):
            return f'protocol "{name}" {problem}'
    return _names_problem(result, {len(protocols[name]["ap"]) for name in required or protocols})


def _protocol_problem(protocol: object, queries: int | None) -> str:
    """What is wrong with the figures of a protocol."""
    if not isinstance(protocol, dict) or not isinstance(protocol.get("ap"), list):
        return 'has no list "ap"'
    if "mAP" not in protocol:
        return 'has no "mAP"'
    if not all(map(_is_share, [*protocol["ap"], *(protocol.get(name) for name in METRICS)])):
        return "holds a figure that is not in 0..1 or null"
    if queries is not None and len(protocol["ap"]) != queries:
        return (f'has AP for {len(protocol["ap"])} queries, '
                f"the ground truth has {queries}")
    return ""


def _names_problem(result: dict, lengths: set[int]) -> str:
    """What is wrong with the number of queries and their names; `lengths` of the lists of AP."""
    names = result.get("query_names")
    if names is not None:
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return '"query_names" is not a list of names'
        lengths = lengths | {len(names)}
    if len(lengths) > 1:
        return ("its lists of AP and of names have different lengths "
                f"({', '.join(map(str, sorted(lengths)))})")
    return ""


def _is_share(figure: object) -> bool:
    if figure is None:
        return True
    is_number = isinstance(figure, (int, float)) and not isinstance(figure, bool)
    return is_number and 0 <= figure <= 1 + 1e-6  # a sum of trapezoids may round to above 1
