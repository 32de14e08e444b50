"""Predictions for Google Landmarks v2 from feature stores, for revisitop/gldv2.py; see --help."""
import argparse
from pathlib import Path

from dolg.core.cli import run
from dolg.core.distributed import device
from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.search.predictions import (
    read_landmarks, recognised_landmarks, retrieved_images, write_predictions)
from revisitop.commands import ACROSS
from revisitop.evaluation import check_made_alike, warn_unrecorded
from revisitop.stores import StoreError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Search the descriptors of test images in others, "
                                                 "and write what was found as a CSV.")
    tasks = parser.add_subparsers(dest="task", required=True)

    def add(name: str, text: str, database: str) -> argparse.ArgumentParser:
        task = tasks.add_parser(name, help=text, description=text)
        task.add_argument("--query", required=True, metavar="STORE", help="the test images")
        task.add_argument("--database", required=True, nargs="+", metavar="STORE", help=database)
        task.add_argument("--across", action="store_true", help=ACROSS)
        task.add_argument("--output", required=True, type=Path, metavar="FILE", help="the CSV")
        return task

    add("retrieval", "the nearest index images of each test image, best first",
        "the index images").add_argument("--depth", type=int, default=100, metavar="K",
                                         help="images to write (default: 100, what is scored)")
    task = add("recognition", "the landmark of each test image, by its nearest training images",
               "the training images")
    task.add_argument("--labels", required=True, type=Path, metavar="CSV",
                      help="columns id and landmark_id, such as train.csv of the data set")
    task.add_argument("--neighbours", type=int, default=5, metavar="K",
                      help="training images whose similarities are summed (default: 5)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.output.is_dir():
        raise UserError(f"cannot write --output {args.output}: it is a folder")
    try:
        query, *database = (FeatureStore(path, args.across) for path in (args.query, *args.database))
        check_made_alike([query, *database])
        if args.task == "retrieval":
            column = "images"
            predictions = retrieved_images(query, database, args.depth, device())
        else:
            column, landmark_of = "landmarks", read_landmarks(args.labels)
            predictions = recognised_landmarks(query, database, landmark_of, args.neighbours,
                                               device())
    except StoreError as error:
        raise UserError(str(error)) from None
    write_predictions(args.output, column, predictions)
    found = sum(bool(prediction) for prediction in predictions.values())
    print(f"{args.output}: {len(predictions)} test images, {found} with a prediction")
    warn_unrecorded([query, *database])


if __name__ == "__main__":
    run(main)
