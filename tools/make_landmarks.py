"""Make the synthetic landmark benchmark: python tools/make_landmarks.py --root DIR"""
import argparse
from dataclasses import fields
from pathlib import Path

from dolg.data.landmarks import LandmarkParams, contact_sheet, make_landmarks

HELP = {"seed": "another seed, other landmarks",
        "train_landmarks": "training classes",
        "train_photos": "training photographs of each",
        "val_photos": "validation photographs of each",
        "test_landmarks": "landmarks of the test set, none of them in training",
        "queries": "queries for each test landmark",
        "easy": "easy photographs of each, give or take one",
        "hard": "hard photographs of each, give or take one",
        "junk": "photographs of each that hardly show it, give or take one",
        "distractors": "photographs of other landmarks",
        "train_size": "longest side of training photographs, in pixels",
        "size": "longest side of test photographs, in pixels"}


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Make ROOT/synthetic_train and ROOT/synthetic, a landmark benchmark drawn by "
                    "a program. The same parameters give the same files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--root", type=Path, metavar="DIR", required=True,
                        default=argparse.SUPPRESS,
                        help="the folder for the two data sets")
    for field in fields(LandmarkParams):
        parser.add_argument("--" + field.name.replace("_", "-"), type=int, metavar="N",
                            default=field.default, help=HELP[field.name])
    parser.add_argument("--workers", type=int, metavar="N", default=argparse.SUPPRESS,
                        help="processes (default: one per processor)")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE",
                        default=argparse.SUPPRESS,
                        help="also write a JPEG that shows some of the test set")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    params = LandmarkParams(**{field.name: getattr(args, field.name)
                               for field in fields(LandmarkParams)})
    summary = make_landmarks(args.root, params, getattr(args, "workers", None))
    for name, counts in summary.items():
        state = "made" if counts.pop("made") else "already there"
        print(f"{args.root / name}: {state},",
              ", ".join(f"{count} {what}" for what, count in counts.items()))
    if "contact_sheet" in args:
        contact_sheet(args.root, args.contact_sheet)
        print(f"{args.contact_sheet}: made")


if __name__ == "__main__":
    from dolg.core.cli import run       # not above: it loads PyTorch, which no worker needs

    run(main)
