"""Going on with a store: images that were added, that failed, and whose files have changed since."""
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dolg.core.distributed import is_main
from dolg.core.logging import say
from dolg.data.decode import ImageError, read_file
from dolg.data.presence import of_each, size_and_time
from dolg.errors import UserError
from dolg.features.sources import ImageSource, Names
from dolg.features.store import StoreWriter, Written
from revisitop.stores import StoreError, chunk_name, read_manifest

_THREADS = 32
# Files of another time but the same size whose contents are compared, unless all are to be
_COMPARED = 10_000


def open_writer(path: Path, source: ImageSource, dim: int, chunk_size: int, provenance: dict,
                local_dim: int = 0, local_dtype: str = "float16", retry: bool = False,
                check: bool = True) -> tuple[StoreWriter, ImageSource]:
    """A store of the images of `source`, to be filled or gone on with, and the images in its order.

    Images that the store does not have yet come after those that it has. `retry`: images that failed, or
    whose files have changed, are described again; `check`: otherwise changed files are refused. Raises
    UserError for a store of other images or settings.
    """
    source, added = in_order_of(path, source)
    writer = StoreWriter(path, source.names, dim, chunk_size,
                         {**provenance, "images_digest": source.digest()}, local_dim, local_dtype,
                         grows=added > 0)
    if added:
        say(f"{path}: {added} images were added to the {len(source) - added} of the store")
    earlier = _Earlier(path, source, chunk_size)
    again = set(earlier.added)
    if retry or check:
        changed = earlier.changed(_COMPARED)
        if retry:
            again |= earlier.failed | changed.keys()
        elif changed:
            raise UserError(f"{_said(path, source, changed)}: give --retry-failed to describe them again, or "
                            "another INFER.OUT_DIR")
    writer.described = earlier.described
    for chunk in sorted({image // chunk_size for image in again}):
        writer.describe_again(chunk, [image for image in writer.rows(chunk) if image in again])
    return writer, source


def check_images(path: Path, source: ImageSource, contents: bool) -> None:
    """Compare a finished store with the images of `source`. Raises StoreError where it has others, where
    files have changed since, and where all have failed; `contents`: read all files anew."""
    source, added = in_order_of(path, source)
    manifest = read_manifest(path)
    if added:
        raise StoreError(f"{path} lacks {added} images that were added since, such as "
                         f"{source.names[len(source) - added]}: run the extraction again")
    if manifest.get("images_digest") != source.digest():
        raise StoreError(f"{path} is of other images, or of other boxes")
    earlier = _Earlier(path, source, manifest["chunk_size"])
    if earlier.added:
        raise StoreError(f"{path} lacks {len(earlier.added)} images that were added: finish the extraction")
    if len(earlier.failed) == len(source):
        raise StoreError(f"all {len(source)} images of {path} failed: mend what tools/info.py names as "
                         "reasons, and give --retry-failed")
    if changed := earlier.changed(len(source), contents):
        raise StoreError(f"{_said(path, source, changed)}: --retry-failed describes them again")


def in_order_of(path: Path, source: ImageSource) -> tuple[ImageSource, int]:
    """The images of a source in the order of the store that `path` may hold, and how many images were
    added: those come last.

    Raises UserError where images of the store are not in the source, or have other boxes.
    """
    try:
        manifest = read_manifest(path)
    except StoreError:          # none, or none to go on with: StoreWriter says so
        return source, 0
    before, digest = manifest["count"], manifest.get("images_digest")
    if digest in (None, source.digest()):
        return source, 0
    size = manifest["chunk_size"]
    numbers = (file.stem.removeprefix("chunk-") for file in path.glob("chunk-*.safetensors"))
    there = sorted(int(number) for number in numbers if number.isdecimal())
    index_of = {name: index for index, name in enumerate(source.names)}
    order, found, lost = np.full(len(source), -1), 0, []
    for chunk, written in zip(there, _read([path / chunk_name(chunk) for chunk in there])):
        for row, name in enumerate(written.names if written else (), chunk * size):
            found += 1
            index = index_of.pop(name, None)
            if index is None:
                lost.append(name)
            elif row < len(source):
                order[row] = index
    if lost or before > len(source):
        raise UserError(f"{path} is of {before} images, " + (
            f"{len(lost)} of which are not among the {len(source)} given, such as {lost[0]}" if lost else
            f"and {len(source)} are given") + ": bring them back, or give another INFER.OUT_DIR")
    rest = sorted(index_of.values())
    if len(rest) != (order < 0).sum():
        raise UserError(f"{path} is of other images, and cannot take more of a list that has a name twice: "
                        "give each once, or another INFER.OUT_DIR")
    order[order < 0] = rest
    ordered = _reordered(source, order)
    if ordered.digest() == digest:
        return ordered, 0
    # Of chunks that are not written nobody knows the names, but boxes could have changed
    if len(source) > before and (_reordered(source, order[:before]).digest() == digest
                                 or found < before and not source.boxes):
        return ordered, len(source) - before
    raise UserError(f"{path} is of other images than those given" + (
        ", or their boxes have changed" if source.boxes or found == before else "")
        + ": give another INFER.OUT_DIR, or delete that folder")


class _Earlier:
    """What the chunks say that are there.

    Attributes:
        failed: images.
        added: images that a chunk is to have, and does not have yet.
        described: (n,) int64, the others, in ascending order.
    """

    def __init__(self, path: Path, source: ImageSource, chunk_size: int):
        self.path, self.source = path, source
        self.failed: set[int] = set()
        self.added: set[int] = set()
        self._stamps = np.full((len(source), 3), -1, np.int64)
        fine, starts = np.zeros(len(source), bool), range(0, len(source), chunk_size)
        files = [path / chunk_name(chunk) for chunk in range(len(starts))]
        for file, start, written in zip(files, starts, _read(files)):
            if written is None:
                continue
            stop, end = start + len(written.names), min(start + chunk_size, len(source))
            if stop > end or written.names != [source.names[image] for image in range(start, stop)]:
                raise UserError(f"{file} has other images than its store: delete it and extract again")
            self._stamps[start:stop], fine[start:stop] = written.stamps, written.status == 0
            self.failed.update((start + np.flatnonzero(written.status)).tolist())
            self.added.update(range(stop, end))
        self.described = np.flatnonzero(fine)

    def changed(self, most: int, contents: bool = False) -> dict[int, str]:
        """The images whose files have changed since they were described well, and in what.

        A file of another size has changed. Of those that differ in their time alone so many are read, and
        compared by their CRC-32; if one has changed, or with `contents`, all are.
        """
        images = self.described[self._stamps[self.described, 0] >= 0]
        now = of_each(lambda row: size_and_time(self.source.path(images[row])),
                      np.empty((len(images), 2), np.int64), f"images of {self.path.name}", is_main())
        size, time, _ = self._stamps[images].T
        there = now[:, 0] >= 0      # one that is gone was described when it was there
        resized = there & (now[:, 0] != size)
        retimed = there & ~resized & (now[:, 1] != time)
        looked_at = np.flatnonzero(there & ~resized if contents else retimed)
        some = looked_at if contents else looked_at[::-(-len(looked_at) // most) or 1]
        rewritten = self._rewritten(images[some])
        if rewritten.any() and len(some) < len(looked_at):
            some, rewritten = looked_at, self._rewritten(images[looked_at])
        if retimed.any() and not rewritten.any():
            say(f"{self.path}: {retimed.sum()} image files have another time of change than when they were "
                f"described, and the same contents ({len(some)} were compared)")
        return {**{int(images[row]): f"{now[row, 0]} bytes, was {size[row]}"
                   for row in np.flatnonzero(resized)},
                **{int(image): "other contents of the same size" for image in images[some[rewritten]]}}

    def _rewritten(self, images: np.ndarray) -> np.ndarray:
        """Whether the contents of files are others than when they were described, bool."""
        def look(row: int) -> bool:
            try:
                return zlib.crc32(read_file(self.source.path(images[row]))) != self._stamps[images[row], 2]
            except ImageError:
                return False

        return of_each(look, np.zeros(len(images), bool), f"contents of {self.path.name}", is_main())


def _said(path: Path, source: ImageSource, changed: dict[int, str]) -> str:
    first = min(changed)
    return (f"{path}: {len(changed)} of its {len(source)} images have changed since they were described, "
            f"such as {source.path(first)} ({changed[first]})")


def _reordered(source: ImageSource, order: np.ndarray) -> ImageSource:
    order = order.tolist()
    boxes = {new: source.boxes[old] for new, old in enumerate(order) if old in source.boxes}
    return ImageSource(
        Names(source.names[index] for index in order), source.folder,
        source.files and Names(source.files[index] for index in order), boxes)


def _read(files: Sequence[Path]) -> Iterator[Written | None]:
    """What is in some chunks; None for those that are not there. Raises UserError where one is damaged."""
    def look(file: Path) -> Written | None:
        return Written.read(file) if file.exists() else None

    with ThreadPoolExecutor(_THREADS) as threads:
        try:
            yield from threads.map(look, files)
        except StoreError as error:
            raise UserError(str(error)) from None
