"""Learn a whitening from a feature store, or apply one to a store; see --help."""
import argparse
from pathlib import Path

import numpy as np

from dolg.core.cli import run
from dolg.errors import UserError
from dolg.features.editing import project
from dolg.features.labelled import labelled_store
from dolg.features.store import FeatureStore
from dolg.files import file_digest
from dolg.search.whitening import (
    Whitening, class_pairs, learned_from_others, learned_whitening, pca_whitening)
from revisitop.settings import made_by
from revisitop.stores import StoreError


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Learn PCA whitening from a store, or with --labels a whitening by pairs of "
                    "images of one class; or --apply one to a store. At extraction the keys "
                    "INFER.WHITENING and INFER.LOCAL_WHITENING apply it.")
    add = parser.add_argument
    add("store", type=Path)
    add("output", type=Path, help="the whitening (.safetensors); with --apply, the new store")
    add("--apply", type=Path, metavar="FILE", help="a whitening, for the store's descriptors")
    add("--apply-local", type=Path, metavar="FILE", help="one for its local features")
    add("--dim", type=int, default=0, metavar="K", help="dimensions to keep (default: all)")
    add("--local", action="store_true", help="learn from the local features")
    add("--turn", action="store_true",
        help="PCA without scaling, as DELG reduces local features to 128 dimensions")
    add("--across", action="store_true",
        help="apply what was learned from descriptors that were made with other weights or settings")
    add("--labels", type=Path, metavar="LIST", help="'path label' lines of the store's images")
    return parser.parse_args()


def learn(args: argparse.Namespace) -> tuple[Whitening, FeatureStore]:
    """A whitening, and the store that it is learned from."""
    if args.labels:
        if args.local or args.turn:
            raise UserError("--labels learns from pairs of images: leave out --local and --turn")
        store, labels = labelled_store(args.store, args.labels)
        table = np.asarray(store.global_descriptors())
        pairs = class_pairs(labels, store.status == 0)
        return learned_whitening(table[pairs[:, 0]], table[pairs[:, 1]], args.dim), store
    store = FeatureStore(args.store)
    chunks = store.local_chunks() if args.local else store.global_descriptors()
    return pca_whitening(chunks, args.dim, power=0.0 if args.turn else 0.5), store


def check_learned_alike(args: argparse.Namespace, store: FeatureStore) -> None:
    """Raise UserError for whitenings that were learned from descriptors made otherwise."""
    for file, local in ((args.apply, False), (args.apply_local, True)):
        differing = file and not args.across and learned_from_others(file, store.manifest, local)
        if differing:
            raise UserError(f"{file} was learned from descriptors that were made with different {differing} of "
                            f"{store.path}: learn it from such a store, or give --across to apply it all the "
                            "same")


def main() -> None:
    args = parse_args()
    try:
        if not (args.apply or args.apply_local):
            whitening, store = learn(args)
            whitening.save(args.output, made_by(store.manifest, args.local))
            return
        store = FeatureStore(args.store)
        check_learned_alike(args, store)
        project(store, args.output, args.apply and Whitening.load(args.apply, store.dim),
                args.apply_local and Whitening.load(args.apply_local, store.local_dim),
                {name: file_digest(file) for name, file in
                 (("whitening", args.apply), ("local_whitening", args.apply_local)) if file})
    except StoreError as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run(main)
