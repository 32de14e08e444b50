"""Weights of any origin, ours included, into a model."""
import pickle
import re
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dolg.core.weights import ALONE, LAYOUTS, sort_keys, swap_colours
from dolg.errors import UserError
from dolg.models.backbones.timm import TimmBackbone, flat_key
from dolg.models.rrt import RerankingTransformer

# Parameters that a backbone's file cannot have, with a value that needs no training
_UNTRAINED = {"pool.p"}


def read_file(path: str | Path) -> dict:
    """The contents of a .pyth/.pth/.pt or .safetensors file; no code in it is ever run.

    Raises UserError where the file is missing, damaged, or asks for code to be run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is refused, nothing in it was run: {_reason(error)}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a whole PyTorch file: {_reason(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def _reason(error: Exception) -> str:
    """The telling part of torch's long message, in one line."""
    text = " ".join(str(error).split())
    telling = re.search(r"(Unsupported|Trying to|WeightsUnpickler error|Invalid|invalid)[^.]*"
                        r"(\.[^. ]+)*", text)
    return (telling[0] if telling else text)[:200]


def state_dict_of(content: dict) -> dict[str, torch.Tensor]:
    """The tensors of a file: bare, under "model_state" / "state_dict" / "state", or our own, whose
    model is the averaged one where training averaged it."""
    if isinstance(content.get("model"), dict) and isinstance(content.get("loss"), dict):
        parts = {"model": content.get("average") or content["model"], "loss": content["loss"]}
        return {f"{part}.{key}": value for part, state in parts.items()
                for key, value in state.items()}
    for wrapper in ("model_state", "state_dict", "state", "model"):
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    return {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}


def load_weights(module: nn.Module, path: str | Path, start: bool = False,
                 partial: bool = False) -> str:
    """Load a weights file, ours or another code's, into a model, a loss, or a backbone.

    Every parameter and buffer must be in the file, under its name and in its shape. A file of
    a backbone alone will do for a whole model where nothing else has to be learned; with
    `start`, which training uses, it may also leave the head as it is. With `partial` whatever
    fits by name and shape is loaded. Where the network takes its colours in another order than
    the file's code fed them, the first layer is reversed, which gives the same network.

    Returns what was loaded, and what was not. Raises UserError where the file is missing,
    damaged or of another model, naming the keys that differ.
    """
    backbone = getattr(module, "backbone", module)
    layout, parts = read_parts(path, as_timm=isinstance(backbone, TimmBackbone))
    target, given = _match(module, parts)
    if target is None:
        raise UserError(f"{path} ({layout}) has weights of {' and '.join(parts)}, "
                        f"none of a {type(module).__name__}")
    if isinstance(target, TimmBackbone):
        given = _timm_keys(target, given)
    if hasattr(target, "input_spec"):       # a network, not a loss
        colour = LAYOUTS[layout].colour if layout in LAYOUTS else ""
        if colour not in ("", target.input_spec.colour):
            given = swap_colours(given)
    if partial:
        return _load_what_fits(target, given, f"{path} ({layout})")
    return _load_all(module, target, given, f"{path} ({layout})", start)


def read_parts(path: str | Path, as_timm: bool = False) -> tuple[str, dict[str, dict]]:
    """`sort_keys` of a file."""
    state = state_dict_of(read_file(path))
    if not state:
        raise UserError(f"{path} holds no weights")
    return sort_keys(state, str(path), as_timm)


def _load_all(module: nn.Module, target: nn.Module, given: dict, source: str, start: bool) -> str:
    own = target.state_dict()
    missing, unexpected, shapes = compare(own, given)
    if missing or unexpected or shapes:
        raise UserError(f"{source} is not of this {type(module).__name__}: "
                        + describe_difference(missing, unexpected, shapes))
    untouched = set()
    if target is not module:
        rest = set(module.state_dict()) - {f"backbone.{key}" for key in own} - _UNTRAINED
        untouched = {key.split(".")[0] for key in rest}
    if untouched and not start:
        raise UserError(f"{source} has a backbone alone, and this {type(module).__name__} "
                        f"needs {_some(sorted(untouched))} as well: train it (TRAIN.WEIGHTS), or "
                        "give weights of the whole model")
    target.load_state_dict(given)
    left = f"; left as initialised: {_some(sorted(untouched))}" if untouched else ""
    return f"loaded {len(own)} tensors of {source} into {type(target).__name__}{left}"


def _load_what_fits(target: nn.Module, given: dict, source: str) -> str:
    own = target.state_dict()
    missing, unexpected, shapes = compare(own, given)
    fitting = {key: value for key, value in given.items()
               if key in own and own[key].shape == value.shape}
    if not fitting:
        raise UserError(f"{source} has nothing that fits this {type(target).__name__}: "
                        + describe_difference(missing, unexpected, shapes))
    target.load_state_dict(fitting, strict=False)
    lines = [f"loaded {len(fitting)} of {len(own)} tensors of this {type(target).__name__} from "
             f"{source}: {_some(_branches(fitting), 40)}"]
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
