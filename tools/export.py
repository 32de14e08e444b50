"""The descriptor network as a file for PyTorch (.pt2) or ONNX (.onnx), checked against the original."""
import argparse
import time
from pathlib import Path

from dolg.config import load_cfg
from dolg.core.cli import config_parser, parse_with_keys, run
from dolg.errors import UserError
from dolg.export import TOLERANCE, export
from dolg.features.describer import load


def arguments() -> argparse.Namespace:
    parser = config_parser(
        "Write the descriptor network to a file that runs without this package: from images (B,3,H,W) of "
        "any size, float32, RGB, 0 to 255, to descriptors of unit length. It is tried on several sizes and "
        f"not written where a descriptor is off by more than {TOLERANCE:g}.")
    parser.add_argument("--weights", metavar="FILE", default="",
                        help="default: TEST.WEIGHTS, or the newest checkpoint in OUT_DIR")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True,
                        help="model.pt2 (torch.export) or model.onnx")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"),
                        help="for images of one size alone, which transformers need")
    return parse_with_keys(parser)


def main() -> None:
    args = arguments()
    if args.output.suffix not in (".pt2", ".onnx"):
        raise UserError(f"--output is {args.output}: let it end in .pt2 (torch.export) or .onnx")
    describer = load(load_cfg(args.cfg, args.opts), args.weights)
    start = time.perf_counter()
    difference = export(describer, args.output, args.size and tuple(args.size))
    print(f"{args.output}: {describer.settings['model']}, {describer.dim} dimensions, "
          f"{args.output.stat().st_size / 1e6:.1f} MB, in {time.perf_counter() - start:.1f} s; largest "
          f"difference to the network {difference:.2g} (allowed: {TOLERANCE:g})")


if __name__ == "__main__":
    run(main)
