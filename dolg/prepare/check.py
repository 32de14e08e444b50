"""Whether a prepared data set is whole: its lists as they were made, every image there and decodable."""
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dolg.core.logging import say
from dolg.data.decode import ImageError, jpeg_decoder
from dolg.data.loader import one_opencv_thread, worker_count
from dolg.data.manifest import FILE, how_to_get, read_manifest
from dolg.errors import UserError
from dolg.features.decoding import DecodedImages
from dolg.features.sources import ImageSource, images_of, revisited_sources
from dolg.files import file_digest, write_atomically
from dolg.prepare.lists import name_digests

REPORT = "check.json"
_MAX_PIXELS = 250_000_000       # photographs of the distractors have up to 100 million
_TOGETHER = 64
_SHOWN = 20


class _Verdicts(Dataset):
    """What is wrong with each of some images of a source; empty: nothing."""

    def __init__(self, source: ImageSource, indexes: np.ndarray):
        self.images, self.indexes = DecodedImages(source, _MAX_PIXELS), indexes

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, place: int) -> str:
        found = self.images[int(self.indexes[place])].pixels
        return found.reason if isinstance(found, ImageError) else ""


def check(folder: Path, workers: int = -1) -> None:
    """Decode all images that the lists and the ground truth of a prepared data set name, each once.

    Says how many there are and which are not as they should be, and writes it all to check.json.

    Args:
        folder: the data set's.
        workers: decoding processes; 0: this one, -1: one per core.

    Raises UserError where something is wrong, or nothing prepared the folder.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"{folder} has no {FILE}: {how_to_get(folder)}")
    problems = [f"{name}: {reason}" for name, reason in _changed_lists(folder, manifest)]
    checked, seen = 0, np.empty(0, np.uint64)
    for what, source in _sources(folder, manifest):
        digests = name_digests([f"{source.path(i)} {source.boxes.get(i)}" for i in range(len(source))])
        new = np.flatnonzero(~np.isin(digests, seen))
        seen = np.union1d(seen, digests)
        checked += len(new)
        problems += [f"{source.path(index)}: {reason}"
                     for index, reason in _decoded(what, source, new, workers)]
    report = {"manifest_sha256": file_digest(folder / FILE), "images": checked, "problems": problems}
    write_atomically(folder / REPORT, json.dumps(report, indent=1) + "\n")
    for line in problems[:_SHOWN]:
        say(f"  {line}")
    if problems:
        more = f", all in {folder / REPORT}" if len(problems) > _SHOWN else ""
        raise UserError(f"{folder}: {len(problems)} of {checked} images or lists are not as they should "
                        f"be{more}")
    say(f"{folder}: {checked} images, all of them there and decodable; {len(manifest['lists'])} lists as "
        "they were made")


def _changed_lists(folder: Path, manifest: dict) -> Iterator[tuple[str, str]]:
    for name, facts in manifest["lists"].items():
        file = folder / name
        if not file.is_file():
            yield name, "the list is gone"
        elif file_digest(file) != facts["sha256"]:
            yield name, "the list was changed since it was made"


def _sources(folder: Path, manifest: dict) -> Iterator[tuple[str, ImageSource]]:
    for name in manifest["lists"]:
        if name.endswith(".txt") and (folder / name).is_file():
            yield name, images_of(folder / name)
    if (folder / f"gnd_{folder.name}.pkl").is_file():
        for part, source in revisited_sources(folder.parent, folder.name, crop_queries=True).items():
            yield part, source


def _decoded(what: str, source: ImageSource, indexes: np.ndarray,
             workers: int) -> Iterator[tuple[int, str]]:
    """The images that cannot be decoded, and why."""
    jpeg_decoder()      # once, before the workers start
    workers = worker_count(workers, 1)
    loader = DataLoader(_Verdicts(source, indexes), batch_size=_TOGETHER, collate_fn=list,
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
