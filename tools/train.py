"""Train a model: python tools/train.py --cfg FILE [KEY VALUE ...]"""
from dolg.config_checks import check_batches
from dolg.core.cli import config_from_args, run
from dolg.core.distributed import launch
from dolg.core.trainer import train


def main() -> None:
    cfg = config_from_args("Train a retrieval model; started again, it goes on where it stopped.")
    check_batches(cfg)
    launch(train, cfg.NUM_GPUS, cfg, device_name=cfg.DEVICE, max_restarts=cfg.MAX_RESTARTS)


if __name__ == "__main__":
    run(main)
