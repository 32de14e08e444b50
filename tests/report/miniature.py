"""A benchmark of 56 small photographs with stores, made in a second; its names are hostile in part."""
import os
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dolg.features.store import StoreWriter

HOSTILE = "a\"b'<img src=x onerror=alert(1)><!--<script>&amp;é漢"
NO_UTF8 = os.fsdecode(b"caf\xe9")
QUERIES, LANDMARKS, IMAGES, DISTRACTORS, DIM = 6, 6, 36, 14, 8
FAILED_QUERY, FAILED_IMAGE, LOST_IMAGE = 4, 11, 12


@dataclass(frozen=True)
class Miniature:
    """folder: with gnd_toy.pkl, jpg/, distractors/ and stores/{before,after}/{query,database,
    distractors}. truth: the ground truth. descriptors: method -> the three arrays."""

    folder: Path
    truth: dict
    names: dict[str, list[str]]
    descriptors: dict[str, dict[str, np.ndarray]]

    @property
    def gnd(self) -> Path:
        return self.folder / "gnd_toy.pkl"

    def stores(self, method: str) -> list[Path]:
        return [self.folder / "stores" / method / part for part in ("query", "database", "distractors")]

    def label(self, query: int, image: int) -> str:
        """Of a row of database and distractors."""
        entry = self.truth["gnd"][query]
        return next((label for label in ("easy", "hard", "junk") if image in entry[label]), "negative")

    def slow_list(self, method: str, query: int, top: int) -> list[tuple[str, str, float]]:
        """(label, name, score) of the first results, by sorting all of them."""
        arrays = self.descriptors[method]
        everything = np.concatenate([arrays["database"], arrays["distractors"]])
        scores = everything.astype(np.float64) @ arrays["query"][query].astype(np.float64)
        scores[FAILED_IMAGE] = -np.inf
        names = self.names["database"] + self.names["distractors"]
        order = sorted(range(len(names)), key=lambda row: (-np.float32(scores[row]), row))[:top]
        return [(self.label(query, row), names[row], float(scores[row])) for row in order]


def make_miniature(folder: Path) -> Miniature:
    """In a new folder."""
    rng = np.random.default_rng(5)
    names = {"query": [f"query {number}" for number in range(QUERIES)],
             "database": [f"house {number:02}" for number in range(IMAGES)],
             "distractors": [f"stranger {number:02}.jpg" for number in range(DISTRACTORS)]}
    names["query"][1], names["database"][7], names["database"][8] = f"q {HOSTILE}", HOSTILE, NO_UTF8
    landmark = np.arange(IMAGES) % LANDMARKS
    entries = []
    for query in range(QUERIES):
        own = np.flatnonzero(landmark == query % LANDMARKS)
        entries.append({"easy": own[:3].tolist(), "hard": own[3:5].tolist(), "junk": own[5:].tolist(),
                        "bbx": [10, 8, 50.5, 40.0]})
    entries[3]["hard"], entries[3]["bbx"] = [], [0, 0, 64, 48]
    truth = {"imlist": names["database"], "qimlist": names["query"], "gnd": entries}
    folder.mkdir(parents=True)
    (folder / "gnd_toy.pkl").write_bytes(pickle.dumps(truth))
    _photographs(folder, names, rng)
    descriptors = {method: _descriptors(landmark, noise, rng)
                   for method, noise in (("before", 1.0), ("after", 0.45))}
    for method, arrays in descriptors.items():
        for part, array in arrays.items():
            failed = {"query": {FAILED_QUERY}, "database": {FAILED_IMAGE}}.get(part, set())
            _store(folder / "stores" / method / part, names[part], array, failed)
    return Miniature(folder, truth, names, descriptors)


def _photographs(folder: Path, names: dict[str, list[str]], rng: np.random.Generator) -> None:
    for part, where in (("query", "jpg"), ("database", "jpg"), ("distractors", "distractors")):
        (folder / where).mkdir(exist_ok=True)
        for number, name in enumerate(names[part]):
            if (part, number) != ("database", LOST_IMAGE):
                pixels = np.kron(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8),
                                 np.ones((8, 8, 1), np.uint8))
                file = name if name.endswith(".jpg") else f"{name}.jpg"
                Image.fromarray(pixels).save(folder / where / file, "JPEG")


def _descriptors(landmark: np.ndarray, noise: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    centres = rng.normal(size=(LANDMARKS, DIM))
    rows = {"query": centres[np.arange(QUERIES) % LANDMARKS], "database": centres[landmark],
            "distractors": rng.normal(size=(DISTRACTORS, DIM))}
    noisy = {part: array + noise * rng.normal(size=array.shape) for part, array in rows.items()}
    return {part: (array / np.linalg.norm(array, axis=1, keepdims=True)).astype(np.float32)
            for part, array in noisy.items()}


def _store(path: Path, names: list[str], descriptors: np.ndarray, failed: set[int]) -> None:
    writer = StoreWriter(path, names, DIM, 16, {"cropped": path.name == "query", "scales": [1.0]})
    for chunk in writer.missing_chunks():
        rows = writer.rows(chunk)
        errors = {row - rows.start: "the file is damaged" for row in failed & set(rows)}
        writer.write_chunk(chunk, descriptors[list(rows)], errors)
