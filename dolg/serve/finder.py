"""From a photograph to the images of a database that show the same: the one way of command and page."""
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from dolg.config import load_cfg
from dolg.data.boxes import Box
from dolg.data.decode import jpeg_decoder
from dolg.errors import UserError
from dolg.features.describer import Describer, load
from dolg.features.sources import ImageSource
from dolg.features.store import FeatureStore
from dolg.rerank.builders import RERANKERS
from dolg.serve.database import Database, ImageFiles
from dolg.serve.photo import Limits, Photo, decode_photo, read_photo, shrunk
from dolg.serve.rerankers import LOCAL, Rerankers

STEPS = ("decode", "describe", "search", "rerank")
# The photograph's file in its temporary folder, whatever it was called
_FILE = "photo"


@dataclass(frozen=True)
class Result:
    """An image that was found.

    Attributes:
        place: from 1, as all was ordered at last; found_at: by the search alone.
        score: the reranker's, or, for images that none has seen, the search's; NaN: it could not tell.
        reranked: whether it is a reranker's, whose scale is its own.
        similarity: the inner product of the descriptors.
        row: in the database.
        image: its file, if one is known.
    """

    place: int
    found_at: int
    name: str
    score: float
    reranked: bool
    similarity: float
    row: int
    image: Path | None


@dataclass(frozen=True)
class Found:
    """What was found for a photograph.

    Attributes:
        region: (x1, y1, x2, y2) of it that was described, in its pixels, whole numbers.
        described_at: (width, height) that the region was shrunk to first; None: it was described as it is.
        reranker: the chain that ordered the first `reranked` images; "": none.
        seconds: by step, in order, of `STEPS`.
    """

    results: list[Result]
    size: tuple[int, int]
    region: Box
    described_at: tuple[int, int] | None
    reranker: str
    reranked: int
    seconds: dict[str, float] = field(default_factory=dict)


class Finder:
    """Asks a database with photographs, one after another; it is not to be shared by threads.

    Args:
        describer: makes the descriptors, and local features if it is told to.
        database: what is asked.
        files: where its images are.
        limits: of photographs.
        side: shrink what is described to so many pixels of its longer side; 0: never, as extraction.
        across: other weights or settings than the describer's may have made the database.

    Raises UserError where another model, or other settings, made the database.
    """

    def __init__(self, describer: Describer, database: Database, files: ImageFiles, limits: Limits,
                 side: int = 0, across: bool = False):
        database.check_model(describer.dim, describer.settings, across)
        jpeg_decoder()      # imported now: a photograph need not wait for it
        self.describer, self.database, self.files = describer, database, files
        self.limits, self.side = limits, side
        self.rerankers = Rerankers(describer.cfg, database, describer.dim, describer.extractor.local_dim,
                                   describer.settings, describer.device)

    def warm_up(self) -> None:
        """Ask once with a grey photograph: what is loaded at the first time is no share of an answer's."""
        self.find(cv2.imencode(".jpg", np.full((224, 224, 3), 128, np.uint8))[1].tobytes(), top=1)

    def find(self, photo: str | Path | bytes, box: Box | None = None, top: int = 10, reranker: str = "",
             name: str = "the photo") -> Found:
        """The `top` best images for a photograph, a path or a file's bytes.

        box: (x1, y1, x2, y2), pixels of the upright photograph, that it is cut to. reranker: a chain of
        methods, such as "spatial" or "rrt@0.5+spatial", which see the first RERANK.TOP_K. name: of bytes,
        for messages. Raises UserError and ImageError for what cannot be read, described or had.
        """
        if top < 1:
            raise UserError(f"{top} results are asked for: give 1 or more")
        if reranker:
            self.rerankers.check(reranker)
        seconds: dict[str, float] = {}
        with _timed(seconds, "decode"):
            opened = (decode_photo(name, photo, self.limits) if isinstance(photo, bytes)
                      else read_photo(photo, self.limits))
            region = opened.region(box)
        with TemporaryDirectory(prefix="dolg-photo-") as folder:
            with _timed(seconds, "describe"):
                store, described_at = self._described(opened, region, box is not None, Path(folder))
            with _timed(seconds, "search"):
                wanted = max(top, self.rerankers.depth) if reranker else top
                similarities, rows = self.database.search(store.rows(np.array([0]))[0], wanted,
                                                          self.describer.device)
            ordered, scores = rows, similarities.astype(np.float64)
            if reranker:
                with _timed(seconds, "rerank"):
                    ordered, scores = self.rerankers.rerank(reranker, store, rows, scores)
        reranked = min(self.rerankers.depth, len(rows)) if reranker else 0
        results = self._results(rows, similarities, ordered[:top], scores[:top], reranked)
        return Found(results, opened.size, region, described_at, reranker, reranked, seconds)

    def _described(self, photo: Photo, region: Box, cut: bool,
                   folder: Path) -> tuple[FeatureStore, tuple[int, int] | None]:
        """A store of the region, and what it was shrunk to."""
        file, small = folder / _FILE, shrunk(photo, region, self.side)
        if small is None:
            file.write_bytes(photo.data)
        else:
            file.write_bytes(cv2.imencode(".bmp", small)[1].tobytes())
        boxes = {0: region} if cut and small is None else {}
        source = ImageSource([photo.name], folder, [_FILE], boxes)
        store = self.describer.extract(folder / "store", source)
        for _, reason in store.errors():
            raise UserError(f"{photo.name} cannot be described: {reason}")
        return store, None if small is None else (small.shape[1], small.shape[0])

    def _results(self, rows: np.ndarray, similarities: np.ndarray, ordered: np.ndarray,
                 scores: np.ndarray, reranked: int) -> list[Result]:
        found_at = {row: place for place, row in enumerate(rows.tolist())}
        return [Result(place, found_at[row] + 1, self.database.name(row), score, place <= reranked,
                       float(similarities[found_at[row]]), row, self.files.find(row))
                for place, (row, score) in enumerate(zip(ordered.tolist(), scores.tolist()), 1)]


def open_finder(cfg: str, weights: str, opts: Sequence[str], paths: Sequence[str | Path],
                folders: Sequence[str | Path] = (), methods: str = "", probes: int = 16,
                limits: Limits | None = None, side: int = 0, on_gpu: bool = False,
                across: bool = False) -> Finder:
    """A Finder of a configuration file, weights, further keys, and the folders of a database.

    Queries get local features where a reranker of the chain `methods` ("all": any) wants them and the
    database has them, whatever INFER.LOCAL is. `probes` and `on_gpu` are those of `Index`. Without
    `limits` photographs have those of extraction.
    """
    database = Database(paths, probes, on_gpu)
    files = ImageFiles(database, folders)
    settings = load_cfg(cfg, list(opts)).clone()
    settings.defrost()
    wanted = RERANKERS if methods == "all" else {part.partition("@")[0] for part in methods.split("+")}
    if not settings.INFER.LOCAL:
        has_local = bool(database.stores) and all(store.local_dim for store in database.stores)
        settings.INFER.LOCAL = has_local and any(name in wanted for name in LOCAL)
    settings.INFER.STRICT = False       # what fails is told of, without the path of a temporary file
    describer = load(settings, weights)
    return Finder(describer, database, files, limits or Limits(settings.INFER.MAX_PIXELS), side, across)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
