"""Rerank: python tools/rerank.py --cfg FILE [--methods A,B+C] [KEY VALUE ...]"""
from dolg.config import load_cfg
from dolg.core.cli import config_parser, parse_with_keys, run
from dolg.core.distributed import process_group
from dolg.errors import UserError
from dolg.rerank.run import rerank
from revisitop import GroundTruthError, StoreError
from revisitop.commands import ACROSS


def main() -> None:
    parser = config_parser("Rerank what a search found, and score it; started again, it goes on with the "
                           "pairs that it has not scored yet. Under torchrun each process does its share.")
    parser.add_argument("--methods", default="", metavar="A,B+C",
                        help="several methods in one table, + joins a chain; default: RERANK.METHOD")
    parser.add_argument("--across", action="store_true", help=ACROSS)
    args = parse_with_keys(parser)
    cfg = load_cfg(args.cfg, args.opts)
    chains = [chain.split("+") for chain in args.methods.split(",") if chain]
    try:
        with process_group(cfg.DEVICE):
            rerank(cfg, chains, args.across)
    except (StoreError, GroundTruthError) as error:
        raise UserError(str(error)) from None


if __name__ == "__main__":
    run(main)
