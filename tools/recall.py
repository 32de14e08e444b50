"""Recall@K, MAP@R and NMI of the descriptors in feature stores: see --help."""
import argparse
import json
import math
from pathlib import Path

import numpy as np

from dolg.core.cli import run
from dolg.core.distributed import device
from dolg.errors import UserError
from dolg.features.labelled import labelled_store
from dolg.files import write_atomically
from dolg.search.classes import clustering_nmi, evaluate_classes
from revisitop.commands import ACROSS
from revisitop.evaluation import check_described, check_made_alike, warn_unrecorded
from revisitop.stores import StoreError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Metric-learning evaluation. Without --gallery each image of --query searches "
                    "all others (CUB, CARS, SOP); with it, the gallery (In-shop).")
    add = parser.add_argument
    add("--query", required=True, metavar="STORE", help="what tools/infer.py wrote")
    add("--gallery", metavar="STORE", help="the images to search, described by the same model")
    add("--labels", type=Path, required=True, metavar="LIST",
        help="a text file of 'path label' lines: the store's images, by the same names")
    add("--gallery-labels", type=Path, metavar="LIST", help="the same for --gallery")
    add("--recalls", type=int, nargs="+", default=[1, 2, 4, 8], metavar="K",
        help="the K of Recall@K (default: 1 2 4 8)")
    add("--nmi", action="store_true", help="also cluster the query images by k-means (faiss)")
    add("--json", type=Path, metavar="FILE", help="also write the figures, in 0..1, to FILE")
    add("--across", action="store_true", help=ACROSS)
    return parser.parse_args()


def evaluate(args: argparse.Namespace) -> dict:
    if bool(args.gallery) != bool(args.gallery_labels):
        raise UserError("--gallery and --gallery-labels go together: give both or neither")
    query, labels = labelled_store(args.query, args.labels, args.across)
    gallery, gallery_labels = query, labels
    if args.gallery:
        gallery, gallery_labels = labelled_store(args.gallery, args.gallery_labels)
        check_made_alike([query, gallery])
    check_described([query, gallery])
    descriptors = np.asarray(query.global_descriptors())
    metrics = evaluate_classes(descriptors, labels, gallery.global_descriptors(), gallery_labels,
                               args.recalls, not args.gallery, device())
    warn_unrecorded([query, gallery] if args.gallery else [])
    nmi = clustering_nmi(descriptors, labels, device()) if args.nmi else None
    # JSON has no NaN: the mean of no query is null
    return {name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in {**vars(metrics), "nmi": nmi}.items()}


def main() -> None:
    args = parse_args()
    try:
        figures = evaluate(args)
    except StoreError as error:
        raise UserError(str(error)) from None
    print("{queries} queries ({failed} failed), {gallery} gallery images; {unscored} queries have "
          "no image of their class to find".format(**figures))
    rows = {**{f"R@{k}": value for k, value in figures["recall"].items()}, "MAP@R":
            figures["map_at_r"], "R-precision": figures["r_precision"], "NMI": figures["nmi"]}
    for name, value in rows.items():
        print(f"{name:12}" + ("     -" if value is None else f"{100 * value:6.2f}"))
    if args.json:
        write_atomically(args.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
