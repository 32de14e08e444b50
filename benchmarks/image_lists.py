"""Training lists of five million images, made and loaded: python benchmarks/image_lists.py

Beside it the straightforward way: dictionaries and lists of strings, as the scripts that people share for
GLDv2 have it. Each step runs in a process of its own, whose highest memory is reported less that of a
process which only imports the same modules. No images are needed: whether they are there is not asked.
"""
import argparse
import json
import multiprocessing
import os
import random
import resource
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dolg.data.image_list import read_image_list
from dolg.prepare.gldv2 import Paths, read_clean, training_split
from dolg.prepare.lists import write_list

VAL_SHARE = 0.2


def write_table(file: Path, count: int, classes: int) -> None:
    """A train_clean.csv of so many random ids, classes of unequal sizes."""
    rng = np.random.default_rng(0)
    sizes = 1 + rng.multinomial(count - classes, rng.dirichlet(np.full(classes, 0.5)))
    with open(file, "w") as target:
        target.write("landmark_id,images\n")
        for landmark, size in zip(rng.permutation(classes * 3)[:classes].tolist(), sizes.tolist()):
            names = rng.bytes(8 * size).hex()
            target.write(f"{landmark}," + " ".join(names[16 * i:16 * i + 16] for i in range(size)) + "\n")


def build(folder: Path) -> int:
    ids, landmarks = read_clean(folder / "train_clean.csv")
    ids, labels, held, _ = training_split(ids, landmarks, 1, VAL_SHARE, 0)
    for name, some in (("train_list.txt", ~held), ("val_list.txt", held)):
        write_list(folder / name, Paths("train", ids[some]), map(int, labels[some]))
    return len(ids)


def load(folder: Path) -> int:
    return len(read_image_list(folder / "train_list.txt")) + len(read_image_list(folder / "val_list.txt"))


def build_plainly(folder: Path) -> int:
    images_of = defaultdict(list)
    with open(folder / "train_clean.csv") as lines:
        next(lines)
        for line in lines:
            landmark, images = line.strip().split(",")
            images_of[int(landmark)] += images.split()
    random.seed(0)
    label_of = {landmark: label for label, landmark in enumerate(sorted(images_of))}
    pairs = [(f"train/{i[0]}/{i[1]}/{i[2]}/{i}.jpg", label_of[landmark])
             for landmark, images in images_of.items() for i in images]
    random.shuffle(pairs)
    first = int(len(pairs) * VAL_SHARE)
    for name, part in (("plain_train.txt", pairs[first:]), ("plain_val.txt", pairs[:first])):
        with open(folder / name, "w") as target:
            target.writelines(f"{path} {label}\n" for path, label in part)
    return len(pairs)


def load_plainly(folder: Path) -> int:
    """As DOLG's data set does it."""
    entries = []
    for name in ("plain_train.txt", "plain_val.txt"):
        with open(folder / name) as lines:
            for line in lines:
                path, label = line.strip().split(" ")
                entries.append({"im_path": os.path.join(folder, path), "class": int(label)})
    return len(entries)


def nothing(folder: Path) -> int:
    return 0


def _measured(step: Callable[[Path], int], folder: Path, pipe) -> None:
    start = time.perf_counter()
    count = step(folder)
    seconds, memory = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send((count, seconds, memory / 1024))


def measure(step: Callable[[Path], int], folder: Path) -> tuple[int, float, float]:
    """What a step returns, its seconds, and the highest memory of its process in MB."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measured, args=(step, folder, there))
    process.start()
    found = here.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5_000_000, metavar="N")
    parser.add_argument("--classes", type=int, default=200_000, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_table(folder / "train_clean.csv", args.images, args.classes)
        size = (folder / "train_clean.csv").stat().st_size
        print(f"{args.images:,} images of {args.classes:,} classes, table of {size / 1e6:.0f} MB; "
              "one thread")
        base, figures = measure(nothing, folder)[2], {}
        for step in (build, build_plainly, load, load_plainly):
            count, seconds, memory = measure(step, folder)
            assert count == args.images, (step.__name__, count)
            figures[step.__name__] = {"seconds": seconds, "MB": max(memory - base, 1)}
            print(f"{step.__name__:14} {seconds:7.1f} s {memory - base:7.0f} MB")
    for ours, plain in (("build", "build_plainly"), ("load", "load_plainly")):
        time_ratio, memory_ratio = (figures[plain][what] / figures[ours][what]
                                    for what in ("seconds", "MB"))
        print(f"{ours}: {time_ratio:.2f} x as fast, {memory_ratio:.1f} x less memory")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
