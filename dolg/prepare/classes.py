"""Lists of the data sets that train on some classes and are tested on others: products, birds, cars.

The test classes must not choose the epoch or a setting, so some training classes are held out for that:
fit_list.txt and val_list.txt together are train_list.txt.
"""
from collections.abc import Callable, Collection, Sequence
from itertools import compress
from pathlib import Path
from typing import NamedTuple

from dolg.data.boxes import BOXES, Box, write_boxes
from dolg.errors import UserError
from dolg.prepare.lists import UNPACK_AGAIN, Prepared, name_digests, present, write_list
from dolg.prepare.work import Work

TRAIN, TEST, QUERY, GALLERY = "train", "test", "query", "gallery"
# What `DataSet.counts` calls the images of a part
_COUNTED = {TRAIN: "training images", TEST: "test images", QUERY: "queries", GALLERY: "gallery images"}

# Images and labels of each list, by its name
_Lists = dict[str, list[tuple["Row", int]]]


class Row(NamedTuple):
    """An image.

    Attributes:
        path: relative to the data set's folder.
        of_class: the published number or name of its class; labels follow the order of these.
        part: one of TRAIN, TEST, QUERY, GALLERY.
        box: what it is cut to in the cropped variant, (x1, y1, x2, y2) in pixels; None: there is none.
    """

    path: str
    of_class: int | str
    part: str
    box: Box | None = None


def below(tree: str) -> Callable[[str], str | None]:
    """For `Unit.place`: what is in the archive's folder `tree` stays as it is, the rest is left out."""
    def place(name: str) -> str | None:
        folder, _, rest = name.partition("/")
        return rest if folder == tree and rest else None
    return place


def write_lists(work: Work, rows: Sequence[Row], share: float) -> Prepared:
    """Write the lists of a data set, in the order of `rows`, and if these have boxes those of its cropped
    variant, the folder beside it.

    Labels are 0, 1, ... in each of train_list.txt, fit_list.txt and val_list.txt, and in all lists of test
    images together. About `share` of the training classes, at least one and never all, are held out in
    val_list.txt; 0: neither it nor fit_list.txt is written.
    Raises UserError where images are missing (see `present`) or a class is both trained on and tested.
    """
    _check_classes(rows)
    parts = dict.fromkeys(row.part for row in rows)
    there = present(work.folder, [row.path for row in rows], "images", work.partial, UNPACK_AGAIN)
    rows = list(compress(rows, there))
    lists = _lists(rows, share)
    _write(work.folder, lists)
    counts = {_COUNTED[part]: sum(row.part == part for row in rows) for part in parts}
    prepared = Prepared(counts, list(lists))
    if rows[0].box is not None:
        cropped = work.folder.with_name(f"{work.folder.name}_cropped")
        beside = f"../{work.folder.name}/"
        # Before the lists, which are of whole images without it
        write_boxes(cropped / BOXES, ((beside + row.path, row.box) for row in rows))
        _write(cropped, lists, beside)
        prepared.folders[cropped.name] = [*lists, BOXES]
    return prepared


def held_out_classes(classes: Collection[int | str], share: float) -> set[int | str]:
    """About `share` of the classes, at least one and never all; the same whatever their order.

    A digest of each class draws them, as neighbours in the published order are alike.
    """
    if share == 0:
        return set()
    count = min(max(int(share * len(classes) + 0.5), 1), len(classes) - 1)
    digests = dict(zip(classes, name_digests([str(name) for name in classes]).tolist()))
    return set(sorted(classes, key=digests.__getitem__)[:max(count, 0)])


def _lists(rows: Sequence[Row], share: float) -> _Lists:
    """All lists that have an image."""
    training = [row for row in rows if row.part == TRAIN]
    tested = _labelled([row for row in rows if row.part != TRAIN])
    lists = {"train_list.txt": _labelled(training)}
    for part in (TEST, QUERY, GALLERY):
        lists[f"{part}_list.txt"] = [(row, label) for row, label in tested if row.part == part]
    if held_out := held_out_classes({row.of_class for row in training}, share):
        lists["fit_list.txt"] = _labelled([row for row in training if row.of_class not in held_out])
        lists["val_list.txt"] = _labelled([row for row in training if row.of_class in held_out])
    return {name: entries for name, entries in lists.items() if entries}


def _labelled(rows: Sequence[Row]) -> list[tuple[Row, int]]:
    labels = {name: label for label, name in enumerate(sorted({row.of_class for row in rows}))}
    return [(row, labels[row.of_class]) for row in rows]


def _write(folder: Path, lists: _Lists, prefix: str = "") -> None:
    """Write the lists, and take those away that an earlier run made and this one does not."""
    for name in (*(f"{part}_list.txt" for part in _COUNTED), "fit_list.txt", "val_list.txt"):
        if name in lists:
            write_list(folder / name, [prefix + row.path for row, _ in lists[name]],
                       [label for _, label in lists[name]])
        else:
            (folder / name).unlink(missing_ok=True)


def _check_classes(rows: Sequence[Row]) -> None:
    trained = {row.of_class for row in rows if row.part == TRAIN}
    if both := sorted(trained & {row.of_class for row in rows if row.part != TRAIN}):
        raise UserError(f"{len(both)} classes are both trained on and tested, the first is {both[0]}: "
                        "the annotations are damaged")
