"""The images of a data set's split: an image list or tar shards, and whether they are there."""
from pathlib import Path

import numpy as np

from dolg.data.boxes import BOXES, has_boxes
from dolg.data.image_list import ImageList, read_image_list
from dolg.data.shards import ImageShards
from dolg.errors import UserError
from dolg.files import write_atomically

_SAMPLE = 1000
_NAMED = 3


def open_images(folder: Path, split: str, num_classes: int | None = None,
                progress: bool = False) -> ImageList | ImageShards:
    """The images of the list `split` in `folder`, or of its shards where `split` ends in .tar.

    Both have `len(images)`, `images.labels` (N,) int64, `images.name(i)`, `images.read(i)` and
    `images.missing(indexes)`. `progress` shows a bar on a terminal while shards are indexed.
    Raises UserError for what is missing or wrong; see `read_image_list` and `ImageShards`.
    """
    if split.endswith(".tar"):
        parent = (folder / split).parent
        if has_boxes(parent):
            raise UserError(f"{parent} holds {BOXES}, and {split} shards, which hold whole images: give "
                            "an image list to see them cut to their boxes, or keep the shards elsewhere")
        return ImageShards(folder, split, num_classes, progress)
    return read_image_list(folder / split, num_classes)


def check_images(images: ImageList | ImageShards, how: str, listing: Path | None = None,
                 progress: bool = False) -> None:
    """Raise UserError if files of `images` are missing or empty, with their number and some names.

    Args:
        how: "sample" looks for a thousand, evenly spread; "all" for all; "none" for none.
        listing: where the names of all that are missing are written to.
        progress: show a bar on a terminal.
    """
    if how == "none":
        return
    count = min(_SAMPLE, len(images)) if how == "sample" else len(images)
    looked_at = np.arange(count) * len(images) // count
    missing = images.missing(looked_at, progress)
    if not len(missing):
        return
    where = ""
    if listing is not None:
        write_atomically(listing, "".join(f"{images.name(i)}\n" for i in missing.tolist()))
        where = f" ({listing} names them)"
    names = ", ".join(images.name(i) for i in missing[:_NAMED].tolist())
    raise UserError(f"{len(missing)} of the {count} images looked for, of {len(images)}, are "
                    f"missing or empty{where}: {names}{', ...' if len(missing) > _NAMED else ''}")
