"""In-shop Clothes Retrieval of DeepFashion (Liu et al., CVPR 2016): clothes to train on and to find."""
from pathlib import Path

from dolg.data.boxes import Box
from dolg.errors import UserError
from dolg.prepare.annotations import check_keys, checked_box, read_by_key
from dolg.prepare.catalogue import INSHOP_BOXES, INSHOP_IMAGES, INSHOP_SPLIT
from dolg.prepare.classes import GALLERY, QUERY, TRAIN, Row, below, write_lists
from dolg.prepare.lists import Prepared
from dolg.prepare.work import Unit, Work

_TREE = "img"       # paths of the tables begin with it
_OFFICIAL = "Img/img"
_SPLIT_HEADER = "image_name item_id evaluation_status"
_BOXES_HEADER = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"


def prepare(work: Work, held_out: float) -> Prepared:
    """Take the data set from a folder given by hand and write its lists; with a table of boxes there, also
    of images cut to the clothes.

    Args:
        work: the data set's folder.
        held_out: share of the training classes in val_list.txt.
    """
    units = [Unit(INSHOP_SPLIT), Unit(INSHOP_BOXES, optional=True)]
    if not work.adopt(_TREE, "WOMEN", _OFFICIAL):
        units.append(Unit(INSHOP_IMAGES, _TREE, below(_TREE)))
    work.obtain(units)
    rows = _rows(work.folder / INSHOP_SPLIT.name, work.folder / INSHOP_BOXES.name)
    return write_lists(work, rows, held_out)


def _rows(split: Path, table: Path) -> list[Row]:
    images = read_by_key(split, _SPLIT_HEADER, (str, str, str), header=_SPLIT_HEADER, counted=True)
    boxes = _boxes(table) if table.exists() else {}
    if boxes:
        check_keys(images.keys(), split, boxes.keys(), table)
    rows = []
    for path, (line, item, part) in images.items():
        if part not in (TRAIN, QUERY, GALLERY):
            raise UserError(f"{split}, line {line}: '{part}' is none of {TRAIN}, {QUERY}, {GALLERY}")
        rows.append(Row(path, item, part, boxes.get(path)))
    return rows


def _boxes(table: Path) -> dict[str, Box]:
    rows = read_by_key(table, _BOXES_HEADER, (str, *[int] * 6), header=_BOXES_HEADER, counted=True)
    return {path: checked_box(corners, f"{table}, line {line}")
            for path, (line, _, _, *corners) in rows.items()}
