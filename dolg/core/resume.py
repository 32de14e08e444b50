"""Going on from a checkpoint: the same run, and the same random numbers."""
from pathlib import Path

import torch
import yaml

from dolg.core.distributed import gather, rank
from dolg.errors import UserError

# Keys that change what is computed. The others (paths, workers, logging, testing) may change
# between two sittings of one run, and OPTIM.MAX_EPOCH may grow.
_SECTIONS = ("MODEL", "INPUT", "TIMM", "RESNET", "BN", "LOSS", "OPTIM")
_KEYS = ("TRAIN.DATASET", "TRAIN.SPLIT", "TRAIN.BATCH_SIZE", "TRAIN.IM_SIZE", "TRAIN.CROP_AREA",
         "TRAIN.RESIZE", "TRAIN.LIGHTING", "TRAIN.IMAGES_PER_CLASS", "PRECISION", "RNG_SEED")


def check_same_run(cfg, state: dict, path: Path) -> None:
    """Raise UserError where the checkpoint `state` lacks a part or was made by other settings."""
    lacking = {"model", "loss", "optimizer", "scaler", "epoch", "rng", "cfg"} - set(state)
    if lacking:
        raise UserError(f"{path} is no checkpoint of a run: it lacks {', '.join(sorted(lacking))}")
    before, now = _settings(yaml.safe_load(state["cfg"])), _settings(yaml.safe_load(cfg.dump()))
    changed = [f"{key} was {before.get(key)!r}, is {now[key]!r}"
               for key in now if before.get(key) != now[key]]
    if changed:
        raise UserError(f"{path} was made by other settings: {'; '.join(changed)}. Give another "
                        f"OUT_DIR (and TRAIN.WEIGHTS {path} to start from these weights)")


def _settings(tree: dict) -> dict:
    """The keys of a configuration that change what is computed."""
    flat = {f"{section}.{key}": value for section in _SECTIONS
            for key, value in tree.get(section, {}).items()}
    for name in _KEYS:
        section, _, key = name.rpartition(".")
        flat[name] = (tree.get(section, {}) if section else tree).get(key)
    del flat["OPTIM.MAX_EPOCH"]
    return flat


def rng_states() -> list[dict[str, torch.Tensor]]:
    """The generators' states of every process, by rank (each process must call this)."""
    mine = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        mine["cuda"] = torch.cuda.get_rng_state()
    return gather(mine)


def restore_rng(states: list[dict[str, torch.Tensor]]) -> None:
    """Set this process's generators as they were; more processes than then keep their own."""
    if rank() < len(states):
        mine = states[rank()]
        torch.set_rng_state(mine["cpu"])
        if "cuda" in mine and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["cuda"])
