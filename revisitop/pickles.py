"""Reading pickles of plain data by an interpreter of their opcodes, which calls nothing that they name.

Python's own unpickler calls whatever a file asks for, and NumPy's constructors, called with a file's
arguments, can be made to follow any pointer. Here a name in a file is looked up in one table (`_MAKERS`) of
functions of this module, which build plain values from plain values; there is no other way to a callable.
"""
import io
import math
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import numpy as np

from revisitop.opcodes import (CONTAINERS, DAMAGE, OBJECT, Name, NotPlain, OpcodeReader, Pending, PickleError,
                               Skipped, kind_of)

_SLACK = 64 << 20           # bytes of memory that a file of any size may take
_GROWTH = 128               # and for each of its bytes
_DIMENSIONS = 32
_EMPTY = 1 << 20            # product of the other dimensions of an array without values


class _Dtype:
    """The type of an array: "f4", "U12", ..., and its byte order."""

    def __init__(self, code: str):
        self.code, self.order = code, "="


class _Storage:
    """The numbers (n,) of one or several tensors of PyTorch, read when first used."""

    def __init__(self, name: str, key: str, length: int, read: Callable[[str, int], bytes] | None):
        self.kind, self.key, self.length, self._read = name.removeprefix("torch."), key, length, read
        self.values: np.ndarray | None = None

    def fill(self, data: bytes) -> None:
        """Take the numbers from `data`. Raises PickleError where the size is another than was said."""
        code = _STORAGES[self.kind]
        if len(data) != self.length * int(code[1:]):
            raise PickleError(f"{len(data)} bytes for a {self.kind} of {self.length} values")
        if self.kind == "BFloat16Storage":          # the upper half of a float32
            self.values = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
        else:
            self.values = np.frombuffer(data, f"<{code}")

    def numbers(self) -> np.ndarray:
        if self.values is None:
            self.fill(self._read(self.key, self.length * int(_STORAGES[self.kind][1:])))
        return self.values


# PyTorch's storages and the type of their values; "u2" of BFloat16Storage is made float32
_STORAGES = {"FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "u2",
             "LongStorage": "i8", "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1",
             "ByteStorage": "u1", "BoolStorage": "b1"}


def text_of(name: object) -> str:
    """A name as text: bytes are UTF-8, and other bytes are kept as `os.fsdecode` keeps them."""
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)


def load_plain_pickle(path: str | Path, memory: int | None = None):
    """The object in a pickle of containers, numbers, text and NumPy arrays.

    Containers are lists, tuples, dictionaries, sets and their kin of `collections`; paths are read as text,
    tensors of PyTorch as arrays, arrays of objects as lists, and NumPy's scalars as Python's.

    Args:
        path: a regular file, of any protocol of pickle, Python 2's included.
        memory: bytes that reading may take at most (all of the machine's), as far as they can be counted.

    Raises PickleError, in one line, for a file that names any other class or function, for what is damaged,
    nested without end, or far larger in memory than in the file; OSError where it cannot be read. Nothing
    in the file is executed.
    """
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        memory = memory or _machine()
        if size > memory:
            raise PickleError(f"{path} was refused: it has {size / 1e6:.0f} MB, and at most "
                              f"{memory / 1e6:.0f} MB are read")
        try:
            return PickleReader(file, memory_for(size, memory)).load_whole()
        except NotPlain as error:
            raise PickleError(f"{path} was refused: {error}, which is not plain data; nothing was "
                              "executed") from None
        except PickleError as error:
            raise PickleError(f"{path} was refused: {error}") from None
        except DAMAGE as error:
            raise PickleError(f"{path} is not a whole pickle ({_reason(error)})") from None


def memory_for(size: int, most: int | None = None) -> int:
    """Bytes of memory that the contents of a file of `size` bytes may take."""
    return min(most or _machine(), _SLACK + _GROWTH * size)


def _machine() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _open_regular(path: str | Path) -> BinaryIO:
    # A pipe without a writer would block here for ever
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 1 << 18)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise PickleError(f"{path} was refused: it is not a regular file, but a folder, pipe or device")
    return file


_DTYPES = re.compile(r"b1|[iu][1248]|f[248]|[USa][0-9]{1,8}")


class PickleReader(OpcodeReader):
    """Builds plain values, arrays and text in the place of what a pickle calls.

    storage: gives the bytes of a tensor's storage by key and size, in an archive of torch.save.
    Otherwise as OpcodeReader.
    """

    def __init__(self, file: BinaryIO, memory: int,
                 storage: Callable[[str, int], bytes] | None = None, skip: bool = False):
        super().__init__(file, memory, skip)
        self._read_storage, self._storages, self._nested = storage, {}, False

    def find(self, name: str) -> Name:
        module, _, rest = name.rpartition(".")
        name = f"{_MODULES.get(module, module)}.{rest}".replace("numpy._core", "numpy.core")
        if name not in _MAKERS and name not in _LABELS and not self.skip:
            raise NotPlain(f"it asks for {name[:100]!r}")
        return Name(name)

    def make(self, function, arguments: tuple):
        if type(function) is Skipped:
            return function
        if type(function) is not Name:
            raise TypeError(f"a call of a {kind_of(function)}")
        try:
            maker = _MAKERS.get(function.name)
            if maker is None:
                raise NotPlain(f"it asks for {function.name[:100]!r}")
            if any(type(argument) is Skipped for argument in arguments):
                raise NotPlain(f"it makes {function.name} of an object")
            return maker(self, *arguments)
        except NotPlain:
            if not self.skip:
                raise
        named = arguments[0] if function.name == "copyreg._reconstructor" and arguments else function
        return Skipped(getattr(named, "name", function.name)[:100])

    def build(self, target, state):
        if type(target) is _Dtype:
            self._build_dtype(target, state)
        elif type(target) is Pending:
            try:
                return self._build_array(state)
            except NotPlain as error:
                if not self.skip:
                    raise
                return Skipped(str(error).removeprefix("it has "))
        # Containers of classes derived from these may have attributes, which are not their contents
        elif type(target) not in (dict, list, set, Skipped):
            raise TypeError(f"a state for a {kind_of(target)}")
        return target

    @staticmethod
    def _build_dtype(dtype: _Dtype, state) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", ">", "=", "|"):
            raise TypeError("a dtype's state that NumPy does not write")
        if any(part is not None for part in state[2:5]):
            dtype.code = "of records"
        dtype.order = state[1]

    def _build_array(self, state):
        if type(state) is not tuple or len(state) not in (4, 5):
            raise TypeError("an array's state that NumPy does not write")
        shape, dtype, fortran, data = state[-4:]
        if type(dtype) is _Dtype and dtype.code in ("O", "O8", "O4"):
            return self._object_array(shape, data)
        return self.array(data, dtype, shape, "F" if fortran else "C")

    def array(self, data, dtype, shape, order: str) -> np.ndarray:
        """An array of its own memory from bytes; dtype and sizes are checked here."""
        if type(dtype) is not _Dtype:
            raise TypeError("an array without a dtype")
        if not _DTYPES.fullmatch(dtype.code):
            raise NotPlain(f"it has an array of type {dtype.code[:40]!r}")
        if type(data) is str:                       # of Python 2
            self.charge(len(data))
            data = data.encode("latin1")
        if type(data) not in (bytes, bytearray) or order not in ("C", "F"):
            raise TypeError("an array without bytes")
        # Values of one byte have the order "|"
        kind = np.dtype(dtype.order.replace("|", "=") + dtype.code.replace("a", "S"))
        size = self._count(shape)
        if not kind.itemsize or size * kind.itemsize != len(data):
            raise ValueError(f"{len(data)} bytes for an array of {shape} {kind}")
        self.charge(2 * len(data))
        if not size:
            return np.empty(shape, kind.newbyteorder("="))
        if kind.kind == "b":
            flat = np.frombuffer(data, np.uint8) != 0
        else:
            flat = np.frombuffer(data, kind)
            if kind.kind == "U" and flat.view(kind.str[0] + "u4").max() > 0x10FFFF:
                raise ValueError("text of characters that do not exist")
            flat = flat.astype(kind.newbyteorder("="))
        return flat.reshape(shape, order=order)

    def _object_array(self, shape, items):
        if type(items) is not list or self._count(shape) != len(items):
            raise ValueError("an array of objects with another number of them")
        self.charge(OBJECT * len(items) * (len(shape) + 1))
        if not shape:
            return items[0]
        for size in reversed(shape[1:]) if items else ():
            items = [items[start:start + size] for start in range(0, len(items), size)]
        return list(items)

    @staticmethod
    def _count(shape) -> int:
        """The number of values; refuses what is not a shape."""
        if type(shape) is not tuple or len(shape) > _DIMENSIONS or any(
                type(size) is not int or not 0 <= size < 1 << 48 for size in shape):
            raise ValueError("an array whose shape is not one")
        count = math.prod(shape)
        if not count and math.prod(size for size in shape if size) > _EMPTY:
            raise ValueError(f"an empty array of shape {shape}")
        return count

    def tensor(self, storage, offset, size, stride) -> np.ndarray:
        """A tensor of PyTorch as an array of its own memory."""
        if type(storage) is not _Storage:
            raise TypeError("a tensor without a storage")
        count = self._count(size)
        if type(stride) is not tuple or len(stride) != len(size) or any(
                type(step) is not int or step < 0 for step in (offset, *stride)):
            raise ValueError("a tensor whose strides are not plain")
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        if count and last >= storage.length:
            raise ValueError(f"a tensor beyond its storage of {storage.length} values")
        values = storage.numbers()
        self.charge(count * values.itemsize)
        if not count:
            return np.empty(size, values.dtype)
        steps = [step * values.itemsize for step in stride]
        array = np.lib.stride_tricks.as_strided(values[offset:], size, steps, writeable=False).copy()
        return array if values.dtype != bool else array.view(np.uint8) != 0

    def outside(self, key):
        """What torch.save puts in the place of a storage: ("storage", class, key, device, length)."""
        if type(key) is not tuple or len(key) < 5 or key[0] != "storage" or self._read_storage is None:
            raise PickleError("it refers to data outside the pickle")
        name, key, length = key[1], key[2], key[4]
        if not (isinstance(name, Name) and type(key) is str and type(length) is int and length >= 0):
            raise TypeError("a storage that torch.save does not write")
        kind = name.name.removeprefix("torch.")
        if kind not in _STORAGES:
            if not self.skip:
                raise NotPlain(f"it asks for {name.name[:100]!r}")
            return Skipped(f"tensors of {name.name[:100]}")
        if (kind, key, length) not in self._storages:
            self._storages[kind, key, length] = _Storage(kind, key, length, self._charged_storage)
        return self._storages[kind, key, length]

    def _charged_storage(self, key: str, size: int) -> bytes:
        self.charge(2 * size)
        return self._read_storage(key, size)

    def pickled_storage(self, content) -> _Storage:
        """The storage in what torch.save wrote before it wrote archives; pickle.dump puts that in pickles."""
        if type(content) is not bytes or self._nested:
            raise TypeError("a tensor that pickle.dump does not write")
        self.charge(len(content))
        inner = PickleReader(io.BytesIO(content), max(self.left, 0), lambda key, size: b"")
        inner._nested = True
        try:
            magic, _, _, storage, _ = (inner.load() for _ in range(5))
        except (PickleError, *DAMAGE):
            magic = None
        if magic != 0x1950a86a20f9469cfc6c or type(storage) is not _Storage:
            raise PickleError("it has a tensor of PyTorch in a form that is not known: write arrays instead, "
                              "tensor.cpu().numpy()")
        self.charge(inner.memory - inner.left)
        if int.from_bytes(inner.take(8), "little") != storage.length:
            raise ValueError("a storage of another length")
        storage.fill(inner.file.read())
        return storage


# ------------------------------------------------------------------ what the file may name

def _encode(reader: PickleReader, text=b"", encoding=None) -> bytes:
    """Protocols 0 to 2 write bytes as Latin-1 text, and no bytes as a call without arguments."""
    if type(text) in (bytes, bytearray):
        reader.charge(len(text))
        return bytes(text)
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise TypeError(f"bytes in {encoding!r}, where pickle writes 'latin1'")
    reader.charge(len(text))
    return text.encode("latin1")


def _mapping(reader: PickleReader, *arguments) -> dict:
    if arguments and (arguments[0] is None or type(arguments[0]) is Name):     # a defaultdict's factory
        arguments = arguments[1:]
    if len(arguments) > 1 or arguments and type(arguments[0]) not in (dict, list, tuple):
        raise TypeError("a dictionary of something else than pairs")
    pairs = arguments[0] if arguments else ()
    reader.charge(2 * OBJECT * len(pairs))
    mapping = {}
    reader.put(mapping, pairs.items() if type(pairs) is dict else pairs)
    return mapping


def _items(reader: PickleReader, items=(), limit=None) -> list:
    """A list, and a deque, whose second argument is its limit."""
    if type(items) not in CONTAINERS - {dict}:
        raise TypeError("a container of something else than a list")
    reader.charge(OBJECT * len(items))
    return list(items)


def _range(reader: PickleReader, start, stop, step) -> list[int]:
    numbers = range(*(number if type(number) is int else None for number in (start, stop, step)))
    reader.charge(OBJECT * max(numbers.stop - numbers.start, numbers.start - numbers.stop) // abs(step))
    return list(numbers)


def _path(reader: PickleReader, *parts, pure=PurePosixPath) -> str:
    if any(type(part) is not str for part in parts):
        raise TypeError("a path of something else than text")
    reader.charge(OBJECT * len(parts) + 8 * sum(map(len, parts)))
    return pure(*parts).as_posix()


def _windows_path(reader: PickleReader, *parts) -> str:
    return _path(reader, *parts, pure=PureWindowsPath)


def _dtype(reader: PickleReader, code, align=False, copy=False) -> _Dtype:
    if type(code) is not str:
        raise TypeError("a dtype without a code")
    return _Dtype(code)


def _scalar(reader: PickleReader, dtype, data):
    return reader.array(data, dtype, (), "C").item()


def _reconstruct(reader: PickleReader, kind, shape, code) -> Pending:
    if type(kind) is not Name or kind.name not in _LABELS:
        raise NotPlain(f"it has an array of class {kind_of(kind)}")
    return Pending()


def _frombuffer(reader: PickleReader, data, dtype, shape, order, axes=None) -> np.ndarray:
    if order != "K":
        return reader.array(data, dtype, shape, order)
    if type(axes) is not tuple or sorted(axes) != list(range(len(shape))):
        raise ValueError("an array whose order of axes is not one")
    return np.ascontiguousarray(reader.array(data, dtype, shape, "C").transpose(axes))


def _rebuild_tensor(reader: PickleReader, storage, offset, size, stride, *others) -> np.ndarray:
    return reader.tensor(storage, offset, size, stride)


def _rebuild_parameter(reader: PickleReader, data, *others) -> np.ndarray:
    if type(data) is not np.ndarray:
        raise TypeError("a parameter that is not a tensor")
    return data


_MODULES = {"__builtin__": "builtins", "pathlib._local": "pathlib", "copy_reg": "copyreg"}
_MAKERS: dict[str, Callable] = {
    "builtins.bytes": _encode, "_codecs.encode": _encode,
    "builtins.bytearray": lambda reader, *arguments: bytearray(_encode(reader, *arguments)),
    "builtins.list": _items, "collections.deque": _items,
    "builtins.tuple": lambda reader, *arguments: tuple(_items(reader, *arguments)),
    "builtins.set": lambda reader, *arguments: set(reader.keys(_items(reader, *arguments))),
    "builtins.frozenset": lambda reader, *arguments: frozenset(reader.keys(_items(reader, *arguments))),
    "torch.Size": lambda reader, *arguments: tuple(_items(reader, *arguments)),
    "builtins.range": _range, "builtins.xrange": _range,
    "builtins.dict": _mapping, "collections.OrderedDict": _mapping, "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "pathlib.PosixPath": _path, "pathlib.PurePosixPath": _path, "pathlib.WindowsPath": _windows_path,
    "pathlib.PureWindowsPath": _windows_path,
    "numpy.dtype": _dtype, "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _reconstruct, "numpy.core.numeric._frombuffer": _frombuffer,
    "torch._utils._rebuild_tensor": _rebuild_tensor, "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.storage._load_from_bytes": PickleReader.pickled_storage,
}
# Names that are arguments of those above, never called
_LABELS = {"numpy.ndarray", "numpy.memmap", "numpy.core.memmap.memmap", "builtins.int", "builtins.float",
           "builtins.str", "builtins.bool", *(f"torch.{name}" for name in _STORAGES)}
