"""Google Landmarks v2 (Weyand et al., CVPR 2020): lists of its training, index and test images."""
import csv
import re
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dolg.data.decode import ImageError
from dolg.data.headers import FORMATS
from dolg.errors import UserError
from dolg.files import atomic_file
from dolg.prepare.catalogue import GLDV2_PARTS, GLDV2_TABLES
from dolg.prepare.lists import UNPACK_AGAIN, Prepared, held_out, present, write_list
from dolg.prepare.work import Unit, Work, as_it_is

_ID = 16            # letters of an image's id
_IDS = re.compile(f"[0-9A-Za-z]{{{_ID}}}( [0-9A-Za-z]{{{_ID}}})*")
# Of index and test; training has train_clean or train
_TABLES = {"index": ("index", "retrieval_solution_v2.1"),
           "test": ("test", "retrieval_solution_v2.1", "recognition_solution_v2.1")}
_TRAINING_LISTS = ("train_list.txt", "val_list.txt")
_SIZES = {"train_list.txt": "train_sizes.csv", "val_list.txt": "val_sizes.csv"}
# Lists and counts of each part
_MADE = {"train": (*_TRAINING_LISTS, *_SIZES.values(), "classes.csv", "training images", "held-out images",
                   "clean images", "images", "classes"),
         "index": ("index_list.txt", "index images"), "test": ("test_list.txt", "test images")}
_THREADS, _LOOKED_AT = 16, 1024
_BLOCK = 2 ** 16


class Paths(Sequence):
    """Paths of a part's images (N,), made when they are asked for: five million are 80 MB of ids."""

    def __init__(self, part: str, ids: np.ndarray):
        self.part, self.ids = part, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> str:
        return self._path(self.ids[index])

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _BLOCK):       # an array's elements cost more one by one
            yield from map(self._path, self.ids[start:start + _BLOCK].tolist())

    def _path(self, encoded: bytes) -> str:
        name = encoded.decode()
        return f"{self.part}/{name[0]}/{name[1]}/{name[2]}/{name}.jpg"


def prepare(work: Work, parts: Sequence[str], every_image: bool, min_images: int, val_share: float,
            seed: int, archives: int | None, sizes: bool) -> Prepared:
    """Fetch `parts` ("train", "index", "test") and write their lists.

    Args:
        work: the data set's folder.
        every_image: train on all of train.csv, not on train_clean.csv alone.
        min_images: training classes with fewer are left out.
        val_share: of the images of each class, held out in val_list.txt.
        seed: draws another share.
        archives: the first so many of each part alone; None: all.
        sizes: also write the lists of the RRT code, with width and height.
    """
    work.partial, parts = work.partial or archives is not None, list(dict.fromkeys(parts))
    training = "train" if every_image else "train_clean"
    tables_of = {**_TABLES, "train": (training,)}
    tables = dict.fromkeys(table for part in parts for table in tables_of[part])
    units = [Unit(GLDV2_TABLES[table]) for table in tables]
    for part in parts:
        # A folder of images without a name is that of the one part that is asked for
        if not work.adopt(part, "0", bare=len(parts) == 1):
            units += [Unit(item, part, as_it_is) for item in GLDV2_PARTS[part][:archives]]
    work.obtain(units)
    prepared = Prepared({}, replaces=frozenset(name for part in parts for name in _MADE[part]))
    for part in parts:
        if part == "train":
            _training_lists(work, training, min_images, val_share, seed, prepared)
            for name, target in _SIZES.items():
                if sizes:
                    _write_sizes(work.folder, name, target)
                    prepared.lists.append(target)
                else:
                    (work.folder / target).unlink(missing_ok=True)      # of other lists than those of today
        else:
            _plain_list(work, part, prepared)
    return prepared


def read_clean(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Image ids (N,) bytes and landmarks (N,) int64 of train_clean.csv, which has a landmark per line."""
    text, landmarks, counts = bytearray(), [], []
    for number, line in _lines(file, "landmark_id,images"):
        landmark, _, images = line.partition(",")
        if not landmark.isdecimal() or not _IDS.fullmatch(images):
            raise UserError(f"{file}, line {number}: not a landmark's number and ids of {_ID} letters")
        text += images.replace(" ", "").encode()
        landmarks.append(int(landmark))
        counts.append((len(images) + 1) // (_ID + 1))
    return np.frombuffer(text, f"S{_ID}"), np.repeat(np.array(landmarks, np.int64), counts)


def read_table(file: Path, column: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Image ids (N,) bytes of a table with an image per line, and the numbers (N,) int64 of a column;
    without `column`, zeros."""
    text, numbers = bytearray(), array("q")
    also = f" and a {column}" if column else ""
    with open(file, newline="", encoding="utf-8", errors="replace") as lines:
        rows = csv.DictReader(lines)
        try:
            if not {"id", column or "id"} <= set(rows.fieldnames or ()):
                columns = f"id and {column}" if column else "id"
                raise UserError(f"{file} has no columns {columns} in its first line")
            for row in rows:
                number = row[column] if column else "0"
                if not _is_id(row["id"] or "") or not (number or "").isdecimal():
                    raise UserError(f"{file}, line {rows.line_num}: not an id of {_ID} letters{also}")
                text += row["id"].encode()
                numbers.append(int(number))
        except csv.Error as error:
            raise UserError(f"{file}, line {rows.line_num}: not CSV: {error}") from None
    return np.frombuffer(text, f"S{_ID}"), np.frombuffer(numbers, np.int64)


def training_split(ids: np.ndarray, landmarks: np.ndarray, min_images: int, val_share: float, seed: int,
                   ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Ids (n,), labels (n,) of 0, 1, ..., which of them are held out (n,), and each label's landmark.

    Classes of fewer than `min_images` are left out; each of the others keeps one image at least to train
    on. In the order of the landmarks' numbers, and of the ids, whatever the order given.
    """
    order = np.lexsort((ids, landmarks))
    ids, landmarks = ids[order], landmarks[order]
    values, labels, counts = np.unique(landmarks, return_inverse=True, return_counts=True)
    enough = counts >= min_images
    if not enough.any():
        raise UserError(f"no class has {min_images} images: give a smaller --min-images")
    kept = enough[labels]
    labels = (np.cumsum(enough) - 1)[labels[kept]]
    return ids[kept], labels, held_out(ids[kept], labels, val_share, seed), values[enough]


def _training_lists(work: Work, table: str, min_images: int, val_share: float, seed: int,
                    prepared: Prepared) -> None:
    file = work.folder / f"{table}.csv"
    ids, landmarks = read_clean(file) if table == "train_clean" else read_table(file, "landmark_id")
    there = present(work.folder, Paths("train", ids), "training images", work.partial, UNPACK_AGAIN)
    ids, labels, held, values = training_split(ids[there], landmarks[there], min_images, val_share, seed)
    for name, some in zip(_TRAINING_LISTS, (~held, held)):
        write_list(work.folder / name, Paths("train", ids[some]), map(int, labels[some]))
    with atomic_file(work.folder / "classes.csv") as target:
        lines = (f"{label},{landmark}\n" for label, landmark in enumerate(values.tolist()))
        target.write(("label,landmark_id\n" + "".join(lines)).encode())
    prepared.lists += (*_TRAINING_LISTS, "classes.csv")
    prepared.counts.update({"training images": int((~held).sum()), "held-out images": int(held.sum()),
                            "clean images" if table == "train_clean" else "images": len(ids),
                            "classes": len(values)})


def _plain_list(work: Work, part: str, prepared: Prepared) -> None:
    ids, _ = read_table(work.folder / f"{part}.csv")
    paths = Paths(part, np.sort(ids))
    there = present(work.folder, paths, f"{part} images", work.partial, UNPACK_AGAIN)
    paths = Paths(part, paths.ids[there])
    write_list(work.folder / f"{part}_list.txt", paths)
    prepared.lists.append(f"{part}_list.txt")
    prepared.counts[f"{part} images"] = len(paths)


def _write_sizes(folder: Path, name: str, target: str) -> None:
    """Write a list once more as the RRT code has it, "path,label,width,height" per line."""
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    starts = range(0, len(lines), _LOOKED_AT)

    def look(start: int) -> list[str]:
        return [_sized(folder, line) for line in lines[start:start + _LOOKED_AT]]

    with atomic_file(folder / target) as file, ThreadPoolExecutor(_THREADS) as threads, \
            tqdm(desc=f"sizes of {name}", total=len(lines), unit="image", leave=False, disable=None) as bar:
        for block in threads.map(look, starts):
            file.write("".join(block).encode())
            bar.update(len(block))


def _sized(folder: Path, line: str) -> str:
    path, _, label = line.rpartition(" ")
    try:
        with Image.open(folder / path, formats=FORMATS) as image:        # reads no more than the header
            width, height = image.size
    except (OSError, Image.DecompressionBombError) as error:
        raise ImageError(folder / path, str(error)) from None
    return f"{path},{label},{width},{height}\n"


def _is_id(name: str) -> bool:
    return len(name) == _ID and name.isascii() and name.isalnum()


def _lines(file: Path, header: str) -> Iterator[tuple[int, str]]:
    """The lines after the first, which must be `header`, with their numbers."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        if next(lines, "").strip() != header:
            raise UserError(f"{file}: its first line is not '{header}'")
        for number, line in enumerate(lines, 2):
            if line.strip():
                yield number, line.strip()
