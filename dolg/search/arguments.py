"""The arguments of tools/search.py."""
import argparse
from pathlib import Path

from dolg.search.indexes import KINDS, TRAIN
from dolg.search.measuring import DEPTH
from revisitop.commands import ACROSS

COMMANDS = {"build": "train an index on a sample of stores, and add them",
            "add": "add stores to an index",
            "query": "search one index, or several that together are the database, for all images of a "
                     "store, or for a photograph",
            "measure": "what indexes cost and lose against the exact search",
            "neighbours": "list the nearest others of every image of stores, in a folder"}
# Options of query --image: name, metavar, default, help
_OF_PHOTOS = (("cfg", "FILE", None, "the configuration by which the database was extracted"),
              ("weights", "FILE", "", "the network's (default: TEST.WEIGHTS, or the newest in OUT_DIR)"),
              ("reranker", "NAME", "", "reorder the first RERANK.TOP_K by spatial, superglobal, a+b, ..."))


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
    _add_query(add["query"])
    add["measure"]("indexes", type=Path, nargs="+")
    add["measure"]("--query", required=True, metavar="STORE")
    _add_measure(add["measure"])
    _add_neighbours(add["neighbours"])
    for name in ("query", "measure", "neighbours"):
        add[name]("--probes", type=int, default=16, metavar="N", help="cells to search, of ivfpq; of hnsw "
                  "an eighth of the candidates kept (default: 16)")
        add[name]("--gpu", action="store_true", help="search indexes on all GPUs that faiss can use")
    for name in COMMANDS:
        add[name]("--across", action="store_true", help=ACROSS)
    # Where options stand between them, argparse leaves arguments without a name over
    args, left_over = parser.parse_known_args()
    if args.command == "query":
        _check_query(args, left_over, commands.choices["query"])
    elif left_over:
        parser.error(f"unrecognized arguments: {' '.join(left_over)}")
    return args


def _add_build(add) -> None:
    add("--kind", default="flat", help=f"{', '.join(KINDS)}, or faiss's own: OPQ32,IVF1024,PQ32")
    for option, default, text in (
            ("bytes", 0, "an image, of pq, opq, ivfpq (default: a quarter of the dimensions)"),
            ("lists", 0, "cells of ivfpq (default: about 4 sqrt(images))"),
            ("train", TRAIN, f"images to train on (default: {TRAIN})"), ("seed", 0, "of these")):
        add(f"--{option}", type=int, default=default, help=text)


def _add_query(add) -> None:
    add("words", nargs="*", metavar="INDEX | KEY VALUE",
        help="with --query the indexes, with --image keys to change, such as INFER.LOCAL True")
    add("--query", metavar="STORE", help="search for each of its images")
    add("--image", type=Path, metavar="PHOTO", help="search for a photograph")
    add("--top", type=int, default=10, metavar="K", help="results (default: 10)")
    add("-o", "--output", type=Path, metavar="FILE",
        help="write a .csv instead of printing it; with --image, the picture "
             "(default: PHOTO-results.jpg)")
    for option, metavar, default, text in _OF_PHOTOS:
        add(f"--{option}", metavar=metavar, default=default, help=f"with --image: {text}")
    add("--index", nargs="+", default=[], metavar="INDEX_OR_STORE",
        help="with --image: what is searched, stores exactly")
    add("--images", nargs="+", default=[], metavar="FOLDER",
        help="with --image: of the database's images, for the picture; "
             "one for each store, or all are looked through")
    add("--box", type=float, nargs=4, metavar=("X0", "Y0", "X1", "Y1"),
        help="with --image: cut it to this, in pixels")


def _check_query(args: argparse.Namespace, left_over: list[str], parser: argparse.ArgumentParser) -> None:
    """Sort what has no name into `indexes` and `opts`; leave with a message where arguments do not go
    together."""
    words = [*args.words, *left_over]
    strange = [word for word in left_over if word.startswith("-")]
    if strange:
        parser.error(f"unrecognized arguments: {' '.join(strange)}")
    if bool(args.query) == bool(args.image):
        parser.error("give --query STORE, or --image PHOTO")
    if args.image:
        args.indexes, args.opts = args.index, words
        if not (args.index and args.cfg):
            parser.error("--image PHOTO needs --index INDEX_OR_STORE and --cfg FILE, those of the database")
        return
    args.indexes = [*map(Path, words), *map(Path, args.index)]
    given = [name for name in ("cfg", "weights", "reranker", "images", "box") if getattr(args, name)]
    if given:
        parser.error(f"--{given[0]} goes with --image PHOTO")
    if not args.indexes:
        parser.error("the following arguments are required: INDEX")


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
