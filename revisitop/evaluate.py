"""Evaluate feature stores on a Revisited benchmark; see --help.

    python revisitop/evaluate.py --gnd FILE.pkl --query STORE --database STORE \\
        [--distractors STORE ...] [--json OUT]
"""
import argparse
import json
import os
import sys
from pathlib import Path

if __name__ == "__main__" and not __package__:
    # Run as a file, the search path begins with this folder in place of the one around it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from revisitop import GroundTruthError, Store, StoreError, load_ground_truth  # noqa: E402
from revisitop.evaluation import evaluate_stores, format_table  # noqa: E402


class UsageError(ValueError):
    """Arguments that cannot be used."""


class Parser(argparse.ArgumentParser):
    """Arguments whose mistakes are UsageError."""

    def error(self, message: str):
        raise UsageError(f"{message}; --help lists the arguments")


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
    return parser


def write_json(path: Path, result: dict) -> None:
    """Write a result whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def evaluate(args: argparse.Namespace, **how: object) -> dict:
    """The result that the arguments ask for; `how` goes to `count_ranks`."""
    if args.json and args.json.is_dir():
        raise UsageError(f"cannot write --json {args.json}: it is a folder")
    return evaluate_stores(load_ground_truth(args.gnd), Store(args.query), Store(args.database),
                           [Store(path) for path in args.distractors], double=args.double, **how)


def show(args: argparse.Namespace, result: dict) -> None:
    """Print a result, and write it where it is asked for."""
    print(format_table(result), flush=True)     # first: a disk may be full
    if args.json:
        write_json(args.json, result)


def main() -> None:
    args = build_parser().parse_args()
    show(args, evaluate(args))


if __name__ == "__main__":
    try:
        main()
    except (UsageError, GroundTruthError, StoreError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
