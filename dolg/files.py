"""Files that are whole or absent, whatever happens while they are written, and JSON that may be damaged."""
import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write in; `path` gets its contents at the end, all at once.

    Until then, and after an exception, `path` is what it was. The contents and the name are
    forced to disk, so that not even a power failure leaves half a file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines may share the folder
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w+b") as file:        # HDF5 reads what it has written
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Write a whole file, text in UTF-8."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | Path) -> object:
    """What a JSON file holds. Raises OSError, and ValueError with the reason where it is damaged."""
    return _parse(Path(path).read_bytes())


def read_records(path: str | Path) -> tuple[list[dict], list[int]]:
    """The objects of a file of JSON lines, and the numbers, from 1, of lines that hold none, as a full
    disk or a power failure leaves them; empty lines count as neither. Raises OSError."""
    records, torn = [], []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = _parse(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            records.append(record)
        else:
            torn.append(number)
    return records, torn


def append_record(path: str | Path, line: str) -> None:
    """Append a line to a file; where the last one is torn, the new one starts after it. Raises OSError."""
    with open(path, "a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = "\n" + line
        data = f"{line}\n".encode()
        if file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _parse(data: bytes) -> object:
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
