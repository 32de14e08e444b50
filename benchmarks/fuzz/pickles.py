"""Pickles: valid ones of every protocol, mutated, and streams of opcodes that fit together by chance."""
import collections
import pathlib
import pickle
import pickletools
import random
import struct

import numpy as np
import torch

from benchmarks.fuzz.harness import Target
from revisitop.groundtruth import GroundTruthError, load_ground_truth
from revisitop.pickles import PickleError, load_plain_pickle

_NAMES = [f"im{number}" for number in range(4)]
_PLAIN = [
    {"imlist": _NAMES, "qimlist": ["q"], "gnd": [{"bbx": [1.5, 2, 3, 4], "easy": [0], "hard": [1], "junk": [2]}]},
    {"imlist": np.array(_NAMES), "qimlist": np.array(["q"], object),
     "gnd": [{"bbx": np.arange(4.0), "easy": np.array([0, 1]), "hard": {2}, "junk": (np.int64(3),)}]},
    {"imlist": [name.encode() for name in _NAMES], "qimlist": [pathlib.PurePosixPath("a/q")],
     "gnd": np.array([collections.OrderedDict(ok=torch.tensor([0, 2]), junk=range(3, 4))])},
    {name: np.arange(8, dtype=np.float32) * number for number, name in enumerate(_NAMES)},
    {name: torch.arange(6.0).reshape(2, 3).t() for name in _NAMES[:2]},
    {"a.jpg": {"descriptors": np.asfortranarray(np.ones((3, 2), ">f4")), "scores": np.float16([1, 2])}},
    [None, True, -1, 1 << 70, 2.5, b"bytes" * 60, bytearray(b"x"), frozenset("ab"), collections.deque([1]),
     collections.Counter("aab"), collections.defaultdict(list, a=[1]), np.bool_(True), np.str_("s")],
]
_VALID = [pickle.dumps(value, protocol) for value in _PLAIN for protocol in range(6)]
_CODES = [opcode.code.encode("latin1") for opcode in pickletools.opcodes]
_CALLED = ["numpy ndarray", "numpy dtype", "numpy.core.multiarray _reconstruct", "numpy._core.multiarray scalar",
           "numpy.core.numeric _frombuffer", "builtins set", "builtins getattr", "collections OrderedDict",
           "collections deque", "torch._utils _rebuild_tensor_v2", "torch.storage _load_from_bytes",
           "torch FloatStorage", "builtins range", "pathlib PosixPath", "_codecs encode", "os system"]
_TEXTS = [b"O", b"O8", b"f4", b"U3", b"V8", b"b1", b"i8", b"f99999999", b"|", b"<", b"b", b"latin1", b"storage", b"C",
          b"imlist", b"qimlist", b"gnd", b"easy", b"hard", b"", b"A" * 8, b"A" * 64]
_NUMBERS = [0, 1, 2, 3, 8, 255, 256, 65535, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]


def _argument(choose: random.Random, code: bytes) -> bytes:
    """What may follow an opcode."""
    text = choose.choice(_TEXTS)
    if code in b"ci":
        return choose.choice(_CALLED).replace(" ", "\n").encode() + b"\n"
    if code in b"FILPSVgp":
        return choose.choice([b"0", b"1", b"-1", b"7L", b"1e400", b"'abc'", b"9" * choose.choice((3, 9999))]) + b"\n"
    if code in b"K\x80hq\x8a\x82":
        return bytes([choose.choice((0, 1, 2, 3, 5, 255))])
    if code in b"UC\x8c":
        return bytes([len(text)]) + text
    if code in b"TBX":
        return struct.pack("<I", len(text) if choose.random() < 0.9 else choose.choice(_NUMBERS)) + text
    if code in b"\x8d\x8e\x96":
        return struct.pack("<Q", len(text) if choose.random() < 0.9 else choose.choice(_NUMBERS) << 30) + text
    if code in b"Jjr\x8b":
        return struct.pack("<I", choose.choice(_NUMBERS))
    return choose.randbytes({b"M": 2, b"G": 8, b"\x95": 8, b"\x83": 2, b"\x84": 4}.get(code, 0))


def _generated(choose: random.Random) -> bytes:
    codes = choose.choices(_CODES, k=12)        # a few kinds, so that they meet often
    parts = []
    for _ in range(choose.randrange(1, 200)):
        if choose.random() < 0.3:               # a call, with arguments of a likely shape
            arguments = choose.choices((b"X", b"C", b"K", b")", b"]", b"N", b"h", b"J"), k=choose.randrange(7))
            parts += [b"c" + _argument(choose, b"c"), b"(", *(a + _argument(choose, a) for a in arguments), b"tR"]
        else:
            code = choose.choice(codes)
            parts.append(code + _argument(choose, code))
        if choose.random() < 0.3:
            parts.append(choose.choice((b"\x94", b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"2", b"(", b"b", b"a")))
    return b"".join(parts) + b"."


def mutated(choose: random.Random, data: bytes) -> bytes:
    """`data` with a few bytes changed, parts repeated, left out, or cut off."""
    data = bytearray(data)
    for _ in range(choose.randrange(1, 6)):
        at, size = choose.randrange(len(data) + 1), choose.choice((1, 1, 2, 4, 16, 64))
        change = choose.randrange(6)
        if change == 0:
            data[at:at + 1] = choose.choice(_CODES)
        elif change == 1:
            data[at:at + size] = choose.randbytes(size)
        elif change == 2:
            data[at:at] = data[at:at + size] * choose.choice((1, 2, 50))
        elif change == 3:
            del data[at:at + size]
        elif change == 4:
            data[at:at + 4] = struct.pack("<I", choose.choice(_NUMBERS))
        elif choose.random() < 0.2:
            del data[at:]
        else:
            data[at:at + 8] = choose.choice(_TEXTS)
    return bytes(data)


def _make(choose: random.Random) -> tuple[str, bytes]:
    generated = choose.random() < 0.4
    return "gnd_case.pkl", _generated(choose) if generated else mutated(choose, choose.choice(_VALID))


def _read(path: pathlib.Path) -> None:
    """As features, whose every value is looked at, and as a ground truth."""
    repr(load_plain_pickle(path))
    load_ground_truth(path)


PICKLE = Target(_make, _read, (PickleError, GroundTruthError), seconds=5, memory=150 << 20)
