"""Stanford Cars (Krause et al., 2013): trained on the first 98 models and tested on the others."""
from pathlib import Path

from dolg.errors import UserError
from dolg.prepare.annotations import checked_box, read_structs
from dolg.prepare.catalogue import CARS_IMAGES, CARS_TABLE
from dolg.prepare.classes import TEST, TRAIN, Row, below, write_lists
from dolg.prepare.lists import Prepared
from dolg.prepare.work import Unit, Work

_TREE = "car_ims"
_CLASSES, _TRAINED = 196, 98
_FIELDS = {"relative_im_path": str, "class": int,
           "bbox_x1": int, "bbox_y1": int, "bbox_x2": int, "bbox_y2": int}


def prepare(work: Work, held_out: float) -> Prepared:
    """Fetch the data set and write its lists, of whole images and cut to the cars.

    Args:
        work: the data set's folder.
        held_out: share of the training classes in val_list.txt.
    """
    units = [Unit(CARS_TABLE)]
    if not work.adopt(_TREE, "000001.jpg"):
        units.append(Unit(CARS_IMAGES, _TREE, below(_TREE)))
    work.obtain(units)
    return write_lists(work, _rows(work.folder / CARS_TABLE.name), held_out)


def _rows(file: Path) -> list[Row]:
    rows = []
    for number, (path, of_class, *corners) in enumerate(read_structs(file, "annotations", _FIELDS), 1):
        place = f"{file}, annotations({number})"
        if not path.startswith(f"{_TREE}/") or not 1 <= of_class <= _CLASSES:
            raise UserError(f"{place}: '{path}' of class {of_class} is not an image of {_TREE} and a class "
                            f"of 1 .. {_CLASSES}")
        # MATLAB counts pixels from 1 and both corners in. CGD's code cuts as if neither were so
        # (data_utils.py of github.com/leftthomas/CGD at c9cd98f): its figures are those to compare with
        box = checked_box(corners, place)
        rows.append(Row(path, of_class, TRAIN if of_class <= _TRAINED else TEST, box))
    return rows
