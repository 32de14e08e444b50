"""Feature stores and ground truths made by hand, from the format's description."""
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file


def write_store(path: Path, names, descriptors, chunk_size: int = 100, errors=None, **manifest):
    """A feature store as `revisitop.stores` describes it; `errors` is {row: reason}."""
    descriptors, errors = np.asarray(descriptors), errors or {}
    path.mkdir(parents=True)
    for number, start in enumerate(range(0, len(names), chunk_size)):
        rows = range(start, min(start + chunk_size, len(names)))
        status = np.array([row in errors for row in rows], np.uint8)
        part = descriptors[start:rows.stop].copy()
        part[status != 0] = np.nan
        images = {"names": [names[row] for row in rows],
                  "errors": {str(row - start): errors[row] for row in rows if row in errors}}
        save_file({"global": part, "status": status}, path / f"chunk-{number:06d}.safetensors",
                  {"images": json.dumps(images)})
    (path / "manifest.json").write_text(json.dumps(
        {"format": "dolg-feature-store", "version": 1, "count": len(names),
         "dim": descriptors.shape[1], "chunk_size": chunk_size, **manifest}))
    return path


def write_ground_truth(path: Path, images, queries, entries) -> Path:
    path.write_bytes(pickle.dumps({"imlist": images, "qimlist": queries, "gnd": entries}))
    return path


def random_labels(rng, count: int, most: int = 12) -> dict[str, list[int]]:
    """Easy, hard and junk images of one query, any of them perhaps empty."""
    chosen = rng.permutation(count)
    cuts = np.cumsum(rng.integers(0, most, 3))
    return {kind: part.tolist() for kind, part in
            zip(("easy", "hard", "junk"), np.split(chosen, cuts)[:3])}


@pytest.fixture(scope="session")
def make_store():
    return write_store


@pytest.fixture(scope="session")
def make_ground_truth():
    return write_ground_truth


@pytest.fixture
def toy(tmp_path):
    """A set of 40 images and 5 queries with random descriptors; paths by name."""
    rng = np.random.default_rng(5)
    images, queries = [f"image {i}" for i in range(40)], [f"query {i}" for i in range(5)]
    entries = [{**random_labels(rng, 40), "bbx": [0, 0, 9.5, 9.5]} for _ in queries]

    def store(name, names):
        return write_store(tmp_path / name, names,
                           rng.standard_normal((len(names), 8)).astype(np.float32), 16)

    return {"gnd": write_ground_truth(tmp_path / "gnd_toy.pkl", images, queries, entries),
            "query": store("query", queries), "database": store("database", images),
            "distractors": store("distractors", [f"other {i}" for i in range(30)])}
