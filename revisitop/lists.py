"""Evaluate feature stores on any benchmark whose ground truth is a list; see --help.

    python revisitop/lists.py --csv FILE | --classic FOLDER --query STORE --database STORE \\
        [--distractors STORE ...] [--cutoffs 100 1000] [--json OUT]

`--csv`: a table with a header and a row per query,

    query,positives,junk,box
    q1.jpg,a.jpg|b.jpg,,
    my photo.jpg,old town.jpg,market square.jpg|c.jpg,10 20 300.5 400

`positives` and `junk` name database images, separated by `|`, so that names may have spaces. Junk
is taken out of the ranking; where queries are database images too and must not find themselves,
list each as its own junk. `box` is x1 y1 x2 y2 in pixels. The columns junk and box may be missing,
all fields but the query may be empty. Database images that are not named are wrong.

`--classic`: the folder of text files of Oxford5k (Philbin et al., CVPR 2007) or Paris6k (Philbin
et al., CVPR 2008): NAME_query.txt, NAME_good.txt, NAME_ok.txt and NAME_junk.txt per query.

The metrics are described in `cutoff.py`.
"""
import argparse
import hashlib
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

if __name__ == "__main__" and not __package__:
    # Run as a file, the search path begins with this folder in place of the one around it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from revisitop.commands import ACROSS, Parser, UsageError, run, show  # noqa: E402
from revisitop.cutoff import evaluate_lists, format_table  # noqa: E402
from revisitop.evaluation import warn_unrecorded  # noqa: E402
from revisitop.groundtruth import Box, GroundTruth, GroundTruthError  # noqa: E402
from revisitop.names import NameIndex, some_names  # noqa: E402
from revisitop.stores import Store, StoreError  # noqa: E402
from revisitop.tables import TableError, read_table, sha256  # noqa: E402

# Before the names of images in the query files of Oxford5k, and nowhere else
_OXFORD_PREFIX = "oxc1_"


def load_csv(path: str | Path, images: Sequence[str]) -> GroundTruth:
    """Read a ground truth with the columns query, positives and perhaps junk and box.

    images: names of all database images, such as a store's; the ending of an image file may be
    missing, or another, there or in the table. Labels are ok and junk. Raises GroundTruthError with file and
    line for a malformed table, a query that is repeated, and a label that is no database image or
    is given twice.
    """
    path, index = Path(path), _Index(images)
    queries, boxes, labels = {}, [], []
    try:
        for line, row in read_table(path, ("query", "positives"), ("junk", "box")):
            place = f"{path}, line {line}"
            _add_query(queries, row["query"].strip(), place)
            boxes.append(_box(row.get("box", "").split(), place))
            labels.append(index.labels(_names(row["positives"]), _names(row.get("junk", "")),
                                       place))
        digest = sha256(path)
    except TableError as error:
        raise GroundTruthError(str(error)) from None
    if not queries:
        raise GroundTruthError(f"{path} has no queries")
    return GroundTruth(path.stem, list(images), list(queries), boxes, labels, digest)


def load_classic(folder: str | Path, images: Sequence[str]) -> GroundTruth:
    """Read the text files of Oxford5k or Paris6k, queries in the order of their files' names.

    images: as in `load_csv`. Good and ok images are the positives. As in the benchmark's own
    evaluation a query finds itself: it is among the database images, and one of its positives.
    Its image is named as in the database, so the prefix of Oxford5k is dropped, and its box is x1
    y1 x2 y2. `sha256` is of the names of all files, sorted, each followed by its contents. Raises
    GroundTruthError with file and line.
    """
    folder, index = Path(folder), _Index(images)
    files = sorted(folder.glob("*_query.txt"))
    if not files:
        raise GroundTruthError(f"{folder} has no file NAME_query.txt: give the folder with the "
                               "ground-truth files of Oxford5k or Paris6k")
    queries, boxes, labels, digest = {}, [], [], hashlib.sha256()
    for file in files:
        topic = file.name.removesuffix("_query.txt")
        parts = {kind: folder / f"{topic}_{kind}.txt" for kind in ("good", "junk", "ok", "query")}
        lines = {kind: _lines(part, digest) for kind, part in parts.items()}
        words = [word for _, text in lines.pop("query") for word in text.split()]
        _add_query(queries, words[0].removeprefix(_OXFORD_PREFIX) if words else "", str(file))
        boxes.append(_box(words[1:] or [""], str(file)))
        found = {kind: [index.find(name, f"{parts[kind]}, line {line}") for line, name in entries]
                 for kind, entries in lines.items()}
        labels.append(_disjoint(dict.fromkeys(found["good"] + found["ok"]),
                                dict.fromkeys(found["junk"]), str(parts["junk"]), images))
    return GroundTruth(folder.name, list(images), list(queries), boxes, labels, digest.hexdigest())


class _Index:
    """Database images by name (see `names`)."""

    def __init__(self, images: Sequence[str]):
        self.images, self._index = images, NameIndex(images)
        repeated = [name for name, times in Counter(images).items() if times > 1]
        if repeated:
            raise GroundTruthError(f"the database has {repeated[0]!r} more than once")

    def find(self, name: str, place: str) -> int:
        """Index of an image. Raises GroundTruthError for none, or several."""
        found = self._index.candidates(name)
        if len(found) > 1:
            raise GroundTruthError(f"{place}: {name!r} may be {self.images[found[0]]!r} or "
                                   f"{self.images[found[1]]!r}: name it with its ending")
        if not found:
            advice = ", and | separates them" if " " in name else ""
            raise GroundTruthError(f"{place}: {name!r} is no database image (they are named like "
                                   f"{some_names(self.images[:1])}{advice})")
        return found[0]

    def labels(self, positives: Iterable[str], junk: Iterable[str], place: str) -> dict:
        """{"ok", "junk"} -> int64 indexes. Raises GroundTruthError for an image given twice."""
        ok, junk = ([self.find(name, place) for name in names] for names in (positives, junk))
        for indexes in (ok, junk):
            index, times = Counter(indexes).most_common(1)[0] if indexes else (0, 0)
            if times > 1:
                raise GroundTruthError(f"{place}: {self.images[index]!r} is there twice")
        return _disjoint(ok, junk, place, self.images)


def _disjoint(ok: Iterable[int], junk: Iterable[int], place: str, images: Sequence[str]) -> dict:
    ok, junk = (np.array(list(indexes), np.int64) for indexes in (ok, junk))
    both = np.intersect1d(ok, junk)
    if both.size:
        raise GroundTruthError(f"{place}: {images[both[0]]!r} is both a positive and junk")
    return {"ok": ok, "junk": junk}


def _names(field: str) -> list[str]:
    return [name.strip() for name in field.split("|") if name.strip()]


def _add_query(queries: dict[str, None], name: str, place: str) -> None:
    if not name:
        raise GroundTruthError(f"{place}: it has no query")
    if name in queries:
        raise GroundTruthError(f"{place}: the query {name!r} is there for the second time")
    queries[name] = None


def _box(words: Sequence[str], place: str) -> Box | None:
    """Four words as x1, y1, x2, y2; none is the whole image."""
    if not words:
        return None
    try:
        box = tuple(map(float, words))
    except ValueError:
        box = ()
    if len(box) != 4 or not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        raise GroundTruthError(f"{place}: the box is {' '.join(words)!r}; it must be four numbers, "
                               "x1 y1 x2 y2, with x1 < x2 and y1 < y2")
    return box


def _lines(file: Path, digest) -> list[tuple[int, str]]:
    """The lines of a file that are not empty, with their numbers; adds the file to `digest`."""
    try:
        content = file.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise GroundTruthError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise GroundTruthError(f"{file} is not text in UTF-8: save it as UTF-8") from None
    digest.update(file.name.encode() + content)
    lines = enumerate(text.splitlines(), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description="mAP@k, hit@k, found@k and mP@k of feature stores on a benchmark "
                                "with plain labels: positives and junk.")
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument("--csv", metavar="FILE", help="ground truth: query,positives,junk,box")
    truth.add_argument("--classic", metavar="FOLDER",
                       help="ground truth: the text files of Oxford5k or Paris6k")
    add = parser.add_argument
    add("--query", required=True, metavar="STORE", help="descriptors of the queries")
    add("--database", required=True, metavar="STORE", help="descriptors of the database images")
    add("--distractors", nargs="+", action="extend", default=[], metavar="STORE",
        help="more images, all wrong")
    add("--cutoffs", nargs="+", type=int, default=[100, 1000], metavar="K",
        help="where rankings are cut off (default: 100 1000)")
    add("--double", action="store_true",
        help="sum inner products in float64: twice as slow, and the same figures on every machine")
    add("--json", type=Path, metavar="OUT", help="file for the result")
    add("--across", action="store_true", help=ACROSS)
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if min(args.cutoffs) < 1:
        raise UsageError(f"--cutoffs has {min(args.cutoffs)}: give whole numbers from 1")
    query, database, *distractors = (Store(path, args.across)
                                     for path in (args.query, args.database, *args.distractors))
    truth = (load_csv(args.csv, database.names) if args.csv
             else load_classic(args.classic, database.names))
    result = evaluate_lists(truth, query, database, distractors, args.cutoffs, double=args.double)
    show(format_table(result), result, args.json)
    warn_unrecorded([query, database, *distractors])


if __name__ == "__main__":
    run(main, GroundTruthError, StoreError)
