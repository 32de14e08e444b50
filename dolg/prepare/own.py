"""One's own images: a folder with a folder per class, or tables that say which image is what."""
import csv
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dolg.errors import UserError
from dolg.features.sources import images_of
from dolg.files import write_atomically
from dolg.prepare.lists import Prepared, contiguous, held_out, present, write_list
from dolg.prepare.work import Work

_ROLES = ("train", "query", "database", "distractor")
_RELEVANCES = ("easy", "hard", "junk")
_BOX = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Row:
    """An image of images.csv: its path below the images' folder, its role, its class and its box."""

    line: int
    path: str
    role: str
    label: str
    box: tuple[float, float, float, float] | None


def prepare_folder(work: Work, val_share: float, seed: int) -> Prepared:
    """Training lists of the images in the folders of --from, each of which is a class."""
    images = work.folder / "images"
    _link(images, work.given)
    names = list(images_of(images).names)
    loose = [name for name in names if "/" not in name]
    if loose:
        raise UserError(f"{work.given}/{loose[0]} is in no folder of its own: each class is a folder")
    classes = np.array([name.partition("/")[0] for name in names])
    return _training_lists(work.folder, [f"images/{name}" for name in names], classes, val_share, seed)


def prepare_table(work: Work, val_share: float, seed: int) -> Prepared:
    """What --from's images.csv says, and its ground_truth.csv if there is one.

    images.csv has the columns path and role (train, query, database or distractor), and may have label and
    x1, y1, x2, y2 (of queries, in pixels); paths are relative to its folder. ground_truth.csv has query,
    image (paths) and relevance (easy, hard or junk); without it the database images of a query's label are
    its positives, all easy.
    """
    rows = read_images(work.given / "images.csv")
    work.folder.mkdir(parents=True, exist_ok=True)
    _link(work.folder / "images", work.given)
    there = present(work.folder / "images", [row.path for row in rows], "images of images.csv",
                    work.partial)
    rows = [row for row, is_there in zip(rows, there) if is_there]
    parts = {role: [row for row in rows if row.role == role] for role in _ROLES}
    prepared = Prepared({})
    if training := parts["train"]:
        labels = np.array([_required_label(work.given / "images.csv", row) for row in training])
        paths = [f"images/{row.path}" for row in training]
        prepared = _training_lists(work.folder, paths, labels, val_share, seed)
    if parts["query"] or parts["database"]:
        _benchmark(work, parts["query"], parts["database"], prepared)
    if parts["distractor"]:
        write_list(work.folder / "distractors.txt", [f"images/{row.path}" for row in parts["distractor"]])
        prepared.lists.append("distractors.txt")
        prepared.counts["distractors"] = len(parts["distractor"])
    return prepared


def read_images(file: Path) -> list[Row]:
    """The rows of images.csv. Raises UserError, with the line, for what is not as it should be."""
    rows, seen = [], {}
    for line, row in _table(file, ("path", "role")):
        if row["role"] not in _ROLES:
            raise UserError(f"{file}, line {line}: role '{row['role']}' is none of {', '.join(_ROLES)}")
        path = row["path"]
        if not path or Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(f"{file}, line {line}: path '{path}' does not lead below {file.parent}")
        if path in seen:
            raise UserError(f"{file}, line {line}: '{path}' stands in line {seen[path]} already")
        seen[path] = line
        rows.append(Row(line, path, row["role"], row.get("label") or "", _box(file, line, row)))
    if not rows:
        raise UserError(f"{file} names no images")
    return rows


def _benchmark(work: Work, queries: list[Row], database: list[Row], prepared: Prepared) -> None:
    """gnd_NAME.pkl and jpg/ in the Revisited format."""
    if not queries or not database:
        raise UserError(f"{work.given / 'images.csv'} has {len(queries)} queries and {len(database)} "
                        "database images: a benchmark has some of both")
    table = work.given / "ground_truth.csv"
    if table.exists():
        relevant = _read_truth(table, queries, database)
    else:
        relevant = _truth_of_labels(queries, database)
    gnd = []
    for query, found in zip(queries, relevant):
        entry = {kind: sorted(place for place, what in found.items() if what == kind)
                 for kind in _RELEVANCES}
        gnd.append({**entry, **({"bbx": list(query.box)} if query.box else {})})
    name = work.dataset.name
    truth = {"imlist": [row.path for row in database], "qimlist": [row.path for row in queries], "gnd": gnd}
    _link(work.folder / "jpg", work.given)
    write_atomically(work.folder / f"gnd_{name}.pkl", pickle.dumps(truth, protocol=2))
    prepared.counts.update({"queries": len(queries), "database images": len(database)})


def _read_truth(file: Path, queries: list[Row], database: list[Row]) -> list[dict[int, str]]:
    """For each query the relevance of places in the database."""
    query_of = {row.path: number for number, row in enumerate(queries)}
    place_of = {row.path: place for place, row in enumerate(database)}
    found = [{} for _ in queries]
    for line, row in _table(file, ("query", "image", "relevance")):
        query, image, relevance = row["query"], row["image"], row["relevance"]
        if query not in query_of or image not in place_of:
            what, path = ("query", query) if query not in query_of else ("database image", image)
            raise UserError(f"{file}, line {line}: '{path}' is no {what} of images.csv")
        if relevance not in _RELEVANCES:
            raise UserError(f"{file}, line {line}: relevance '{relevance}' is none of "
                            f"{', '.join(_RELEVANCES)}")
        if found[query_of[query]].setdefault(place_of[image], relevance) != relevance:
            raise UserError(f"{file}, line {line}: '{image}' has another relevance for '{query}' before")
    return found


def _truth_of_labels(queries: list[Row], database: list[Row]) -> list[dict[int, str]]:
    places = {}
    for place, row in enumerate(database):
        places.setdefault(row.label, []).append(place)
    return [dict.fromkeys(places.get(query.label, ()) if query.label else (), "easy") for query in queries]


def _training_lists(folder: Path, paths: list[str], classes: np.ndarray, val_share: float,
                    seed: int) -> Prepared:
    labels = contiguous(classes)
    held = held_out(paths, labels, val_share, seed)
    counts = {}
    for name, what, some in (("train_list.txt", "training images", ~held),
                             ("val_list.txt", "held-out images", held)):
        places = np.flatnonzero(some)
        write_list(folder / name, [paths[i] for i in places], labels[places].tolist())
        counts[what] = len(places)
    return Prepared({**counts, "classes": int(labels.max()) + 1}, ["train_list.txt", "val_list.txt"])


def _link(target: Path, folder: Path) -> None:
    """Make `target` a link to a folder."""
    if target.is_symlink() and target.resolve() == folder.resolve():
        return
    if target.is_symlink() or target.exists():
        raise UserError(f"{target} is there already and is no link to {folder}: delete it, or give another "
                        "--name")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(folder.absolute(), target_is_directory=True)


def _required_label(file: Path, row: Row) -> str:
    if not row.label:
        raise UserError(f"{file}, line {row.line}: a training image needs a label")
    return row.label


def _box(file: Path, line: int, row: dict[str, str]) -> tuple[float, float, float, float] | None:
    texts = [(row.get(name) or "").strip() for name in _BOX]
    if not any(texts):
        return None
    try:
        x1, y1, x2, y2 = box = tuple(map(float, texts))
    except ValueError:
        raise UserError(f"{file}, line {line}: {', '.join(_BOX)} are {', '.join(texts)}, not four "
                        "numbers") from None
    if not (x1 < x2 and y1 < y2 and all(map(math.isfinite, box))):
        raise UserError(f"{file}, line {line}: the box {', '.join(texts)} holds nothing")
    return box


def _table(file: Path, needed: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, stripped, with their lines."""
    if not file.is_file():
        raise UserError(f"no table {file}: it has the columns {', '.join(needed)}")
    with open(file, newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines)
        missing = [name for name in needed if name not in (rows.fieldnames or ())]
        if missing:
            raise UserError(f"{file} has no column {' and no '.join(missing)} in its first line")
        for row in rows:
            if None in row:
                raise UserError(f"{file}, line {rows.line_num}: more values than columns")
            yield rows.line_num, {name: (value or "").strip() for name, value in row.items()}
