"""Evaluation with a million distractors: ours, the original's way, and the bare matrix product.

    python benchmarks/evaluate.py [--distractors N] [--rounds N] [--device cpu|cuda] [--ours]

70 queries with the labels of a ground truth of ROxford's size (4,993 images) and N distractors, all of
512 dimensions. The original's way is filipradenovic/revisitop's python/example_evaluate.py: one product
of everything in memory, an argsort of all columns, then its loops. Ours streams a feature store from
disk (the file cache, once warm). Every way runs in a process of its own, in turn. With --ours, ours
alone: how time and memory grow.
"""
import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dolg.features.store import StoreWriter
from dolg.search.counting import counting_options
from revisitop import Store, compute_map, count_ranks, split
from revisitop.metrics import positions_without_junk, summarise

QUERIES, IMAGES, DIM, CHUNK = 70, 4993, 512, 256
KAPPAS = (1, 5, 10)


def labels() -> list[dict[str, np.ndarray]]:
    """Easy, hard and junk images per query, about as many as ROxford has."""
    rng = np.random.default_rng(0)
    return [{kind: part for kind, part in
             zip(("easy", "hard", "junk"), np.split(rng.permutation(IMAGES)[:150], [45, 80]))}
            for _ in range(QUERIES)]


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    table = rng.standard_normal((count, DIM), dtype=np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def queries_and_database() -> tuple[np.ndarray, np.ndarray]:
    """Easy images near their query, hard ones farther; junk and others anywhere."""
    rng = np.random.default_rng(1)
    queries, database = unit(rng, QUERIES), unit(rng, IMAGES)
    for query, entry in zip(queries, labels()):
        for kind, weight in (("easy", 0.25), ("hard", 0.15)):
            database[entry[kind]] += weight * query
    return queries, database / np.linalg.norm(database, axis=1, keepdims=True)


def write(path: Path, count: int, table: np.ndarray | None = None) -> None:
    writer = StoreWriter(path, range_names(path.name, count), DIM, CHUNK, {})
    rng = np.random.default_rng(2)
    for chunk in range(writer.num_chunks):
        rows = writer.rows(chunk)
        part = unit(rng, len(rows)) if table is None else table[rows.start:rows.stop]
        writer.write_chunk(chunk, part, {})


def range_names(name: str, count: int) -> list[str]:
    return [f"{name}/{index:08d}" for index in range(count)]


def maps_of(positions_of) -> list[float]:
    """mAP of each protocol from a function of one protocol's entries."""
    return [positions_of(split(labels(), protocol)).map for protocol in ("easy", "medium", "hard")]


def original_way(folder: Path, args: argparse.Namespace):
    queries, database = queries_and_database()
    everything = np.concatenate([database, *Store(folder / "distractors").chunks()])

    def run() -> list[float]:
        similarity = np.dot(everything, queries.T)
        ranks = np.argsort(-similarity, axis=0)
        return maps_of(lambda entries: compute_map(ranks.T, entries, KAPPAS))
    return run


def our_way(folder: Path, args: argparse.Namespace):
    queries, _ = queries_and_database()
    device = torch.device(args.device)
    labelled = [np.concatenate(list(entry.values())) for entry in labels()]

    def run() -> list[float]:
        ranks = count_ranks(queries, labelled, Store(folder / "database"), np.arange(IMAGES),
                            [Store(folder / "distractors")], **counting_options(device))

        def positions(entries: list[dict]):
            found = [[rank[np.isin(images, entry[kind])] for kind in ("ok", "junk")]
                     for rank, images, entry in zip(ranks, labelled, entries)]
            return summarise([positions_without_junk(*pair) for pair in found],
                             [len(entry["ok"]) for entry in entries], KAPPAS)
        return maps_of(positions)
    return run


def bare_way(folder: Path, args: argparse.Namespace):
    """The product alone, of arrays in memory."""
    queries, database = queries_and_database()
    everything = np.concatenate([database, *Store(folder / "distractors").chunks()])
    if args.device == "cpu":
        return lambda: [float((queries @ everything.T)[0, 0])]
    left, right = (torch.from_numpy(table).to(args.device) for table in (queries, everything))
    return lambda: [float((left @ right.T)[0, 0])]


WAYS = {"the original's way": original_way, "ours": our_way, "the bare product": bare_way}


def serve(way: str, folder: Path, args: argparse.Namespace, pipe) -> None:
    """In a process of its own: run when asked to; answer with seconds, the peak of its memory beyond
    what was in use before, and in all, in MB, and mAPs."""
    run = WAYS[way](folder, args)
    while pipe.recv():      # is killed when all is done
        Path("/proc/self/clear_refs").write_text("5")       # forget the peak
        before, start = memory("VmRSS"), time.perf_counter()
        figures = run()
        seconds, peak = time.perf_counter() - start, memory("VmHWM")
        pipe.send((seconds, peak - before, peak, figures))


def memory(key: str) -> float:
    """MB of this process, by /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def measure(folder: Path, args: argparse.Namespace) -> dict[str, list[tuple]]:
    context, answers = multiprocessing.get_context("spawn"), {}
    names = ["ours"] if args.ours else list(WAYS)
    pipes, processes = {}, []
    for name in names:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(name, folder, args, theirs), daemon=True))
        processes[-1].start()
    for round_ in range(args.rounds + 1):
        for name in names:
            pipes[name].send(True)
            answer = pipes[name].recv()
            if round_:      # the first one warms up
                answers.setdefault(name, []).append(answer)
    for process in processes:
        process.kill()
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--distractors", type=int, default=1_000_000)
    add("--rounds", type=int, default=3)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--ours", action="store_true", help="ours alone")
    args = parser.parse_args()
    print(f"numpy {np.__version__}, {torch.get_num_threads()} threads, {args.device}, float32, "
          f"{QUERIES} queries, {IMAGES} + {args.distractors} x {DIM}, chunks of {CHUNK}; "
          f"{args.rounds} rounds in turn", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "database", IMAGES, queries_and_database()[1])
        write(Path(folder) / "distractors", args.distractors)
        answers = measure(Path(folder), args)
    best = {name: min(answer[0] for answer in entries) for name, entries in answers.items()}
    for name, entries in answers.items():
        seconds, beyond, peak, figures = zip(*entries)
        shown = ", ".join(f"{100 * value:.3f}" for value in figures[0]) if len(figures[0]) == 3 else "-"
        print(f"{name:20} {statistics.median(seconds):7.2f} s, best {best[name]:7.2f} s; memory "
              f"{max(beyond):6.0f} MB beyond what was loaded, {max(peak):6.0f} MB in all; mAP {shown}")
    if not args.ours:
        ratio = best["the original's way"] / best["ours"]
        print(f"ours: {ratio:.1f} times as fast as the original's "
              f"way (target {6 if args.device == 'cpu' else 50}), "
              f"{best['ours'] / best['the bare product']:.2f} times the bare product (target 1.5)")


if __name__ == "__main__":
    main()
