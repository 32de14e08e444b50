"""Weights of any origin, ours included, into a model."""
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dolg.core.weight_files import read_weights
from dolg.core.weights import ALONE, LAYOUTS, sort_keys, strip_wrappers, swap_colours
from dolg.errors import UserError
from dolg.models.backbones.timm import TimmBackbone, flat_key
from dolg.models.rrt import RerankingTransformer

# Parameters that a backbone's file cannot have, with a value that needs no training
_UNTRAINED = {"pool.p"}


def load_weights(module: nn.Module, path: str | Path, start: bool = False,
                 partial: bool = False) -> str:
    """Load a weights file, ours or another code's, into a model, a loss, or a backbone.

    Every parameter and buffer must be in the file, under its name and in its shape, except counters of
    batches, which files from before PyTorch 0.4.1 lack and nothing here uses. A file of
    a backbone alone will do for a whole model where nothing else has to be learned; with
    `start`, which training uses, it may also leave the head as it is. With `partial` whatever
    fits by name and shape is loaded. Where the network takes its colours in another order than
    the file's code fed them, the first layer is reversed, which gives the same network.

    Returns what was loaded, and what was not. Raises UserError where the file is missing,
    damaged or of another model, naming the keys that differ.
    """
    backbone = getattr(module, "backbone", module)
    layout, parts, notes = read_parts(path, as_timm=isinstance(backbone, TimmBackbone))
    source, notes = f"{path} ({layout})", f" [{'; '.join(notes)}]" if notes else ""
    target, given = _match(module, parts)
    if target is None:
        raise UserError(f"{source} has weights of {' and '.join(parts)}, "
                        f"none of a {type(module).__name__}{notes}")
    if isinstance(target, TimmBackbone):
        given = _timm_keys(target, given)
    if hasattr(target, "input_spec"):       # a network, not a loss
        colour = LAYOUTS[layout].colour if layout in LAYOUTS else ""
        if colour not in ("", target.input_spec.colour):
            given = swap_colours(given)
    if partial:
        return _load_what_fits(target, given, source, notes)
    return _load_all(module, target, given, source, notes, start)


class Parts(NamedTuple):
    """The `sort_keys` of a file, and notes on what was taken from it and what was left."""

    layout: str
    parts: dict[str, dict]
    notes: list[str]


def read_parts(path: str | Path, as_timm: bool = False) -> Parts:
    """The weights in a file, under our names. Raises UserError where there are none."""
    state, notes = read_weights(path)
    state, prefix = strip_wrappers(state)
    if prefix:
        notes.append(f"{prefix!r} removed from all names")
    return Parts(*sort_keys(state, str(path), as_timm), notes)


def _load_all(module: nn.Module, target: nn.Module, given: dict, source: str, notes: str, start: bool) -> str:
    own = target.state_dict()
    given = {**{key: value for key, value in own.items() if key.endswith(".num_batches_tracked")}, **given}
    missing, unexpected, shapes = compare(own, given)
    if missing or unexpected or shapes:
        raise UserError(f"{source} is not of this {type(module).__name__}: "
                        f"{describe_difference(missing, unexpected, shapes)}{notes}")
    untouched = set()
    if target is not module:
        rest = set(module.state_dict()) - {f"backbone.{key}" for key in own} - _UNTRAINED
        untouched = {key.split(".")[0] for key in rest}
    if untouched and not start:
        raise UserError(f"{source} has a backbone alone, and this {type(module).__name__} "
                        f"needs {_some(sorted(untouched))} as well: train it (TRAIN.WEIGHTS), or "
                        f"give weights of the whole model{notes}")
    target.load_state_dict(given)
    left = f"; left as initialised: {_some(sorted(untouched))}" if untouched else ""
    return f"loaded {len(own)} tensors of {source} into {type(target).__name__}{notes}{left}"


def _load_what_fits(target: nn.Module, given: dict, source: str, notes: str) -> str:
    own = target.state_dict()
    missing, unexpected, shapes = compare(own, given)
    fitting = {key: value for key, value in given.items()
               if key in own and own[key].shape == value.shape}
    if not fitting:
        raise UserError(f"{source} has nothing that fits this {type(target).__name__}: "
                        f"{describe_difference(missing, unexpected, shapes)}{notes}")
    target.load_state_dict(fitting, strict=False)
    lines = [f"loaded {len(fitting)} of {len(own)} tensors of this {type(target).__name__} from "
             f"{source}: {_some(_branches(fitting), 40)}{notes}"]
    for what, keys in (("left as initialised", missing), ("in the file, not used", unexpected),
                       ("of another shape, left as initialised", shapes)):
        if keys:
            lines.append(f"  {what} ({len(keys)}): {_some(keys, 40)}")
    return "\n".join(lines)


def _branches(state: dict) -> list[str]:
    """The first two parts of the names, each once, in order."""
    return list(dict.fromkeys(".".join(key.split(".")[:2]) for key in state))


def _match(module: nn.Module, parts: dict[str, dict]) -> tuple[nn.Module | None, dict]:
    """What of a file belongs to `module`, or to its backbone: (the receiver, its state)."""
    if "model" in parts and (hasattr(module, "backbone") or isinstance(module, RerankingTransformer)):
        return module, parts["model"]
    if "backbone" in parts and hasattr(module, "backbone"):
        return module.backbone, parts["backbone"]
    if hasattr(module, "channels"):
        prefix = "backbone."
        inside = {key.removeprefix(prefix): value for key, value in parts.get("model", {}).items()
                  if key.startswith(prefix)}
        return module, parts.get("backbone", inside)
    loss = parts.get("loss", {})
    if not set(module.state_dict()) & set(loss):
        # A loss of one term has no name for it
        loss = {key.removeprefix(ALONE): value for key, value in loss.items()}
    return (module, loss) if set(module.state_dict()) & set(loss) else (None, {})


def _timm_keys(backbone: TimmBackbone, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A full timm model's weights under the names of the backbone, without the classifier."""
    own = {flat_key(key): f"body.{key}" for key in backbone.body.state_dict()}
    classifier = backbone.classifier_keys()
    return {own.get(flat_key(key.removeprefix("body.")), key): value
            for key, value in state.items() if key not in classifier}


def compare(own: dict, given: dict) -> tuple[list[str], list[str], list[str]]:
    """Keys that `given` lacks, keys that it has besides, and keys of another shape (said)."""
    missing = sorted(set(own) - set(given))
    unexpected = sorted(set(given) - set(own))
    shapes = [f"{key} {tuple(given[key].shape)} for {tuple(own[key].shape)}"
              for key in sorted(set(own) & set(given)) if own[key].shape != given[key].shape]
    return missing, unexpected, shapes


def describe_difference(missing: list[str], unexpected: list[str], shapes: list[str]) -> str:
    """The result of `compare` in one line."""
    said = [(len(missing), "missing", missing), (len(unexpected), "unexpected", unexpected),
            (len(shapes), "of another shape", shapes)]
    return "; ".join(f"{n} {what}: {_some(keys)}" for n, what, keys in said if n)


def _some(keys: list[str], most: int = 12) -> str:
    more = f", ... ({len(keys) - most} more)" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
