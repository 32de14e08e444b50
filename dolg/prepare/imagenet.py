"""ImageNet ILSVRC 2012 (Russakovsky et al., 2015): labels are those of TorchVision's ImageFolder."""
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import compress
from pathlib import Path
from threading import Event

from tqdm import tqdm

from dolg.core.logging import say
from dolg.errors import UserError
from dolg.prepare.annotations import read_structs, read_table
from dolg.prepare.catalogue import IMAGENET_DEVKIT, IMAGENET_TRAINING, IMAGENET_VALIDATION
from dolg.prepare.classes import below
from dolg.prepare.lists import UNPACK_AGAIN, Prepared, present, write_list
from dolg.prepare.unpack import unpack
from dolg.prepare.work import Unit, Work, as_it_is

_TRAIN, _VAL, _DEVKIT = "train", "val", "ILSVRC2012_devkit_t12"
_TARS = "train_archives"        # the archive's 1,000 archives, until each is unpacked
_META, _TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
_LISTS = {_TRAIN: "train_list.txt", _VAL: "val_list.txt"}
_WNID = re.compile(r"n\d{8}")
_IMAGE = re.compile(r".*\.jpe?g", re.IGNORECASE)

# Paths of images, each with its class by WordNet's identifier
_Images = list[tuple[str, str]]


def prepare(work: Work) -> Prepared:
    """Fetch the data set and write train_list.txt and val_list.txt, of its own validation images."""
    own_train, own_val = _adopt(work, _TRAIN), _adopt(work, _VAL)
    units = []
    if not (own_val and _class_folders(work.folder / _VAL)) and not work.adopt(_DEVKIT, _META):
        units.append(Unit(IMAGENET_DEVKIT, _DEVKIT, _devkit_file))
    if not own_val:
        units.append(Unit(IMAGENET_VALIDATION, _VAL, as_it_is))
    if not own_train:
        units.append(Unit(IMAGENET_TRAINING, _TARS, as_it_is))
    work.obtain(units)
    if not own_train:
        _unpack_classes(work.folder, work.jobs)
    images = {_TRAIN: _present(work, "training images", _of_folders(work.folder, _TRAIN)),
              _VAL: _present(work, "validation images", _validation(work.folder))}
    return _write(work, images)


def _adopt(work: Work, tree: str) -> bool:
    """Whether train or val is the user's own; any subset of ImageNet will do."""
    for folder in (work.folder, work.given):
        if folder is not None and (folder / tree).is_dir():
            first = min(os.listdir(folder / tree), default=None)
            if first is not None and work.adopt(tree, first):
                return True
    return False


def _devkit_file(name: str) -> str | None:
    """For `Unit.place`: of the devkit, which has programs too, the tables alone."""
    path = below(_DEVKIT)(name)
    return path if path in (_META, _TRUTH) else None


def _unpack_classes(folder: Path, jobs: int) -> None:
    """Unpack each class's archive and remove it; what a killed run left is done by the next."""
    stop = Event()
    tars = sorted((folder / _TARS).glob("*.tar"))
    with tqdm(total=len(tars), desc="training classes", unit="class", disable=None) as bar, \
            ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_unpack_class, tar, folder / _TRAIN / tar.stem, stop) for tar in tars]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        finally:        # also where somebody presses Ctrl-C
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    if (folder / _TARS).is_dir() and not any((folder / _TARS).iterdir()):
        (folder / _TARS).rmdir()


def _unpack_class(tar: Path, folder: Path, stop: Event) -> None:
    unpack(tar, folder, place=as_it_is, stop=stop)
    tar.unlink()


def _class_folders(folder: Path) -> list[str]:
    """The classes that have a folder, sorted."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _WNID.fullmatch(entry.name) and entry.is_dir())


def _of_folders(folder: Path, tree: str) -> _Images:
    images = []
    for wnid in _class_folders(folder / tree):
        names = sorted(filter(_IMAGE.fullmatch, os.listdir(folder / tree / wnid)))
        images += [(f"{tree}/{wnid}/{name}", wnid) for name in names]
    return images


def _validation(folder: Path) -> _Images:
    """The validation images, by their folders or, where these are flat, as the devkit says."""
    images = _of_folders(folder, _VAL)
    if images or not (folder / _VAL).is_dir():
        return images
    meta, truth = folder / _DEVKIT / _META, folder / _DEVKIT / _TRUTH
    synsets = read_structs(meta, "synsets", {"ILSVRC2012_ID": int, "WNID": str, "num_children": int})
    wnids = {number: wnid for number, wnid, children in synsets if children == 0}
    for count, (line, (number,)) in enumerate(read_table(truth, "ILSVRC2012_ID", (int,)), 1):
        if number not in wnids:
            raise UserError(f"{truth}, line {line}: {meta} has no class {number} without sub-classes")
        images.append((f"{_VAL}/ILSVRC2012_val_{count:08d}.JPEG", wnids[number]))
    return images


def _present(work: Work, what: str, images: _Images) -> _Images:
    """Those that are there."""
    if not images:
        if not work.partial:
            raise UserError(f"no {what} are in {work.folder}")
        say(f"no {what} are there")
        return []
    return list(compress(images, present(work.folder, [path for path, _ in images], what, work.partial,
                                         UNPACK_AGAIN)))


def _write(work: Work, images: dict[str, _Images]) -> Prepared:
    """Write the lists; labels are places among the sorted training classes."""
    classes = sorted({wnid for _, wnid in images[_TRAIN] or images[_VAL]})
    if not classes:
        raise UserError(f"neither training nor validation images are in {work.folder}")
    labels = {wnid: label for label, wnid in enumerate(classes)}
    images[_VAL] = _of_known_classes(images[_VAL], labels, work.partial)
    lists = []
    for tree, name in _LISTS.items():
        (work.folder / name).unlink(missing_ok=True)        # an earlier run's
        if images[tree]:
            write_list(work.folder / name, [path for path, _ in images[tree]],
                       [labels[wnid] for _, wnid in images[tree]])
            lists.append(name)
    return Prepared({"training images": len(images[_TRAIN]), "validation images": len(images[_VAL]),
                     "classes": len(classes)}, lists)


def _of_known_classes(images: _Images, known: Sequence[str], partial: bool) -> _Images:
    unknown = sorted({wnid for _, wnid in images if wnid not in known})
    if unknown and not partial:
        raise UserError(f"{len(unknown)} classes have validation images and no training images, the first "
                        f"is {unknown[0]} (--partial leaves them out)")
    if unknown:
        say(f"{len(unknown)} classes have no training images, and their validation images are left out")
    return [(path, wnid) for path, wnid in images if wnid in known]
