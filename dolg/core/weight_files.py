"""What a file of weights holds, whoever wrote it: read as data, and the state dict found in it."""
import io
import os
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dolg.errors import UserError
from revisitop.pickles import DAMAGE, PickleError, PickleReader, Skipped

# What damaged bytes make torch.load and zipfile raise
_DAMAGE = (*DAMAGE, RuntimeError, AttributeError, AssertionError, ArithmeticError, zipfile.BadZipFile, zlib.error)
# Bytes that an archive may unpack to, and for each of its own; torch.save does not compress
_SLACK, _GROWTH = 64 << 20, 16

# What codes call the state dict in their files, what they call a moving average of it, and what else they
# save that has tensors
_USUAL = {"model_state", "state_dict", "model_state_dict", "state", "model", "net", "network", "weights", "params",
          "module"}
_AVERAGE = re.compile(r"(^|[._])(ema|swa|avg|averaged?|shadow|teacher)($|[._])", re.IGNORECASE)
_ASIDE = re.compile(r"optim|sched|scaler|rng|_metadata", re.IGNORECASE)


class Weights(NamedTuple):
    """The state dict of a file, and `notes` on where it was found and what was left."""

    state: dict[str, torch.Tensor]
    notes: list[str]


class _Refused(UserError):
    """The file asks for more than tensors and plain containers."""


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
        _check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {_reason(error)}") from None
    except pickle.UnpicklingError as error:
        raise _Refused(f"{path} is refused, nothing in it was run: {_reason(error)}") from None
    except _DAMAGE as error:
        raise UserError(f"{path} is not a whole PyTorch file: {_reason(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return content


def read_weights(path: str | Path) -> Weights:
    """The state dict in a file: bare, or under any name, with other things beside it or without.

    What is neither tensors nor plain data is skipped where the weights can be had without it. Raises
    UserError where the file is missing, damaged, or has no weights that can be read as data.
    """
    refusal, skipped = None, []
    try:
        content = read_file(path)
    except _Refused as error:
        content, refusal = _read_archive(Path(path)), error
        skipped = list(_skipped(content))
    found = _find(content)
    if skipped:
        found.notes.append(f"skipped what is not plain data: {_names(skipped)}")
    if not found.state and refusal:
        raise UserError(f"{refusal}. If you trust its origin, save its weights alone, in Python: import torch; "
                        f"content = torch.load({str(path)!r}, map_location='cpu', weights_only=False); "
                        "torch.save(content['state_dict'], 'weights.pth')")
    if not found.state:
        raise UserError(f"{path} holds no weights; it has {_names(map(str, content)) or 'nothing'}")
    return found


def _reason(error: Exception) -> str:
    """The telling part of torch's long message, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    telling = re.search(r"(Unsupported|Trying to|WeightsUnpickler error|Invalid|invalid)[^.]*"
                        r"(\.[^. ]+)*", text)
    return (telling[0] if telling else text)[:200]


# ------------------------------------------------------------------ archives of torch.save

def _is_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\3\4"


def _check_archive(path: Path) -> None:
    """Refuse an archive that would unpack to far more than it has."""
    if not _is_archive(path):
        return
    with zipfile.ZipFile(path) as archive:
        size = sum(record.file_size for record in archive.infolist())
    if size > _SLACK + _GROWTH * path.stat().st_size:
        raise ValueError(f"its {path.stat().st_size / 1e6:.1f} MB would unpack to {size / 1e6:.0f} MB")


def _read_archive(path: Path) -> dict:
    """The contents of an archive of torch.save, with arrays for tensors and `Skipped` for what is not
    plain; empty where they cannot be read without running code."""
    if not _is_archive(path):
        return {}
    memory = min(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), (64 << 20) + 128 * path.stat().st_size)
    try:
        with zipfile.ZipFile(path) as archive:
            records = {record.filename.partition("/")[2]: record for record in archive.infolist()}

            def storage(key: str, size: int) -> bytes:
                record = records[f"data/{key}"]
                if record.file_size != size:
                    raise PickleError(f"its record {key} has {record.file_size} bytes, not {size}")
                return archive.read(record)

            if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
                raise PickleError("its numbers are big-endian")
            data = archive.read(records["data.pkl"])
            content = PickleReader(io.BytesIO(data), memory, storage, skip=True).load_whole()
    except (PickleError, *_DAMAGE) as error:
        raise UserError(f"{path} is refused, nothing in it was run: {_reason(error)}") from None
    return content if isinstance(content, dict) else {}


# ------------------------------------------------------------------ finding the state dict

def _find(content: dict) -> Weights:
    if isinstance(content.get("model"), dict) and isinstance(content.get("loss"), dict):       # our own
        parts = {"model": content.get("average") or content["model"], "loss": content["loss"]}
        return Weights({f"{part}.{key}": value for part, state in parts.items()
                        for key, value in _tensors(state).items()}, [])
    found = dict(_state_dicts(content, "", set()))
    if not found:
        return Weights({}, [])
    enough = max(map(len, found.values())) / 2
    whole = [name for name, state in found.items() if len(state) >= enough]
    taken = min(whole, key=lambda name: (bool(_AVERAGE.search(name)), name.split(".")[-1] not in _USUAL,
                                         -len(found[name])))
    notes = [f"taken from {taken!r}"] if taken else []
    if others := [name for name in whole if name != taken]:
        notes.append(f"{_names(map(repr, others))} {'hold' if len(others) > 1 else 'holds'} weights as well")
    return Weights(found[taken], notes)


def _state_dicts(content: dict, name: str, seen: set[int], depth: int = 4) -> Iterator[tuple[str, dict]]:
    """The dictionaries that have tensors, by their dotted names, outermost first."""
    seen.add(id(content))
    if tensors := _tensors(content):
        yield name, tensors
    for key, value in content.items():
        if isinstance(value, dict) and isinstance(key, str) and depth and id(value) not in seen \
                and not _ASIDE.search(key):
            yield from _state_dicts(value, f"{name}.{key}".lstrip("."), seen, depth - 1)


def _tensors(state: dict) -> dict[str, torch.Tensor]:
    """The dense tensors of a dictionary; arrays become tensors."""
    tensors = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
               else value for key, value in state.items() if isinstance(key, str)}
    return {key: value for key, value in tensors.items()
            if isinstance(value, torch.Tensor) and _is_plain(value)}


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has its numbers in memory, each of them: one of a few repeated 10^12 times, which a
    file may claim, would be written out by the first step that changes it."""
    return (tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
            and not tensor.is_nested
            and tensor.numel() * tensor.element_size() <= (1 << 20) + 16 * tensor.untyped_storage().nbytes())


def _skipped(content: dict) -> Iterator[str]:
    for key, value in content.items():
        if isinstance(value, Skipped):
            yield f"{key} ({value.name})"
        elif isinstance(value, dict):
            yield from (f"{key}.{name}" for name in _skipped(value))


def _names(names, most: int = 6) -> str:
    names = [name[:80] for name in names]
    return ", ".join(names[:most]) + (f", ... ({len(names) - most} more)" if len(names) > most else "")
