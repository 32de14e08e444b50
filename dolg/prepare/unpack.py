"""Archives unpacked: all of one, or nothing, and never outside its target."""
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from dolg.errors import UserError
from dolg.prepare.guards import require_space
from dolg.prepare.members import Archive, Member, quoted

_LONGEST = 4096     # characters of a path


@dataclass(frozen=True)
class Unpacked:
    """Files that an archive put into its target, and their bytes in all."""

    files: int
    bytes: int


def unpack(archive: Path, target: Path, *, place: Callable[[str], str | None] | None = None,
           max_bytes: int | None = None, max_files: int = 2_000_000, stop: Event | None = None) -> Unpacked:
    """Put the files of a tar (plain, gzip, bzip2, xz) or zip archive into the folder `target`.

    They are written to a hidden folder beside it, and moved when the whole archive was read without an
    error; folders that are in `target` already are merged with. A call that is killed while it moves is
    repeated, with the same result. Threads may unpack archives of different names into one target.
    What macOS adds (__MACOSX, ._*, .DS_Store) is left out, and so are modes and dates. As with tar, the
    last of two members of one name stays, and what follows a tar's end is not looked at.

    Args:
        place: gives a file's path in `target` by its name in the archive ("a/b", also of "./a//b"), None
            where it is not wanted; no two names may get the same path. Folders are made as files need
            them. None: files and folders go where the archive says.
        max_bytes: of all members; None: 20 times the archive's size and 1 GB.
        max_files: members, and folders that are made.
        stop: once set, the call ends soon with Stopped, unless it is moving files already.

    Raises UserError, `target` as it was, for an archive that is damaged or cut, has links, devices or
    encrypted members, also among those that are not wanted, names that lead out of `target` or through
    its links, a file where `target` has a folder or the other way round, more than it may have, or more
    than the disk has room for.
    """
    target = target.resolve()
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}, where {archive} shall be unpacked, is no folder")
    # Files are moved, not copied: that needs one file system
    beside = target if target.is_mount() else target.parent
    hidden = beside / f".{target.name}.{archive.name}.unpacking"
    with _emptied(hidden):
        with Archive(archive, max_files, stop) as content:
            bound = 20 * content.size + 10 ** 9 if max_bytes is None else max_bytes
            writer = _Writer(archive, hidden, place, bound, max_files)
            writer.expect(content.count, content.declared)
            for member in content.members():
                writer.take(member)
        # Whoever marks this step as done, or deletes the archive, relies on files that survive a power
        # failure; one sync for all takes less than one for each of thousands
        os.sync()
        return _merge(archive, hidden, target)


class _Writer:
    """Puts members into a folder, and holds them to the bounds."""

    def __init__(self, archive: Path, folder: Path, place: Callable[[str], str | None] | None,
                 max_bytes: int, max_files: int):
        self._archive, self._folder, self._place = archive, folder, place
        self._max_bytes, self._max_files = max_bytes, max_files
        self._members = self._bytes = self._written = 0
        self._folders = {folder}
        self._placed: dict[str, str] = {}

    def expect(self, members: int, size: int) -> None:
        """Look at what the archive says it has."""
        self._bound(members, size)
        require_space(self._folder, size, str(self._archive))

    def take(self, member: Member) -> None:
        """Write a member, if it is wanted."""
        self._members += 1
        self._bytes += member.size
        path = self._checked(member.name, member.name)
        if member.refused:
            self._refuse(member.name, f"is {member.refused}")
        self._bound(self._members + len(self._folders) - 1, self._bytes)
        if _is_clutter(path):
            return
        with self._writing(member.name):
            if member.is_folder:
                if self._place is None:
                    self._make(self._folder / path)
            elif (file := self._destination(member.name, path)) is not None:
                self._make(file.parent)
                self._write(member, file)

    def _destination(self, name: str, path: str) -> Path | None:
        if self._place is not None:
            wanted = self._place(path)
            if wanted is None:
                return None
            placed = self._checked(name, wanted)
            first = self._placed.setdefault(placed, path)
            if first != path:
                raise UserError(f"{self._archive}: members {quoted(first)} and {quoted(path)} would both "
                                f"become {quoted(placed)}")
            path = placed
        if not path:
            self._refuse(name, "is a file without a name")
        return self._folder / path

    def _write(self, member: Member, file: Path) -> None:
        require_space(self._folder, member.size, str(self._archive))
        with open(file, "wb") as output:
            for block in member.blocks:
                self._written += len(block)
                self._bound(self._members, self._written)
                output.write(block)

    def _make(self, folder: Path) -> None:
        if folder in self._folders:
            return
        new = [folder, *folder.parents]
        new = new[:next(i for i, parent in enumerate(new) if parent in self._folders)]
        self._folders.update(new)
        self._bound(self._members + len(self._folders) - 1, self._bytes)
        folder.mkdir(parents=True, exist_ok=True)

    def _bound(self, members: int, size: int) -> None:
        if members > self._max_files:
            raise UserError(f"{self._archive} has more than {self._max_files} members, which is more than "
                            "it may have: not unpacked")
        if size > self._max_bytes:
            raise UserError(f"{self._archive} unpacks to {size / 1e9:.3f} GB or more, and may to "
                            f"{self._max_bytes / 1e9:.3f} GB: not unpacked")

    def _checked(self, name: str, path: str) -> str:
        """`path` without its idle parts, or a UserError where it may lead anywhere else."""
        try:
            path.encode()
        except UnicodeEncodeError:
            self._refuse(name, "has a name that is no UTF-8")
        if "\0" in path or len(path) > _LONGEST:
            self._refuse(name, "has a name that no file can have")
        parts = re.split(r"[/\\]", path)
        if path.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", path):
            self._refuse(name, "would lead out of the folder")
        return "/".join(part for part in path.split("/") if part not in ("", "."))

    def _refuse(self, name: str, why: str) -> None:
        raise UserError(f"{self._archive}: member {quoted(name)} {why}: not unpacked")

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except (FileExistsError, IsADirectoryError, NotADirectoryError):
            self._refuse(name, "is a file where another member is a folder, or the other way round")
        except OSError as error:
            raise UserError(f"{self._archive}: cannot write member {quoted(name)}: "
                            f"{error.strerror}") from None


def _is_clutter(path: str) -> bool:
    """Whether macOS put it there for its own use."""
    parts = path.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] == ".DS_Store"


@contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    """An empty folder, also where a killed run left one; it is gone afterwards."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}") from None
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)       # what stays is removed, or told, the next time


def _merge(archive: Path, source: Path, target: Path) -> Unpacked:
    """Move all files of `source` to their places in `target`, or raise UserError and move none."""
    for file, there in _pairs(source, target):
        if there.is_symlink():
            raise UserError(f"{archive} would write through {there}, which is a symbolic link: "
                            "not unpacked")
        if there.exists() and there.is_dir() != file.is_dir():
            new, old = ("folder", "file") if file.is_dir() else ("file", "folder")
            raise UserError(f"{archive} has a {new} where there is a {old}, {there}: not unpacked")
    files = size = 0
    try:
        target.mkdir(parents=True, exist_ok=True)
        for file, there in _pairs(source, target):
            if file.is_dir():
                there.mkdir(exist_ok=True)
            else:
                files, size = files + 1, size + file.stat().st_size
                os.replace(file, there)
    except OSError as error:
        raise UserError(f"cannot move the files of {archive} to {target}: {error.strerror}") from None
    return Unpacked(files, size)


def _pairs(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """All files and folders under `source`, folders before what is in them, and their places."""
    for folder, folders, files in os.walk(source):
        there = target / os.path.relpath(folder, source)
        for name in folders + files:
            yield Path(folder, name), there / name
