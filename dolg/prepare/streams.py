"""Archives on their way to the readers of the standard library, with the bounds that those lack."""
import tarfile
from threading import Event
from typing import BinaryIO, Self

from tqdm import tqdm

from dolg.prepare.guards import check_stop


class Absurd(Exception):
    """What no honest archive has."""


class Source:
    """The archive's file: moves the bar, and looks whether to stop."""

    def __init__(self, file: BinaryIO, bar: tqdm, stop: Event | None):
        self._file, self._bar, self._stop = file, bar, stop
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        check_stop(self._stop)
        block = self._file.read(size)
        # Some of a zip is read twice
        self._bar.update(min(len(block), self._bar.total - self._bar.n))
        return block

    def close(self) -> None:
        self._bar.close()
        self._file.close()


class Bounded:
    """A stream of which no more than `left` bytes may be read; None: as many as there are."""

    def __init__(self, stream: BinaryIO, left: int | None):
        self._stream, self.left = stream, left
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        if self.left is None:
            return self._stream.read(size)
        block = self._stream.read(size if 0 <= size <= self.left else self.left + 1)
        self.left -= len(block)
        if self.left < 0:
            raise Absurd("headers that claim to be of an absurd length")
        return block


class StrictInfo(tarfile.TarInfo):
    """A header that is wrong or absent is damage; tarfile takes most of them for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> Self:
        end = len(buf) == tarfile.BLOCKSIZE and not buf.strip(b"\0")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if end:
                raise
            raise tarfile.ReadError(str(error)) from None
