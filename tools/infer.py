"""Extract descriptors: python tools/infer.py --cfg FILE [options] [KEY VALUE ...]"""
from dolg.config import load_cfg
from dolg.core.cli import config_parser, parse_with_keys, run
from dolg.core.distributed import launch
from dolg.errors import UserError
from dolg.features.run import check_all, estimate_all, infer


def main() -> None:
    parser = config_parser("Extract descriptors into feature stores; started again, it computes "
                           "what is missing.")
    parser.add_argument("--estimate", action="store_true",
                        help="try some images and say what all will take: time, memory, disk")
    parser.add_argument("--check", action="store_true",
                        help="only see whether the stores are whole, and name what is missing")
    parser.add_argument("--contents", action="store_true",
                        help="with --check: read all images again, and compare what is in them")
    parser.add_argument("--retry-failed", action="store_true",
                        help="describe images again that failed, and those whose files have changed since")
    args = parse_with_keys(parser)
    if args.contents and not args.check:
        parser.error("--contents goes with --check")
    cfg = load_cfg(args.cfg, args.opts)
    if args.check:
        check_all(cfg, args.contents)
    elif args.estimate:
        estimate_all(cfg)
    elif not launch(infer, cfg.NUM_GPUS, cfg, args.retry_failed, device_name=cfg.DEVICE,
                    max_restarts=cfg.MAX_RESTARTS, grouped=False):
        raise UserError("stopped before all was done: the same command goes on from there")


if __name__ == "__main__":
    run(main)
