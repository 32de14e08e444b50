"""What a model or a feature store is made of.

    python tools/info.py --cfg FILE [KEY VALUE ...]     parts, parameters and multiply-adds
    python tools/info.py STORE [STORE ...]              how much is there, what failed, what made it
"""
import json
import sys
from pathlib import Path

import torch

from dolg.config import load_cfg
from dolg.core.cli import config_parser, parse_with_keys, run
from dolg.errors import UserError
from dolg.features.status import describe_store
from dolg.files import write_atomically
from dolg.losses import build_loss
from dolg.losses.builders import MATCHERS
from dolg.models import build_model
from dolg.models.complexity import complexity


def main() -> None:
    if sys.argv[1:] and not any(argument.startswith("-") for argument in sys.argv[1:]):
        for store in sys.argv[1:]:
            print(describe_store(Path(store)))
    else:
        show_model()


def show_model() -> None:
    parser = config_parser("Count a model's parameters, multiply-adds and activations; or, given "
                           "folders alone, say what is in these feature stores.")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"),
                        help="size of the image (default: TRAIN.IM_SIZE, a square)")
    parser.add_argument("--depth", type=int, default=2, metavar="N",
                        help="how far to take the model apart (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the counts to FILE")
    args = parse_with_keys(parser)
    cfg = load_cfg(args.cfg, args.opts)
    size = args.size or [cfg.TRAIN.IM_SIZE] * 2
    if min(size) < 1:
        raise UserError(f"--size is {size[0]} {size[1]}: give pixels, at least 1")
    with torch.device("meta"):
        model = build_model(cfg)
        loss = build_loss(cfg) if cfg.MODEL.ARCH in MATCHERS else build_loss(
            cfg, model.dims, torch.ones(cfg.MODEL.NUM_CLASSES, device="cpu"))
    pair_of = cfg.MODEL.RRT.LOCALS if cfg.MODEL.ARCH == "rrt" else 0
    parts = complexity(model, *size, depth=args.depth, pair_of=pair_of)
    classes = sum(p.numel() for p in loss.parameters())
    print(f"rrt, a pair of images of {pair_of} local features" if pair_of else
          f"{cfg.MODEL.ARCH} on {cfg.TIMM.NAME or f'ResNet-{cfg.MODEL.DEPTH}'}, an image of "
          f"{size[0]} x {size[1]} pixels; descriptor of {model.dim} dimensions, {model.input_spec.colour}")
    width = max(len(part.name) for part in parts) + 2
    print(f"{'':{width}}{'parameters':>14}{'multiply-adds':>18}{'activations':>15}")
    for part in (*parts[1:], parts[0]):
        print(f"{part.name:{width}}{part.parameters:>14,}{part.multiply_adds:>18,}"
              f"{part.activations:>15,}")
    print(f"{'in training':{width}}{parts[0].parameters + classes:>14,}  with the loss's {classes:,}"
          f" for {cfg.MODEL.NUM_CLASSES:,} classes")
    if args.json:
        write_atomically(args.json, json.dumps(
            {"size": size, "dim": model.dim, "loss_parameters": classes,
             "parts": [vars(part) for part in parts]}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
