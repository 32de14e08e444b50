"""Which worker computes which chunk: claims in a folder that all workers share.

Workers need not know of each other, and may come, go and die at any time. Each has a file that says
who it is, and whose time of change says when it was last at work; a claim is a link to that file, made
in one step, if there is no other.
"""
import json
import os
import shutil
import socket
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

from dolg.errors import UserError


class Claims:
    """One worker's view of a folder of claims.

    Args:
        folder: made if it is not there.
        lease: seconds after which a worker that has not renewed its claims counts as gone. A dead
            process of this machine does at once.

    Raises UserError where the folder is on a file system that has no hard links.
    """

    def __init__(self, folder: Path, lease: float):
        self.folder, self.lease = folder, lease
        self._me = folder / f"worker-{uuid.uuid4().hex}"
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            # A worker that is done may have removed the folder in between
            with suppress(FileNotFoundError):
                self._me.write_text(json.dumps(_identity(os.getpid())))
                break
        self._held: set[int] = set()
        self._touch()

    def take(self, chunk: int) -> bool:
        """Claim a chunk; False where another worker has it."""
        claim = self._claim(chunk)
        for _ in range(2):
            try:
                os.link(self._me, claim)
            except FileExistsError:
                if not self._remove_abandoned(claim):
                    return False
            except FileNotFoundError:       # all is done, and the folder gone
                return False
            except OSError as error:
                raise UserError(f"cannot make a link in {self.folder} ({error.strerror}), by which "
                                "workers tell each other what they do: give INFER.OUT_DIR on "
                                "another file system") from None
            else:
                self._held.add(chunk)
                return True
        return False

    def renew(self) -> None:
        """Say that this worker is at work; others then leave its chunks alone for a lease."""
        if time.monotonic() - self._renewed > self.lease / 20:
            self._touch()

    def _touch(self) -> None:
        self._renewed = time.monotonic()
        with suppress(FileNotFoundError):
            os.utime(self._me)      # by the clock of the file system, which all share

    def release(self, chunk: int) -> None:
        """Give up a chunk, done or not."""
        claim = self._claim(chunk)
        self._held.discard(chunk)
        with suppress(FileNotFoundError):
            if claim.samefile(self._me):        # else others have given this worker up
                claim.unlink()

    def close(self, done: bool) -> None:
        """Give up all chunks; where the whole work is `done`, remove the folder as well."""
        if done:
            shutil.rmtree(self.folder, ignore_errors=True)      # others may be at it, too
            return
        for chunk in list(self._held):
            self.release(chunk)
        self._me.unlink(missing_ok=True)

    def _claim(self, chunk: int) -> Path:
        return self.folder / f"chunk-{chunk:06d}"

    def _remove_abandoned(self, claim: Path) -> bool:
        """Whether nobody holds the claim any more."""
        try:
            found = claim.stat()
            holder = read_holder(claim)
        except FileNotFoundError:
            return True
        self._touch()
        with suppress(FileNotFoundError):
            idle = self._me.stat().st_mtime - found.st_mtime
            if idle < self.lease and not _is_dead(holder):
                return False
        # Only one worker can move it away; if meanwhile another has, and made its own, that one
        # is put back
        moved = claim.with_name(f"abandoned-{uuid.uuid4().hex}")
        try:
            claim.rename(moved)
        except FileNotFoundError:
            return True
        if moved.stat().st_ino != found.st_ino:
            with suppress(FileExistsError):
                os.link(moved, claim)
        moved.unlink()
        return True


def read_holder(claim: Path) -> dict:
    """Who made a claim: `machine`, `pid` and `started`; of one that a power failure has emptied,
    a process of no machine."""
    try:
        return json.loads(claim.read_text())
    except ValueError:
        return {"machine": "unknown", "pid": 0, "started": None}


def _identity(pid: int) -> dict:
    """A process, as told from all others, those of other machines and earlier ones included."""
    return {"machine": _machine(), "pid": pid, "started": _started(pid)}


def _is_dead(holder: dict) -> bool:
    """Whether the process was one of this machine and is no more."""
    return holder["machine"] == _machine() and holder != _identity(holder["pid"])


@cache
def _machine() -> str:
    """This machine, or container: where a process has a number of its own."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = os.readlink("/proc/self/ns/pid") if boot.exists() else ""
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''} {space}"


def _started(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None where there is none (or no /proc)."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else after_name[19]
