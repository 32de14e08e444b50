"""Reading pickles of plain data by an interpreter of their opcodes, which calls nothing that they name.

Python's own unpickler calls whatever a file asks for, and NumPy's constructors, called with a file's
arguments, can be made to follow any pointer. Here a name in a file is looked up in one table (`_MAKERS`)
of functions of this module, which build plain values from plain values; there is no other way to a callable.
"""
import codecs
import io
import math
import os
import re
import stat
import struct
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

import numpy as np

# What an opcode, and an object of a few values, take of memory at most; so the limit of memory is one of time
_OBJECT = 64
_SLACK = 64 << 20           # bytes of memory that a file of any size may take
_GROWTH = 128               # and for each of its bytes
_DEPTH = 100                # of containers in containers
_DIMENSIONS = 32
_INTEGER = 64               # bytes of an integer: its conversion to a float cannot overflow
_EMPTY = 1 << 20            # product of the other dimensions of an array without values


class PickleError(ValueError):
    """The file is not a pickle of plain data; one line says why."""


class _NotPlain(PickleError):
    """An object of another kind than plain data."""


class Skipped:
    """Stands for an object that is not plain data, of which nothing was read.

    name: of its class or maker, such as "argparse.Namespace", or what kind of array it is.
    """

    def __init__(self, name: str):
        self.name = name


class _Name:
    """What the file calls by module and name; a label, nothing is imported."""

    def __init__(self, name: str):
        self.name = name


class _Dtype:
    """The type of an array: "f4", "U12", ..., and its byte order."""

    def __init__(self, code: str):
        self.code, self.order = code, "="


class _Array:
    """An array whose contents are yet to come, and its indexes in the memo."""

    def __init__(self):
        self.places: list[int] = []


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
    """A name as text: bytes are UTF-8, with what is not kept as `os.fsdecode` keeps it."""
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
    memory = memory or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with _open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > memory:
            raise PickleError(f"{path} was refused: it has {size / 1e6:.0f} MB, and at most "
                              f"{memory / 1e6:.0f} MB are read")
        try:
            return PickleReader(file, min(memory, _SLACK + _GROWTH * size)).load_whole()
        except _NotPlain as error:
            raise PickleError(f"{path} was refused: {error}, which is not plain data; nothing was "
                              "executed") from None
        except PickleError as error:
            raise PickleError(f"{path} was refused: {error}") from None
        except DAMAGE as error:
            raise PickleError(f"{path} is not a whole pickle ({_reason(error)})") from None


# What damaged bytes make the reader below raise, besides PickleError
DAMAGE = (LookupError, TypeError, ValueError, EOFError, OverflowError, MemoryError, struct.error)


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _open_regular(path: str | Path) -> BinaryIO:
    # A pipe without a writer would block here for ever
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 1 << 18)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise PickleError(f"{path} was refused: it is not a regular file, but a folder, pipe or device")
    return file


class PickleReader:
    """Interprets the opcodes of a pickle.

    Args:
        file: where the pickle begins.
        memory: bytes that all objects may take.
        storage: gives the bytes of a tensor's storage by key and size, in an archive of torch.save.
        skip: puts a `Skipped` in the place of what is not plain data, instead of refusing the file.

    Raises PickleError for what is refused, and what DAMAGE lists for what is damaged.
    """

    def __init__(self, file: BinaryIO, memory: int,
                 storage: Callable[[str, int], bytes] | None = None, skip: bool = False):
        self._file, self._memory, self._left = file, memory, memory
        self._read_storage, self._skip, self._storages = storage, skip, {}
        self._nested = False

    def load_whole(self):
        """`load`, for values that any code may walk: without cycles, and not nested without end."""
        value = self.load()
        self._check(value)
        return value

    def load(self):
        """The value of the pickle that begins here; the file is then at its end."""
        self._stack, self._below, self._memo = [], [], {}
        read, opcodes = self._file.read, _OPCODES
        while (code := read(1)) != b".":
            if not code:
                raise EOFError("it ends in the middle")
            opcode = opcodes[code[0]]
            if opcode is None:
                raise PickleError(f"byte {code.hex()} at {self._file.tell() - 1} is not an opcode of plain data")
            self._left -= _OBJECT
            if self._left < 0:
                raise self._too_large()
            opcode(self)
        return self._stack.pop()

    def charge(self, size: int) -> None:
        """Count `size` bytes of memory, before they are taken."""
        self._left -= size
        if self._left < 0:
            raise self._too_large()

    def _too_large(self) -> PickleError:
        return PickleError(f"its contents would take more than {self._memory / 1e6:.0f} MB of memory, far more "
                           "than the file has")

    # -------------------------------------------------------------- bytes

    def take(self, size: int) -> bytes:
        if size < 0:
            raise ValueError(f"a size of {size}")
        self.charge(size)
        data = self._file.read(size)
        if len(data) != size:
            raise EOFError("it ends in the middle")
        return data

    def line(self) -> str:
        data = self._file.readline(self._left // 8 + 1)
        self.charge(8 * len(data))
        if not data.endswith(b"\n"):
            raise EOFError("it ends in the middle")
        return data[:-1].decode("latin1")

    def unpack(self, layout: struct.Struct):
        return layout.unpack(self.take(layout.size))[0]

    # -------------------------------------------------------------- stack and memo

    def push(self, value) -> None:
        self._stack.append(value)

    def pop(self):
        return self._stack.pop()

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def since_mark(self) -> list:
        values, self._stack = self._stack, self._below.pop()
        return values

    def discard(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.since_mark()

    def remember(self, index: int) -> None:
        self.charge(_OBJECT)
        value = self._memo[index] = self._stack[-1]
        if type(value) is _Array:
            value.places.append(index)

    def recall(self, index: int) -> None:
        self._stack.append(self._memo[index])

    # -------------------------------------------------------------- containers

    def extend(self, values: list) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is not Skipped:
            raise TypeError(f"items for a {type(target).__name__}")

    def add(self, values: list) -> None:
        target = self._stack[-1]
        if type(target) is set:
            target.update(self.keys(values))
        elif type(target) is not Skipped:
            raise TypeError(f"members for a {type(target).__name__}")

    def update(self, values: list) -> None:
        target = self._stack[-1]
        if len(values) % 2:
            raise ValueError("a key without a value")
        if type(target) is dict:
            self.put(target, zip(values[::2], values[1::2]))
        elif type(target) is not Skipped:
            raise TypeError(f"keys for a {type(target).__name__}")

    def put(self, target: dict, pairs: Iterable) -> None:
        for key, value in pairs:
            if self.is_key(key):
                target[key] = value

    def keys(self, values: Iterable) -> list:
        return [value for value in values if self.is_key(value)]

    def is_key(self, key) -> bool:
        """Whether `key` can be one; tuples and huge integers could all be made to have one hash."""
        kind = type(key)
        if kind in (str, bytes, float, bool, type(None)) or (kind is int and -1 << 63 <= key < 1 << 64):
            return True
        if self._skip:
            return False
        raise PickleError(f"it has a {_kind(key)} as a key or in a set, where text and numbers are read")

    # -------------------------------------------------------------- names and calls

    def find(self, module: str, name: str) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name that is not text")
        module = _MODULES.get(module, module).replace("numpy._core", "numpy.core")
        name = f"{module}.{name}"
        if name not in _MAKERS and name not in _LABELS and not self._skip:
            raise _NotPlain(f"it asks for {name[:100]!r}")
        self._stack.append(_Name(name))

    def call(self, function, arguments) -> None:
        if type(arguments) is not tuple:
            raise TypeError("arguments that are not a tuple")
        self._stack.append(self._made(function, arguments))

    def _made(self, function, arguments: tuple):
        if type(function) is Skipped:
            return function
        if type(function) is not _Name:
            raise TypeError(f"a call of a {_kind(function)}")
        try:
            maker = _MAKERS.get(function.name)
            if maker is None:
                raise _NotPlain(f"it asks for {function.name[:100]!r}")
            if any(type(argument) is Skipped for argument in arguments):
                raise _NotPlain(f"it makes {function.name} of an object")
            return maker(self, *arguments)
        except _NotPlain:
            if not self._skip:
                raise
        named = arguments[0] if function.name == "copyreg._reconstructor" and arguments else function
        return Skipped(getattr(named, "name", function.name)[:100])

    def build(self) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if type(target) is _Dtype:
            self._build_dtype(target, state)
        elif type(target) is _Array:
            try:
                array = self._build_array(state)
            except _NotPlain as error:
                if not self._skip:
                    raise
                array = Skipped(str(error).removeprefix("it has "))
            self._stack[-1] = array
            for place in target.places:
                self._memo[place] = array
        # Containers of classes derived from these may have attributes, which are not their contents
        elif type(target) not in (dict, list, set, Skipped):
            raise TypeError(f"a state for a {_kind(target)}")

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
            raise _NotPlain(f"it has an array of type {dtype.code[:40]!r}")
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
        self.charge(_OBJECT * len(items) * (len(shape) + 1))
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

    def storage(self, key) -> None:
        """What torch.save puts in the place of a storage: ("storage", class, key, device, length)."""
        if type(key) is not tuple or len(key) < 5 or key[0] != "storage" or self._read_storage is None:
            raise PickleError("it refers to data outside the pickle")
        name, key, length = key[1], key[2], key[4]
        if not (isinstance(name, _Name) and type(key) is str and type(length) is int and length >= 0):
            raise TypeError("a storage that torch.save does not write")
        kind = name.name.removeprefix("torch.")
        if kind not in _STORAGES:
            if not self._skip:
                raise _NotPlain(f"it asks for {name.name[:100]!r}")
            return self._stack.append(Skipped(f"tensors of {name.name[:100]}"))
        if (kind, key, length) not in self._storages:
            self._storages[kind, key, length] = _Storage(kind, key, length, self._charged_storage)
        self._stack.append(self._storages[kind, key, length])

    def _charged_storage(self, key: str, size: int) -> bytes:
        self.charge(2 * size)
        return self._read_storage(key, size)

    def pickled_storage(self, content) -> _Storage:
        """The storage in what torch.save wrote before it wrote archives; pickle.dump puts that in pickles."""
        if type(content) is not bytes or self._nested:
            raise TypeError("a tensor that pickle.dump does not write")
        self.charge(len(content))
        inner = PickleReader(io.BytesIO(content), max(self._left, 0), lambda key, size: b"")
        inner._nested = True
        try:
            magic, _, _, storage, _ = (inner.load() for _ in range(5))
        except (PickleError, *DAMAGE):
            magic = None
        if magic != 0x1950a86a20f9469cfc6c or type(storage) is not _Storage:
            raise PickleError("it has a tensor of PyTorch in a form that is not known: write arrays instead, "
                              "tensor.cpu().numpy()")
        self.charge(inner._memory - inner._left)
        if inner.unpack(_LENGTH) != storage.length:
            raise ValueError("a storage of another length")
        storage.fill(inner._file.read())
        return storage

    # -------------------------------------------------------------- the result

    def _check(self, value) -> None:
        """Refuse cycles, depth, and lists of lists of lists that share their members, which would take
        those who walk them for ever; and stand-ins that are left."""
        holder = [value]
        weights, path = {id(holder): None}, [(holder, iter(holder))]
        totals = [0]
        while path:
            container, members = path[-1]
            for member in members:
                kind = type(member)
                if kind in _CONTAINERS:
                    if (weight := weights.get(id(member), -1)) is None:
                        raise PickleError("it has a container that contains itself")
                    if weight < 0:
                        if len(path) > _DEPTH:
                            raise PickleError(f"it has containers in containers, more than {_DEPTH} deep")
                        weights[id(member)] = None
                        path.append((member, iter(member) if kind is not dict else
                                     chain.from_iterable(member.items())))
                        totals.append(_OBJECT)
                        break
                    totals[-1] += weight
                elif kind in _SIZED:
                    totals[-1] += 8 + len(member)
                elif kind is np.ndarray:
                    totals[-1] += _OBJECT + member.nbytes
                elif kind in _PLAIN or (kind is Skipped and self._skip):
                    totals[-1] += 8
                elif kind is _Array:
                    raise PickleError("it has an array without contents, or one that contains itself")
                elif not self._skip:
                    raise _NotPlain(f"it holds {getattr(member, 'name', 'a part of an array')[:100]!r}")
            else:
                if totals[-1] > self._memory:
                    raise self._too_large()
                path.pop()
                weights[id(container)] = total = totals.pop()
                if totals:
                    totals[-1] += total


def _kind(value) -> str:
    return value.name[:100] if isinstance(value, (_Name, Skipped)) else type(value).__name__.lstrip("_")


_CONTAINERS = {list, tuple, dict, set, frozenset}
_SIZED = {str, bytes, bytearray}
_PLAIN = {type(None), bool, int, float}
_DTYPES = re.compile(r"b1|[iu][1248]|f[248]|[USa]\d{1,8}")


# ------------------------------------------------------------------ what the file may name

def _encode(reader: PickleReader, text="", encoding="latin1") -> bytes:
    """Protocols 0 to 2 write bytes as Latin-1 text."""
    if type(text) in (bytes, bytearray):
        reader.charge(len(text))
        return bytes(text)
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise TypeError(f"bytes in {encoding!r}, where pickle writes 'latin1'")
    reader.charge(len(text))
    return text.encode("latin1")


def _mapping(reader: PickleReader, *arguments) -> dict:
    if arguments and (arguments[0] is None or type(arguments[0]) is _Name):     # a defaultdict's factory
        arguments = arguments[1:]
    if len(arguments) > 1 or arguments and type(arguments[0]) not in (dict, list, tuple):
        raise TypeError("a dictionary of something else than pairs")
    pairs = arguments[0] if arguments else ()
    reader.charge(2 * _OBJECT * len(pairs))
    mapping = {}
    reader.put(mapping, pairs.items() if type(pairs) is dict else pairs)
    return mapping


def _items(reader: PickleReader, items=(), limit=None) -> list:
    """A list, and a deque, whose second argument is its limit."""
    if type(items) not in _CONTAINERS - {dict}:
        raise TypeError("a container of something else than a list")
    reader.charge(_OBJECT * len(items))
    return list(items)


def _range(reader: PickleReader, start, stop, step) -> list[int]:
    numbers = range(*(number if type(number) is int else None for number in (start, stop, step)))
    reader.charge(_OBJECT * max(numbers.stop - numbers.start, numbers.start - numbers.stop) // abs(step))
    return list(numbers)


def _path(reader: PickleReader, *parts, pure=PurePosixPath) -> str:
    if any(type(part) is not str for part in parts):
        raise TypeError("a path of something else than text")
    reader.charge(_OBJECT * len(parts) + 8 * sum(map(len, parts)))
    return pure(*parts).as_posix()


def _windows_path(reader: PickleReader, *parts) -> str:
    return _path(reader, *parts, pure=PureWindowsPath)


def _dtype(reader: PickleReader, code, align=False, copy=False) -> _Dtype:
    if type(code) is not str:
        raise TypeError("a dtype without a code")
    return _Dtype(code)


def _scalar(reader: PickleReader, dtype, data):
    return reader.array(data, dtype, (), "C").item()


def _reconstruct(reader: PickleReader, kind, shape, code) -> _Array:
    if type(kind) is not _Name or kind.name not in _LABELS:
        raise _NotPlain(f"it has an array of class {_kind(kind)}")
    return _Array()


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


# ------------------------------------------------------------------ opcodes, as module pickletools describes them

_BYTE, _SHORT, _SIGNED, _UNSIGNED, _LENGTH, _DOUBLE = map(struct.Struct, ("<B", "<H", "<i", "<I", "<Q", ">d"))


def _constant(value) -> Callable:
    return lambda reader: reader.push(value)


def _new(kind: type, size: int = 0) -> Callable:
    def opcode(reader):
        reader.charge(size)
        reader.push(kind())
    return opcode


def _number(layout: struct.Struct) -> Callable:
    return lambda reader: reader.push(reader.unpack(layout))


def _sized(layout: struct.Struct, convert: Callable[[bytes], object]) -> Callable:
    """Bytes or text, which another few bytes say the length of."""
    return lambda reader: reader.push(convert(reader.take(reader.unpack(layout))))


def _long(layout: struct.Struct) -> Callable:
    def opcode(reader):
        size = reader.unpack(layout)
        if size > _INTEGER:
            raise PickleError(f"it has an integer of {size} bytes")
        reader.push(int.from_bytes(reader.take(size), "little", signed=True))
    return opcode


def _tuple(size: int) -> Callable:
    def opcode(reader):
        reader.push(tuple([reader.pop() for _ in range(size)][::-1]))
    return opcode


def _marked(use: Callable) -> Callable:
    """What takes all values since the mark."""
    return lambda reader: use(reader, reader.since_mark())


def _text_integer(reader) -> None:
    line = reader.line()
    if line in ("00", "01"):
        return reader.push(line == "01")
    digits = line.removesuffix("L")
    if len(digits) > 2 * _INTEGER:
        raise PickleError(f"it has an integer of {len(digits)} digits")
    reader.push(int(digits))


def _text_float(reader) -> None:
    line = reader.line()
    if len(line) > 400:
        raise PickleError(f"it has a number of {len(line)} characters")
    reader.push(float(line))


def _quoted(reader) -> None:
    line = reader.line()
    if len(line) < 2 or line[0] not in "'\"" or line[-1] != line[0]:
        raise ValueError("text without quotation marks")
    reader.push(codecs.escape_decode(line[1:-1].encode("latin1"))[0].decode("latin1"))


def _stack_global(reader) -> None:
    name = reader.pop()
    reader.find(reader.pop(), name)


def _reduce(reader) -> None:
    arguments = reader.pop()
    reader.call(reader.pop(), arguments)


def _new_object(reader) -> None:
    keywords, arguments = reader.pop(), reader.pop()
    if keywords not in ({}, None) and not reader._skip:
        raise TypeError("a call with keywords")
    reader.call(reader.pop(), arguments)


def _instance(reader) -> None:
    reader.find(reader.line(), reader.line())
    function = reader.pop()
    reader.call(function, tuple(reader.since_mark()))


def _set_item(reader) -> None:
    value, key = reader.pop(), reader.pop()
    reader.update([key, value])


def _protocol(reader) -> None:
    if (version := reader.unpack(_BYTE)) > 5:
        raise PickleError(f"it says that it has protocol {version}, where 5 is the highest")


_NAMED_OPCODES: dict[bytes, Callable] = {
    b"\x80": _protocol, b"\x95": lambda reader: reader.unpack(_LENGTH),     # a frame, which is of no use here
    b"N": _constant(None), b"\x88": _constant(True), b"\x89": _constant(False),
    b"]": _new(list), b"}": _new(dict), b"\x8f": _new(set, 3 * _OBJECT), b")": _constant(()),
    b"K": _number(_BYTE), b"M": _number(_SHORT), b"J": _number(_SIGNED), b"G": _number(_DOUBLE),
    b"\x8a": _long(_BYTE), b"\x8b": _long(_SIGNED),
    b"I": _text_integer, b"L": _text_integer, b"F": _text_float,
    b"S": _quoted, b"V": lambda reader: reader.push(reader.line().encode("latin1").decode("raw-unicode-escape")),
    b"U": _sized(_BYTE, lambda data: data.decode("latin1")),
    b"T": _sized(_SIGNED, lambda data: data.decode("latin1")),
    b"\x8c": _sized(_BYTE, lambda data: data.decode("utf-8", "surrogatepass")),
    b"X": _sized(_UNSIGNED, lambda data: data.decode("utf-8", "surrogatepass")),
    b"\x8d": _sized(_LENGTH, lambda data: data.decode("utf-8", "surrogatepass")),
    b"C": _sized(_BYTE, bytes), b"B": _sized(_UNSIGNED, bytes), b"\x8e": _sized(_LENGTH, bytes),
    b"\x96": _sized(_LENGTH, bytearray),
    b"(": PickleReader.mark, b"0": PickleReader.discard, b"1": PickleReader.since_mark,
    b"2": lambda reader: reader.push(reader._stack[-1]),
    b"p": lambda reader: reader.remember(int(reader.line()[:20])),
    b"q": lambda reader: reader.remember(reader.unpack(_BYTE)),
    b"r": lambda reader: reader.remember(reader.unpack(_UNSIGNED)),
    b"\x94": lambda reader: reader.remember(len(reader._memo)),
    b"g": lambda reader: reader.recall(int(reader.line()[:20])),
    b"h": lambda reader: reader.recall(reader.unpack(_BYTE)),
    b"j": lambda reader: reader.recall(reader.unpack(_UNSIGNED)),
    b"a": lambda reader: reader.extend([reader.pop()]), b"e": _marked(PickleReader.extend),
    b"s": _set_item, b"u": _marked(PickleReader.update), b"\x90": _marked(PickleReader.add),
    b"l": _marked(PickleReader.push), b"t": _marked(lambda reader, values: reader.push(tuple(values))),
    b"d": _marked(lambda reader, values: (reader.push({}), reader.update(values))),
    b"\x91": _marked(lambda reader, values: reader.push(frozenset(reader.keys(values)))),
    b"\x85": _tuple(1), b"\x86": _tuple(2), b"\x87": _tuple(3),
    b"c": lambda reader: reader.find(reader.line(), reader.line()), b"\x93": _stack_global,
    b"R": _reduce, b"\x81": _reduce, b"\x92": _new_object, b"i": _instance,
    b"o": _marked(lambda reader, values: reader.call(values[0], tuple(values[1:]))),
    b"b": PickleReader.build, b"Q": lambda reader: reader.storage(reader.pop()),
}
_OPCODES = [_NAMED_OPCODES.get(bytes([code])) for code in range(256)]
