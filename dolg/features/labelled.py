"""Feature stores of images with classes: which label belongs to which row."""
from pathlib import Path

import numpy as np

from dolg.data.image_list import read_image_list
from dolg.errors import UserError
from dolg.features.store import FeatureStore


def labelled_store(path: str | Path, list_file: Path,
                   across: bool = False) -> tuple[FeatureStore, np.ndarray]:
    """A store, opened with `across`, and the labels (count,) of its images, from a list of 'path label'
    lines.

    The names in the store are paths relative to the list's folder, in any order. Raises
    UserError unless store and list have the same images, each once, and
    revisitop.stores.StoreError for a damaged store: every descriptor is read, and must be finite
    or marked as failed.
    """
    store, listed = FeatureStore(path, across), read_image_list(list_file)
    paths = [Path(listed.name(index)) for index in range(len(listed))]
    label_of = dict(zip(paths, listed.labels.tolist()))
    images = [list_file.parent / name for name in store.names]
    _check_none(label_of.keys() - set(images), f"the store {path} lacks", f"of {list_file}")
    _check_none(set(images) - label_of.keys(), f"the list {list_file} lacks", f"of {path}")
    if not len(listed) == len(label_of) == len(images):
        raise UserError(f"{list_file} ({len(listed)} lines) or {path} ({len(images)} images) has "
                        "an image more than once: keep one")
    for start in range(0, store.count, store.chunk_size):
        store.rows(np.arange(start, min(start + store.chunk_size, store.count)))
    return store, np.array([label_of[image] for image in images])


def _check_none(missing: set[Path], what: str, where: str) -> None:
    if missing:
        raise UserError(f"{what} {len(missing)} images {where}, such as {min(missing)}: the paths "
                        "in the list, relative to its folder, must be the names in the store")
