"""One's own images: a folder with a folder per class, or tables that say which image is what."""
import csv
import math
import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dolg.core.logging import say
from dolg.data.finder import FoundImages, find_images, image_file, some_names
from dolg.data.presence import same_contents
from dolg.errors import UserError
from dolg.files import write_atomically
from dolg.prepare.lists import Prepared, held_out, present, write_list
from dolg.prepare.work import Work

_ROLES = ("train", "query", "database", "distractor")
_RELEVANCES = ("easy", "hard", "junk")
_BOX = ("x1", "y1", "x2", "y2")
_TRAINING, _DISTRACTORS = ("train_list.txt", "val_list.txt"), "distractors.txt"


@dataclass(frozen=True)
class Row:
    """An image of images.csv: its path below the images' folder, its role, its class and its box."""

    line: int
    path: str
    role: str
    label: str
    box: tuple[float, float, float, float] | None


def prepare_folder(work: Work, val_share: float, seed: int, depth: int | None = None) -> Prepared:
    """Training lists of the images in the folders of --from, each of which is a class.

    The classes are the folders of level `depth`, where 1 is those right in --from. None: of level 1,
    where no image lies deeper. No file is in two lists: links to an image are left out.
    """
    _check_apart(work)
    found = find_images(work.given)
    for remark in found.remarks(work.given):
        say(remark)
    names = found.names
    if not names:
        raise UserError(f"--from {work.given} holds no images")
    for name in names:
        if fault := _fault(name):
            raise UserError(f"{work.given} holds {ascii(name)}, {fault}: rename it")
    depth = _class_depth(work.given, names, depth)
    _check_links(work.given, found, depth)
    _say_empty(work.given, found, depth)
    there = present(work.given, names, "images", work.partial,
                    "files of 0 bytes are none; --partial takes the others")
    names = [name for name, is_there in zip(names, there) if is_there]
    _clear(work, set(_TRAINING))
    return _training_lists(work, names, [_class_of(name, depth) for name in names], val_share, seed)


def prepare_table(work: Work, val_share: float, seed: int) -> Prepared:
    """What --from's images.csv says, and its ground_truth.csv if there is one.

    images.csv has the columns path and role (train, query, database or distractor), and may have label and
    x1, y1, x2, y2 (of queries, in pixels); paths are relative to its folder. ground_truth.csv has query,
    image (paths) and relevance (easy, hard or junk); without it the database images of a query's label are
    its positives, all easy.
    """
    _check_apart(work)
    file, truth_file = work.given / "images.csv", work.folder / f"gnd_{work.dataset.name}.pkl"
    rows = read_images(file)
    # A name may lack the ending of its file
    files = {row.path: image_file(work.given, row.path) for row in rows}
    there = present(work.given, [files[row.path] for row in rows], "images of images.csv", work.partial)
    absent = [row for row, is_there in zip(rows, there) if not is_there]
    training, queries, database, distractors = (
        [row for row, is_there in zip(rows, there) if is_there and row.role == role] for role in _ROLES)
    classes = [_required_label(file, row) for row in training]
    truth = _ground_truth(work.given, queries, database, absent) if queries or database else None
    # Nothing is touched before all tables are read
    _clear(work, {*(_TRAINING if training else ()), *([truth_file.name] if truth else ()),
                  *([_DISTRACTORS] if distractors else ())})
    prepared = Prepared({})
    if training:
        prepared = _training_lists(work, [files[row.path] for row in training], classes, val_share, seed)
    if truth:
        write_atomically(truth_file, pickle.dumps(truth, protocol=2))
        prepared.counts.update({"queries": len(queries), "database images": len(database)})
    if distractors:
        write_list(work.folder / _DISTRACTORS, [f"images/{files[row.path]}" for row in distractors])
        prepared.lists.append(_DISTRACTORS)
        prepared.counts["distractors"] = len(distractors)
    return prepared


def read_images(file: Path) -> list[Row]:
    """The rows of images.csv. Raises UserError, with the line, for what is not as it should be."""
    rows, seen = [], {}
    for line, row in _table(file, ("path", "role")):
        if row["role"] not in _ROLES:
            raise UserError(f"{file}, line {line}: role {row['role']!r} is none of {', '.join(_ROLES)}")
        path = row["path"]
        if fault := _fault(path):
            raise UserError(f"{file}, line {line}: path {ascii(path)}, {fault}: rename the image")
        if not path or Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(f"{file}, line {line}: path '{path}' does not lead below {file.parent}")
        if path in seen:
            raise UserError(f"{file}, line {line}: '{path}' stands in line {seen[path]} already")
        seen[path] = line
        rows.append(Row(line, path, row["role"], row.get("label") or "", _box(file, line, row)))
    if not rows:
        raise UserError(f"{file} names no images")
    return rows


def _check_apart(work: Work) -> None:
    """Raise UserError where images would be linked into themselves."""
    folder, given = work.folder.resolve(), work.given.resolve()
    if folder.is_relative_to(given) or given.is_relative_to(folder):
        raise UserError(f"--from {work.given} and the data set's folder {work.folder} are the same, or one "
                        "is in the other: choose another --root, or a --from of images alone")


def _fault(name: str) -> str:
    """Why a line of a list cannot name an image; empty: it can."""
    if "\0" in name:
        return "which has a zero byte in it"
    if name and name.splitlines() != [name]:
        return "which has a line break in it"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "which is not in UTF-8"
    return ""


def _clear(work: Work, made: set[str]) -> None:
    """Link the images, and remove what an earlier run left but this one, which makes `made`, does not make.

    Raises UserError, and changes nothing, where something else stands in a link's place.
    """
    images, jpg, truth = work.folder / "images", work.folder / "jpg", f"gnd_{work.dataset.name}.pkl"
    links = [images, jpg] if truth in made else [images]
    for link in links:
        if link.exists() and not link.is_symlink():
            raise UserError(f"{link} is there already and is no link to {work.given}: delete it, or give "
                            "another --name")
    earlier = images.is_symlink()       # else the folder is somebody's own, and so is what is in it
    given = work.given.resolve()        # before a link changes that --from may go through
    for link in links:
        _link(link, given)
    if earlier:
        for name in {*_TRAINING, _DISTRACTORS} - made:
            (work.folder / name).unlink(missing_ok=True)
        if truth not in made and jpg.is_symlink():
            (work.folder / truth).unlink(missing_ok=True)
            jpg.unlink()


def _link(link: Path, folder: Path) -> None:
    """A link to a folder (resolved); one that led elsewhere, before images moved, leads there now."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() and link.resolve() == folder:
        return
    link.unlink(missing_ok=True)
    link.symlink_to(folder, target_is_directory=True)


def _ground_truth(given: Path, queries: list[Row], database: list[Row], absent: list[Row]) -> dict:
    """What gnd_NAME.pkl of the Revisited format holds."""
    if not queries or not database:
        raise UserError(f"{given / 'images.csv'} has {len(queries)} queries and {len(database)} database "
                        "images: a benchmark has some of both")
    table = given / "ground_truth.csv"
    if table.exists():
        relevant = _read_truth(table, queries, database, absent)
    else:
        relevant = _truth_of_labels(queries, database)
    gnd = []
    for query, found in zip(queries, relevant):
        entry = {kind: sorted(place for place, what in found.items() if what == kind)
                 for kind in _RELEVANCES}
        gnd.append({**entry, **({"bbx": list(query.box)} if query.box else {})})
    return {"imlist": [row.path for row in database], "qimlist": [row.path for row in queries], "gnd": gnd}


def _read_truth(file: Path, queries: list[Row], database: list[Row],
                absent: list[Row]) -> list[dict[int, str]]:
    """For each query the relevance of places in the database; lines of `absent` images are left out."""
    query_of = {row.path: number for number, row in enumerate(queries)}
    place_of = {row.path: place for place, row in enumerate(database)}
    query_of.update((row.path, None) for row in absent if row.role == "query")
    place_of.update((row.path, None) for row in absent if row.role == "database")
    found = [{} for _ in queries]
    for line, row in _table(file, ("query", "image", "relevance")):
        query, image, relevance = row["query"], row["image"], row["relevance"]
        if query not in query_of or image not in place_of:
            what, path = ("query", query) if query not in query_of else ("database image", image)
            raise UserError(f"{file}, line {line}: {path!r} is no {what} of images.csv")
        if relevance not in _RELEVANCES:
            raise UserError(f"{file}, line {line}: relevance {relevance!r} is none of "
                            f"{', '.join(_RELEVANCES)}")
        number, place = query_of[query], place_of[image]
        if number is None or place is None:
            continue
        if found[number].setdefault(place, relevance) != relevance:
            raise UserError(f"{file}, line {line}: '{image}' has another relevance for '{query}' before")
    return found


def _truth_of_labels(queries: list[Row], database: list[Row]) -> list[dict[int, str]]:
    places = {}
    for place, row in enumerate(database):
        places.setdefault(row.label, []).append(place)
    return [dict.fromkeys(places.get(query.label, ()) if query.label else (), "easy") for query in queries]


def _class_depth(given: Path, names: list[str], depth: int | None) -> int:
    """The level of the folders that are classes. Raises UserError where the images leave it open, or an
    image is in no such folder."""
    levels = {}
    for name in names:
        levels.setdefault(name.count("/"), []).append(name)
    shallowest = min(levels)
    if shallowest >= (depth or 1) and (depth or list(levels) == [1]):
        return depth or 1
    found = ", ".join(f"{len(some)} in folders of level {level} (such as {some_names(some[:1])})"
                      if level else f"{len(some)} in no folder of its own ({some_names(some)})"
                      for level, some in sorted(levels.items()))
    if shallowest < (depth or 1):
        advice = "each class is a folder: move the others into one"
        if shallowest and depth:
            advice = f"--depth can be at most {shallowest}"
    else:
        choices = [(level, list(dict.fromkeys(_class_of(name, level) for name in names)))
                   for level in range(1, shallowest + 1)]
        advice = "say which folders are the classes, with " + " or ".join(
            f"--depth {level} ({len(classes)}: {some_names(classes)})" for level, classes in choices)
    raise UserError(f"of the {len(names)} images of {given} there are {found}; {advice}")


def _class_of(name: str, depth: int) -> str:
    return "/".join(name.split("/")[:depth])


def _check_links(given: Path, found: FoundImages, depth: int) -> None:
    """Raise UserError where a file, or a folder, is in two classes."""
    twice = [(link, name) for link, name in found.file_links.items()
             if link.count("/") >= depth and _class_of(link, depth) != _class_of(name, depth)]
    # A folder that a link inside it leads back to is in no class by that name
    twice += [(link, name) for link, name in found.folder_links.items()
              if name and not link.startswith(f"{name}/")
              and _class_of(link, depth) != _class_of(name, depth)]
    if twice:
        raise UserError(f"{given} has images in two classes, by {len(twice)} links: {_pairs(twice)}; delete "
                        "one of each")


def _pairs(names: list[tuple[str, str]]) -> str:
    return some_names([f"{again} is {first}" for again, first in names])


def _say_empty(given: Path, found: FoundImages, depth: int) -> None:
    classes = {_class_of(name, depth) for name in (*found.names, *found.file_links)}
    empty = sorted(folder for folder in found.folders if folder.count("/") == depth - 1 and folder
                   and folder not in classes and not folder.rpartition("/")[2].startswith("."))
    if empty:
        say(f"WARNING: {given}: {len(empty)} folders hold no images and are no classes: {some_names(empty)}")


def _training_lists(work: Work, names: list[str], classes: list[str], val_share: float,
                    seed: int) -> Prepared:
    """The lists of the images `names` of --from, below images/, and their classes.

    Images with the same contents are all in the same list.
    """
    folder = work.folder
    paths, labels = [f"images/{name}" for name in names], _labels(classes)
    held = held_out(paths, labels, val_share, seed)
    for alike in _copies(work.given, names, classes):
        held[alike] = held[alike].all()
    counts = {}
    for name, what, some in zip(_TRAINING, ("training images", "held-out images"), (~held, held)):
        places = np.flatnonzero(some)
        write_list(folder / name, [paths[i] for i in places], labels[places].tolist())
        counts[what] = len(places)
    return Prepared({**counts, "classes": int(labels.max()) + 1}, list(_TRAINING))


def _copies(given: Path, names: list[str], classes: list[str]) -> list[list[int]]:
    """Groups of images with the same contents; says how many there are."""
    groups = same_contents(lambda place: given / names[place], len(names), "same contents", progress=True)
    copies = [(names[i], names[group[0]]) for group in groups for i in group[1:]]
    mixed = [(names[i], names[group[0]]) for group in groups for i in group[1:]
             if classes[i] != classes[group[0]]]
    for pairs, what in ((copies, "copies of images stay in the same list as these"),
                        (mixed, "WARNING: images and their copies are in different classes")):
        if pairs:
            say(f"{given}: {what}, {len(pairs)} in all: {_pairs(pairs)}")
    return groups


def _labels(classes: Iterable[str]) -> np.ndarray:
    """The classes (N,) as 0, 1, ... in the order of their names, int64.

    (An array of the names would take as much for each as the longest of them does.)
    """
    numbers = {}
    found = np.fromiter((numbers.setdefault(name, len(numbers)) for name in classes), np.int64)
    labels = np.empty(len(numbers), np.int64)
    labels[[numbers[name] for name in sorted(numbers)]] = np.arange(len(numbers))
    return labels[found]


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
        try:
            missing = [name for name in needed if name not in (rows.fieldnames or ())]
            if missing:
                found = ",".join(rows.fieldnames or ())[:100]
                raise UserError(f"{file} has no column {' and no '.join(missing)} in its first line, "
                                f"{found!r}; commas separate columns")
            for row in rows:
                if None in row:
                    raise UserError(f"{file}, line {rows.line_num}: more values than columns")
                yield rows.line_num, {name: (value or "").strip() for name, value in row.items()}
        except UnicodeDecodeError:
            raise UserError(f"{file}, line {_undecodable(file)}: not in UTF-8, which the table has to be "
                            "saved in") from None
        except csv.Error as error:
            raise UserError(f"{file}, line {rows.reader.line_num}: {error} (is a quote left "
                            "open?)") from None


def _undecodable(file: Path) -> int:
    """The first line that is not in UTF-8; text files are decoded in blocks, whose lines nobody counts."""
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    raise AssertionError(f"{file} is in UTF-8")
