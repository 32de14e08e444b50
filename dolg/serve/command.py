"""What tools/search.py query --image does: ask, print, and draw."""
import argparse
from pathlib import Path

from dolg.serve.arguments import without_keys
from dolg.serve.finder import Found, open_finder
from dolg.serve.sheet import kind_of_picture, write_sheet


def ask(args: argparse.Namespace) -> None:
    """Print what is found for a photograph, and write a picture of it."""
    picture = args.output or Path(f"{args.image.stem}-results.jpg")
    kind_of_picture(picture)        # a mistake is told before the search
    (paths, folders), keys = without_keys(args.indexes, args.images)
    finder = open_finder(args.cfg, args.weights, keys + args.opts, paths, folders, args.reranker,
                         args.probes, on_gpu=args.gpu)
    found = finder.find(args.image, tuple(args.box) if args.box else None, args.top, args.reranker)
    title = f"{finder.describer.settings['model']}, {len(finder.database):,} images asked"
    write_sheet(picture, args.image, found, title, finder.limits.pixels)
    print(as_table(found))
    print(", ".join(f"{step} {1000 * seconds:.0f} ms" for step, seconds in found.seconds.items())
          + f"; {len(finder.database)} images searched")
    print(f"picture: {picture.resolve()}")


def as_table(found: Found) -> str:
    """A line per result: place, score, name, and after reranking the place before it."""
    heading = ["place", "score", *(["before"] if found.reranker else []), "image"]
    rows = [[f"{result.place}", f"{result.score:.4f}", *([f"{result.found_at}"] if found.reranker else []),
             result.name] for result in found.results]
    widths = [max(len(row[column]) for row in (heading, *rows)) for column in range(len(heading) - 1)]
    return "\n".join("  ".join([*(f"{cell:>{width}}" for cell, width in zip(row, widths)), row[-1]])
                     for row in (heading, *rows))
