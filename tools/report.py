"""Make the HTML page of retrieval results: see --help."""
import argparse
import json
from pathlib import Path

from dolg.core.cli import run
from dolg.files import write_atomically
from dolg.report.gathering import make_report
from dolg.report.page import write_report
from dolg.report.results import counted, named_results

EXAMPLE = """example:
  python tools/report.py before.json after=out/result.json -o report.html
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare retrieval results on one HTML page: a table of methods, curves, and every "
                    "query with its first results. Ground truth, descriptors and reranked lists are "
                    "found where the results say.",
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("results", nargs="*", metavar="[NAME=]RESULT.json",
        help="what revisitop/evaluate.py --json or tools/rerank.py wrote; the others are compared with "
             "the first; NAME is the file's by default")
    add("--result", nargs=2, action="append", default=[], metavar=("NAME", "FILE"),
        help="the same as NAME=FILE, after those")
    add("--stores", nargs="+", action="append", default=[], metavar="NAME STORE",
        help="NAME QUERY DATABASE [DISTRACTORS ...]: the stores behind the result NAME, where it does "
             "not say; repeat for more methods")
    add("--gnd", type=Path, metavar="FILE", help="the ground truth (.pkl), where no result says")
    add("--images", type=Path, metavar="FOLDER",
        help="images of queries and database (default: jpg beside the ground truth)")
    add("--distractor-images", type=Path, metavar="FOLDER",
        help="(default: distractors beside the ground truth, if it is there, else as --images)")
    add("--top", type=int, default=10, metavar="N", help="results per query (default: 10)")
    add("--training", type=Path, action="append", default=[], metavar="OUT_DIR",
        help="show the curves of this training; repeat for more")
    add("--across", action="store_true",
        help="show results of different protocols as well; the page says what differs")
    add("--json", type=Path, metavar="FILE", help="also write {NAME: result, ...} to FILE")
    add("-o", "--output", type=Path, default=Path("report.html"), metavar="PATH",
        help="FILE.html with all in it, or a folder for index.html and thumbnails, which a second "
             "report there reuses (default: report.html)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    report, evaluations = make_report(
        named_results(args.results, args.result), args.gnd, args.stores, args.images,
        args.distractor_images, args.top, args.across, args.training)
    if args.json:
        write_atomically(args.json, json.dumps(evaluations, indent=2) + "\n")
    page = write_report(report, args.output)
    for note in report.notes:
        print(note)
    print(f"wrote {page}: {counted(len(report.methods), 'method')}, "
          f"{counted(len(report.queries), 'query')}")


if __name__ == "__main__":
    run(main)
