"""What is in an archive, read as what strangers made: nothing is believed, or read without a bound.

tar, plain or compressed by gzip, bzip2 or xz, and zip; told apart by their first bytes.
"""
import bz2
import gzip
import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import BinaryIO, Self

from tqdm import tqdm

from dolg.errors import UserError
from dolg.prepare.streams import Absurd, Bounded, Source, StrictInfo

_BLOCK = 2 ** 18
_MOST_HEADERS = 2 ** 20     # bytes of headers before a member of a tar; long names take some hundred
_MOST_SHARED = 100          # records of headers that hold for all members of a tar
_MOST_ENTRY = 256           # bytes of a zip's directory per member that may be in it
_COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_TAR_BUFFER = 2 ** 16
# What the readers of the standard library raise for what they cannot read
_DAMAGE = (Absurd, tarfile.TarError, zipfile.BadZipFile, NotImplementedError, EOFError, OSError,
           zlib.error, lzma.LZMAError, struct.error, ValueError, OverflowError, IndexError, KeyError,
           RecursionError)


@dataclass(frozen=True)
class Member:
    """A file or folder in an archive, as it calls itself.

    Attributes:
        name: its path there.
        size: bytes that it says it has.
        refused: why it may not be unpacked; "": it may.
        blocks: its contents, once, before the next member is asked for; empty for folders.
    """

    name: str
    size: int
    is_folder: bool
    refused: str
    blocks: Iterator[bytes]


class Archive:
    """An archive that is read once, from its beginning to its end.

    Args:
        path: the file.
        max_files: a zip's directory is refused where it is large enough for many more than that.
        stop: once set, reading raises Stopped.

    Attributes:
        size: bytes of the file.
        count, declared: members and their bytes in all where a directory says so in advance (zip); else 0.

    Raises UserError, wherever it finds out, where the archive is damaged or cut.
    """

    def __init__(self, path: Path, max_files: int, stop: Event | None = None):
        self.path = path
        self.count = self.declared = 0
        self._zip: zipfile.ZipFile | None = None
        with self._reading():
            file = open(path, "rb")
        self.size = os.fstat(file.fileno()).st_size
        bar = tqdm(total=self.size, desc=f"unpacking {path.name}", unit="B", unit_scale=True,
                   leave=False, disable=None)
        self._source = Source(file, bar, stop)
        try:
            with self._reading():
                self._start = file.read(6)
                file.seek(0)
                if self._start.startswith(_ZIP):
                    self._open_zip(max_files)
        except BaseException:
            self._source.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._source.close()

    def members(self) -> Iterator[Member]:
        """The members in their order. When they end, all of the archive was read and is whole."""
        members = self._zip_members() if self._zip else self._tar_members()
        while True:
            with self._reading():
                member = next(members, None)
            if member is None:
                return
            yield member

    def _open_zip(self, max_files: int) -> None:
        bounded = Bounded(self._source, max(_MOST_HEADERS, max_files * _MOST_ENTRY))
        self._zip = zipfile.ZipFile(bounded)        # reads the directory into memory
        bounded.left = None
        self.count = len(self._zip.infolist())
        self.declared = sum(info.file_size for info in self._zip.infolist())

    def _zip_members(self) -> Iterator[Member]:
        for info in self._zip.infolist():
            refused = _why_not_of_zip(info)
            blocks = iter(())
            if not (refused or info.is_dir()):
                blocks = self._blocks(self._zip.open(info), info.file_size, info.filename)
            yield Member(info.orig_filename, info.file_size, info.is_dir(), refused, blocks)
            _exhaust(blocks)

    def _tar_members(self) -> Iterator[Member]:
        opened = [reader for magic, reader in _COMPRESSED if self._start.startswith(magic)]
        stream = Bounded(opened[0](self._source) if opened else self._source, _MOST_HEADERS)
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=StrictInfo, bufsize=_TAR_BUFFER,
                          encoding="utf-8", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                stream.left = None
                refused = _why_not_of_tar(info)
                blocks = iter(())
                if not (refused or info.isdir()):
                    blocks = self._blocks(tar.extractfile(info), info.size, info.name)
                yield Member(info.name, info.size, info.isdir(), refused, blocks)
                _exhaust(blocks)        # or else what is skipped would count as headers
                tar.members.clear()     # which tarfile gathers
                if len(tar.pax_headers) > _MOST_SHARED:
                    raise Absurd(f"more than {_MOST_SHARED} shared headers")
                stream.left = _MOST_HEADERS
            stream.left = None
            while stream.read(_BLOCK):      # a checksum comes last
                pass

    def _blocks(self, content: BinaryIO, size: int, name: str) -> Iterator[bytes]:
        read = 0
        with content:
            while True:
                with self._reading(name):
                    block = content.read(_BLOCK)
                    read += len(block)
                    if not block and read != size:
                        raise EOFError(f"{read} bytes instead of {size}")
                if not block:
                    return
                yield block

    @contextmanager
    def _reading(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise UserError(f"cannot read {self.path}: {error.strerror}") from None
            where = f"member {quoted(name)}: " if name else ""
            what = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.path} is damaged or cut, or is no tar or zip archive ({where}{what}): "
                            "fetch it again") from None


def quoted(name: str) -> str:
    """A member's name as it can be printed, on one line and not endless."""
    text = name.encode("unicode_escape", "backslashreplace").decode() if not name.isprintable() else name
    return f"'{text if len(text) <= 200 else text[:200] + '...'}'"


def _exhaust(blocks: Iterator[bytes]) -> None:
    for _ in blocks:
        pass


def _why_not_of_tar(info: tarfile.TarInfo) -> str:
    reasons = {"a symbolic link": info.issym(), "a hard link": info.islnk(), "a device": info.isdev(),
               "a sparse file": info.issparse(), "of a negative size": info.size < 0,
               "of an unknown kind": not (info.isreg() or info.isdir())}
    return next((reason for reason, holds in reasons.items() if holds), "")


def _why_not_of_zip(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if info.flag_bits & 1:
        return "encrypted"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a symbolic link" if kind == stat.S_IFLNK else "a device"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # The others' readers do not bound what they take of the memory
        return f"compressed by method {info.compress_type}, which is not read here"
    return ""
