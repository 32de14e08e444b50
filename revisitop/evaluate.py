"""Evaluate feature stores on a Revisited benchmark; see --help.

    python revisitop/evaluate.py --gnd FILE.pkl --query STORE --database STORE \\
        [--distractors STORE ...] [--json OUT]
"""
import argparse
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Run as a file, the search path begins with this folder in place of the one around it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from revisitop import GroundTruthError, Store, StoreError, load_ground_truth  # noqa: E402
from revisitop.commands import ACROSS, Parser, run, show  # noqa: E402
from revisitop.evaluation import evaluate_stores, format_table, warn_unrecorded  # noqa: E402


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description="mAP and mP@k of feature stores on a benchmark in the format of "
                                "Revisited Oxford and Paris (Easy, Medium, Hard).")
    add = parser.add_argument
    add("--gnd", required=True, metavar="FILE.pkl", help="ground truth, gnd_NAME.pkl")
    add("--query", required=True, metavar="STORE", help="descriptors of the queries")
    add("--database", required=True, metavar="STORE",
        help="descriptors of the images that the ground truth names")
    add("--distractors", nargs="+", action="extend", default=[], metavar="STORE",
        help="more images, all wrong, such as the million distractors")
    add("--double", action="store_true",
        help="sum inner products in float64: twice as slow, and the same figures on every machine")
    add("--json", type=Path, metavar="OUT", help="file for the result")
    add("--across", action="store_true", help=ACROSS)
    return parser


def open_stores(args: argparse.Namespace) -> list[Store]:
    """Those of the queries, the database, and the distractors."""
    return [Store(path, args.across) for path in (args.query, args.database, *args.distractors)]


def evaluate(args: argparse.Namespace, **how: object) -> dict:
    """The result that the arguments ask for; `how` goes to `count_ranks`."""
    ground_truth, (query, database, *distractors) = load_ground_truth(args.gnd), open_stores(args)
    return evaluate_stores(ground_truth, query, database, distractors, double=args.double, **how)


def files_of(args: argparse.Namespace) -> dict:
    """What the result is made of; it goes into its file."""
    return {"ground_truth": args.gnd, "query": args.query, "database": args.database,
            "distractors": args.distractors}


def main() -> None:
    args = build_parser().parse_args()
    result = evaluate(args)
    show(format_table(result), result, args.json, files_of(args))
    warn_unrecorded(open_stores(args))


if __name__ == "__main__":
    run(main, GroundTruthError, StoreError)
