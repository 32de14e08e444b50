"""The arguments of tools/visualize.py."""
import argparse
from pathlib import Path

from dolg.visual.attention import KINDS
from dolg.visual.embedding import METHODS
from revisitop.commands import ACROSS

# Inches of a thumbnail
_LARGEST = 3
COMMANDS = {"attention": "where a network looks: maps over images, at several scales",
            "matches": "which local features of two images correspond, and which of these agree",
            "rrt": "what a reranking transformer attends to across a pair of images",
            "embedding": "the images of stores on a plane, alike beside alike"}


def parse_args(description: str) -> argparse.Namespace:
    """What the command line asks for; `command` is one of COMMANDS."""
    parser = argparse.ArgumentParser(description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    add = {name: commands.add_parser(name, help=text, description=text,
                                     epilog="All keys and their meaning: dolg/config.py").add_argument
           for name, text in COMMANDS.items()}
    for name in ("attention", "matches", "rrt"):
        add[name]("--cfg", metavar="FILE", required=True, help="a YAML file of configs/; after it, or "
                  "last, keys to change: KEY VALUE ..., such as RERANK.SPATIAL.THRESHOLD 10")
        add[name]("--weights", metavar="FILE", default="", help="of the network, instead of TEST.WEIGHTS"
                  if name != "rrt" else "of the transformer, instead of RERANK.RRT.WEIGHTS")
    _add_attention(add["attention"])
    for name in ("matches", "rrt"):
        _add_pair(add[name], needs_stores=name == "rrt")
    add["rrt"]("--layer", type=int, metavar="N", help="of one layer, from 1 (default: mean over all)")
    _add_embedding(add["embedding"])
    for name in ("matches", "rrt", "embedding"):
        add[name]("--across", action="store_true", help=ACROSS)
    for name in COMMANDS:
        add[name]("-o", "--output", type=Path, required=True, metavar="PICTURE",
                  help="what to write: .png, .jpg, .svg or .pdf")
    # Keys and values may stand among the options
    args, args.opts = parser.parse_known_args()
    unknown = [word for word in args.opts if word.startswith("--")]
    if unknown or (args.opts and "cfg" not in args):
        parser.error(f"unrecognized arguments: {' '.join(unknown or args.opts)}")
    if args.command == "embedding" and not 0 < args.size <= _LARGEST:
        parser.error(f"--size is {args.size:g}: give inches above 0, at most {_LARGEST}")
    return args


def _add_boxes(add) -> None:
    add("--box", nargs=4, type=float, action="append", default=[], metavar=("X0", "Y0", "X1", "Y1"),
        help="what the first image is cut to, in its pixels; again, the second; the others are whole")


def _add_attention(add) -> None:
    add("--image", nargs="+", type=Path, required=True, metavar="FILE")
    _add_boxes(add)
    add("--scales", nargs="+", type=float, default=[], metavar="S", help="default: INFER.SCALES")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, metavar="KIND",
        help=f"of {', '.join(KINDS)} (default: all that the network has)")


def _add_pair(add, needs_stores: bool) -> None:
    add("--pair", nargs=2, required=True, metavar=("QUERY", "CANDIDATE"),
        help="names in the stores" if needs_stores else "two image files; with --store, names in it")
    add("--store", nargs="+", default=[], required=needs_stores, metavar="STORE", type=Path,
        help="with local features: one, or the query's and the candidate's")
    add("--images", nargs="+", default=[], required=needs_stores, metavar="FOLDER", type=Path,
        help="where the images of the stores are")
    _add_boxes(add)


def _add_embedding(add) -> None:
    add("--store", nargs="+", required=True, metavar="STORE", type=Path)
    add("--images", nargs="+", default=[], metavar="FOLDER", type=Path,
        help="where the images are, for thumbnails (default: dots alone)")
    add("--method", choices=METHODS, default="pca", help="default: pca")
    add("--gnd", type=Path, metavar="FILE.pkl",
        help="a ground truth, for colours: what it calls one landmark")
    add("--list", type=Path, metavar="FILE", help="lines of 'path label', for colours")
    add("--seed", type=int, default=0, help="of tsne, umap and the choice of thumbnails (default: 0)")
    add("--size", type=float, default=0.4, metavar="INCHES", help="of a thumbnail (default: 0.4)")
