"""The part of a file that was fetched so far, with what is needed to continue it."""
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import BinaryIO, Self

from tqdm import tqdm

from dolg.errors import UserError
from dolg.files import write_atomically
from dolg.prepare.guards import check_stop, require_space

_BLOCK = 2 ** 20


@dataclass(frozen=True)
class Origin:
    """Where a part comes from.

    Attributes:
        url: its address.
        validator: the strong ETag or else the date of change; changes when the file does. "": neither is
            known.
        total: bytes of the whole file; None: not known.
    """

    url: str
    validator: str
    total: int | None


class Part:
    """NAME.part beside NAME, and in NAME.part.json its origin: what a killed run leaves, and the next one
    continues.

    Attributes:
        path: NAME, which appears when all is there.
        size: bytes that are there.
        origin: of these bytes; None where there are none.
    """

    def __init__(self, path: Path, stop: Event):
        self.path, self._stop = path, stop
        self._file, self._note = _names(path)
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.origin = self._read_note()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._stream: BinaryIO | None = None
        self.size = 0
        if self.origin is not None and self._file.exists():
            self._hash_file()

    @staticmethod
    def forget(path: Path) -> None:
        """Remove the note that a run left which was killed just after the file got its name."""
        part, note = _names(path)
        if not part.exists():
            note.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def begin(self, origin: Origin) -> None:
        """Nothing is there, and what comes is of `origin`."""
        self.delete()
        with self._writing():
            write_atomically(self._note, json.dumps(asdict(origin)))
        self.origin = origin

    def reserve(self, needed: int) -> None:
        """Raises UserError where the disk has no room for `needed` bytes more."""
        require_space(self.path.parent, needed, self.path.name)

    def write(self, block: bytes) -> None:
        """Append. Raises UserError where the disk does not take it."""
        with self._writing():
            stream, rest = self._opened(), memoryview(block)
            while rest:
                rest = rest[stream.write(rest):]
        self._md5.update(block)
        self.size += len(block)

    def md5(self) -> str:
        """Of what is there, in hexadecimal."""
        return self._md5.hexdigest()

    def delete(self) -> None:
        """Start from nothing."""
        self._close()
        self._file.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.size, self.origin = 0, None

    def finish(self) -> str:
        """All is there: the file gets its name, on disk. Gives its MD5."""
        with self._writing():
            os.fsync(self._opened().fileno())
            self._close()
            os.replace(self._file, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._note.unlink()
        return self.md5()

    def _opened(self) -> BinaryIO:
        if self._stream is None:
            self._stream = open(self._file, "ab", buffering=0)      # so that a killed run leaves all it had
        return self._stream

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self._file}: {error.strerror}") from None

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _hash_file(self) -> None:
        self._md5 = _hashed(self._file, self._stop)
        self.size = self._file.stat().st_size

    def _read_note(self) -> Origin | None:
        try:
            return Origin(**json.loads(self._note.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):      # a note that cannot be read is none
            return None


def md5_of(path: Path, stop: Event | None = None) -> str:
    """MD5 of a file, in hexadecimal. Raises Stopped once `stop` is set."""
    return _hashed(path, stop).hexdigest()


def _hashed(path: Path, stop: Event | None):
    md5 = hashlib.md5(usedforsecurity=False)
    bar = tqdm(total=path.stat().st_size, desc=f"checking {path.name}", unit="B", unit_scale=True,
               leave=False, delay=1, disable=None)
    with bar, open(path, "rb") as file:
        while block := file.read(_BLOCK):
            check_stop(stop)
            md5.update(block)
            bar.update(len(block))
    return md5


def _names(path: Path) -> tuple[Path, Path]:
    return path.with_name(f"{path.name}.part"), path.with_name(f"{path.name}.part.json")
