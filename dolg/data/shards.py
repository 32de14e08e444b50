"""Images in tar shards, in webdataset's layout, read in any order; and writing them."""
import io
import json
import os
import tarfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dolg.data.decode import ImageError
from dolg.data.shard_index import IMAGE_KINDS, shard_files, shard_index
from dolg.errors import UserError
from dolg.files import atomic_file, file_digest, write_atomically

# Open files per process, well below the usual limit of 1024 that PyTorch's workers share
_OPEN_FILES = 256


class ImageShards:
    """The images of a set of shards: the same as an ImageList, and read as freely.

    `labels` is (N,) int64. Files are read with pread, which has no position that processes could
    share, so they may be open when worker processes are forked.

    Args:
        folder, split: the shards are the files folder/split; their name may hold ranges of numbers,
            as in train-{0000..0099}.tar, and *, ? and [...].
        num_classes: labels must be below; None: any.
        progress: show a bar on a terminal while the shards' headers are read.

    Raises UserError where shards are absent, damaged or without labels, or labels out of range.
    """

    def __init__(self, folder: Path, split: str, num_classes: int | None = None,
                 progress: bool = False):
        self.folder, pattern = (folder / split).parent, (folder / split).name
        files = shard_files(self.folder, pattern)
        plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in pattern)
        self.index = shard_index(files, self.folder / f".{plain}.index.npz", progress)
        self.labels = self.index.labels
        self._open: OrderedDict[int, int] = OrderedDict()       # shard -> file descriptor
        if num_classes is not None and (self.labels >= num_classes).any():
            first = int((self.labels >= num_classes).argmax())
            raise UserError(f"{self.name(first)}: label {self.labels[first]} is outside 0 .. "
                            f"{num_classes - 1} (MODEL.NUM_CLASSES is {num_classes})")

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """The shard and the image's name in it."""
        return f"{self._path(self.index.shard[index])}:{self.index.member(index)}"

    def read(self, index: int) -> bytes:
        """The image's file. Raises ImageError where it cannot be read."""
        size = int(self.index.sizes[index])
        try:
            file = self._file(int(self.index.shard[index]))
            data = os.pread(file, size, int(self.index.offsets[index]))
        except OSError as error:
            raise ImageError(self.name(index), error.strerror or str(error)) from None
        if len(data) < size:
            raise ImageError(self.name(index), "the shard has become shorter")
        return data

    def missing(self, indexes: np.ndarray, progress: bool = False) -> np.ndarray:
        """Those of `indexes` whose shards are absent or not of the size they were indexed with, in
        their order; `progress` is ImageList's."""
        shards = self.index.shard[indexes]
        bad = [number for number in np.unique(shards) if not self._is_there(int(number))]
        return indexes[np.isin(shards, bad)]

    def _is_there(self, shard: int) -> bool:
        try:
            return os.stat(self._path(shard)).st_size == self.index.shards[shard][1]
        except OSError:
            return False

    def _path(self, shard: int) -> Path:
        return self.folder / self.index.shards[shard][0]

    def _file(self, shard: int) -> int:
        """The descriptor of a shard, opened unless it is one of the last that were used."""
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            if len(self._open) >= _OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self._path(shard), os.O_RDONLY)
        return self._open[shard]


def write_shard(file: Path, images, indexes: Sequence[int]) -> None:
    """Pack some of `images` into the shard `file`, which appears whole or not at all.

    Members are named by the images' numbers; the same images give the same bytes. They are whole:
    nothing in a shard says what an image is to be cut to.
    """
    assert images.boxes is None, "shards hold whole images"
    with atomic_file(file) as target, tarfile.open(fileobj=target, mode="w") as tar:
        for index in indexes:
            kind = images.name(index).rpartition(".")[2].lower()
            if kind not in IMAGE_KINDS:
                raise UserError(f"{images.name(index)}: a shard's images end in "
                                f"{', '.join('.' + kind for kind in IMAGE_KINDS)}")
            for ending, content in ((kind, images.read(index)),
                                    ("cls", b"%d" % images.labels[index])):
                member = tarfile.TarInfo(f"{index:09d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def mark_folder(folder: Path, name: str, image_list: Path, size: int) -> None:
    """Write into `folder` which list its shards `name` are of, so that no others are mixed with
    them. Raises UserError if they are of another list or of another size."""
    mark = {"list_sha256": file_digest(image_list), "images_per_shard": size}
    file = folder / f"{name}.json"
    if not file.exists():
        write_atomically(file, json.dumps(mark) + "\n")
    elif json.loads(file.read_text()) != mark:
        raise UserError(f"{folder} has shards '{name}' of another list than {image_list}, or of "
                        f"another size than {size} ({file}): give another folder or name")
