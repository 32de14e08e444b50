"""Going on from a checkpoint: the same run, the same random numbers, whole weights."""
from pathlib import Path

import torch
import yaml
from torch import nn

from dolg.config import get_cfg
from dolg.core.distributed import gather, rank
from dolg.core.logging import say
from dolg.core.saving import Position
from dolg.errors import UserError
from dolg.losses.shards import ClassShard, sharded_parameters

# Keys that change what is computed. The others (paths, workers, logging, testing) may change
# between two sittings of one run, and OPTIM.MAX_EPOCH may grow.
_SECTIONS = ("MODEL", "INPUT", "TIMM", "RESNET", "BN", "LOSS", "OPTIM")
_KEYS = ("TRAIN.DATASET", "TRAIN.SPLIT", "TRAIN.BATCH_SIZE", "TRAIN.IM_SIZE", "TRAIN.CROP_AREA",
         "TRAIN.RESIZE", "TRAIN.LIGHTING", "TRAIN.IMAGES_PER_CLASS", "TRAIN.EMA", "TRAIN.PAIRS",
         "DATA_LOADER.REDUCED_DECODE", "PRECISION", "RNG_SEED")
# Keys of those sections that may change all the same
_FREE_TO_CHANGE = ("OPTIM.MAX_EPOCH", "LOSS.SHARD_CLASSES")


def check_same_run(cfg, state: dict, path: Path) -> None:
    """Raise UserError where the checkpoint `state` lacks a part or was made by other settings."""
    lacking = {"model", "loss", "optimizer", "scaler", "epoch", "rng", "cfg"} - set(state)
    if lacking:
        raise UserError(f"{path} is no checkpoint of a run: it lacks {', '.join(sorted(lacking))}")
    # Keys that are newer than the checkpoint had no other value than their default
    before = {**_settings(yaml.safe_load(get_cfg().dump())),
              **_settings(yaml.safe_load(state["cfg"]))}
    now = _settings(yaml.safe_load(cfg.dump()))
    changed = [f"{key} was {before[key]!r}, is {now[key]!r}"
               for key in now if before[key] != now[key]]
    if changed:
        raise UserError(f"{path} was made by other settings: {'; '.join(changed)}. Give another "
                        f"OUT_DIR (and TRAIN.WEIGHTS {path} to start from these weights)")


def check_epochs(cfg, before: str, position: Position) -> None:
    """Raise UserError where the run is farther than OPTIM.MAX_EPOCH; say where the end has changed since
    the configuration `before`, on which the learning rate depends."""
    now, then = cfg.OPTIM.MAX_EPOCH, yaml.safe_load(before)["OPTIM"]["MAX_EPOCH"]
    if position > (now, 0):
        raise UserError(f"the run in {cfg.OUT_DIR} has {position} done, more than OPTIM.MAX_EPOCH {now}: "
                        "give at least as many epochs, or another OUT_DIR (TEST.WEIGHTS may name an earlier "
                        "checkpoint)")
    if now != then:
        say(f"OPTIM.MAX_EPOCH was {then}, is {now}: the learning rate follows the new end from here on")


def _settings(tree: dict) -> dict:
    """The keys of a configuration that change what is computed."""
    flat = {f"{section}.{key}": value for section in _SECTIONS
            for key, value in tree.get(section, {}).items()}
    for name in _KEYS:
        section, _, key = name.rpartition(".")
        keys = tree.get(section, {}) if section else tree
        if key in keys:
            flat[name] = keys[key]
    return {name: value for name, value in flat.items() if name not in _FREE_TO_CHANGE}


def whole_loss_state(loss: nn.Module) -> dict[str, torch.Tensor | None]:
    """The loss's state with the weights of all processes' classes, on the main process (each must
    call this); on the others these are None."""
    state = loss.state_dict()
    for name, shard in sharded_parameters(loss).items():
        state[name] = shard.gather(state[name])
    return state


def whole_optimizer_state(optimizer: torch.optim.Optimizer, loss: nn.Module) -> dict:
    """As `whole_loss_state`, what the optimizer remembers of each parameter."""
    state = optimizer.state_dict()
    for index, shard in _sharded_indexes(optimizer, loss).items():
        state["state"][index] = {
            name: shard.gather(value) if _has_rows(value) else value
            for name, value in state["state"].get(index, {}).items()}
    return state


def load_optimizer_state(optimizer: torch.optim.Optimizer, loss: nn.Module, state: dict) -> None:
    """Give the optimizer a whole state, of which it takes its process's part."""
    remembered = dict(state["state"])
    for index, shard in _sharded_indexes(optimizer, loss).items():
        remembered[index] = {name: shard.part(value) if _has_rows(value) else value
                             for name, value in remembered.get(index, {}).items()}
    optimizer.load_state_dict({**state, "state": remembered})


def _has_rows(value) -> bool:
    """Whether a value of an optimizer is per element of the parameter (others are counts)."""
    return isinstance(value, torch.Tensor) and value.ndim > 1


def _sharded_indexes(optimizer: torch.optim.Optimizer, loss: nn.Module) -> dict[int, ClassShard]:
    """By the number that the optimizer gives to a parameter: how it is shared out."""
    shards, parameters = sharded_parameters(loss), dict(loss.named_parameters())
    shard_of = {id(parameters[name]): shard for name, shard in shards.items()}
    inside = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {index: shard_of[id(parameter)] for index, parameter in enumerate(inside)
            if id(parameter) in shard_of}


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
