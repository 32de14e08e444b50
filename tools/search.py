"""Indexes of feature stores: built, extended, queried (under torchrun, spread), measured; --help."""
import argparse
from pathlib import Path

from dolg.core.cli import run
from dolg.core.distributed import is_main, process_group
from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.search.indexes import KINDS, TRAIN, Index, add_to_index, build_index
from dolg.search.measuring import DEPTH, measure, show_measures
from dolg.search.queries import search_indexes, show_results
from revisitop import GroundTruthError, StoreError, load_ground_truth

COMMANDS = {"build": "train an index on a sample of stores, and add them",
            "add": "add stores to an index",
            "query": "search one index, or several that together are the database",
            "measure": "what indexes cost and lose against the exact search"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        add = commands.add_parser(name, help=text, description=text).add_argument
        if name in ("build", "add"):
            add("index", type=Path)
            add("stores", nargs="+", help="the database first, then distractors")
        else:
            add("indexes", type=Path, nargs="+")
            add("--query", required=True, metavar="STORE")
            add("--probes", type=int, default=16, metavar="N", help="cells to search, of ivfpq; of hnsw "
                "an eighth of the candidates kept (default: 16)")
            add("--gpu", action="store_true", help="search on all GPUs that faiss can use")
        if name == "build":
            add("--kind", default="flat", help=f"{', '.join(KINDS)}, or faiss's own: OPQ32,IVF1024,PQ32")
            for option, default, text in (
                    ("bytes", 0, "an image, of pq, opq, ivfpq (default: a quarter of the dimensions)"),
                    ("lists", 0, "cells of ivfpq (default: about 4 sqrt(images))"),
                    ("train", TRAIN, f"images to train on (default: {TRAIN})"), ("seed", 0, "of these")):
                add(f"--{option}", type=int, default=default, help=text)
        elif name == "query":
            add("--top", type=int, default=10, metavar="K", help="results (default: 10)")
            add("-o", "--output", type=Path, metavar="FILE", help="write a .csv instead of printing it")
        elif name == "measure":
            add("--stores", nargs="+", required=True, help="those that the indexes are of, in order")
            add("--gnd", type=Path, metavar="FILE.pkl", help="also mAP, by this ground truth")
            add("--depth", type=int, default=DEPTH, help=f"images ranked for mAP (default: {DEPTH})")
            add("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")
    return parser.parse_args()


def search(args: argparse.Namespace) -> None:
    if args.command in ("build", "add"):
        stores = [FeatureStore(path) for path in args.stores]
        index = add_to_index(args.index, stores) if args.command == "add" else build_index(
            args.index, stores, args.kind, args.bytes, args.lists, args.train, args.seed)
        print(index.summary())
    elif args.command == "query":
        with process_group("cpu"):
            results = search_indexes(args.indexes, FeatureStore(args.query), args.top, args.probes, args.gpu)
            if is_main():
                show_results(results, args.output)
    else:
        indexes = [Index(path, args.probes, args.gpu) for path in args.indexes]
        stores, truth = [FeatureStore(path) for path in args.stores], args.gnd and load_ground_truth(args.gnd)
        rows = measure(indexes, FeatureStore(args.query), stores, truth, args.depth)
        show_measures(rows, args.json)


def main() -> None:
    try:
        search(parse_args())
    except (StoreError, GroundTruthError) as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run(main)
