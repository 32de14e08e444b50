"""Pickles: plain data is read, of every protocol; nothing else is, and nothing is called."""
import collections
import io
import os
import pathlib
import pickle
import struct

import numpy as np
import pytest
import torch

from benchmarks.fuzz.__main__ import summary
from benchmarks.fuzz.harness import fuzz
from benchmarks.fuzz.pickles import PICKLE
from revisitop.pickles import PickleError, load_plain_pickle

_SHARED = [1, 2]
_ITEMS = [
    (None, None), (True, True), (-(1 << 70), -(1 << 70)), (1 << 200, 1 << 200), (float("inf"), float("inf")),
    ("é\n\\'\"", "é\n\\'\""), (b"", b""), (b"a\xff" * 200, b"a\xff" * 200), (bytearray(b"q"), bytearray(b"q")),
    ([1, [2, (3, 4, 5, 6), ()]], [1, [2, (3, 4, 5, 6), ()]]), ({"a": 1, 2: b"b", None: {}}, {"a": 1, 2: b"b", None: {}}),
    ({1, 2}, {1, 2}), (frozenset("ab"), frozenset("ab")), ([_SHARED, _SHARED], [[1, 2], [1, 2]]),
    (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}), (collections.defaultdict(list, a=[1]), {"a": [1]}),
    (collections.Counter("aab"), {"a": 2, "b": 1}), (collections.deque([1, 2], 5), [1, 2]),
    (pathlib.Path("/a/b.jpg"), "/a/b.jpg"), (pathlib.PureWindowsPath("c\\d.jpg"), "c/d.jpg"), (range(9, 0, -4), [9, 5, 1]),
    (np.float32(2.5), 2.5), (np.str_("hé"), "hé"), (np.bool_(True), True),
    (np.array([[1, "a"], [None, {2: 3}]], object), [[1, "a"], [None, {2: 3}]]), (np.array({"a": 1}, object), {"a": 1}),
]
_ARRAYS = [
    np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(3, dtype=">i4"), np.array(5),
    np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2), np.array(["ab", "c"], ">U3"), np.array([b"x", b"yy"]),
    np.array([True, False]), np.empty((0, 5), np.float32), np.float16([1, 2]),
    torch.arange(6.0).reshape(2, 3).t(), torch.arange(10)[3:7:2], torch.tensor([1.5, -2], dtype=torch.bfloat16),
    torch.nn.Parameter(torch.ones(2)), torch.tensor([True, False]),
]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_of_every_protocol(tmp_path, protocol):
    path = tmp_path / "a.pkl"
    for value, expected in _ITEMS:
        path.write_bytes(pickle.dumps(value, protocol))
        got = load_plain_pickle(path)
        assert got == expected and type(got) is type(expected), value
    path.write_bytes(pickle.dumps(_ARRAYS * 2, protocol))
    for got, array in zip(load_plain_pickle(path), _ARRAYS * 2, strict=True):
        expected = array.detach().to(torch.float32 if array.dtype == torch.bfloat16 else array.dtype).numpy() \
            if isinstance(array, torch.Tensor) else array
        assert type(got) is np.ndarray and got.dtype == expected.dtype.newbyteorder("=") and got.flags.writeable
        np.testing.assert_array_equal(got, expected)


def test_what_python_2_wrote(tmp_path):
    """Protocols 0 and 2 as Python 2.7 with NumPy 1.16 wrote {'a': array([1, 256], '<i4'), 'n': u'\\xe9'}."""
    array = (b"cnumpy.core.multiarray\n_reconstruct\np1\n(cnumpy\nndarray\np2\n(I0\ntp3\nS'b'\np4\ntp5\nRp6\n(I1\n(I2\ntp7\n"
             b"cnumpy\ndtype\np8\n(S'i4'\np9\nI0\nI1\ntp10\nRp11\n(I3\nS'<'\np12\nNNNI-1\nI-1\nI0\ntp13\nbI00\n"
             b"S'\\x01\\x00\\x00\\x00\\x00\\x01\\x00\\x00'\np14\ntp15\nb")
    (tmp_path / "0.pkl").write_bytes(b"(dp0\nS'a'\np16\n" + array + b"sS'n'\np17\nV\xe9\np18\ns.")
    binary = array.replace(b"S'\\x01\\x00\\x00\\x00\\x00\\x01\\x00\\x00'\n", b"U\x08\1\0\0\0\0\1\0\0")
    (tmp_path / "2.pkl").write_bytes(b"\x80\x02}(U\x01a" + binary + b"U\x01nX\x02\0\0\0\xc3\xa9u.")
    for name in ("0.pkl", "2.pkl"):
        got = load_plain_pickle(tmp_path / name)
        assert got["n"] == "é" and got["a"].dtype == np.int32 and got["a"].tolist() == [1, 256]


class _Call:
    """Unpickling it calls `made[0]` with `made[1]`, and gives the result the state `made[2]`."""

    def __init__(self, *made):
        self.made = made

    def __reduce__(self):
        return self.made


_SCALAR, _RECONSTRUCT = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
_FROMBUFFER, _EMPTY = np.empty(1).__reduce_ex__(5)[0], (np.ndarray, (0,), b"b")
_RECORDS = np.dtype([("a", "O")])
_POINTER = b"A" * 8
# Each makes Python's unpickler follow the pointer, or would with a little luck
POINTERS = {
    "ndarray": _Call(np.ndarray, ((1,), "O", _POINTER)),
    "scalar": _Call(_SCALAR, (np.dtype("O"), _POINTER)),
    "frombuffer": _Call(_FROMBUFFER, (_POINTER, np.dtype("O"), (1,), "C")),
    "state": _Call(_RECONSTRUCT, _EMPTY, (1, (1,), np.dtype("O"), False, _POINTER)),
    "records": _Call(_RECONSTRUCT, _EMPTY, (1, (1,), _RECORDS, False, _POINTER)),
    "fields": _Call(_SCALAR, (_RECORDS, _POINTER)),
    "dtype": _Call(_SCALAR, (_Call(np.dtype, ("f8", False, True), (3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, 8,
                                                                   8, 27)), _POINTER)),
}


@pytest.mark.parametrize("kind", POINTERS)
def test_an_array_of_pointers_is_refused(run_tool, toy, kind):
    """The file that ran a shell command: an array of objects over the bytes of a file."""
    content = {"imlist": POINTERS[kind], "qimlist": ["q"], "gnd": [{"easy": [0], "hard": [], "junk": []}]}
    toy["gnd"].write_bytes(pickle.dumps(content))
    done = run_tool("revisitop/evaluate.py", "--gnd", toy["gnd"], "--query", toy["query"], "--database",
                    toy["database"])
    assert done.returncode == 1 and done.stderr.startswith(f"error: ground truth {toy['gnd']} ")
    assert len(done.stderr.splitlines()) == 1


def _nested(value, times: int):
    for _ in range(times):
        value = [value]
    return value


def _laughing() -> list:
    value = ["ha"]
    for _ in range(40):
        value = [value, value]
    return value


def _itself() -> dict:
    value = {}
    value["a"] = [value]
    return value


_BOMBS = {
    "a container that contains itself": pickle.dumps(_itself()),
    "more than 100 deep": pickle.dumps(_nested(1, 101)),
    "would take more than": pickle.dumps(_laughing()),
    # The same megabyte made an array 200 times
    "would take more than 2": b"\x80\4" + pickle.dumps(bytes(1 << 20), 4)[2:-1] + b"q\0" + b"".join([
        b"cnumpy.core.numeric\n_frombuffer\n(h\0cnumpy\ndtype\n(U\2u1\x89\x88tRJ\0\0\x10\0\x85U\1CtR"] * 200) + b".",
    "a whole pickle (EOFError": b"\x80\4\x8e" + struct.pack("<Q", 1 << 20) + b"short",
    "would take more than 67": b"\x80\4\x8e" + struct.pack("<Q", 1 << 60),
    "an integer of 100000 digits": b"L" + b"9" * 100000 + b"L\n.",
    "an integer of 200 bytes": b"\x8a\xc8" + b"\1" * 200 + b".",
    "int as a key": pickle.dumps({(1 << 61) - 1 << 70: 0}),
    "tuple as a key": pickle.dumps({(1, 2): 0}),
    "protocol 9": b"\x80\x09N.",
    "byte 7b at 0 is not an opcode": b'{"imlist": []}',
    "data outside the pickle": b"U\1aQ.",
    "'builtins.set'": pickle.dumps([set]),
    "an array of type 'c16'": pickle.dumps(np.ones(2, complex)),
    "an array of type 'M8'": pickle.dumps(np.array(["2020-01-01"], "M8[D]")),
}


@pytest.mark.parametrize("message", _BOMBS)
def test_what_would_hang_or_exhaust_is_a_line(tmp_path, message):
    path = tmp_path / "a.pkl"
    path.write_bytes(_BOMBS[message])
    with pytest.raises(PickleError) as caught:
        load_plain_pickle(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_text_of_characters_that_do_not_exist_is_refused(tmp_path):
    whole = pickle.dumps(np.array(["abc"]))
    (tmp_path / "a.pkl").write_bytes(whole.replace("abc".encode("utf-32-le"), b"\xff" * 12))
    with pytest.raises(PickleError, match="characters that do not exist"):
        load_plain_pickle(tmp_path / "a.pkl")


def test_a_pipe_is_refused_at_once(run_tool, toy):
    toy["gnd"].unlink()
    os.mkfifo(toy["gnd"])
    done = run_tool("revisitop/evaluate.py", "--gnd", toy["gnd"], "--query", toy["query"], "--database",
                    toy["database"], timeout=20)
    assert done.returncode == 1 and "is not a regular file" in done.stderr


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "a.pkl", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(PickleError, match="at most 1074 MB are read"):
        load_plain_pickle(tmp_path / "a.pkl", 1 << 30)


def test_a_tensor_within_a_tensor_is_refused(tmp_path):
    """What pickle.dump puts in the place of a tensor's numbers is another pickle, which gets no third."""
    file = io.BytesIO()
    torch.save(_Call(torch.storage._load_from_bytes, (b"",)), file, _use_new_zipfile_serialization=False)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(_Call(torch.storage._load_from_bytes, (file.getvalue(),))))
    with pytest.raises(PickleError, match=r"write arrays instead, tensor.cpu\(\).numpy\(\)"):
        load_plain_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize("change", [{"size": (4,)}, {"offset": -1}, {"stride": (1 << 40,)}, {"size": (1 << 40,), "stride": (0,)}])
def test_a_tensor_beyond_its_storage_is_refused(tmp_path, change):
    tensor = torch.ones(3)
    rebuild, arguments = tensor.__reduce_ex__(2)
    named = dict(zip(("storage", "offset", "size", "stride"), arguments))
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(_Call(rebuild, (*{**named, **change}.values(), *arguments[4:]))))
    with pytest.raises(PickleError):
        load_plain_pickle(tmp_path / "a.pkl")


def test_generated_and_damaged_pickles():
    """A small part of python -m benchmarks.fuzz pickle --count 100000."""
    outcome = fuzz("pickle", PICKLE, 600, seed=0)
    assert not outcome.failures, summary("pickle", 0, outcome)
    assert outcome.counts["read"] and outcome.counts["refused"]
