"""Write a weights file in another layout: see --help."""
import torch

from dolg.config import load_cfg
from dolg.core.checkpoint import load_weights, read_parts
from dolg.core.cli import config_parser, parse_with_keys, run
from dolg.core.weights import ALONE, LAYOUTS, swap_colours, unsort_keys
from dolg.errors import choose
from dolg.files import atomic_file
from dolg.losses import build_loss
from dolg.losses.base import SumOfLosses
from dolg.models import build_model

OURS = "dolg checkpoint"


def main() -> None:
    parser = config_parser("Read weights of the configured model in any layout that is known, check "
                           "them against the model, and write them in the layout asked for.")
    parser.add_argument("--from", dest="source", required=True, metavar="FILE", help="the weights")
    parser.add_argument("--output", required=True, metavar="FILE", help="a .pyth file to write")
    parser.add_argument("--to", default=OURS, metavar="LAYOUT",
                        help=f"{', '.join(LAYOUTS)} (default: {OURS}); the classifier of an "
                             "ImageNet backbone is not kept")
    args = parse_with_keys(parser)
    layout = choose(LAYOUTS, args.to, "--to")
    cfg = load_cfg(args.cfg, args.opts)
    model = build_model(cfg)
    print(load_weights(model, args.source))
    parts = {"model": model.state_dict()}
    if "loss" in read_parts(args.source)[1]:
        loss = build_loss(cfg, model.dims, torch.ones(cfg.MODEL.NUM_CLASSES))
        print(load_weights(loss, args.source))
        parts["loss"] = loss.state_dict()
    if args.to == OURS:
        content = {**parts, "cfg": cfg.dump()}
    else:
        if layout.colour not in ("", model.input_spec.colour):
            parts["model"] = swap_colours(parts["model"])
        if "loss" in parts and not isinstance(loss, SumOfLosses):
            parts["loss"] = {ALONE + key: value for key, value in parts["loss"].items()}
        content = {"model_state": unsort_keys(parts, args.to)}
    with atomic_file(args.output) as file:
        torch.save(content, file)
    print(f"wrote {args.output} ({args.to})")


if __name__ == "__main__":
    run(main)
