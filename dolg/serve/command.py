"""What tools/search.py query --image does: ask, print, and draw."""
import argparse
from pathlib import Path

from dolg.errors import UserError
from dolg.serve.arguments import without_keys
from dolg.serve.finder import Found, open_finder
from dolg.serve.sheet import MOST_DRAWN, kind_of_picture, write_sheet
from revisitop.printing import one_line

_BEHIND = "not reranked, with the scores of the search:"


def ask(args: argparse.Namespace) -> None:
    """Print what is found for a photograph, and write a picture of it."""
    picture = args.output or Path(f"{args.image.stem}-results.jpg")
    # Mistakes are told before the search
    kind_of_picture(picture)
    if picture.exists() and args.image.exists() and picture.samefile(args.image):
        raise UserError(f"the picture {picture} would take the place of the photograph: give another "
                        "--output")
    (paths, folders), keys = without_keys(args.indexes, args.images)
    finder = open_finder(args.cfg, args.weights, keys + args.opts, paths, folders, args.reranker,
                         args.probes, on_gpu=args.gpu, across=args.across)
    found = finder.find(args.image, tuple(args.box) if args.box else None, args.top, args.reranker)
    print(as_table(found))
    print(", ".join(f"{step} {1000 * seconds:.0f} ms" for step, seconds in found.seconds.items())
          + f"; {len(finder.database)} images searched")
    title = f"{finder.describer.settings['model']}, {len(finder.database):,} images asked"
    write_sheet(picture, args.image, found, title, finder.limits.pixels)
    left_out = f" (the first {MOST_DRAWN} results)" if len(found.results) > MOST_DRAWN else ""
    print(f"picture: {picture.resolve()}{left_out}")


def as_table(found: Found) -> str:
    """A line per result: place, score, name, and after reranking the place before it; and a line before
    those that were not reranked, whose scores stand on another scale."""
    heading = ["place", "score", *(["before"] if found.reranker else []), "image"]
    rows = [[f"{result.place}", f"{result.score:.4f}", *([f"{result.found_at}"] if found.reranker else []),
             one_line(result.name)] for result in found.results]
    widths = [max(len(row[column]) for row in (heading, *rows)) for column in range(len(heading) - 1)]
    lines = ["  ".join([*(f"{cell:>{width}}" for cell, width in zip(row, widths)), row[-1]])
             for row in (heading, *rows)]
    if found.reranker and len(found.results) > found.reranked:
        lines.insert(1 + found.reranked, _BEHIND)
    return "\n".join(lines)
