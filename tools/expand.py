"""Query expansion, database-side augmentation, k-reciprocal re-ranking and diffusion; see --help."""
import argparse
from pathlib import Path

from dolg.core.cli import run
from dolg.core.distributed import device
from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.search.collection import Collection
from dolg.search.expansion import augment_stores, expand_store
from dolg.search.methods import (
    DEFAULTS, SETTINGS, check_outputs, load_truth, make_ranking, show_scores)
from dolg.search.rankings import Ranking
from revisitop import GroundTruthError, StoreError
from revisitop.commands import ACROSS
from revisitop.evaluation import warn_unrecorded

COMMANDS = {
    "aqe": "write queries averaged with their n nearest database images",
    "alpha": "the same, each image weighted by its similarity to the power alpha",
    "dba": "write database images averaged with their n nearest others, weighted likewise",
    "kreciprocal": "rerank by k-reciprocal neighbours (Zhong et al., CVPR 2017)",
    "diffusion": "rank by diffusion on the graph of mutual neighbours (Yang et al., AAAI 2019)",
    "evaluate": "evaluate a ranking that one of the last two wrote"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rank with the neighbours' help: see dolg/search.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        add = commands.add_parser(name, help=text, description=text).add_argument
        add("--across", action="store_true", help=ACROSS)
        add("--database", type=Path, nargs="+", required=True, metavar="STORE", help="then distractors")
        if name != "dba":
            add("--query", type=Path, required=True, metavar="STORE")
        if name in (*DEFAULTS, "evaluate"):
            add("--gnd", type=Path, metavar="FILE.pkl", required=name == "evaluate", help="to evaluate")
            add("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
        if name == "evaluate":
            add("ranking", type=Path, metavar="FILE.npz", help="the stores must be those it was made of")
            continue
        add("--output", type=Path, required=True, nargs="+" if name == "dba" else None, metavar="PATH",
            help="the new store (dba: of each of --database, or of the first few), or ranking (.npz)")
        if name in (*DEFAULTS, "dba"):
            add("--neighbours", type=Path, metavar="FOLDER", help="the database's, found if not there")
        for key, value in SETTINGS[name].items():
            add(f"--{key.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}")
        add("--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU if there is one")
    return parser.parse_args()


def rank(args: argparse.Namespace, query: FeatureStore, database: Collection, settings: dict) -> None:
    check_outputs(getattr(args, "output", None), args.json, args.gnd)
    ground_truth = load_truth(args.gnd, query, database)
    if args.command == "evaluate":
        ranking = Ranking.load(args.ranking)
    else:
        folder = args.neighbours or Path(f"{args.output}.neighbours")
        ranking = make_ranking(args.command, query, database, folder, settings, device(args.device))
        ranking.save(args.output)
    if ground_truth:
        first, *others = args.database
        files = {"ground_truth": args.gnd, "query": args.query, "database": first, "distractors": others,
                 "lists": getattr(args, "ranking", None) or args.output}
        show_scores(ground_truth, ranking, query, database, args.json, files)


def main() -> None:
    args = parse_args()
    settings = {key: getattr(args, key) for key in SETTINGS.get(args.command, ())}
    place = device(getattr(args, "device", "cpu"))
    try:
        database = Collection([FeatureStore(path, args.across) for path in args.database])
        query = None if args.command == "dba" else FeatureStore(args.query, args.across)
        if args.command == "dba":
            augment_stores(database, args.output, **settings, folder=args.neighbours, device=place)
        elif args.command in ("aqe", "alpha"):
            expand_store(query, database, args.output, **settings, device=place)
        else:
            rank(args, query, database, settings)
        warn_unrecorded([*([query] if query else []), *database.stores])
    except (StoreError, GroundTruthError) as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run(main)
