"""Extract descriptors: python tools/infer.py --cfg FILE [KEY VALUE ...]"""
from dolg.core.cli import config_from_args, run
from dolg.core.distributed import launch
from dolg.features.run import infer


def main() -> None:
    cfg = config_from_args("Extract descriptors into feature stores; started again, it computes "
                           "what is missing.")
    launch(infer, cfg.NUM_GPUS, cfg, device_name=cfg.DEVICE)


if __name__ == "__main__":
    run(main)
