"""The lines of the original example_evaluate.py, from the files that it reads; see --help.

    python revisitop/example_evaluate.py --gnd gnd_roxford5k.pkl \\
        --features roxford5k_dolgfea.pickle [--distractors 1M.mat]

Formats and lines are those of feymanpriv/DOLG:revisitop/example_evaluate.py and
filipradenovic/revisitop:python/example_evaluate.py. Those sort all images for each query; here the
images ahead of the labelled ones are counted: no table of scores grows with the distractors.
"""
import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

if __name__ == "__main__" and not __package__:
    # Run as a file, the search path begins with this folder in place of the one around it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from revisitop.commands import Parser, run  # noqa: E402
from revisitop.evaluation import metrics_of  # noqa: E402
from revisitop.groundtruth import (  # noqa: E402
    GroundTruth, GroundTruthError, load_ground_truth,
)
from revisitop.metrics import MapResult  # noqa: E402
from revisitop.names import find_names, names_like, some_names  # noqa: E402
from revisitop.pickles import PickleError, load_plain_pickle, text_of  # noqa: E402
from revisitop.protocol import protocols_of  # noqa: E402
from revisitop.record import KAPPAS  # noqa: E402

_BLOCK_ROWS = 2**14


class FeaturesError(ValueError):
    """Descriptors that cannot be used; one line says why."""


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description="Evaluate the descriptors that DOLG and revisitop save, and print "
                                "what their example_evaluate.py prints.")
    add = parser.add_argument
    add("--gnd", required=True, metavar="FILE.pkl", help="ground truth, gnd_NAME.pkl")
    add("--features", required=True, type=Path, metavar="FILE",
        help="DOLG's .pickle, a dictionary from image file to descriptor, of queries and database; "
             "or revisitop's .mat with Q and X, a column per image")
    add("--distractors", type=Path, metavar="1M.mat",
        help="X, a column per image, or a list of rows as DOLG has it")
    return parser


def load_features(path: Path, truth: GroundTruth) -> tuple[np.ndarray, np.ndarray]:
    """Descriptors of the queries (Q,D) and of the database (N,D), in the order of `truth`.

    Raises FeaturesError for a file in another format, or without these images.
    """
    parts = (truth.queries, "Q"), (truth.images, "X")
    if path.suffix == ".mat":
        tables = _matlab_tables(path, [key for _, key in parts])
        queries, images = (_columns(tables[key], names, key, path) for names, key in parts)
    else:
        entries = _pickled_dictionary(path)
        queries, images = (_entries_of(entries, names, path) for names, _ in parts)
    if queries.shape[1] != images.shape[1]:
        raise FeaturesError(f"{path} has queries of {queries.shape[1]} dimensions, a database of "
                            f"{images.shape[1]}")
    return queries, images


def load_distractors(path: Path, dim: int) -> np.ndarray:
    """Descriptors (n,D) of a .mat: X as (D,n), or as (n,1,D) or (n,D) as DOLG takes it."""
    table = _matlab_tables(path, ["X"])["X"]
    if table.ndim == 3 and table.shape[1:] == (1, dim):
        return table[:, 0]
    if table.ndim == 2 and dim in table.shape:
        return table.T if table.shape[0] == dim else table
    raise FeaturesError(f"{path} has X in the shape {table.shape}: descriptors of {dim} "
                        f"dimensions, as the features have, are ({dim}, n) or (n, 1, {dim})")


def rank_labelled(queries: np.ndarray, database: np.ndarray, distractors: np.ndarray,
                  labelled: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Rank, from 0, of each query's `labelled` images among database and distractors.

    queries (Q,D), database (N,D), distractors (n,D); scores are inner products, ties go to the
    lower index, database first. Raises FeaturesError for a distractor that is not finite.
    """
    scores = queries @ database.T
    places = np.empty(scores.shape, np.int64)
    np.put_along_axis(places, np.argsort(-scores, axis=1, kind="stable"),
                      np.arange(len(database))[None], axis=1)
    ranks = [places[q, images] for q, images in enumerate(labelled)]
    for block in _blocks(distractors, queries.dtype):
        ascending = np.sort(queries @ block.T, axis=1)
        for q, images in enumerate(labelled):
            lower = np.searchsorted(ascending[q], scores[q, images], side="right")
            ranks[q] = ranks[q] + len(block) - lower
    return ranks


def evaluate(truth: GroundTruth, queries: np.ndarray, database: np.ndarray,
             distractors: np.ndarray) -> dict[str, MapResult]:
    """Metrics of Easy, Medium and Hard."""
    # As the original's concatenated arrays: of the widest type
    dtype = np.result_type(queries, database, distractors, np.float32)
    labelled = [np.concatenate(list(entry.values())) for entry in truth.labels]
    ranks = rank_labelled(queries.astype(dtype), database.astype(dtype), distractors, labelled)
    return {protocol: metrics_of(truth, protocol, labelled, ranks)
            for protocol in protocols_of(truth)}


def format_lines(name: str, results: dict[str, MapResult]) -> str:
    """The original's two lines, of figures in percent as NumPy prints them."""
    def row(figures: Sequence) -> str:
        return ", ".join(f"{letter}: {np.around(figure * 100, decimals=2)}"
                         for letter, figure in zip("EMH", figures, strict=True))

    every = [results[protocol] for protocol in ("easy", "medium", "hard")]
    return (f">> {name}: mAP {row([result.map for result in every])}\n"
            f">> {name}: mP@k{np.array(KAPPAS)} {row([result.mpr for result in every])}")


def _pickled_dictionary(path: Path) -> dict:
    try:
        entries = load_plain_pickle(path)
    except PickleError as error:
        raise FeaturesError(str(error)) from None
    if not isinstance(entries, dict):
        raise FeaturesError(f"{path} holds no dictionary from image file to descriptor")
    return {text_of(name): value for name, value in entries.items()}


def _entries_of(entries: dict, names: Sequence[str], path: Path) -> np.ndarray:
    """The descriptors (n,D) of images, which the dictionary calls NAME.jpg, or so that `find_names` does."""
    known = [key for key in entries if isinstance(key, str)]
    # As the original, which adds an ending to every name
    wanted = [f"{name}.jpg" if f"{name}.jpg" in entries else name for name in names]
    found = find_names(wanted, known)
    if missing := [name for name, row in zip(names, found) if row < 0]:
        raise FeaturesError(f"{path} lacks {len(missing)} of {len(names)} images that the ground truth "
                            f"names: {some_names(missing)}; it has {names_like(missing, known)}")
    keys = [known[row] for row in found]
    rows = [np.asarray(entries[key]).reshape(-1) for key in keys]
    if len({row.shape for row in rows}) > 1 or any(row.dtype.kind not in "fiu" for row in rows):
        raise FeaturesError(f"{path} holds something else than descriptors of one length")
    return _finite(np.stack(rows), keys, path)


def _columns(table: np.ndarray, names: Sequence[str], key: str, path: Path) -> np.ndarray:
    """A table (D,n) as (n,D); it must have as many columns as there are names."""
    if table.ndim != 2 or table.shape[1] != len(names):
        raise FeaturesError(f"{path} has {key} in the shape {table.shape}: the ground truth names "
                            f"{len(names)} images, a column each")
    return _finite(table.T, names, path)


def _finite(table: np.ndarray, names: Sequence[str], path: Path) -> np.ndarray:
    broken = ~np.isfinite(table).all(axis=1)
    if broken.any():
        raise FeaturesError(f"{path}: the descriptor of {names[int(np.argmax(broken))]!r} has "
                            "values that are not finite")
    return table


def _matlab_tables(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Tables of numbers of a .mat file, by `keys`."""
    try:
        from scipy.io import loadmat
    except ImportError:
        raise FeaturesError(".mat files need the package scipy: pip install scipy") from None
    with open(path, "rb") as file:
        try:
            tables = loadmat(file, variable_names=keys)
        except Exception as error:      # damaged bytes make reading raise almost anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise FeaturesError(f"{path} is no .mat file that SciPy can read ({reason})") from None
    for key in keys:
        if key not in tables or tables[key].dtype.kind not in "fiu":
            raise FeaturesError(f"{path} has no table of numbers {key!r}")
    return tables


def _blocks(table: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Rows of a table (n,D), copied as `dtype`."""
    for start in range(0, len(table), _BLOCK_ROWS):
        block = np.ascontiguousarray(table[start:start + _BLOCK_ROWS], dtype)
        broken = ~np.isfinite(block).all(axis=1)
        if broken.any():
            raise FeaturesError(f"distractor {start + int(np.argmax(broken))} has values that are "
                                "not finite")
        yield block


def main() -> None:
    args = build_parser().parse_args()
    truth = load_ground_truth(args.gnd)
    if truth.is_plain:
        raise FeaturesError(f"{args.gnd} has no easy and hard labels: take revisitop/evaluate.py")
    print(f">> {truth.name}: Evaluating test dataset...", flush=True)
    queries, database = load_features(args.features, truth)
    distractors = np.empty((0, database.shape[1]), np.float32)
    if args.distractors:
        distractors = load_distractors(args.distractors, database.shape[1])
        print("distactors:", distractors.shape)         # spelt as the original does
    print("final db:", (len(database) + len(distractors), database.shape[1]), flush=True)
    print(format_lines(truth.name, evaluate(truth, queries, database, distractors)))
    print("Done!")


if __name__ == "__main__":
    run(main, GroundTruthError, FeaturesError)
