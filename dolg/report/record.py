"""How results were made and what failed, as rows for reading."""
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dolg.report.results import Method

# Names of failed images that are listed; of a million distractors, many may fail
MOST_LISTED = 200
_UNKNOWN, _ABSENT = "unknown", "–"
# Parts of a record -> what they are called
_SECTIONS = {"query": "Queries", "database": "Database", "distractors": "Distractors",
             "reranking": "Reranking"}


@dataclass(frozen=True)
class Fact:
    """One line of the record: a value per method; `differs` says that they are not all alike."""

    name: str
    values: Sequence[str]
    differs: bool


@dataclass(frozen=True)
class Section:
    """Facts about one thing: the protocol itself, the queries, the database, ..."""

    title: str
    facts: Sequence[Fact]

    @property
    def differs(self) -> int:
        """How many facts are not alike."""
        return sum(fact.differs for fact in self.facts)


@dataclass(frozen=True)
class Failures:
    """Of one method: (name, reason) of failed images by kind, and how many there are."""

    method: str
    counts: Mapping[str, int]
    listed: Mapping[str, Sequence[tuple[str, str]]]


def sections(methods: Sequence[Method]) -> list[Section]:
    """The protocol records side by side, section by section; none where no result has one."""
    records = [_flat(method.evaluation.get("protocol")) for method in methods]
    keys = list(dict.fromkeys(key for record in records for key in record))
    found: dict[str, list[Fact]] = {}
    for key in keys:
        title, _, name = key.partition(" ") if key.split(" ")[0] in _SECTIONS else ("protocol", "", key)
        values = [record.get(key, _ABSENT) for record in records]
        found.setdefault(title, []).append(
            Fact(name or title, [_short(value) for value in values], len(set(values)) > 1))
    titles = {"protocol": "Protocol", **_SECTIONS}
    return [Section(title, found[key]) for key, title in titles.items() if key in found]


def differing(parts: Sequence[Section]) -> list[Fact]:
    """The facts that are not alike, with the section in their names; those that some records have and
    others lack are counted, a line per section. Not those of reranking, by which methods differ on
    purpose."""
    found = []
    for part in parts:
        differs = [fact for fact in part.facts if fact.differs and part.title != _SECTIONS["reranking"]]
        lacking = [fact.values for fact in differs if _ABSENT in fact.values]
        found += [Fact(f"{part.title}: {fact.name}", fact.values, True) for fact in differs
                  if _ABSENT not in fact.values]
        if lacking:
            counts = [sum(value != _ABSENT for value in values) for values in zip(*lacking)]
            found.append(Fact(f"{part.title}: recorded facts that others lack",
                              [str(count) for count in counts], True))
    return found


def failures(methods: Sequence[Method]) -> list[Failures]:
    """Of the methods that have any."""
    found = []
    for method in methods:
        lists = {kind: method.failed(kind) for kind in ("query", "database")}
        distractors = method.evaluation.get("failed", {}).get("distractors", 0)
        counts = {**{kind: len(names) for kind, names in lists.items()}, "distractors": distractors}
        listed = {kind: [(name, method.reasons.get(name, "")) for name in names[:MOST_LISTED]]
                  for kind, names in lists.items() if names}
        if any(counts.values()):
            found.append(Failures(method.name, counts, listed))
    return found


def _flat(value: object, name: str = "") -> dict[str, str]:
    """Nested tables as one, keys in words: {"query": {"dim": 8}} becomes {"query dim": "8"}."""
    if isinstance(value, Mapping):
        parts = [(f"{name} {_words(key)}".strip(), inner) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        numbered = len(value) > 1
        parts = [(f"{name} {number}" if numbered else name, inner)
                 for number, inner in enumerate(value, 1)]
    else:
        return {name: _text(value)} if name else {}
    return {key: text for part, inner in parts for key, text in _flat(inner, part).items()}


def _words(key: str) -> str:
    return str(key).replace("_", " ").replace("sha256", "(SHA-256)")


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return _UNKNOWN
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _short(value: str) -> str:
    """Of a digest the beginning tells enough."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", value)
