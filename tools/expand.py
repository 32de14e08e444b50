"""Query expansion, database-side augmentation, k-reciprocal re-ranking and diffusion; see --help."""
import argparse
import json
from pathlib import Path

from dolg.core.cli import run
from dolg.core.distributed import device
from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.files import write_atomically
from dolg.search.collection import Collection
from dolg.search.expansion import augment_stores, expand_store
from dolg.search.methods import DEFAULTS, make_ranking
from dolg.search.rankings import evaluate_ranking
from revisitop import GroundTruthError, StoreError, format_table, load_ground_truth

COMMANDS = {
    "aqe": "write queries averaged with their n nearest database images",
    "alpha": "the same, each image weighted by its similarity to the power alpha",
    "dba": "write database images averaged with their n nearest others, weighted likewise",
    "kreciprocal": "rerank by k-reciprocal neighbours (Zhong et al., CVPR 2017)",
    "diffusion": "rank by diffusion on the graph of mutual neighbours (Yang et al., AAAI 2019)"}
SETTINGS = {"aqe": {"n": 10}, **dict.fromkeys(("alpha", "dba"), {"n": 10, "alpha": 3.0}), **DEFAULTS}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Rank with the neighbours' help: see dolg/search.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        add = commands.add_parser(name, help=text, description=text).add_argument
        add("--database", type=Path, nargs="+", required=True, metavar="STORE",
            help="the database, then distractors")
        if name != "dba":
            add("--query", type=Path, required=True, metavar="STORE")
        add("--output", type=Path, required=True, nargs="+" if name == "dba" else None, metavar="PATH",
            help="the new store (dba: of each of --database, or of the first few), or ranking (.npz)")
        if name in (*DEFAULTS, "dba"):
            add("--neighbours", type=Path, metavar="FOLDER", help="the database's, found if not there")
        if name in DEFAULTS:
            add("--gnd", type=Path, metavar="FILE.pkl", help="evaluate with this ground truth")
            add("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
        for key, value in SETTINGS[name].items():
            add(f"--{key.replace('_', '-')}", type=type(value), default=value, help=f"default: {value}")
        add("--device", choices=("auto", "cpu"), default="auto", help="auto: a GPU if there is one")
    return parser.parse_args()


def rank(args: argparse.Namespace, database: Collection, settings: dict) -> None:
    query, folder = FeatureStore(args.query), args.neighbours or Path(f"{args.output}.neighbours")
    if args.json and not args.gnd:
        raise UserError("--json needs the ground truth: give --gnd, too")
    ground_truth = args.gnd and load_ground_truth(args.gnd)
    ranking = make_ranking(args.command, query, database, folder, settings, device(args.device))
    ranking.save(args.output)
    if ground_truth is not None:
        result = evaluate_ranking(ground_truth, ranking, query, database.stores[0], database.stores[1:])
        print(format_table(result))
        if args.json:
            write_atomically(args.json, json.dumps(result, indent=1, allow_nan=False) + "\n")


def main() -> None:
    args = parse_args()
    place = device(args.device)
    settings = {key: getattr(args, key) for key in SETTINGS[args.command]}
    try:
        database = Collection([FeatureStore(path) for path in args.database])
        if args.command in DEFAULTS:
            rank(args, database, settings)
        elif args.command == "dba":
            augment_stores(database, args.output, **settings, folder=args.neighbours, device=place)
        else:
            expand_store(FeatureStore(args.query), database, args.output, **settings, device=place)
    except (StoreError, GroundTruthError) as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run(main)
