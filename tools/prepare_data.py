"""Prepare a data set: python tools/prepare_data.py NAME [--root DIR] [--from DIR] [--check]"""
import argparse
from pathlib import Path

from dolg.core.cli import run
from dolg.data.decode import MAX_PIXELS
from dolg.prepare.catalogue import DATA_SETS
from dolg.prepare.run import PREPARERS, prepare_data

OWN = {"folder": "one's own images, in a folder per class",
       "csv": "one's own images, as images.csv (and ground_truth.csv) say"}


def add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--root", type=Path, default=Path("datasets/data"), metavar="DIR",
        help="the data sets' folder (default: datasets/data, which is DATA_DIR)")
    add("--from", type=Path, dest="given", metavar="DIR",
        help="take archives, or what was unpacked of them, from here instead of downloading")
    add("--check", action="store_true", help="decode every image of the prepared data set, and report")
    add("--mirror", default="", metavar="URL", help="download from a folder here, not the published places")
    add("--jobs", type=int, default=4, metavar="N", help="files fetched and unpacked at once (default: 4)")
    add("--workers", type=int, default=-1, metavar="N", help="processes of --check (default: one per core)")
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N",
        help=f"--check refuses images that claim more, as INFER.MAX_PIXELS does (default: {MAX_PIXELS})")
    add("--remove-archives", action="store_true", help="delete what was downloaded once it is unpacked")
    add("--partial", action="store_true", help="take what is there of the archives and images")
    add("--unverified", action="store_true", help="take files of other MD5 than published, too")


def add_options(name: str, add) -> None:
    """The options of one data set alone."""
    if name in ("roxford5k", "rparis6k"):
        add("--variant", default="", metavar="TEXT", help="which images are in --from, for the record")
    if name in ("revisitop1m", "gldv2"):
        add("--archives", type=int, metavar="N", help="the first N archives alone")
    if name == "gldv2":
        add("--parts", nargs="+", choices=("train", "index", "test"), default=["train"], metavar="PART",
            help="train, index, test (default: train)")
        add("--every-image", action="store_true", help="train on train.csv, not on its clean subset")
        add("--min-images", type=int, default=1, metavar="N", help="leave classes of fewer images out")
        add("--sizes", action="store_true",
            help="also write path,label,width,height as the RRT code has it")
    if name in ("gldv2", *OWN):
        add("--val-share", type=float, default=0.2, metavar="SHARE",
            help="of each class's images, held out in val_list.txt (default: 0.2)")
        add("--seed", type=int, default=0, metavar="N", help="another seed, other held-out images")
    if name in ("cub", "cars196", "sop", "inshop"):
        add("--held-out", type=float, default=0.1, metavar="SHARE",
            help="of the training classes, for val_list.txt; the others are fit_list.txt (default: 0.1)")
    if name == "folder":
        add("--depth", type=int, metavar="N",
            help="the level of the folders that are classes; 1: those right in --from (default: 1, where no "
                 "image lies deeper)")
    if name in OWN:
        add("--name", dest="called", required=True, metavar="NAME", help="of the data set, and its folder")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Download (or find), verify and unpack a data set, and write the lists that "
                    "configurations name. Stopped at any moment it goes on where it was. See "
                    "datasets/README.md.")
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name in PREPARERS:
        title = OWN.get(name) or DATA_SETS[name].title
        one = names.add_parser(name, help=title, description=title)
        add_common(one)
        add_options(name, one.add_argument)
    return parser.parse_args()


def main() -> None:
    prepare_data(arguments())


if __name__ == "__main__":
    run(main)
