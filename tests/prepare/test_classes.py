"""Birds, cars, products and clothes: from miniatures of what one downloads to lists, whole and cropped."""
import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from dolg.data.image_list import read_image_list
from dolg.errors import UserError
from dolg.prepare import cars196, catalogue, cub, inshop, sop
from dolg.prepare.annotations import read_table
from dolg.prepare.classes import below, held_out_classes
from dolg.prepare.work import Work
from tests.prepare.miniatures import (CARS, changed, expected_lists, make_cars196, make_cub,
                                      make_inshop, make_sop, unpack_by_hand, without,
                                      write_cars_table)

SETS = {"cub": (cub, make_cub), "cars196": (cars196, make_cars196), "sop": (sop, make_sop),
        "inshop": (inshop, make_inshop)}
ARCHIVES = {"cub": catalogue.CUB, "cars196": catalogue.CARS_IMAGES, "sop": catalogue.SOP,
            "inshop": catalogue.INSHOP_IMAGES}
TREES = {"cub": "CUB_200_2011", "cars196": "car_ims", "sop": "Stanford_Online_Products", "inshop": "img"}
COUNTED = {"training images": "train", "test images": "test", "queries": "query",
           "gallery images": "gallery"}
CROPPED = ("cub", "cars196", "inshop")
every_set = pytest.mark.parametrize("name", SETS)


@pytest.fixture(params=range(2))
def rng(request) -> np.random.Generator:
    return np.random.default_rng(request.param)


@pytest.fixture
def download(tmp_path) -> Path:
    return tmp_path / "download"


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "data"


def _prepare(name: str, root: Path, given: Path | None, share: float = 0.3, partial: bool = False):
    work = Work(catalogue.DATA_SETS[name], root, given, partial=partial, unverified=True)
    with work.locked():
        return SETS[name][0].prepare(work, share)


def _entries(file: Path) -> list[tuple[str, int]]:
    """Paths and labels of a list, slowly."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return [(line[:line.rindex(" ")], int(line[line.rindex(" ") + 1:])) for line in lines]


def _texts(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in (".txt", ".csv")}


@every_set
def test_lists_are_as_published(name, download, root, rng):
    photos = SETS[name][1](download, rng)
    prepared = _prepare(name, root, download)
    expected = expected_lists(photos)
    for file, text in expected.items():
        assert (root / name / file).read_text() == text
    assert set(prepared.lists) == {*expected, "fit_list.txt", "val_list.txt"}
    parts = [photo.part for photo in photos]
    assert prepared.counts == {what: parts.count(part) for what, part in COUNTED.items() if part in parts}
    for photo in photos:
        assert (root / name / photo.path).read_bytes() == photo.data
    assert not (root / name / "attributes.txt").exists()


@every_set
def test_fit_and_val_share_the_training_images_by_classes(name, download, root, rng):
    photos = SETS[name][1](download, rng)
    _prepare(name, root, download)
    of_class = {photo.path: photo.of_class for photo in photos}
    train = [path for path, _ in _entries(root / name / "train_list.txt")]
    seen = {}
    for part in ("fit", "val"):
        entries = _entries(root / name / f"{part}_list.txt")
        seen[part] = sorted({of_class[path] for path, _ in entries})
        assert entries == [(path, seen[part].index(of_class[path])) for path in train
                           if of_class[path] in seen[part]]
    assert not set(seen["fit"]) & set(seen["val"])
    classes = {of_class[path] for path in train}
    assert {*seen["fit"], *seen["val"]} == classes
    assert len(seen["val"]) == int(0.3 * len(classes) + 0.5)


def test_held_out_classes_are_drawn_by_digest(rng):
    for classes in (list(range(1, 101)), [f"id_{n:08d}" for n in range(0, 900, 7)]):
        count = int(0.1 * len(classes) + 0.5)
        digests = {hashlib.blake2b(str(name).encode(), digest_size=8, salt=bytes(8)).hexdigest(): name
                   for name in classes}
        expected = {digests[digest] for digest in sorted(digests)[:count]}
        assert held_out_classes(classes, 0.1) == expected
        assert held_out_classes([classes[i] for i in rng.permutation(len(classes))], 0.1) == expected
    # Neighbours in the published order are not held out together
    assert max(held_out_classes(range(1, 101), 0.1)) - min(held_out_classes(range(1, 101), 0.1)) > 30


def test_held_out_at_least_one_class_and_never_all():
    assert [len(held_out_classes(range(5), share)) for share in (0, 1e-6, 0.29, 0.31, 0.5, 0.99, 1)] \
        == [0, 1, 1, 2, 3, 4, 4]
    assert held_out_classes({7}, 0.5) == held_out_classes(set(), 0.5) == set()


def test_nothing_held_out_leaves_no_older_lists(download, root, rng):
    make_cub(download, rng)
    _prepare("cub", root, download)
    expected = ["train_list.txt", "test_list.txt"]
    assert _prepare("cub", root, download, share=0).lists == expected
    for folder in ("cub", "cub_cropped"):
        assert {file.name for file in (root / folder).glob("*_list.txt")} == set(expected)


@pytest.mark.parametrize("name", CROPPED)
def test_cropped_lists_have_a_box_for_every_image(name, download, root, rng):
    photos = SETS[name][1](download, rng)
    prepared = _prepare(name, root, download)
    folder = root / f"{name}_cropped"
    assert prepared.folders == {folder.name: [*prepared.lists, "boxes.csv"]}
    boxes = {photo.path: photo.box for photo in photos}
    for file in prepared.lists:
        whole = _entries(root / name / file)
        images = read_image_list(folder / file)
        assert images.labels.tolist() == [label for _, label in whole]
        for index, (path, _) in enumerate(whole):
            assert images.boxes[index].tolist() == list(boxes[path])
            assert images.read(index) == (root / name / path).read_bytes()
    with open(folder / "boxes.csv", newline="") as rows:
        paths = [row["path"] for row in csv.DictReader(rows)]
    assert paths == [f"../{name}/{photo.path}" for photo in photos]


def test_products_and_clothes_without_boxes_are_not_cropped(download, root, rng):
    make_sop(download, rng)
    make_inshop(download, rng, boxes=False)
    for name in ("sop", "inshop"):
        assert _prepare(name, root, download).folders == {}
        assert not (root / f"{name}_cropped").exists()
        assert read_image_list(root / name / "train_list.txt").boxes is None


def test_paths_with_blanks(download, root, rng):
    photos = make_sop(download, rng)
    _prepare("sop", root, download)
    images = read_image_list(root / "sop" / "train_list.txt")
    blank = [photo for photo in photos if " " in photo.path]
    found = [i for i in range(len(images)) if " " in images.name(i)]
    assert [images.read(i) for i in found] == [photo.data for photo in blank] and len(found) == 1


@pytest.mark.parametrize("at_the_end", [False, True])
def test_tables_of_random_columns(at_the_end, tmp_path, rng):
    """Blanks, empty lines and line ends of all kinds; paths with blanks, first or last."""
    file, lines, rows = tmp_path / "table.txt", [], []
    for number in range(1, 200):
        if rng.random() < 0.1:
            lines.append(" " * int(rng.integers(3)))
            continue
        path = " ".join(rng.choice(["a", "b/c", "7", "ä.jpg"], int(rng.integers(1, 4))))
        numbers = (int(rng.integers(-9, 99)), float(rng.integers(9)) / 4)
        columns = [path, *map(str, numbers)]
        rows.append((number, (*numbers, path) if at_the_end else (path, *numbers)))
        columns = columns[1:] + columns[:1] if at_the_end else columns
        lines.append((" " * int(rng.integers(1, 4))).join(columns) + " " * int(rng.integers(2)))
    file.write_bytes("".join(line + ("\n", "\r\n")[int(rng.integers(2))] for line in lines).encode())
    kinds = (int, float, str) if at_the_end else (str, int, float)
    assert list(read_table(file, "some columns", kinds)) == rows


def test_place_of_a_folder_in_an_archive():
    place = below("tree")
    names = ["tree/a.jpg", "tree/b/tree/c.jpg", "tree", "tree/", "a.jpg", "other/a.jpg", "trees/a.jpg"]
    assert [place(name) for name in names] == ["a.jpg", "b/tree/c.jpg", None, None, None, None, None]


@every_set
def test_a_second_run_gives_the_same_bytes(name, download, root, tmp_path):
    SETS[name][1](download, np.random.default_rng(5))
    _prepare(name, root, download)
    first = [_texts(folder) for folder in sorted(root.iterdir())]
    _prepare(name, root, None)      # all is in place
    assert [_texts(folder) for folder in sorted(root.iterdir())] == first
    SETS[name][1](tmp_path / "again", np.random.default_rng(5))
    _prepare(name, tmp_path / "elsewhere", tmp_path / "again")
    assert [_texts(folder) for folder in sorted((tmp_path / "elsewhere").iterdir())] == first


def test_order_of_the_tables_that_are_joined_does_not_matter(download, root, tmp_path, rng):
    make_cub(download, rng)
    _prepare("cub", root, download)
    for name in ("image_class_labels.txt", "bounding_boxes.txt"):
        changed(download / catalogue.CUB.path, name, lambda text: "\n\n".join(sorted(text.split("\n"))))
    _prepare("cub", tmp_path / "sorted", download)
    for folder in ("cub", "cub_cropped"):
        assert _texts(tmp_path / "sorted" / folder) == _texts(root / folder)


@every_set
def test_missing_images(name, download, root, rng):
    photos = SETS[name][1](download, rng)
    by_class = {}
    for photo in photos:
        by_class.setdefault(photo.of_class, []).append(photo)
    lost = [by_class[photos[0].of_class][-1]]                       # an image
    lost += next(group for group in by_class.values() if group[0].part == "train" and lost[0] not in group)
    for photo in lost:
        without(download / ARCHIVES[name].path, photo.path.split("/")[-2] + "/" + photo.path.split("/")[-1])
    with pytest.raises(UserError, match=f"of the {len(photos)} images, {len(lost)} are not in .*--partial"):
        _prepare(name, root, download)
    prepared = _prepare(name, root, download, partial=True)
    left = [photo for photo in photos if photo not in lost]
    for file, text in expected_lists(left).items():
        assert (root / name / file).read_text() == text
    assert sum(prepared.counts.values()) == len(left)
    if name in CROPPED:
        assert len(read_image_list(root / f"{name}_cropped" / "train_list.txt").boxes) \
            == sum(photo.part == "train" for photo in left)


def test_a_part_of_which_nothing_is_there_has_no_list(download, root, rng):
    photos = make_inshop(download, rng)
    _prepare("inshop", root, download)
    for photo in photos:
        if photo.part == "query":
            (root / "inshop" / photo.path).unlink()
    prepared = _prepare("inshop", root, download, partial=True)
    assert prepared.counts["queries"] == 0 and "query_list.txt" not in prepared.lists
    assert not (root / "inshop" / "query_list.txt").exists()
    assert not (root / "inshop_cropped" / "query_list.txt").exists()


@every_set
@pytest.mark.parametrize("tree_itself", [False, True])
def test_adopts_an_unpacked_folder(name, tree_itself, download, root, tmp_path, rng):
    photos = SETS[name][1](download, rng)
    archive = download / ARCHIVES[name].path
    unpack_by_hand(archive, archive.parent)
    archive.unlink()
    given = download
    if tree_itself:     # with the tables that are no part of it beside the images
        given = archive.parent / TREES[name]
        for table in [*archive.parent.glob("*.mat"), *download.glob("*/list_*.txt")]:
            table.rename(given / table.name)
    before = sorted(given.rglob("*"))
    _prepare(name, root, given)
    assert (root / name / TREES[name]).is_symlink() and sorted(given.rglob("*")) == before
    for file, text in expected_lists(photos).items():
        assert (root / name / file).read_text() == text
        assert read_image_list(root / name / file).read(0)
    lists = _texts(root / name)
    _prepare(name, root, None)
    assert _texts(root / name) == lists


def test_files_of_clothes_are_taken_without_their_folders_too(download, root, tmp_path, rng):
    photos = make_inshop(download, rng)
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in [file for file in download.rglob("*") if file.is_file()]:
        file.rename(flat / file.name)
    assert set(_prepare("inshop", root, flat).folders) == {"inshop_cropped"}
    for file, text in expected_lists(photos).items():
        assert (root / "inshop" / file).read_text() == text


def test_clothes_cannot_be_downloaded(root):
    with pytest.raises(UserError, match="not offered for direct download: .*img.zip; get it by hand from"):
        _prepare("inshop", root, None)


def _second(change):
    """What changes the second line of a text."""
    def lines(text: str) -> str:
        first, second, *rest = text.split("\n")
        return "\n".join([first, change(second), *rest])
    return lines


BIRDS = [
    ("/images.txt", _second(lambda line: line.split()[0]), "images.txt, line 2: '.*' is not 'id path'"),
    ("/images.txt", _second(lambda line: "x" + line), "images.txt, line 2: 'x.*' is not 'id path'"),
    ("/images.txt", _second(lambda line: ""), r"images.txt lacks 1 of the images .*labels.txt has: \d+$"),
    ("/images.txt", lambda text: text.split("\n")[0] + "\n" + text, r"line 2: '\d+' stands in line 1 alr"),
    ("labels.txt", _second(lambda line: line + " 3"), "labels.txt, line 2: .* is not 'id class'"),
    ("labels.txt", _second(lambda line: line.split()[0] + " 201"), "line 2: class 201 is outside 1 .. 200"),
    ("labels.txt", _second(lambda line: line.split()[0] + " 0"), "line 2: class 0 is outside 1 .. 200"),
    ("labels.txt", _second(lambda line: ""), "labels.txt lacks 1 of the images that .*/images.txt has: "),
    ("boxes.txt", _second(lambda line: ""), "boxes.txt lacks 1 of the images that .*/images.txt has: "),
    ("boxes.txt", _second(lambda line: line.split()[0] + " 1.0 2.0 nan 4.0"), "line 2: the box .* pixel"),
    ("boxes.txt", _second(lambda line: line.split()[0] + " 1.0 2.0 3.0 0.9"), "line 2: the box 1, 2, 4, 2"),
    ("boxes.txt", _second(lambda line: line.split()[0] + " 1.3 2.0 0.6 3"), "line 2: the box 1.3, 2, 1.9"),
    ("boxes.txt", _second(lambda line: line.split()[0] + " 1.0 2.0 3.0"), "line 2: .*'id x y width height"),
    ("boxes.txt", lambda text: "", "bounding_boxes.txt is damaged: it has 0 lines")]
PRODUCTS = [
    ("train.txt", lambda text: text.split("\n", 1)[1], "train.txt, line 1: .* is not the header 'image_id"),
    ("test.txt", _second(lambda line: "\n3 4 x.JPG"), "Ebay_test.txt, line 3: '3 4 x.JPG' is not 'imag"),
    ("test.txt", lambda text: text.split("\n")[0], "Ebay_test.txt is damaged: it has 0 lines"),
    ("test.txt", lambda text: text + "99 2 1 a.JPG\n", "1 classes are both trained on and tested, .* is 2")]
SPLIT, BOXES = catalogue.INSHOP_SPLIT, catalogue.INSHOP_BOXES
CLOTHES = [
    (SPLIT, lambda text: text.replace("query", "probe", 1), "line .*: 'probe' is none of train, query"),
    (SPLIT, lambda text: text[:text.rindex("img/")], r"is damaged: it has 31 .* its first line says 32"),
    (SPLIT, lambda text: "x" + text, "line 1: 'x.*' is not a number of lines"),
    (SPLIT, lambda text: text.replace("item_id", "item"), "line 2: .* is not the header"),
    (SPLIT, lambda text: text.replace("img/", "img/x", 1), "partition.txt lacks 1 of .*_inshop.txt has"),
    (BOXES, _second(lambda line: line + "\nimg/a.jpg 1 1 010 010 x 020"), "line 3: .* is not 'image_name"),
    (BOXES, _second(lambda line: line + "\nimg/a.jpg 1 1 010 010 010 020"), "its first line says 32")]


@pytest.mark.parametrize("table, change, message", BIRDS)
def test_damaged_tables_of_birds(table, change, message, download, root):
    make_cub(download, np.random.default_rng(0))
    changed(download / catalogue.CUB.path, table, change)
    with pytest.raises(UserError, match=message):
        _prepare("cub", root, download)


@pytest.mark.parametrize("table, change, message", PRODUCTS)
def test_damaged_tables_of_products(table, change, message, download, root):
    make_sop(download, np.random.default_rng(0))
    changed(download / catalogue.SOP.path, table, change)
    with pytest.raises(UserError, match=message):
        _prepare("sop", root, download)


@pytest.mark.parametrize("table, change, message", CLOTHES)
def test_damaged_tables_of_clothes(table, change, message, download, root):
    make_inshop(download, np.random.default_rng(0))
    file = download / table.path
    file.write_text(change(file.read_text()))
    with pytest.raises(UserError, match=message):
        _prepare("inshop", root, download)


def test_a_box_of_clothes_without_a_pixel(download, root):
    make_inshop(download, np.random.default_rng(0))
    file = download / catalogue.INSHOP_BOXES.path
    lines = file.read_text().split("\n")
    lines[4] = " ".join([*lines[4].split()[:3], "030", "010", "030", "020"])
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match="inshop.txt, line 5: the box 30, 10, 30, 20 has no pixel"):
        _prepare("inshop", root, download)


def test_damaged_tables_of_cars(download, root, rng):
    photos = make_cars196(download, rng)
    file = download / catalogue.CARS_TABLE.path
    wrong = [photo for photo in photos]
    for change, message in (({"of_class": 197}, r"annotations\(3\): .* of class 197 is not"),
                            ({"path": "cars/1.jpg"}, r"annotations\(3\): 'cars/1.jpg' of class"),
                            ({"box": (5, 5, 5, 9)}, r"annotations\(3\): the box 5, 5, 5, 9 has no pixel")):
        wrong[2] = type(photos[2])(**{**vars(photos[2]), **change})
        write_cars_table(file, wrong)
        _forget(root, "cars_annos.mat")
        with pytest.raises(UserError, match=message):
            _prepare("cars196", root, download)
    for content in (b"", b"no MATLAB file at all" * 20, file.read_bytes()[:300]):
        file.write_bytes(content)
        _forget(root, "cars_annos.mat")
        with pytest.raises(UserError, match="cars_annos.mat is no MATLAB file with an array 'annotations'"):
            _prepare("cars196", root, download)
    two = np.empty((1, 2), [(field, object) for field in CARS])
    two[0, :] = (np.array([["car_ims/000001.jpg", "car_ims/000002.jpg"]], object), 1, 1, 9, 9, 7, 0)
    savemat(file, {"annotations": two})
    _forget(root, "cars_annos.mat")
    with pytest.raises(UserError, match=r"annotations\(1\) is not as it should be: "):
        _prepare("cars196", root, download)
    for content in ({"other": 1}, {"annotations": np.ones(3)}, {"annotations": {"class": 1}}):
        savemat(file, content)
        _forget(root, "cars_annos.mat")
        with pytest.raises(UserError, match="cars_annos.mat is no MATLAB file with an array 'annotations'"):
            _prepare("cars196", root, download)


def test_cars_in_arrays_of_other_shapes(download, root, rng):
    """A column of structs, and values in cells of cells, say the same."""
    photos = make_cars196(download, rng)
    fields = ("class", "relative_im_path", "bbox_y2", "bbox_y1", "bbox_x2", "bbox_x1")
    annotations = np.empty((len(photos), 1), [(field, object) for field in fields])
    for place, photo in enumerate(photos):
        x1, y1, x2, y2 = photo.box
        cell = np.empty((1, 1), object)
        cell[0, 0] = photo.path
        nested = np.empty((1, 1), object)
        nested[0, 0] = cell
        annotations[place, 0] = (float(photo.of_class), nested, y2, y1, x2, x1)
    savemat(download / catalogue.CARS_TABLE.path, {"annotations": annotations})
    _prepare("cars196", root, download)
    for file, text in expected_lists(photos).items():
        assert (root / "cars196" / file).read_text() == text
    images = read_image_list(root / "cars196_cropped" / "test_list.txt")
    assert images.boxes.tolist() == [list(photo.box) for photo in photos if photo.part == "test"]


def _forget(root: Path, name: str) -> None:
    """Have a file taken again."""
    for mark in (root / "cars196" / ".prepared").glob(f"{name}*"):
        mark.unlink()


@every_set
def test_a_table_that_is_absent(name, download, root, rng):
    SETS[name][1](download, rng)
    table = {"cub": "/images.txt", "sop": "Ebay_train.txt"}.get(name)
    if table:
        without(download / ARCHIVES[name].path, table)
    else:
        next(file for file in (download / "cars_annos.mat", download / "Eval" / "list_eval_partition.txt")
             if file.exists()).unlink()
        with pytest.raises(UserError, match="--from .* has no .*(cars_annos.mat|list_eval_partition.txt)"):
            _prepare(name, root, download)
    with pytest.raises(UserError, match="(images|Ebay_train|cars_annos|eval_partition).* is not there"):
        _prepare(name, root, download, partial=True)
