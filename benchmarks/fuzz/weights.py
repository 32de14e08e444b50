"""Files of weights: those of torch.save, old and new, and of safetensors, with their pickles, records and
bytes changed."""
import argparse
import io
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from benchmarks.fuzz.harness import Target
from benchmarks.fuzz.pickles import mutated
from dolg.core.weight_files import read_weights
from dolg.core.weights import sort_keys, strip_wrappers, swap_colours
from dolg.errors import UserError

_STATE = OrderedDict({"module.stem.conv.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
                      "module.stem.bn.bias": torch.ones(3, dtype=torch.bfloat16),
                      "module.s1.weight": torch.arange(12).reshape(3, 4).t(),
                      "module.s1.mask": torch.tensor([True])})
_CONTENTS = [_STATE, {"state_dict": _STATE, "ema": dict(_STATE), "epoch": 3},
             {"model_state": _STATE, "args": argparse.Namespace(rate=0.1), "best": np.float64(0.5)},
             {"net": {key: torch.nn.Parameter(value.float()) for key, value in _STATE.items()},
              "mean": np.arange(3.0)}]


def _saved(content: dict, archive: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=archive)
    return file.getvalue()


_ARCHIVES = [_saved(content, True) for content in _CONTENTS]
_LEGACY = [_saved(content, False) for content in _CONTENTS[:2]]
_SAFE = save({key: value.contiguous() for key, value in _STATE.items()})


def _rewritten(choose: random.Random, data: bytes) -> bytes:
    """An archive whose checksums are right and whose contents are not."""
    file = io.BytesIO()
    compression = choose.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for record in old.infolist():
            content = old.read(record)
            if record.filename.endswith("data.pkl"):
                content = mutated(choose, content)
            elif choose.random() < 0.1:
                bomb = compression == zipfile.ZIP_DEFLATED and choose.random() < 0.01
                zeros = bytes(100 << 20 if bomb else 9)
                content = choose.choice((b"", content * 2, content[:-1], zeros))
            if choose.random() < 0.97:
                new.writestr(record.filename, content)
    return file.getvalue()


def _make(choose: random.Random) -> tuple[str, bytes]:
    kind = choose.random()
    if kind < 0.6:
        return "case.pth", _rewritten(choose, choose.choice(_ARCHIVES))
    if kind < 0.75:
        return "case.pth", mutated(choose, choose.choice(_ARCHIVES))
    if kind < 0.9:
        return "case.pth", mutated(choose, choose.choice(_LEGACY))
    return "case.safetensors", mutated(choose, _SAFE)


def _read(path: Path) -> None:
    """All that is done with tensors before their shapes are compared with a network's, and a sum of them."""
    state, _ = strip_wrappers(read_weights(path).state)
    for tensors in sort_keys(state, str(path))[1].values():
        for tensor in swap_colours(tensors).values():
            tensor.double().sum().item()


WEIGHTS = Target(_make, _read, (UserError,), seconds=10, memory=400 << 20)
