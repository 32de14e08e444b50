"""Miniatures of published data sets: the files that one downloads, in their layout, with tiny images.

Each `make_*` writes them below a folder, under the paths that the catalogue has, and returns the images in
the order of the published tables. The same generator gives the same files.
"""
import io
import tarfile
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from dolg.prepare import catalogue

CARS = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")


@dataclass(frozen=True)
class Photo:
    """An image of a miniature: its path below the prepared folder, its class as published, "train", "test",
    "query", "gallery" or "val", its box (x1, y1, x2, y2), and its file."""

    path: str
    of_class: int | str
    part: str
    box: tuple[float, float, float, float]
    data: bytes


def expected_lists(photos: list[Photo]) -> dict[str, str]:
    """The lists of a data set that tests other classes than it trains on, but for the held out classes."""
    trained = sorted(set(photo.of_class for photo in photos if photo.part == "train"))
    tested = sorted(set(photo.of_class for photo in photos if photo.part != "train"))
    lists = {}
    for photo in photos:
        classes = trained if photo.part == "train" else tested
        name = f"{photo.part}_list.txt"
        lists[name] = lists.get(name, "") + f"{photo.path} {classes.index(photo.of_class)}\n"
    return lists


def make_cub(folder: Path, rng: np.random.Generator) -> list[Photo]:
    """CUB-200-2011 with 4 training classes and 3 others, and its lines in random orders."""
    photos = []
    for of_class, bird in ((1, "Black_footed_Albatross"), (2, "Laysan_Albatross"), (9, "Brewer_Blackbird"),
                           (100, "Brown_Pelican"), (101, "White_Pelican"), (150, "Sage_Thrasher"),
                           (200, "Common_Yellowthroat")):
        for number in range(1, int(rng.integers(3, 6))):
            path = f"{of_class:03d}.{bird}/{bird}_{number:04d}_{int(rng.integers(1e6))}.jpg"
            part = "train" if of_class <= 100 else "test"
            photos.append(_photo(f"CUB_200_2011/images/{path}", of_class, part, rng))
    ids = dict(zip((photo.path for photo in photos), (rng.permutation(len(photos)) + 1).tolist()))
    photos = _shuffled(photos, rng)
    files = {photo.path: photo.data for photo in photos}
    for name, columns in {
            "images.txt": lambda photo: photo.path.removeprefix("CUB_200_2011/images/"),
            "image_class_labels.txt": lambda photo: photo.of_class,
            "bounding_boxes.txt": lambda photo: _with_size(photo.box),
            "train_test_split.txt": lambda photo: int(rng.integers(2))}.items():
        rows = photos if name == "images.txt" else _shuffled(photos, rng)
        files[f"CUB_200_2011/{name}"] = _text(f"{ids[photo.path]} {columns(photo)}" for photo in rows)
    files["CUB_200_2011/classes.txt"] = _text(f"{n} {n:03d}.Bird" for n in range(1, 201))
    files["CUB_200_2011/README"] = b"Caltech-UCSD Birds-200-2011\n"
    _write_tar(folder / catalogue.CUB.path, {"attributes.txt": b"1 has_bill_shape::curved\n", **files})
    return photos


def make_cars196(folder: Path, rng: np.random.Generator) -> list[Photo]:
    """Stanford Cars with 4 training classes and 3 others, numbered in a random order."""
    classes = rng.permutation(np.repeat([1, 40, 97, 98, 99, 100, 196], 4)).tolist()
    photos = [_photo(f"car_ims/{number:06d}.jpg", of_class, "train" if of_class <= 98 else "test", rng)
              for number, of_class in enumerate(classes, 1)]
    _write_tar(folder / catalogue.CARS_IMAGES.path, {photo.path: photo.data for photo in photos})
    photos = _shuffled(photos, rng)
    write_cars_table(folder / catalogue.CARS_TABLE.path, photos)
    return photos


def write_cars_table(file: Path, photos: list[Photo]) -> None:
    """The annotations of Stanford Cars, as MATLAB has them: every value in an array of its own."""
    annotations = np.empty((1, len(photos)), [(name, object) for name in CARS])
    for place, photo in enumerate(photos):
        numbers = (*photo.box, photo.of_class, place % 2)
        annotations[0, place] = (photo.path, *(np.array([[int(number)]], np.uint16) for number in numbers))
    names = np.array([[f"Car {n}" for n in range(1, 197)]], object)
    savemat(file, {"annotations": annotations, "class_names": names}, do_compression=True)


def make_sop(folder: Path, rng: np.random.Generator) -> list[Photo]:
    """Stanford Online Products with 5 training classes and 3 others; one name has a blank."""
    photos, files = [], {}
    for part, classes in {"train": (1, 2, 3, 11317, 11318), "test": (11319, 11320, 22634)}.items():
        rows = []
        for of_class in classes:
            kind, listing = ("bicycle", "chair")[of_class % 2], 111085122871 + of_class
            for number in range(int(rng.integers(2, 5))):
                blank = " " if (of_class, number) == (2, 1) else ""
                path = f"Stanford_Online_Products/{kind}_final/{listing}{blank}_{number}.JPG"
                rows.append((_photo(path, of_class, part, rng), 1 + of_class % 2))
        rows = [rows[place] for place in rng.permutation(len(rows))]
        lines = [f"{place} {photo.of_class} {kind} {photo.path.removeprefix('Stanford_Online_Products/')}"
                 for place, (photo, kind) in enumerate(rows, len(photos) + 1)]
        files[f"Stanford_Online_Products/Ebay_{part}.txt"] = _text(
            ["image_id class_id super_class_id path", *lines])
        photos += [photo for photo, _ in rows]
    files["Stanford_Online_Products/Ebay_info.txt"] = _text(["image_id class_id super_class_id path"])
    files["Stanford_Online_Products/bicycle_final.txt"] = _text(["111085122871_0.JPG"])
    _write_zip(folder / catalogue.SOP.path, {**files, **{photo.path: photo.data for photo in photos}})
    return photos


def make_inshop(folder: Path, rng: np.random.Generator, boxes: bool = True) -> list[Photo]:
    """In-shop Clothes with 4 training items and 3 others; one item is in two categories."""
    photos = []
    for item, categories in {2: ("WOMEN/Dresses", "WOMEN/Rompers_Jumpsuits"), 7: ("MEN/Denim",),
                             3: ("WOMEN/Dresses",), 1001: ("WOMEN/Skirts",), 5: ("WOMEN/Shorts",),
                             6: ("MEN/Denim",), 7982: ("WOMEN/Dresses",)}.items():
        for category in categories:
            for number, view in enumerate(("front", "side", "back", "full"), 1):
                part = "train" if item in (2, 3, 7, 1001) else ("query", "gallery")[number % 2]
                path = f"img/{category}/id_{item:08d}/01_{number}_{view}.jpg"
                photos.append(_photo(path, f"id_{item:08d}", part, rng))
    photos = _shuffled(photos, rng)
    _write_zip(folder / catalogue.INSHOP_IMAGES.path, {photo.path: photo.data for photo in photos})
    lines = [f"{photo.path:<70} {photo.of_class} {photo.part:<8}" for photo in photos]
    _write(folder / catalogue.INSHOP_SPLIT.path, _text(
        [str(len(photos)), "image_name item_id evaluation_status", *lines]))
    if boxes:
        lines = [f"{photo.path:<70} {rng.integers(1, 4)} {rng.integers(1, 7)} {_padded(photo.box)}"
                 for photo in _shuffled(photos, rng)]
        _write(folder / catalogue.INSHOP_BOXES.path, _text(
            [str(len(photos)), "image_name clothes_type pose_type x_1 y_1 x_2 y_2", *lines]))
    return photos


def make_imagenet(folder: Path, rng: np.random.Generator) -> list[Photo]:
    """ImageNet with 5 classes, whose numbers in the devkit are in another order than their names."""
    wnids = ["n03445777", "n01440764", "n07745940", "n02119789", "n15075141"]
    training = [_photo(f"train/{wnid}/{wnid}_{number}.JPEG", wnid, "train", rng)
                for wnid in sorted(wnids)
                for number in sorted(rng.choice(99, 4, replace=False).tolist(), key="{}.JPEG".format)]
    labels = rng.permutation(np.repeat(np.arange(1, 6), 3)).tolist()
    validation = [_photo(f"val/ILSVRC2012_val_{place:08d}.JPEG", wnids[label - 1], "val", rng)
                  for place, label in enumerate(labels, 1)]
    tars = {f"{wnid}.tar": _tar({photo.path.split("/")[-1]: photo.data for photo in training
                                 if photo.of_class == wnid}) for wnid in wnids}
    _write(folder / catalogue.IMAGENET_TRAINING.path, _tar(tars))
    _write(folder / catalogue.IMAGENET_VALIDATION.path, _tar(
        {photo.path.removeprefix("val/"): photo.data for photo in _shuffled(validation, rng)}))
    _write_tar(folder / catalogue.IMAGENET_DEVKIT.path, {
        "ILSVRC2012_devkit_t12/readme.txt": b"ImageNet\n",
        "ILSVRC2012_devkit_t12/evaluation/demo_eval.m": b"% demo\n",
        "ILSVRC2012_devkit_t12/data/meta.mat": _synsets(wnids),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": _text(map(str, labels))})
    return training + validation


def without(archive: Path, name: str) -> None:
    """Take the member that ends in `name` out of a .tgz or .zip archive."""
    files = read_archive(archive)
    left = {member: data for member, data in files.items() if not member.endswith(name)}
    assert len(left) == len(files) - 1
    (_write_zip if archive.suffix == ".zip" else _write_tar)(archive, left)


def changed(archive: Path, name: str, change) -> None:
    """Give the member that ends in `name` the text that `change` makes of its text."""
    files = read_archive(archive)
    member = next(member for member in files if member.endswith(name))
    files[member] = change(files[member].decode()).encode()
    (_write_zip if archive.suffix == ".zip" else _write_tar)(archive, files)


def read_archive(archive: Path) -> dict[str, bytes]:
    """The files of an archive."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as content:
            return {name: content.read(name) for name in content.namelist() if not name.endswith("/")}
    with tarfile.open(archive) as content:
        return {info.name: content.extractfile(info).read() for info in content if info.isfile()}


def unpack_by_hand(archive: Path, folder: Path) -> None:
    """As a user does it, with the archive's own folders."""
    for name, data in read_archive(archive).items():
        _write(folder / name, data)


def in_folders(photos: list[Photo]) -> list[Photo]:
    """ImageNet's validation images moved into a folder for each class."""
    return [replace(photo, path=f"val/{photo.of_class}/{photo.path.split('/')[-1]}") if photo.part == "val"
            else photo for photo in photos]


def _photo(path: str, of_class: int | str, part: str, rng: np.random.Generator) -> Photo:
    """An image of noise, and a box in it."""
    height, width = rng.integers(12, 40, 2).tolist()
    x1, y1 = int(rng.integers(width // 2)), int(rng.integers(height // 2))
    box = (x1, y1, int(rng.integers(x1 + 4, width + 1)), int(rng.integers(y1 + 4, height + 1)))
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(file, "JPEG")
    return Photo(path, of_class, part, tuple(map(float, box)), file.getvalue())


def _shuffled(photos: list[Photo], rng: np.random.Generator) -> list[Photo]:
    return [photos[place] for place in rng.permutation(len(photos))]


def _with_size(box: tuple[float, ...]) -> str:
    x1, y1, x2, y2 = box
    return f"{x1} {y1} {x2 - x1} {y2 - y1}"


def _padded(box: tuple[float, ...]) -> str:
    return " ".join(f"{int(corner):03d}" for corner in box)


def _synsets(wnids: list[str]) -> bytes:
    """The devkit's classes, and two above them."""
    rows = [(number, wnid, f"word {wnid}", f"a {wnid}", 0, np.zeros((1, 0)), 0, 4)
            for number, wnid in enumerate(wnids, 1)]
    rows += [(6, "n00001740", "entity", "all", 2, np.array([[7, 1]]), 2, 0),
             (7, "n00021939", "artifact", "made", 4, np.array([[2, 3, 4, 5]]), 1, 0)]
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height",
              "num_train_images")
    synsets = np.empty((len(rows), 1), [(name, object) for name in fields])
    for place, row in enumerate(rows):
        synsets[place, 0] = tuple(np.array([[value]], np.float64) if isinstance(value, int) else value
                                  for value in row)
    file = io.BytesIO()
    savemat(file, {"synsets": synsets})
    return file.getvalue()


def _text(lines) -> bytes:
    return ("\n".join(lines) + "\n").encode()


def _write(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def _write_tar(file: Path, files: dict[str, bytes]) -> None:
    _write(file, _tar(files, "w:gz"))


def _tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar archive with the folders of its files as members of their own, before the files."""
    content = io.BytesIO()
    folders = sorted({str(parent) for name in files for parent in Path(name).parents} - {"."})
    with tarfile.open(fileobj=content, mode=mode, format=tarfile.GNU_FORMAT) as tar:
        for name in folders:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return content.getvalue()


def _write_zip(file: Path, files: dict[str, bytes]) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in sorted({f"{parent}/" for name in files for parent in Path(name).parents} - {"./"}):
            archive.writestr(zipfile.ZipInfo(name), b"")
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    _write(file, content.getvalue())
