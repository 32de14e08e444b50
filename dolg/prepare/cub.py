"""CUB-200-2011 (Wah et al., 2011): birds, trained on the first 100 species and tested on the others."""
from pathlib import Path

from dolg.errors import UserError
from dolg.prepare.annotations import check_keys, checked_box, read_by_key
from dolg.prepare.catalogue import CUB
from dolg.prepare.classes import TEST, TRAIN, Row, below, write_lists
from dolg.prepare.lists import Prepared
from dolg.prepare.work import Unit, Work

_TREE = "CUB_200_2011"      # the archive has more beside it
_CLASSES, _TRAINED = 200, 100


def prepare(work: Work, held_out: float) -> Prepared:
    """Fetch the data set and write its lists, of whole images and cut to the birds.

    Args:
        work: the data set's folder.
        held_out: share of the training classes in val_list.txt.
    """
    if not work.adopt(_TREE, "images.txt"):
        work.obtain([Unit(CUB, _TREE, below(_TREE))])
    return write_lists(work, _rows(work.folder / _TREE), held_out)


def _rows(folder: Path) -> list[Row]:
    files = [folder / f"{name}.txt" for name in ("images", "image_class_labels", "bounding_boxes")]
    paths = read_by_key(files[0], "id path", (int, str))
    classes = read_by_key(files[1], "id class", (int, int))
    boxes = read_by_key(files[2], "id x y width height", (int, float, float, float, float))
    check_keys(paths.keys(), files[0], classes.keys(), files[1])
    check_keys(paths.keys(), files[0], boxes.keys(), files[2])
    rows = []
    for image, (_, path) in paths.items():
        line, of_class = classes[image]
        if not 1 <= of_class <= _CLASSES:
            raise UserError(f"{files[1]}, line {line}: class {of_class} is outside 1 .. {_CLASSES}")
        line, x, y, width, height = boxes[image]
        box = checked_box((x, y, x + width, y + height), f"{files[2]}, line {line}")
        rows.append(Row(f"{_TREE}/images/{path}", of_class, TRAIN if of_class <= _TRAINED else TEST, box))
    return rows
