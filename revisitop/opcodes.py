"""The opcodes of pickles, interpreted on plain values alone.

What a pickle calls by name, and the calls that it asks for, go to the methods of a subclass; see pickles.py.
"""
import codecs
import struct
from collections.abc import Callable, Iterable
from itertools import chain
from typing import BinaryIO

import numpy as np

# Bytes that an opcode, and an object of a few values, take at most: a limit of memory is one of time
OBJECT = 64
_DEPTH = 100                # of containers in containers
_INTEGER = 64               # bytes of an integer: its conversion to a float cannot overflow


class PickleError(ValueError):
    """The file is not a pickle of plain data; one line says why."""


class NotPlain(PickleError):
    """An object of another kind than plain data."""


class Skipped:
    """Stands for an object that is not plain data, of which nothing was read.

    name: of its class or maker, such as "argparse.Namespace", or what kind of array it is.
    """

    def __init__(self, name: str):
        self.name = name


class Name:
    """What the file calls by module and name; a label, nothing is imported."""

    def __init__(self, name: str):
        self.name = name


class Pending:
    """An object whose contents are yet to come, and its indexes in the memo."""

    def __init__(self):
        self.places: list[int] = []


class OpcodeReader:
    """Interprets the opcodes of a pickle. Subclasses say what names and calls give.

    Args:
        file: where the pickle begins.
        memory: bytes that all objects may take.
        skip: puts a `Skipped` in the place of what is not plain data, instead of refusing the file.

    Raises PickleError for what is refused, and what DAMAGE lists for what is damaged.
    """

    def __init__(self, file: BinaryIO, memory: int, skip: bool = False):
        self.file, self.memory, self.left, self.skip = file, memory, memory, skip

    def find(self, name: str):
        """What stands for the class or function MODULE.NAME."""
        raise NotImplementedError

    def make(self, function, arguments: tuple):
        """What the call of `function`, which `find` gave, is to give."""
        raise NotImplementedError

    def build(self, target, state):
        """What `target` becomes when it is given its state."""
        raise NotImplementedError

    def outside(self, key):
        """What stands for an object that the pickle refers to by `key`."""
        raise NotImplementedError

    def load_whole(self):
        """`load`, for values that any code may walk: without cycles, and not nested without end."""
        value = self.load()
        self._check(value)
        return value

    def load(self):
        """The value of the pickle that begins here; the file is then at its end."""
        self._stack, self._below, self._memo = [], [], {}
        read, opcodes = self.file.read, _OPCODES
        while (code := read(1)) != b".":
            if not code:
                raise EOFError("it ends in the middle")
            opcode = opcodes[code[0]]
            if opcode is None:
                raise PickleError(f"byte {code.hex()} at {self.file.tell() - 1} is not an opcode of plain "
                                  "data")
            self.left -= OBJECT
            if self.left < 0:
                raise self.too_large()
            opcode(self)
        return self._stack.pop()

    def charge(self, size: int) -> None:
        """Count `size` bytes of memory, before they are taken."""
        self.left -= size
        if self.left < 0:
            raise self.too_large()

    def too_large(self) -> PickleError:
        return PickleError(f"its contents would take more than {self.memory / 1e6:.0f} MB of memory, far "
                           "more than the file has")

    # -------------------------------------------------------------- bytes

    def take(self, size: int) -> bytes:
        if size < 0:
            raise ValueError(f"a size of {size}")
        self.charge(size)
        data = self.file.read(size)
        if len(data) != size:
            raise EOFError("it ends in the middle")
        return data

    def line(self) -> str:
        data = self.file.readline(self.left // 8 + 1)
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
        self.charge(OBJECT)
        value = self._memo[index] = self._stack[-1]
        if type(value) is Pending:
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
        if self.skip:
            return False
        raise PickleError(f"it has a {kind_of(key)} as a key or in a set, where text and numbers are read")

    # -------------------------------------------------------------- names and calls

    def name(self, module: str, name: str) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise TypeError("a name that is not text")
        self.push(self.find(f"{module}.{name}"))

    def call(self, function, arguments) -> None:
        if type(arguments) is not tuple:
            raise TypeError("arguments that are not a tuple")
        self.push(self.make(function, arguments))

    def set_state(self) -> None:
        state, target = self.pop(), self._stack[-1]
        self._stack[-1] = built = self.build(target, state)
        if type(target) is Pending:
            for place in target.places:
                self._memo[place] = built

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
                if kind in CONTAINERS:
                    if (weight := weights.get(id(member), -1)) is None:
                        raise PickleError("it has a container that contains itself")
                    if weight < 0:
                        if len(path) > _DEPTH:
                            raise PickleError(f"it has containers in containers, more than {_DEPTH} deep")
                        weights[id(member)] = None
                        path.append((member, iter(member) if kind is not dict else
                                     chain.from_iterable(member.items())))
                        totals.append(OBJECT)
                        break
                    totals[-1] += weight
                elif kind in _SIZED:
                    totals[-1] += 8 + len(member)
                elif kind is np.ndarray:
                    totals[-1] += OBJECT + member.nbytes
                elif kind in _PLAIN or (kind is Skipped and self.skip):
                    totals[-1] += 8
                elif kind is Pending:
                    raise PickleError("it has an array without contents, or one that contains itself")
                elif not self.skip:
                    raise NotPlain(f"it holds {getattr(member, 'name', 'a part of an array')[:100]!r}")
            else:
                if totals[-1] > self.memory:
                    raise self.too_large()
                path.pop()
                weights[id(container)] = total = totals.pop()
                if totals:
                    totals[-1] += total


def kind_of(value) -> str:
    return value.name[:100] if isinstance(value, (Name, Skipped)) else type(value).__name__.lstrip("_")


CONTAINERS = {list, tuple, dict, set, frozenset}
_SIZED = {str, bytes, bytearray}
_PLAIN = {type(None), bool, int, float}
# What damaged bytes make the reader raise, besides PickleError
DAMAGE = (LookupError, TypeError, ValueError, EOFError, OverflowError, MemoryError, struct.error)


# -------------------------------------------------------------- the opcodes, as pickletools describes them

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
    reader.name(reader.pop(), name)


def _reduce(reader) -> None:
    arguments = reader.pop()
    reader.call(reader.pop(), arguments)


def _new_object(reader) -> None:
    keywords, arguments = reader.pop(), reader.pop()
    if keywords not in ({}, None) and not reader.skip:
        raise TypeError("a call with keywords")
    reader.call(reader.pop(), arguments)


def _instance(reader) -> None:
    reader.name(reader.line(), reader.line())
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
    b"]": _new(list), b"}": _new(dict), b"\x8f": _new(set, 3 * OBJECT), b")": _constant(()),
    b"K": _number(_BYTE), b"M": _number(_SHORT), b"J": _number(_SIGNED), b"G": _number(_DOUBLE),
    b"\x8a": _long(_BYTE), b"\x8b": _long(_SIGNED),
    b"I": _text_integer, b"L": _text_integer, b"F": _text_float,
    b"S": _quoted,
    b"V": lambda reader: reader.push(reader.line().encode("latin1").decode("raw-unicode-escape")),
    b"U": _sized(_BYTE, lambda data: data.decode("latin1")),
    b"T": _sized(_SIGNED, lambda data: data.decode("latin1")),
    b"\x8c": _sized(_BYTE, lambda data: data.decode("utf-8", "surrogatepass")),
    b"X": _sized(_UNSIGNED, lambda data: data.decode("utf-8", "surrogatepass")),
    b"\x8d": _sized(_LENGTH, lambda data: data.decode("utf-8", "surrogatepass")),
    b"C": _sized(_BYTE, bytes), b"B": _sized(_UNSIGNED, bytes), b"\x8e": _sized(_LENGTH, bytes),
    b"\x96": _sized(_LENGTH, bytearray),
    b"(": OpcodeReader.mark, b"0": OpcodeReader.discard, b"1": OpcodeReader.since_mark,
    b"2": lambda reader: reader.push(reader._stack[-1]),
    b"p": lambda reader: reader.remember(int(reader.line()[:20])),
    b"q": lambda reader: reader.remember(reader.unpack(_BYTE)),
    b"r": lambda reader: reader.remember(reader.unpack(_UNSIGNED)),
    b"\x94": lambda reader: reader.remember(len(reader._memo)),
    b"g": lambda reader: reader.recall(int(reader.line()[:20])),
    b"h": lambda reader: reader.recall(reader.unpack(_BYTE)),
    b"j": lambda reader: reader.recall(reader.unpack(_UNSIGNED)),
    b"a": lambda reader: reader.extend([reader.pop()]), b"e": _marked(OpcodeReader.extend),
    b"s": _set_item, b"u": _marked(OpcodeReader.update), b"\x90": _marked(OpcodeReader.add),
    b"l": _marked(OpcodeReader.push), b"t": _marked(lambda reader, values: reader.push(tuple(values))),
    b"d": _marked(lambda reader, values: (reader.push({}), reader.update(values))),
    b"\x91": _marked(lambda reader, values: reader.push(frozenset(reader.keys(values)))),
    b"\x85": _tuple(1), b"\x86": _tuple(2), b"\x87": _tuple(3),
    b"c": lambda reader: reader.name(reader.line(), reader.line()), b"\x93": _stack_global,
    b"R": _reduce, b"\x81": _reduce, b"\x92": _new_object, b"i": _instance,
    b"o": _marked(lambda reader, values: reader.call(values[0], tuple(values[1:]))),
    b"b": OpcodeReader.set_state, b"Q": lambda reader: reader.push(reader.outside(reader.pop())),
}
_OPCODES = [_NAMED_OPCODES.get(bytes([code])) for code in range(256)]

