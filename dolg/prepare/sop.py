"""Stanford Online Products (Song et al., CVPR 2016): products to train on, and others to test on."""
from dolg.prepare.annotations import read_table
from dolg.prepare.catalogue import SOP
from dolg.prepare.classes import TEST, TRAIN, Row, below, write_lists
from dolg.prepare.lists import Prepared
from dolg.prepare.work import Unit, Work

_TREE = "Stanford_Online_Products"
_TABLES = {TRAIN: "Ebay_train.txt", TEST: "Ebay_test.txt"}
_HEADER = "image_id class_id super_class_id path"


def prepare(work: Work, held_out: float) -> Prepared:
    """Fetch the data set and write its lists.

    Args:
        work: the data set's folder.
        held_out: share of the training classes in val_list.txt.
    """
    if not work.adopt(_TREE, _TABLES[TRAIN]):
        work.obtain([Unit(SOP, _TREE, below(_TREE))])
    rows = []
    for part, name in _TABLES.items():
        table = read_table(work.folder / _TREE / name, _HEADER, (int, int, int, str), header=_HEADER)
        rows += [Row(f"{_TREE}/{path}", of_class, part) for _, (_, of_class, _, path) in table]
    return write_lists(work, rows, held_out)
