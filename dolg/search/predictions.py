"""Predictions for Google Landmarks v2, from feature stores, as revisitop/gldv2.py reads them."""
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dolg.errors import UserError
from dolg.files import write_atomically
from dolg.search.collection import Collection
from dolg.search.exact import top_k
from revisitop.stores import Store
from revisitop.tables import TableError, read_table


def retrieved_images(
    query: Store, database: Sequence[Store], depth: int = 100, device: str | torch.device = "cpu"
) -> dict[str, str]:
    """Test image -> ids of the `depth` index images with the largest inner products, best first,
    separated by spaces; "" for a test image that failed.

    query, database: the test images, and stores that hold the index images. The id of an image is
    its file's name without folder and ending. Raises UserError for ids that are not unique, and
    StoreError for damaged stores.
    """
    ids = _ids(database)
    rows, _, indexes = _search(query, database, depth, device)
    found = {row: " ".join(ids[i] for i in best)
             for row, best in zip(rows.tolist(), indexes.tolist())}
    return {name: found.get(row, "") for row, name in enumerate(_ids([query]))}


def recognised_landmarks(
    query: Store, database: Sequence[Store], landmark_of: Mapping[str, int], neighbours: int = 5,
    device: str | torch.device = "cpu",
) -> dict[str, str]:
    """Test image -> "LANDMARK SCORE", found by its nearest training images; "" where it failed.

    Each of the `neighbours` nearest training images adds its cosine similarity to its landmark's
    score; the landmark with the highest is given, of several the one with the nearest image
    (the baseline of Weyand et al., CVPR 2020, with the similarities summed).

    query, database: the test images, and stores that hold the training images.
    landmark_of: training image -> landmark; it may know more images than there are.
    Raises as `retrieved_images` does, and UserError for a training image without landmark.
    """
    landmarks = _landmarks(_ids(database), landmark_of)
    rows, scores, indexes = _search(query, database, neighbours, device, unit=True)
    if len(rows) and not indexes.shape[1]:
        raise UserError("no training image has a descriptor: all of them failed")
    near = landmarks[indexes]
    # sums[q, j]: the score of the j-th nearest image's landmark
    sums = np.stack([(scores * (near == near[:, j:j + 1])).sum(axis=1, dtype=np.float64)
                     for j in range(near.shape[1])], axis=1)
    best = sums.argmax(axis=1)      # the first of several, which is the nearest
    found = {row: f"{near[q, j]} {float(sums[q, j])!r}"
             for q, (row, j) in enumerate(zip(rows.tolist(), best.tolist()))}
    return {name: found.get(row, "") for row, name in enumerate(_ids([query]))}


def read_landmarks(path: str | Path) -> dict[str, int]:
    """Training image -> landmark, of a CSV with the columns id and landmark_id, such as the data
    set's train.csv; other columns are passed over. Raises UserError."""
    landmark_of = {}
    try:
        for line, row in read_table(path, ("id", "landmark_id"), others=True):
            image, landmark = row["id"], row["landmark_id"]
            if not (landmark.isascii() and landmark.isdigit()):
                raise UserError(f"{path}, line {line}: the landmark {landmark!r} is not a whole "
                                "number")
            if landmark_of.setdefault(image, int(landmark)) != int(landmark):
                raise UserError(f"{path}, line {line}: {image!r} has the landmark {landmark}, and "
                                f"{landmark_of[image]} above")
    except TableError as error:
        raise UserError(str(error)) from None
    return landmark_of


def write_predictions(path: str | Path, column: str, predictions: Mapping[str, str]) -> None:
    """Write a CSV with the columns id and `column` ("images" or "landmarks"), whole or not."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("id", column))
    writer.writerows(predictions.items())
    write_atomically(path, text.getvalue())


def _search(
    query: Store, database: Sequence[Store], k: int, device: str | torch.device, unit: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (Q,) of the queries that did not fail, scores (Q,m) and indexes (Q,m) of `top_k`.

    unit: scale descriptors to unit length first, so that scores are cosine similarities.
    """
    for store in (query, *database):
        if not store.dim:
            raise UserError(f"store {store.path} has local features alone, and no descriptors")
    rows = np.flatnonzero(query.status == 0)
    descriptors = query.rows(rows)
    chunks: Iterable[np.ndarray] = Collection(database)
    if unit:
        descriptors, chunks = _unit(descriptors), map(_unit, chunks)
    return rows, *top_k(descriptors, chunks, k, device)


def _unit(descriptors: np.ndarray) -> np.ndarray:
    """Rows of unit length, float64; a row of zeros stays as it is."""
    descriptors = descriptors.astype(np.float64)
    lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
    return np.divide(descriptors, lengths, out=descriptors, where=lengths != 0)


def _ids(stores: Sequence[Store]) -> list[str]:
    """The ids of all images, in the stores' order; each must be there once."""
    names = [name for store in stores for name in store.names]
    ids = [name.rpartition("/")[2] for name in names]
    ids = [name.rpartition(".")[0] or name for name in ids]
    seen = {}
    for image, name in zip(ids, names):
        if image in seen:
            raise UserError(f"the images {seen[image]!r} and {name!r} have one id, {image!r}: "
                            "the name of the file without its ending must be unique")
        if not image or " " in image:
            raise UserError(f"the image {name!r} has no id that a list separated by spaces can "
                            "hold: rename the file")
        seen[image] = name
    return ids


def _landmarks(ids: Sequence[str], landmark_of: Mapping[str, int]) -> np.ndarray:
    missing = [image for image in ids if image not in landmark_of]
    if missing:
        raise UserError(f"{len(missing)} of the {len(ids)} training images have no landmark, such "
                        f"as {missing[0]!r}: give the labels of all")
    return np.array([landmark_of[image] for image in ids], np.int64)
