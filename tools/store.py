"""Feature stores: verified, merged, cut down, and turned into other codes' files and back; --help."""
import argparse
import os
import sys
from pathlib import Path

from dolg.core.cli import run
from dolg.errors import UserError
from dolg.features.editing import merge, subset
from dolg.features.formats import export_store, import_file, store_imported
from dolg.features.store import FeatureStore
from revisitop.stores import StoreError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Work on feature stores.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, text: str, *positional: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        for argument in positional:
            command.add_argument(argument, type=Path)
        return command

    add("verify", "read everything and compare digests").add_argument("stores", type=Path, nargs="+")
    add("merge", "one store of several, made alike", "output").add_argument(
        "stores", type=Path, nargs="+")
    add("subset", "the images that a text file names, in its order", "store", "names", "output")
    command = add("export", "write .pickle (as DOLG), .mat (as revisitop), .npy, .h5 (as hloc)",
                  "store", "file")
    command.add_argument("--key", default="X", help="table of a .mat (default: X)")
    command = add("import", "read those, or a folder of TensorFlow's .delg_global and .delg_local",
                  "file", "store")
    command.add_argument("--key", default="", help="table of a .mat that has several")
    command.add_argument("--names", type=Path, help="a text file with a name per line, for .mat, .npy")
    command.add_argument("--transpose", action="store_true",
                         help="the rows of a .mat are images, or the columns of a .npy")
    command.add_argument("--normalize", action="store_true", help="scale descriptors to unit length")
    command.add_argument("--chunk-size", type=int, default=256, help="images per chunk")
    args = parser.parse_args()
    if args.command == "import" and args.chunk_size < 1:
        parser.error(f"--chunk-size is {args.chunk_size}: give at least 1")
    return args


def main() -> None:
    args = parse_args()
    try:
        if args.command == "verify":
            for path in args.stores:
                FeatureStore(path).verify()
                print(f"{path}: whole and undamaged")
        elif args.command == "merge":
            merge([FeatureStore(path) for path in args.stores], args.output)
        elif args.command == "subset":
            names = os.fsdecode(args.names.read_bytes()).splitlines()
            subset(FeatureStore(args.store), [name for name in names if name], args.output)
        elif args.command == "export":
            export_store(FeatureStore(args.store), args.file, args.key)
        else:
            imported = import_file(args.file, args.key, args.names, args.transpose)
            if args.normalize:
                imported.normalize()
            for warning in imported.warnings():
                print(f"warning: {warning}", file=sys.stderr)
            store_imported(imported, args.store, args.file, args.chunk_size)
            print(f"{args.store}: {imported.summary()}")
    except StoreError as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run(main)
