"""The arguments of tools/search.py."""
import argparse
from pathlib import Path

from dolg.search.indexes import KINDS, TRAIN
from dolg.search.measuring import DEPTH

COMMANDS = {"build": "train an index on a sample of stores, and add them",
            "add": "add stores to an index",
            "query": "search one index, or several that together are the database",
            "measure": "what indexes cost and lose against the exact search",
            "neighbours": "list the nearest others of every image of stores, in a folder"}


def parse_args(description: str) -> argparse.Namespace:
    """What the command line asks for; `command` is one of COMMANDS."""
    parser = argparse.ArgumentParser(description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    add = {name: commands.add_parser(name, help=text, description=text).add_argument
           for name, text in COMMANDS.items()}
    for name in ("build", "add"):
        add[name]("index", type=Path)
        add[name]("stores", nargs="+", help="the database first, then distractors")
    _add_build(add["build"])
    for name in ("query", "measure"):
        add[name]("indexes", type=Path, nargs="+")
        add[name]("--query", required=True, metavar="STORE")
    _add_query(add["query"])
    _add_measure(add["measure"])
    _add_neighbours(add["neighbours"])
    for name in ("query", "measure", "neighbours"):
        add[name]("--probes", type=int, default=16, metavar="N", help="cells to search, of ivfpq; of hnsw "
                  "an eighth of the candidates kept (default: 16)")
        add[name]("--gpu", action="store_true", help="search indexes on all GPUs that faiss can use")
    return parser.parse_args()


def _add_build(add) -> None:
    add("--kind", default="flat", help=f"{', '.join(KINDS)}, or faiss's own: OPQ32,IVF1024,PQ32")
    for option, default, text in (
            ("bytes", 0, "an image, of pq, opq, ivfpq (default: a quarter of the dimensions)"),
            ("lists", 0, "cells of ivfpq (default: about 4 sqrt(images))"),
            ("train", TRAIN, f"images to train on (default: {TRAIN})"), ("seed", 0, "of these")):
        add(f"--{option}", type=int, default=default, help=text)


def _add_query(add) -> None:
    add("--top", type=int, default=10, metavar="K", help="results (default: 10)")
    add("-o", "--output", type=Path, metavar="FILE", help="write a .csv instead of printing it")


def _add_measure(add) -> None:
    add("--stores", nargs="+", required=True, help="those that the indexes are of, in order")
    add("--gnd", type=Path, metavar="FILE.pkl", help="also mAP, by this ground truth")
    add("--depth", type=int, default=DEPTH, help=f"images ranked for mAP (default: {DEPTH})")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE, too")


def _add_neighbours(add) -> None:
    add("stores", nargs="+", help="together one database")
    add("--top", type=int, default=100, metavar="K", help="neighbours of each image (default: 100)")
    add("-o", "--output", type=Path, required=True, metavar="FOLDER", help="what is there already is kept, "
        "and a run that was stopped goes on")
    add("--index", dest="indexes", type=Path, nargs="+", default=[], help="search these, which hold the "
        "stores in their order, and not all images: approximate, for millions of them")
    add("--device", choices=("auto", "cpu"), default="auto", help="of the exact search; auto: a GPU if "
        "there is one")
