"""Indexes of descriptors by faiss: exact ones, compressed ones, approximate ones.

    index.json              what is in it: stores, kind, sizes, what it was trained on, the files'
                            names; written last, so that these are whole
    index-N.faiss           faiss's own file of N stores, memory-mapped when it is searched
    names-N.safetensors     names, and the row of each vector: images that failed have none

Rows count on over the stores in their order, as in `dolg.search.exact.top_k`.
"""
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from tqdm import tqdm

from dolg.core.logging import say
from dolg.errors import UserError
from dolg.features.sources import Names
from dolg.features.store import FeatureStore
from dolg.files import atomic_file, write_atomically
from dolg.search.collection import store_digest
from revisitop.evaluation import check_made_alike
from revisitop.settings import made_by

FORMAT, VERSION = "dolg-index", 1
# Kind -> faiss's name for it; {m}: bytes per image, {lists}: cells of the coarse quantiser; np: not
# polysemous, which would take the longest part of the training and is not used
KINDS = {
    "flat": "Flat",                         # float32, exact up to rounding
    "fp16": "SQfp16",
    "sq8": "SQ8",                           # a byte per dimension
    "pq": "PQ{m}np",                        # product quantisation (Jegou et al., TPAMI 2011)
    "opq": "OPQ{m},PQ{m}np",                # rotated first (Ge et al., CVPR 2013)
    "ivfpq": "OPQ{m},IVF{lists},PQ{m}np",   # and only the nearest cells are searched
    "hnsw": "HNSW32",                       # a graph (Malkov and Yashunin, TPAMI 2020)
}
# Vectors to train on; fewer than so many are too few for 256 centroids (faiss's own measure)
TRAIN, _FEW = 65_536, 39 * 256
_ADDED_AT_ONCE = 16_384
# The longest list that faiss gives on a GPU
_MOST_ON_GPU = 2048
# Of OPQ's alternation between rotation and centroids: faiss has 50, the last ones at little gain
_OPQ_ITERATIONS = 20


class Index:
    """An index on disk: `names` and `settings` (what index.json says), and `search`.

    Args:
        path: its folder.
        probes: of an index with cells, how many are searched for each query.
        on_gpu: search on all GPUs where faiss can use them.

    Raises UserError where the folder is no index.
    """

    def __init__(self, path: str | Path, probes: int = 16, on_gpu: bool = False):
        self.path, faiss = Path(path), _faiss()
        self.settings = read_settings(self.path)
        if probes < 1:
            raise UserError(f"--probes is {probes}: give at least 1")
        self.file, names = (self.path / name for name in _file_names(self.settings))
        try:
            tables = load_file(names)
            # Before faiss 1.11 an index is read whole: it takes memory, and finds the same
            self._index = faiss.read_index(str(self.file), getattr(faiss, "IO_FLAG_MMAP_IFC", 0))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"the index {self.path} is damaged, build it again: "
                            f"{_reason(error)}") from None
        self.names = Names.of_arrays(tables["text"], tables["ends"])
        self.rows = tables["rows"]
        parameter = {"IVF": ("nprobe", probes), "HNSW": ("efSearch", 8 * probes)}
        for part, (name, value) in parameter.items():
            if part in self.settings["factory"]:
                faiss.ParameterSpace().set_index_parameter(self._index, name, value)
        self._on_gpu = self._copy_on_gpu(faiss) if on_gpu else None

    def _copy_on_gpu(self, faiss):
        if not faiss.get_num_gpus():
            raise UserError("faiss finds no GPU here: search without --gpu")
        try:
            return faiss.index_cpu_to_all_gpus(self._index)
        except RuntimeError as error:
            raise UserError(f"faiss cannot search {self.settings['factory']} on a GPU "
                            f"({_reason(error)}): search without --gpu") from None

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The `k` best of each query (Q,D), finite: scores (Q,k) float32 and rows (Q,k) int64, best
        first, of those found equal scores by row; -inf and -1 where fewer were found. (Which of
        equal ones at the end of the list are found, faiss decides.)"""
        if k < 1:
            raise UserError(f"{k} results are asked for; give at least 1")
        if queries.ndim != 2 or queries.shape[1] != self.settings["dim"]:
            raise UserError(f"queries have shape {queries.shape}; the index {self.path} has "
                            f"{self.settings['dim']} dimensions")
        index = self._on_gpu if self._on_gpu and k <= _MOST_ON_GPU else self._index
        scores, places = index.search(np.ascontiguousarray(queries, np.float32), k)
        found = places >= 0
        rows = np.where(found, self.rows[np.where(found, places, 0)] if len(self.rows) else -1, -1)
        return best_first(np.where(found, scores, -np.inf), rows)

    def stores(self) -> list[SimpleNamespace]:
        """Of each store in it `path`, `dim`, and what its `manifest` says of how it was made."""
        return [SimpleNamespace(path=entry["path"], dim=self.settings["dim"],
                                manifest=entry["manifest"]) for entry in self.settings["stores"]]

    def summary(self) -> str:
        """How many images it has, and what each takes."""
        return (f"{self.path}: {len(self.rows)} images, {self.bytes_per_image:.1f} bytes each "
                f"({self.settings['factory']})")

    @property
    def bytes_per_image(self) -> float:
        """What faiss's file takes, shared among its images."""
        return self.file.stat().st_size / max(1, len(self.rows))


def best_first(scores: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (Q,k) and rows (Q,k) in order: the highest score first, equal ones by row."""
    by_row = np.argsort(rows, axis=1, kind="stable")
    scores, rows = (np.take_along_axis(table, by_row, axis=1) for table in (scores, rows))
    order = np.argsort(-scores, axis=1, kind="stable")
    return (np.take_along_axis(scores, order, axis=1).astype(np.float32),
            np.take_along_axis(rows, order, axis=1))


def merge_results(parts: Sequence[tuple[np.ndarray, np.ndarray]],
                  k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` best of several indexes' results, whose rows are all different."""
    scores, rows = (np.concatenate(tables, axis=1) for tables in zip(*parts))
    last = np.where(rows < 0, np.iinfo(np.int64).max, rows)
    scores, rows = best_first(scores, last)
    return scores[:, :k], np.where(np.isneginf(scores), -1, rows)[:, :k]


def build_index(path: str | Path, stores: Sequence[FeatureStore], kind: str, size: int = 0,
                lists: int = 0, train: int = TRAIN, seed: int = 0) -> Index:
    """Train an index on a sample of the stores' descriptors, and add them all.

    Args:
        kind: of `KINDS`, or a name in faiss's own language, such as "OPQ32,IVF1024,PQ32".
        size: bytes per image of product quantisation; 0: a quarter of the dimensions, 16 times
            less than float32.
        lists: cells; 0: about 4 sqrt(images), a power of two.
        train: vectors to train on.

    Raises UserError for a kind that faiss does not know or that does not fit the dimensions, stores
    of different models, and a folder that holds an index already.
    """
    path, faiss = Path(path), _faiss()
    if (path / "index.json").exists():
        raise UserError(f"{path} holds an index already: add stores to it, or delete it")
    check_made_alike(stores)
    dim, count = stores[0].dim, sum(store.count for store in stores)
    lists = lists or 2 ** max(2, round(np.log2(4 * np.sqrt(count))))
    factory = KINDS.get(kind, kind).format(m=size or max(1, dim // 4), lists=lists)
    start, sample = time.perf_counter(), _sample(stores, train, seed)
    settings = {"format": FORMAT, "version": VERSION, "kind": kind, "factory": factory, "dim": dim,
                "seed": seed, "trained_on": len(sample), "stores": [], "add_seconds": 0.0}
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        _check_metric(faiss, index, factory)
        if not index.is_trained:
            if len(sample) < _FEW and "PQ" in factory:
                say(f"WARNING: {len(sample)} images are few to train {factory} on: {_FEW} or more "
                    "are better")
            kept = _prepare_training(faiss, index)
            index.train(sample)
            del kept
    except RuntimeError as error:
        raise UserError(f"faiss cannot make {factory!r} of {len(sample)} descriptors of {dim} "
                        f"dimensions ({_reason(error)}); kinds are {', '.join(KINDS)}") from None
    settings["train_seconds"] = round(time.perf_counter() - start, 3)
    return _add(path, index, settings, [], np.empty(0, np.int64), stores)


def add_to_index(path: str | Path, stores: Sequence[FeatureStore]) -> Index:
    """Add stores of the same model to an index. Until all is added and written, the index is what it
    was.

    Raises UserError where they were made by another model, or are in it already.
    """
    path, faiss = Path(path), _faiss()
    index, settings = Index(path), read_settings(path)
    check_made_alike([*index.stores(), *stores])
    whole = faiss.read_index(str(index.file))
    return _add(path, whole, settings, list(index.names), index.rows, stores)


def _add(path: Path, index, settings: dict, names: list[str], rows: np.ndarray,
         stores: Sequence[FeatureStore]) -> Index:
    start, parts = time.perf_counter(), [rows]
    known = [entry["digest"] for entry in settings["stores"]]
    digests = [store_digest(store) for store in stores]
    for number, (store, digest) in enumerate(zip(stores, digests)):
        if digest in known + digests[:number]:
            raise UserError(f"{path} has the images of {store.path} already, or is given them twice")
    with tqdm(total=sum(store.count for store in stores), desc=f"adding to {path.name}",
              unit="image", disable=None) as bar:
        for store, digest in zip(stores, digests):
            fine = np.flatnonzero(store.status == 0)
            for at_once in np.array_split(fine, max(1, -(-len(fine) // _ADDED_AT_ONCE))):
                index.add(store.rows(at_once))
                bar.update(len(at_once))
            parts.append(len(names) + fine)
            names = names + store.names
            settings["stores"].append({
                "path": str(store.path), "count": store.count, "digest": digest,
                "manifest": made_by(store.manifest)})
    settings.update(count=len(names), add_seconds=round(
        settings["add_seconds"] + time.perf_counter() - start, 3))
    _write(path, index, settings, Names(names), np.concatenate(parts))
    return Index(path)


def _write(path: Path, index, settings: dict, names: Names, rows: np.ndarray) -> None:
    """All files of an index: index.json, which names the others, last; then earlier ones go."""
    faiss = _faiss()
    new = _file_names(settings)
    with atomic_file(path / new[0]) as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))
    text, ends = names.arrays()
    write_atomically(path / new[1], save({"text": text, "ends": ends, "rows": rows}))
    write_atomically(path / "index.json", json.dumps(settings, indent=1) + "\n")
    for file in (*path.glob("index-*.faiss"), *path.glob("names-*.safetensors")):
        if file.name not in new:
            file.unlink()


def _sample(stores: Sequence[FeatureStore], count: int, seed: int) -> np.ndarray:
    """At most `count` descriptors of images that did not fail, drawn from all stores."""
    fine = [np.flatnonzero(store.status == 0) for store in stores]
    total = sum(map(len, fine))
    drawn = np.sort(np.random.default_rng(seed).choice(total, min(count, total), replace=False))
    starts = np.cumsum([0, *map(len, fine)])
    return np.concatenate([
        store.rows(rows[drawn[(drawn >= start) & (drawn < stop)] - start])
        for store, rows, start, stop in zip(stores, fine, starts[:-1], starts[1:])])


def _prepare_training(faiss, index) -> list:
    """Set OPQ's iterations, and let no k-means of an index warn of few vectors, hundreds of times;
    what is returned must live until the index is trained."""
    index, kept = faiss.downcast_index(index), []
    if isinstance(index, faiss.IndexPreTransform):
        transforms = [faiss.downcast_VectorTransform(index.chain.at(number))
                      for number in range(index.chain.size())]
        for transform in transforms:
            if isinstance(transform, faiss.OPQMatrix):
                kept.append(faiss.ProductQuantizer(transform.d_out, transform.M, 8))
                transform.pq, transform.niter = kept[-1], _OPQ_ITERATIONS
        index = faiss.downcast_index(index.index)
    clusterings = [owner.cp for owner in (index, getattr(index, "pq", None), *kept)
                   if hasattr(owner, "cp")]
    for clustering in clusterings:
        clustering.min_points_per_centroid = 1
    return kept


def _check_metric(faiss, index, factory: str) -> None:
    """faiss makes some kinds for distances alone, whatever metric it is asked for."""
    parts = [faiss.downcast_index(index)]
    if isinstance(parts[0], faiss.IndexPreTransform):
        parts.append(faiss.downcast_index(parts[0].index))
    if any(part.metric_type != faiss.METRIC_INNER_PRODUCT for part in parts):
        raise UserError(f"faiss has no {factory!r} for inner products; kinds are {', '.join(KINDS)}")


def _file_names(settings: dict) -> tuple[str, str]:
    number = len(settings["stores"])
    return f"index-{number}.faiss", f"names-{number}.safetensors"


def _reason(error: Exception) -> str:
    """faiss's messages begin with the place in its code."""
    text = " ".join(str(error).split())
    return text.rpartition("Error: ")[2] or text


def read_settings(path: Path) -> dict:
    """What index.json says. Raises UserError where it is not there, or is not of this format."""
    try:
        settings = json.loads((path / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no index that is whole: {error}") from None
    if not isinstance(settings, dict) or (settings.get("format"), settings.get("version")) != (
            FORMAT, VERSION):
        raise UserError(f"{path}/index.json is of another format")
    return settings


def _faiss():
    try:
        import faiss
    except ImportError:
        raise UserError("indexes need faiss: pip install faiss-gpu (or faiss-cpu)") from None
    return faiss
