"""Time the parts of training: python tools/time_net.py --cfg FILE [--steps N] [KEY VALUE ...]"""
import json
import tempfile
from pathlib import Path

from dolg.config import load_cfg
from dolg.core.cli import config_parser, parse_with_keys, run
from dolg.core.distributed import device, is_main, launch, world_size
from dolg.core.timing import make_photographs, time_parts
from dolg.core.trainer import Trainer


def main() -> None:
    parser = config_parser("Time the network, its update, the loader and whole training steps, to "
                           "see which of them holds up the others. Nothing is written.")
    parser.add_argument("--steps", type=int, default=20, help="steps to time (20)")
    parser.add_argument("--made-images", action="store_true",
                        help="time with made photographs of 1024 x 768 instead of TRAIN.DATASET")
    parser.add_argument("--json", metavar="FILE", help="write the seconds per step as well")
    args = parse_with_keys(parser)
    cfg = load_cfg(args.cfg, args.opts)
    with tempfile.TemporaryDirectory() as folder:
        changes = ["OUT_DIR", f"{folder}/run", "TRAIN.CHECKPOINT_MINUTES", "0"]
        if args.made_images:
            make_photographs(Path(folder), 8 * cfg.TRAIN.BATCH_SIZE, cfg.MODEL.NUM_CLASSES)
            changes += ["DATA_DIR", folder, "TRAIN.DATASET", ".", "TRAIN.SPLIT", "list.txt",
                        "TEST.DATASET", "", "TRAIN.IMAGES_PER_CLASS", "0"]
        cfg = load_cfg(args.cfg, [*args.opts, *changes])
        launch(measure, cfg.NUM_GPUS, cfg, args.steps, args.json, device_name=cfg.DEVICE)


def measure(cfg, steps: int, file: str | None) -> None:
    """Print the table; write `file` if there is one."""
    seconds = time_parts(Trainer(cfg), steps)
    if not is_main():
        return
    print(f"{cfg.MODEL.ARCH}, {cfg.TRAIN.BATCH_SIZE} x {cfg.TRAIN.IM_SIZE} x {cfg.TRAIN.IM_SIZE}, "
          f"{cfg.MODEL.NUM_CLASSES} classes, {cfg.PRECISION}, {world_size()} process(es) on "
          f"{device(cfg.DEVICE).type}, mean of {steps} steps")
    for name, value in seconds.items():
        print(f"{name:22s}{1000 * value:10.1f} ms/step{cfg.TRAIN.BATCH_SIZE / value:10.1f} images/s")
    if seconds["loader"] > seconds["update"]:
        print("the loader is slower than the update: more DATA_LOADER.NUM_WORKERS, smaller images "
              "on disk, or DATA_LOADER.ON_DEVICE")
    else:
        print("the update is slower than the loader: the data keep up")
    if file:
        Path(file).write_text(json.dumps(seconds, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
