"""What ends a long step before its time: somebody who wants it to stop, or a full disk."""
import shutil
from pathlib import Path
from threading import Event

from dolg.errors import UserError

_MARGIN = 2 ** 28       # bytes of the disk that stay free


class Stopped(Exception):
    """The event that a step was given is set: it left what it had, for the next time."""


def check_stop(stop: Event | None) -> None:
    """Raises Stopped where the event is set."""
    if stop is not None and stop.is_set():
        raise Stopped


def free_bytes(folder: Path) -> int:
    """Bytes of the disk that may be written in `folder`, less a margin."""
    return shutil.disk_usage(folder).free - _MARGIN


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raises UserError where `needed` bytes, for `what`, do not fit the disk that `folder` lies on."""
    free = free_bytes(folder)
    if needed > free:
        raise UserError(f"{what} needs {needed / 1e9:.3f} GB more, and the disk of {folder} has "
                        f"{max(free, 0) / 1e9:.3f} GB to spare: make room")
