"""Spatial verification: ours against the original's way.

    python benchmarks/spatial.py [--pairs N] [--rounds N] [--threads N] [--device cpu|cuda]

One query and N candidates of 1000 local features each. Descriptors are of visual words, and vary within
them; candidates show from none to half of what the query shows, by a homography, with noise in descriptors
and places, among other things of the same words. The original's way is that of feymanpriv/DELG
(tools/rerank/spatial_verification.py): a k-d tree of each candidate with a bound of 0.99, then pydegensac
(OpenCV's plain RANSAC, where that is not installed), pairs shared among threads as it shares them among
processes. Both ways in turn; they must find the same matches.
"""
import argparse
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version

import cv2
import numpy as np
import scipy
import torch
from scipy.spatial import cKDTree

from dolg.core.memory import keep_freed_memory
from dolg.features.store import LocalTable
from dolg.rerank.images import ArrayImages
from dolg.rerank.spatial import SpatialReranker, verify

LOCALS, DIMS, WORDS, SIDE, TARGET = 1000, (128, 512), 200, 1000, 5
# Of what vectors consist: the word, the thing, and each picture of it
WORD, THING, NOISE = 1.0, 0.8, 0.5
MAX_DISTANCE, PIXELS, SAMPLES = 0.99, 20.0, 1000
HOMOGRAPHY = np.array([[0.9, 0.15, 40], [-0.1, 1.05, 60], [5e-5, 1e-4, 1]])


def pictures(pairs: int, dim: int) -> tuple[ArrayImages, ArrayImages]:
    """A query, and candidates that show 0, 1/10, ... 1/2 of it, over and over."""
    rng = np.random.default_rng(0)
    # Few directions vary much, as in real descriptors
    spread = np.arange(1, dim + 1) ** -0.5
    words = WORD * rng.standard_normal((WORDS, dim))

    def new_things(count: int) -> np.ndarray:
        return words[rng.integers(0, WORDS, count)] + THING * rng.standard_normal((count, dim))

    def picture(things: np.ndarray, xy: np.ndarray) -> LocalTable:
        seen = (things + NOISE * rng.standard_normal(things.shape)) * spread
        unit = (seen / np.linalg.norm(seen, axis=1, keepdims=True)).astype(np.float32)
        order, ones = rng.permutation(LOCALS), np.ones(LOCALS, np.float32)
        return LocalTable(np.array([0, LOCALS]), unit[order], xy[order].astype(np.float32), ones, ones)

    things, xy = new_things(LOCALS), rng.uniform(0, SIDE, (LOCALS, 2))
    seen = np.c_[xy, np.ones(LOCALS)] @ HOMOGRAPHY.T
    seen = seen[:, :2] / seen[:, 2:] + rng.normal(0, 3, xy.shape)
    candidates = []
    for number in range(pairs):
        shared = LOCALS * (number % 6) // 10
        others = LOCALS - shared
        candidates.append(picture(np.r_[things[:shared], new_things(others)],
                                  np.r_[seen[:shared], rng.uniform(0, SIDE, (others, 2))]))
    return (ArrayImages(np.ones((1, 2)), [picture(things, xy)]),
            ArrayImages(np.ones((pairs, 2)), candidates))


def tree_matches(query: LocalTable, candidate: LocalTable) -> tuple[np.ndarray, np.ndarray]:
    _, nearest = cKDTree(candidate.descriptors).query(query.descriptors, distance_upper_bound=MAX_DISTANCE)
    kept = nearest < len(candidate.descriptors)
    return query.xy[kept], candidate.xy[nearest[kept]]


def original_verification():
    """Its name, and a function of matching points that counts inliers."""
    try:
        import pydegensac
    except ImportError:
        return f"OpenCV {cv2.__version__}'s RANSAC", lambda query, candidate: int(
            verify(query, candidate, estimator="ransac", threshold=PIXELS, iterations=SAMPLES).sum())

    def count(query: np.ndarray, candidate: np.ndarray) -> int:
        if len(query) <= 4:
            return 0
        return int(pydegensac.findHomography(query, candidate, PIXELS, 1.0, SAMPLES)[1].sum())

    return f"pydegensac {_version('pydegensac')}", count


def original_way(query: ArrayImages, database: ArrayImages, threads: int):
    _, count = original_verification()
    own = query.local(0)

    def pair(row: int) -> tuple[int, int]:
        points = tree_matches(own, database.local(row))
        return len(points[0]), count(*points)

    def run() -> list[tuple[int, int]]:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(pair, range(len(database))))
    return run


def our_way(query: ArrayImages, database: ArrayImages, threads: int, device: str):
    reranker = SpatialReranker(query, database, max_distance=MAX_DISTANCE, threshold=PIXELS,
                               iterations=SAMPLES, device=device, threads=threads)

    def run() -> list[int]:
        return reranker.score_pairs(0, np.arange(len(database))).astype(int).tolist()
    return run, reranker


def timed(run) -> tuple[float, list]:
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


def measure(dim: int, pairs: int, rounds: int, threads: int, device: str) -> None:
    """Prints milliseconds a pair of both ways, what they find, and their ratio."""
    query, database = pictures(pairs, dim)
    theirs = original_way(query, database, threads)
    ours, reranker = our_way(query, database, threads, device)
    ours()      # warms up
    times = {"the original's way": [], "ours": []}
    for _ in range(rounds):
        seconds, found = timed(theirs)
        times["the original's way"].append(1000 * seconds / pairs)
        seconds, inliers = timed(ours)
        times["ours"].append(1000 * seconds / pairs)
    matches = [len(reranker.verify_pair(0, row).inliers) for row in range(pairs)]
    assert matches == [count for count, _ in found], "other matches than the tree's"
    for name, milliseconds in times.items():
        print(f"  {dim:4} dimensions, {name:20} {statistics.median(milliseconds):7.2f} ms a pair, best "
              f"{min(milliseconds):7.2f}")
    ratio = statistics.median(times["the original's way"]) / statistics.median(times["ours"])
    print(f"  ours: {ratio:.1f} times as fast (target {TARGET}); with 0, 1/10, ... 1/2 in common matches "
          f"{matches[:6]}, inliers the original's way {[count for _, count in found[:6]]}, ours "
          f"{inliers[:6]}", flush=True)


def measure_spatial(args: argparse.Namespace) -> None:
    """All of it; args: pairs, rounds, threads, device."""
    torch.set_num_threads(args.threads)
    keep_freed_memory()     # as every command does (dolg/core/cli.py)
    print(f"spatial: {args.pairs} pairs of {LOCALS} + {LOCALS} local features, float32; homographies, "
          f"{PIXELS:.0f} pixels, {SAMPLES} samples; {args.threads} threads, {args.device}; numpy "
          f"{np.__version__}, scipy {scipy.__version__}, torch {torch.__version__}, OpenCV "
          f"{cv2.__version__}; the original's way with {original_verification()[0]}; {args.rounds} rounds "
          "in turn", flush=True)
    for dim in DIMS:
        measure(dim, args.pairs, args.rounds, args.threads, args.device)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of no known version"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--pairs", type=int, default=24)
    add("--rounds", type=int, default=5)
    add("--threads", type=int, default=torch.get_num_threads())
    add("--device", choices=("cpu", "cuda"), default="cpu")
    measure_spatial(parser.parse_args())


if __name__ == "__main__":
    main()
