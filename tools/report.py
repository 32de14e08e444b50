"""Make the HTML page of retrieval results: see --help."""
import argparse
import json
from pathlib import Path

from dolg.core.cli import run
from dolg.errors import UserError
from dolg.files import write_atomically
from dolg.report.page import render_page
from dolg.report.results import (
    ImageFolders, Report, gather_report, load_evaluations, open_ground_truth, open_stores,
    summarise,
)

EXAMPLE = """example:
  python tools/report.py --gnd datasets/roxford5k/gnd_roxford5k.pkl -o report.html \\
      --result before before.json --stores before out/before/query out/before/database \\
      --result after after.json --stores after out/after/query out/after/database
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare retrieval results on one HTML page: a table of methods, then every "
                    "query with its first results, worst first.",
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--result", nargs=2, action="append", required=True, metavar=("NAME", "FILE"),
        help="a name, and what revisitop/evaluate.py --json wrote; repeat for more methods: "
             "the first is what others are compared with, the last sorts the queries")
    add("--stores", nargs="+", action="append", default=[], metavar="NAME STORE",
        help="NAME QUERY DATABASE [DISTRACTORS ...]: the stores behind the result NAME, to show "
             "what it finds; repeat for more methods")
    add("--gnd", type=Path, metavar="FILE",
        help="the ground truth (.pkl); without it the page is the table alone")
    add("--images", type=Path, metavar="FOLDER",
        help="images of queries and database (default: jpg beside the ground truth)")
    add("--distractor-images", type=Path, metavar="FOLDER", help="(default: as --images)")
    add("--top", type=int, default=10, metavar="N", help="results per query (default: 10)")
    add("--across", action="store_true",
        help="show results of different protocols as well; the page says what differs")
    add("--json", type=Path, metavar="FILE", help="also write {NAME: result, ...} to FILE")
    add("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE",
        help="the page (default: report.html)")
    return parser.parse_args()


def make_report(args: argparse.Namespace) -> tuple[Report, dict[str, dict]]:
    if not args.gnd:
        if args.stores or args.images or args.distractor_images:
            raise UserError("--stores and image folders need --gnd, the ground truth")
        evaluations = load_evaluations(args.result, across=args.across)
        return summarise(evaluations), evaluations
    ground_truth = open_ground_truth(args.gnd)
    evaluations = load_evaluations(args.result, len(ground_truth.queries), args.across)
    stores = open_stores(args.stores, list(evaluations))
    folders = ImageFolders(args.images or args.gnd.parent / "jpg", args.distractor_images)
    return gather_report(evaluations, ground_truth, stores, folders, args.top), evaluations


def main() -> None:
    args = parse_args()
    report, evaluations = make_report(args)
    # File names may hold bytes that are no UTF-8: they become visible escapes.
    page = render_page(report).encode("utf-8", "backslashreplace")
    if args.json:
        write_atomically(args.json, json.dumps(evaluations, indent=2) + "\n")
    write_atomically(args.output, page)
    print(f"wrote {args.output}: {len(report.methods)} methods, {len(report.queries)} queries")


if __name__ == "__main__":
    run(main)
