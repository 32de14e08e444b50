"""tools/prepare_data.py's work: from a data set's name to its lists, manifest and counts."""
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from dolg.data.manifest import COMMANDS, read_manifest
from dolg.errors import UserError
from dolg.prepare import cars196, cub, gldv2, imagenet, inshop, own, revisited, sop
from dolg.prepare.catalogue import DATA_SETS, DataSet
from dolg.prepare.check import check
from dolg.prepare.lists import Prepared
from dolg.prepare.record import say_counts, write_manifests
from dolg.prepare.work import Work

# By the command's name: what makes a data set's lists of what was typed
PREPARERS: dict[str, Callable[[Work, Namespace], Prepared]] = {
    "roxford5k": lambda work, args: revisited.prepare(work, args.variant),
    "rparis6k": lambda work, args: revisited.prepare(work, args.variant),
    "revisitop1m": lambda work, args: revisited.prepare_distractors(work, args.archives),
    "gldv2": lambda work, args: gldv2.prepare(work, args.parts, args.every_image, args.min_images,
                                              args.val_share, args.seed, args.archives, args.sizes),
    "sop": lambda work, args: sop.prepare(work, args.held_out),
    "cub": lambda work, args: cub.prepare(work, args.held_out),
    "cars196": lambda work, args: cars196.prepare(work, args.held_out),
    "inshop": lambda work, args: inshop.prepare(work, args.held_out),
    "imagenet": lambda work, args: imagenet.prepare(work),
    "folder": lambda work, args: own.prepare_folder(work, args.val_share, args.seed, args.depth),
    "csv": lambda work, args: own.prepare_table(work, args.val_share, args.seed),
}
# What manifests record of the command line
_OPTIONS = ("every_image", "min_images", "val_share", "seed", "archives", "held_out", "partial",
            "unverified", "depth")


def prepare_data(args: Namespace) -> None:
    """Prepare, or with `args.check` look through, the data set that the command line names."""
    _check_arguments(args)
    dataset = _data_set(args)
    if args.check:
        manifest = read_manifest(args.root / dataset.name) or {}
        for name in (dataset.name, *manifest.get("beside", ())):
            check(args.root / name, args.workers, args.max_pixels)
        return
    work = Work(dataset, args.root, args.given, args.mirror, args.jobs, args.remove_archives, args.partial,
                args.unverified)
    with work.locked():
        prepared = PREPARERS[args.name](work, args)
        options = {key: value for key, value in vars(args).items() if key in _OPTIONS}
        if options.get("depth", 0) is None:     # the manifest of a set without it stays as it was
            del options["depth"]
        write_manifests(work, prepared, options)
        if args.name == "gldv2":
            _alias(args.root / "landmark", dataset.name)
        say_counts(work, prepared)


def _check_arguments(args: Namespace) -> None:
    for name in ("jobs", "archives", "min_images", "depth"):
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}: give at least 1")
    if getattr(args, "seed", 0) < 0:
        raise UserError(f"--seed is {args.seed}: give 0 or more")
    for name in ("val_share", "held_out"):
        share = getattr(args, name, 0)
        if not 0 <= share < 1:
            raise UserError(f"--{name.replace('_', '-')} is {share}: give a share of at least 0 and "
                            "below 1")


def _data_set(args: Namespace) -> DataSet:
    if args.name in DATA_SETS:
        return DATA_SETS[args.name]
    if args.given is None and not args.check:
        raise UserError(f"{args.name} needs --from DIR, the folder with your images")
    if not args.called.strip(".") or args.called in COMMANDS or Path(args.called).name != args.called:
        raise UserError(f"--name {args.called} is taken, or no name of a folder: give another")
    if (args.root / args.called).is_symlink():
        raise UserError(f"{args.root / args.called} is a link: give another --name, or delete it")
    return DataSet(args.called, "one's own images", "", "one's own")


def _alias(link: Path, name: str) -> None:
    """The name that the DOLG code's configurations have for GLDv2, unless somebody has a folder of it."""
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(name, target_is_directory=True)
