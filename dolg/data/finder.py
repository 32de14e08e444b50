"""Image files: which files of a folder are images, and which file the name of an image means."""
import os
import re
import stat
import warnings
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dolg.data.headers import FORMATS
from dolg.errors import UserError
from revisitop.names import IMAGE_SUFFIXES

# Endings of image files. A file with one of them is taken for an image, so that a damaged one is
# reported; any other file is judged by its content.
ENDINGS = frozenset(IMAGE_SUFFIXES)
# By their first bytes raw photographs are TIFF files, but what decodes as TIFF is a small preview
_RAW = frozenset((".3fr", ".arw", ".cr2", ".dng", ".iiq", ".nef", ".nrw", ".orf", ".pef", ".rw2", ".srw"))
# Files of file managers, and those that this project writes or reads: skipped without a word
_COMPANIONS = re.compile(r"\..*|thumbs\.db|desktop\.ini|(\w+_)?list\.txt|distractors\.txt|images\.csv|"
                         r"ground_truth\.csv|boxes\.csv|manifest\.json|check\.json|gnd_.*\.pkl",
                         re.IGNORECASE | re.DOTALL)
_TRIED = ("", ".jpg", ".JPG", *(form for ending in IMAGE_SUFFIXES[1:] for form in (ending, ending.upper())))
_NAMED = 3


@dataclass(frozen=True)
class FoundImages:
    """The images under a folder; all names are relative to it, with / between their parts.

    Attributes:
        names: of the images, sorted part by part; no two are the same file.
        skipped: files that are not images.
        file_links: further names (symbolic or hard links) of images -> the name that is among `names`.
        folder_links: links to folders that are among `folders` -> their name there; "" for the folder
            itself, and for those that hold it.
        folders: all that were looked through.
    """

    names: list[str]
    skipped: list[str]
    file_links: dict[str, str]
    folder_links: dict[str, str]
    folders: list[str]

    def remarks(self, folder: Path) -> Iterator[str]:
        """A line each for what was skipped, and for what was found twice."""
        if count := len(self.skipped):
            what = "file that is not an image" if count == 1 else "files that are not images"
            yield f"{folder}: skipped {count} {what}: {some_names(self.skipped)}"
        for what, links in (("images", self.file_links), ("folders", self.folder_links)):
            if links:
                pairs = [f"{link} is {name or '.'}" for link, name in links.items()]
                yield (f"{folder}: links to {what} that are there already are left out, {len(links)} in all: "
                       f"{some_names(pairs)}")


def image_file(folder: str | Path, name: str) -> str:
    """The file, relative to `folder`, that the name of an image means.

    It is the name itself where such a file exists, else the name with .jpg, or with another ending of
    image files. Where no such file exists, it is the name, with .jpg unless it ends as image files do.
    """
    path = os.path.join(folder, name)
    for ending in _TRIED:
        if os.path.isfile(path + ending):
            return name + ending
    return name if _ending(name) in ENDINGS else f"{name}.jpg"


def find_images(folder: Path) -> FoundImages:
    """All images under `folder`, through links as well.

    Each folder and each file is taken once, under a name without links where it has one. A regular file
    is an image if it ends as image files do, or by its content. Raises UserError where a folder cannot be
    read.
    """
    names, skipped, folder_links, folders, through_link = [], [], {}, [], array("b")
    identities = array("Q")
    for entry, name in _files_under(folder, folders, folder_links):
        found = _status(entry)
        if not _is_image(entry, found):
            if not _COMPANIONS.fullmatch(entry.name):
                skipped.append(name)
            continue
        # A link that leads nowhere is an image that fails, and the same as no other
        identities.extend((found.st_dev, found.st_ino) if found else (2 ** 64 - 1, len(names)))
        through_link.append(entry.is_symlink())
        names.append(name)
    order = sorted(range(len(names)), key=lambda place: names[place].split("/"))
    first = _first_of_each(np.frombuffer(identities, np.uint64).reshape(-1, 2)[order],
                           np.frombuffer(through_link, np.int8)[order])
    names = [names[place] for place in order]
    file_links = {names[i]: names[first[i]] for i in np.flatnonzero(first != np.arange(len(names))).tolist()}
    return FoundImages([name for name in names if name not in file_links], sorted(skipped), file_links,
                       folder_links, folders)


def some_names(names: list[str]) -> str:
    """The first few names, for a message, with control characters escaped."""
    shown = ", ".join(repr(name)[1:-1] for name in names[:_NAMED])
    return shown + (", ..." if len(names) > _NAMED else "")


def _files_under(folder: Path, folders: list[str],
                 folder_links: dict[str, str]) -> Iterator[tuple[os.DirEntry, str]]:
    """All files, each folder walked once: it is added to `folders`, and a link to it to `folder_links`."""
    # A link to a folder that holds this one would lead to everything else in there
    walked = {_identity(place): "" for place in folder.resolve().parents}
    # Links come last, so that what they lead to is known by its own name where that lies in the folder
    real, links = [""], []
    while real or links:
        inside = real.pop() if real else links.pop(0)
        place = _identity(folder / inside)
        if place in walked:
            folder_links[inside] = walked[place]
            continue
        walked[place] = inside
        folders.append(inside)
        for entry in _entries(folder / inside):
            name = f"{inside}/{entry.name}" if inside else entry.name
            if _is_folder(entry):
                (links if entry.is_symlink() else real).append(name)
            else:
                yield entry, name


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {some_names([str(folder)])}: {error.strerror}; make it "
                        "readable, or give a list of images in place of a folder") from None


def _identity(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:     # a link to itself
        return False


def _status(entry: os.DirEntry) -> os.stat_result | None:
    try:
        return entry.stat()
    except OSError:
        return None


def _first_of_each(identities: np.ndarray, through_link: np.ndarray) -> np.ndarray:
    """For each file (N,2) the place of the first that is the same file, if possible not a link; (N,)."""
    order = np.lexsort((through_link, identities[:, 1], identities[:, 0]))
    ordered = identities[order]
    is_new = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)][:len(order)]
    first = np.empty(len(order), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))]
    return first


def _is_image(entry: os.DirEntry, found: os.stat_result | None) -> bool:
    ending = _ending(entry.name)
    if ending in ENDINGS and not entry.name.startswith("._"):       # macOS keeps notes of x.jpg in ._x.jpg
        return found is None or stat.S_ISREG(found.st_mode)
    if _COMPANIONS.fullmatch(entry.name) or ending in _RAW:
        return False
    return found is not None and stat.S_ISREG(found.st_mode) and found.st_size > 0 and _opens(entry.path)


def _opens(path: str) -> bool:
    """Whether a file's header is that of an image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of EXIF blocks, and of sizes that the decoder judges
            with Image.open(path, formats=FORMATS):
                return True
    except Image.DecompressionBombError:
        return True
    except (OSError, ValueError, SyntaxError):
        return False


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()
