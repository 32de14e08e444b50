"""A page on this machine: drop a photograph, draw a box, see what the database has of it."""
import argparse

from dolg.core.cli import parse_with_keys, run
from dolg.errors import UserError
from dolg.serve.app import SEARCH, build_app
from dolg.serve.arguments import without_keys
from dolg.serve.finder import open_finder
from dolg.serve.photo import Limits
from dolg.serve.server import serve
from revisitop.commands import ACROSS

# What browsers show, and decoders are used to getting from strangers; a photograph of a telephone at most
LIMITS = Limits(pixels=50_000_000, side=16_384, kinds=("JPEG", "PNG", "WebP", "BMP"))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--cfg", metavar="FILE", required=True,
        help="the configuration by which the database was extracted")
    add("--weights", default="", metavar="FILE",
        help="the network's (default: TEST.WEIGHTS, or the newest in OUT_DIR)")
    add("--index", nargs="+", required=True, metavar="INDEX_OR_STORE",
        help="what is searched; stores exactly")
    add("--images", nargs="+", default=[], metavar="FOLDER",
        help="of the database's images: one for each store, or all are looked through")
    add("--host", default="127.0.0.1",
        help="the address to serve on (default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    add("--side", type=int, default=1600, metavar="N",
        help="shrink what is described to so many pixels of its longer side; "
             "0: never, as extraction does (default: 1600)")
    add("--max-mb", type=int, default=20, metavar="N", help="of a photograph's file (default: 20)")
    add("--across", action="store_true", help=ACROSS)
    add("--probes", type=int, default=16, metavar="N", help="see tools/search.py (default: 16)")
    args = parse_with_keys(parser)
    (args.index, args.images), keys = without_keys(args.index, args.images)
    args.opts = keys + args.opts
    return args


def main() -> None:
    args = parse_args()
    for option in ("side", "max_mb"):
        if getattr(args, option) < (option == "max_mb"):
            raise UserError(f"--{option.replace('_', '-')} is {getattr(args, option)}: give more")
    finder = open_finder(args.cfg, args.weights, args.opts, args.index, args.images, "all", args.probes,
                         LIMITS, args.side, across=args.across)
    finder.warm_up()
    max_bytes = args.max_mb * 1_000_000
    serve(build_app(finder, args.host, max_bytes), args.host, args.port, max_bytes, SEARCH)


if __name__ == "__main__":
    run(main)
