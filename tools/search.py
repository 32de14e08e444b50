"""Indexes of feature stores: built, extended, queried (under torchrun, spread), asked with a photograph,
measured; the nearest neighbours of all images; --help."""
import argparse

from dolg.core.cli import run
from dolg.core.distributed import device, is_main, process_group
from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.search.arguments import parse_args
from dolg.search.indexes import Index, add_to_index, build_index
from dolg.search.listing import list_neighbours
from dolg.search.measuring import measure, show_measures
from dolg.search.queries import search_indexes, show_results
from dolg.serve.command import ask
from revisitop import GroundTruthError, StoreError, load_ground_truth
from revisitop.evaluation import warn_unrecorded


def search(args: argparse.Namespace) -> None:
    if args.command in ("build", "add"):
        stores = [FeatureStore(path, args.across) for path in args.stores]
        index = add_to_index(args.index, stores) if args.command == "add" else build_index(
            args.index, stores, args.kind, args.bytes, args.lists, args.train, args.seed)
        print(index.summary())
        warn_unrecorded(index.stores() if len(index.stores()) > 1 else [])
    elif args.command == "query" and args.image:
        ask(args)
    elif args.command == "query":
        with process_group("cpu"):
            query = FeatureStore(args.query, args.across)
            results = search_indexes(args.indexes, query, args.top, args.probes, args.gpu)
            if is_main():
                show_results(results, args.output)
                warn_unrecorded([query])
    else:
        indexes = [Index(path, args.probes, args.gpu) for path in args.indexes]
        stores = [FeatureStore(path, args.across) for path in args.stores]
        if args.command == "neighbours":
            print(list_neighbours(stores, args.output, args.top, indexes, args.probes, device(args.device)))
        else:
            truth = args.gnd and load_ground_truth(args.gnd)
            rows = measure(indexes, FeatureStore(args.query), stores, truth, args.depth)
            show_measures(rows, args.json)
        warn_unrecorded(stores if len(stores) > 1 else [])


def main() -> None:
    try:
        search(parse_args(__doc__))
    except (StoreError, GroundTruthError) as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run(main)
