"""Pack an image list into tar shards: python tools/make_shards.py --list FILE --output DIR"""
import argparse
from pathlib import Path

from tqdm import tqdm

from dolg.core.cli import run
from dolg.data.boxes import BOXES
from dolg.data.image_list import read_image_list
from dolg.data.shards import mark_folder, write_shard
from dolg.errors import UserError


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Pack the images of a list of 'path label' lines into tar shards in "
                    "webdataset's layout, in the list's order. Finished shards are left as they "
                    "are. Train on them with TRAIN.SPLIT 'NAME-*.tar'.")
    parser.add_argument("--list", type=Path, required=True, metavar="FILE", help="the image list")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR",
                        help="the folder for the shards")
    parser.add_argument("--size", type=int, default=1000, metavar="N",
                        help="images per shard (default: 1000)")
    parser.add_argument("--name", metavar="NAME",
                        help="the shards are NAME-000000.tar, ... (default: the list's name)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.size < 1:
        raise UserError(f"--size is {args.size}: give at least 1")
    images, name = read_image_list(args.list), args.name or args.list.stem
    if images.boxes is not None:
        raise UserError(f"{args.list} is of images cut to the boxes of {args.list.parent / BOXES}, and "
                        "shards hold whole images: train on the list itself")
    mark_folder(args.output, name, args.list, args.size)
    starts, made = range(0, len(images), args.size), 0
    for number, start in enumerate(tqdm(starts, unit="shard", disable=None)):
        file = args.output / f"{name}-{number:06d}.tar"
        if not file.exists():
            write_shard(file, images, range(start, min(start + args.size, len(images))))
            made += 1
    print(f"{args.output}: {len(images)} images in {len(starts)} shards, {made} made now; "
          f"TRAIN.SPLIT '{name}-*.tar'")


if __name__ == "__main__":
    run(main)
