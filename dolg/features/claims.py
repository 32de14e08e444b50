"""Which worker computes which chunk: claims in a folder that all workers share.

Workers need not know of each other, and may come, go and die at any time. Each has a file that says
who it is, and whose time of change says when it was last at work; a claim is a link to that file, made
in one step, if there is no other.
"""
import json
import os
import shutil
import socket
import stat
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

from dolg.errors import UserError


# What is read of a worker's file; they have a few hundred bytes
_MOST = 4096


class Claims:
    """One worker's view of a folder of claims.

    Args:
        folder: made if it is not there, and again whenever it has been removed.
        lease: seconds after which a worker that has not renewed its claims counts as gone. A dead
            process of this machine does at once.
        images: the digest of the list of images that this worker is at.

    Raises UserError where the folder is on a file system that has no hard links.
    """

    def __init__(self, folder: Path, lease: float, images: str = ""):
        self.folder, self.lease, self.images = folder, lease, images
        self._me = folder / f"worker-{uuid.uuid4().hex}"
        self._held: set[int] = set()
        # Of each claim whose time lies ahead: that time, and when it was first seen, by this process's clock
        self._ahead: dict[int, tuple[int, float]] = {}
        self._register()

    def _register(self) -> None:
        """Write this worker's file, and link the claims that it holds to it."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A worker that is done may have removed the folder in between
            with suppress(FileNotFoundError):
                self._me.write_text(json.dumps({**_identity(os.getpid()), "images": self.images}))
                self._touch()
                break
        for chunk in self._held:
            with suppress(OSError):     # at worst another worker computes it as well
                os.link(self._me, self._claim(chunk))

    def take(self, chunk: int) -> bool:
        """Claim a chunk; False where another worker has it."""
        claim = self._claim(chunk)
        for _ in range(3):
            try:
                os.link(self._me, claim)
            except FileExistsError:
                if not self._remove_abandoned(claim):
                    return False
            except FileNotFoundError:       # by a worker that found all done, or by a user
                self._register()
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
            self._now()

    def others(self) -> list[str]:
        """Workers that are at other images than this one, and alive; a few words of each."""
        found, now = [], self._now()
        for file in self.folder.glob("worker-*"):
            with suppress(FileNotFoundError):
                holder, seen = read_holder(file), file.stat().st_mtime
                if (holder.get("images") != self.images and abs(now - seen) < self.lease
                        and not _is_dead(holder)):
                    found.append(_who(holder, seen))
        return found

    def _now(self) -> float:
        """The time by the file system's clock. To ask for it renews the claims."""
        try:
            self._touch()
        except FileNotFoundError:       # a user, or a worker that found all done, has removed the folder
            self._register()
        return self._me.stat().st_mtime

    def _touch(self) -> None:
        self._renewed = time.monotonic()
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
            found = claim.lstat()
            holder = read_holder(claim)
        except FileNotFoundError:
            return True
        idle = self._idle(found, self._now())
        if idle < self.lease and not _is_dead(holder):
            return False
        # Only one worker can move it away; if meanwhile another has, and made its own, that one
        # is put back
        moved = claim.with_name(f"abandoned-{uuid.uuid4().hex}")
        try:
            claim.rename(moved)
        except FileNotFoundError:
            return True
        if moved.lstat().st_ino != found.st_ino:
            with suppress(FileExistsError):
                os.link(moved, claim)
        with suppress(IsADirectoryError, PermissionError):      # not a claim, and out of the way now
            moved.unlink()
        return True

    def _idle(self, found: os.stat_result, now: float) -> float:
        """Seconds since a claim was last renewed, for `now` of the file system's clock. Where that clock
        has been set back since, those for which this worker has seen no renewal."""
        if found.st_mtime <= now:
            return now - found.st_mtime
        time_ahead, since = self._ahead.get(found.st_ino, (None, 0.0))
        if time_ahead != found.st_mtime_ns:
            since = time.monotonic()
            self._ahead[found.st_ino] = found.st_mtime_ns, since
        return time.monotonic() - since


def claimants(folder: Path) -> list[str]:
    """A line for each worker that has chunks claimed: who it is, and which they are."""
    claimed: dict[str, list[str]] = {}
    for claim in sorted(folder.glob("chunk-*")):
        with suppress(FileNotFoundError):       # given up meanwhile
            who = _who(read_holder(claim), claim.lstat().st_mtime)
            claimed.setdefault(who, []).append(claim.name)
    return [f"{who}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            for who, names in claimed.items()]


def _who(holder: dict, seen: float) -> str:
    ago = time.time() - seen
    machine = ascii((holder["machine"].split() or ["unknown"])[0])[1:-1]
    return (f"{machine}, process {holder['pid']}, "
            + (f"seen {max(0, ago):.0f} s ago" if ago > -1 else f"whose clock is {-ago:.0f} s ahead"))


def read_holder(claim: Path) -> dict:
    """Who made a claim: `machine`, `pid` and `started`; a process of no machine where the file is
    damaged, as a power failure may leave it."""
    try:
        # Not to wait for a pipe, nor to read a device
        handle = os.open(claim, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            text = os.read(handle, _MOST) if stat.S_ISREG(os.fstat(handle).st_mode) else b""
        finally:
            os.close(handle)
        holder = json.loads(text)
        if (isinstance(holder["machine"], str) and isinstance(holder["started"], str | None)
                and type(holder["pid"]) is int and 0 < holder["pid"] < 2 ** 31):
            return holder
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    return {"machine": "unknown", "pid": 0, "started": None}


def _identity(pid: int) -> dict:
    """A process, as told from all others, those of other machines and earlier ones included."""
    return {"machine": _machine(), "pid": pid, "started": _started(pid)}


def _is_dead(holder: dict) -> bool:
    """Whether the process was one of this machine and is no more."""
    return holder["machine"] == _machine() and holder["started"] != _started(holder["pid"])


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
