"""Whether a prepared data set is whole: its lists as they were made, every image there and decodable."""
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dolg.core.logging import say
from dolg.data.decode import MAX_PIXELS, ImageError, jpeg_decoder
from dolg.data.loader import one_opencv_thread, worker_count
from dolg.data.manifest import FILE, how_to_get, read_manifest
from dolg.errors import UserError
from dolg.features.decoding import DecodedImages
from dolg.features.sources import ImageSource, images_of, revisited_sources
from dolg.files import file_digest, write_atomically
from dolg.prepare.lists import name_digests

REPORT = "check.json"
_TOGETHER = 64
_BLOCK = 2 ** 16                # names that are strings at the same time
_SHOWN = 20


class _Verdicts(Dataset):
    """What is wrong with each of some images of a source; empty: nothing."""

    def __init__(self, source: ImageSource, indexes: np.ndarray, max_pixels: int):
        # A JPEG that is cut short is read by default, but not as it should be
        self.images, self.indexes = DecodedImages(source, max_pixels, lenient=False), indexes

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, place: int) -> str:
        found = self.images[int(self.indexes[place])].pixels
        return found.reason if isinstance(found, ImageError) else ""


def check(folder: Path, workers: int = -1, max_pixels: int = MAX_PIXELS) -> None:
    """Decode all images that the lists and the ground truth of a prepared data set name, each once.

    Says how many there are and which are not as they should be, and writes it all to check.json.

    Args:
        folder: the data set's.
        workers: decoding processes; 0: this one, -1: one per core.
        max_pixels: images that claim more are not as they should be.

    Raises UserError where something is wrong, or nothing prepared the folder.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} has no {FILE}: {how_to_get(folder)}")
    if "lists" not in manifest:
        raise UserError(f"{folder / FILE} names no lists to check: tools/prepare_data.py did not make it")
    wrong_files = dict(_changed_files(folder, manifest))
    wrong_images, checked, seen = [], 0, np.empty(0, np.uint64)
    for name, read in _readers(folder, manifest).items():
        try:
            sources = read()
        except UserError as error:
            wrong_files[name] = "; ".join([*filter(None, [wrong_files.get(name)]), str(error)])
            continue
        for what, source in sources.items():
            digests = _digests(what, source)
            found, first = np.unique(digests, return_index=True)
            new = np.sort(first[~np.isin(found, seen)])
            seen = np.union1d(seen, found)
            checked += len(new)
            wrong_images += [f"{source.path(index)}: {reason}"
                             for index, reason in _decoded(what, source, new, workers, max_pixels)]
    problems = [f"{name}: {reason}" for name, reason in wrong_files.items()] + wrong_images
    _report(folder, checked, problems)
    if problems:
        raise UserError(f"{folder}: {len(problems)} of {checked} images or lists are not as they should "
                        f"be; {_mending(folder, bool(wrong_files), bool(wrong_images))}")
    say(f"{folder}: {checked} images, all of them there and decodable; {len(manifest['lists'])} lists and "
        "other files as they were made")


def _changed_files(folder: Path, manifest: dict) -> Iterator[tuple[str, str]]:
    for name, facts in manifest["lists"].items():
        file, what = folder / name, "list" if name.endswith(".txt") else "file"
        if not file.is_file():
            yield name, f"the {what} is gone"
        elif file_digest(file) != facts["sha256"]:
            yield name, f"the {what} was changed since it was made"


def _readers(folder: Path, manifest: dict) -> dict[str, Callable[[], dict[str, ImageSource]]]:
    """By a list's or ground truth's name: what gives the images that it names."""
    readers = {}
    for name in manifest["lists"]:
        # An empty list, as of held-out images where none are held out, is as whole as another
        if name.endswith(".txt") and (folder / name).is_file() and (folder / name).stat().st_size:
            readers[name] = partial(_listed, folder / name)
    truth = f"gnd_{folder.name}.pkl"
    if (folder / truth).is_file():
        readers[truth] = partial(revisited_sources, folder.parent, folder.name, crop_queries=True)
    return readers


def _listed(file: Path) -> dict[str, ImageSource]:
    return {file.name: images_of(file)}


def _digests(what: str, source: ImageSource) -> np.ndarray:
    """64 bits of each image's path and box, uint64 (N,)."""
    digests = np.empty(len(source), np.uint64)
    with tqdm(desc=f"{what}, names", total=len(source), unit="image", leave=False, disable=None) as bar:
        for start in range(0, len(source), _BLOCK):
            block = range(start, min(start + _BLOCK, len(source)))
            digests[block.start:block.stop] = name_digests(
                [f"{source.path(i)} {source.boxes.get(i)}" for i in block])
            bar.update(len(block))
    return digests


def _report(folder: Path, checked: int, problems: list[str]) -> None:
    """Say the first problems, and write all to check.json; where that cannot be, say them all."""
    for line in problems[:_SHOWN]:
        say(f"  {line}")
    report = {"manifest_sha256": file_digest(folder / FILE), "images": checked, "problems": problems}
    try:
        write_atomically(folder / REPORT, json.dumps(report, indent=1) + "\n")
    except OSError as error:        # hours of decoding end with what they found all the same
        say(f"WARNING: {folder / REPORT} cannot be written ({error.strerror})")
        for line in problems[_SHOWN:]:
            say(f"  {line}")
    else:
        if len(problems) > _SHOWN:
            say(f"  and {len(problems) - _SHOWN} more, all in {folder / REPORT}")


def _mending(folder: Path, files: bool, images: bool) -> str:
    """What mends lists and other files that changed, and images."""
    command, ways = how_to_get(folder), []
    if files:
        ways.append(f"for the lists, {command} again")
    if images:
        ways.append("for the images, put whole ones where --from had them or, if archives were unpacked, "
                    f"delete the data set's folder .prepared; then {command} again")
    return "; ".join(ways)


def _decoded(what: str, source: ImageSource, indexes: np.ndarray,
             workers: int, max_pixels: int) -> Iterator[tuple[int, str]]:
    """The images that cannot be decoded, and why."""
    jpeg_decoder()      # once, before the workers start
    workers = worker_count(workers, 1)
    loader = DataLoader(_Verdicts(source, indexes, max_pixels), batch_size=_TOGETHER, collate_fn=list,
                        num_workers=workers, multiprocessing_context="fork" if workers else None)
    with one_opencv_thread():
        blocks = iter(loader)
    with tqdm(desc=what, total=len(indexes), unit="image", leave=False, disable=None) as bar:
        place = 0
        for block in blocks:
            for reason in block:
                if reason:
                    yield int(indexes[place]), reason
                place += 1
            bar.update(len(block))
