"""The checkpoints of a run: written in the background, proved by their digests, kept sparingly."""
import fcntl
import hashlib
import json
import re
import threading
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from dolg.errors import UserError
from dolg.files import atomic_file, file_digest, write_atomically
from dolg.core.logging import say

_NAME = re.compile(r"model_epoch_(\d{4,})(?:_step_(\d{6,}))?\.pyth$")


class Position(NamedTuple):
    """How far a run is: `epoch` whole epochs, and `step` steps of the next."""

    epoch: int
    step: int = 0

    def __str__(self) -> str:
        return f"epoch {self.epoch}" + (f" and {self.step} steps" if self.step else "")


def checkpoint_path(out_dir: str | Path, position: Position) -> Path:
    """Where the state at `position` lies."""
    within = f"_step_{position.step:06d}" if position.step else ""
    return Path(out_dir) / "checkpoints" / f"model_epoch_{position.epoch:04d}{within}.pyth"


def checkpoints(out_dir: str | Path) -> list[Path]:
    """The checkpoints in `out_dir`, the farthest first."""
    found = [path for path in (Path(out_dir) / "checkpoints").glob("*.pyth")
             if _NAME.match(path.name)]
    return sorted(found, key=_position, reverse=True)


def newest_checkpoint(out_dir: str | Path) -> Path | None:
    """The farthest checkpoint in `out_dir` that is whole, or None; says what it passes over.

    Raises UserError where there are some and all are damaged.
    """
    found = checkpoints(out_dir)
    for path in found:
        if is_whole(path):
            return path
        say(f"{path} is damaged: it is not what {_digest_path(path).name} says was written. "
            "Looking for the one before")
    if found:
        raise UserError(f"all checkpoints in {found[0].parent} are damaged: restore one, or delete "
                        "them to start anew")
    return None


def best_checkpoint(out_dir: str | Path) -> Path:
    """The checkpoint with the best evaluation. Raises UserError where none was evaluated."""
    best = read_best(out_dir)
    if not best:
        raise UserError(f"{out_dir}/checkpoints has no best checkpoint: train with TEST.DATASET or "
                        "TEST.RETRIEVAL, which judge them")
    return Path(out_dir) / "checkpoints" / best["file"]


def read_best(out_dir: str | Path) -> dict:
    """The `file` of the best checkpoint, its `metric` and `value`; empty where there is none."""
    file = Path(out_dir) / "checkpoints" / "best.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def is_whole(path: Path) -> bool:
    """Whether the file is what was written; one without a digest beside it is taken as it is."""
    digest = _digest_path(path)
    if not digest.is_file():
        return True
    return digest.read_text(encoding="utf-8").split()[:1] == [file_digest(path)]


def save_checkpoint(path: Path, state: dict) -> None:
    """Write `state` so that `path` holds all of it or does not exist, whenever power fails.

    Its SHA-256 lies beside it in the form of sha256sum, and is there before it.
    """
    with atomic_file(path) as file:
        hashing = _HashingFile(file)
        try:
            torch.save(state, hashing)
        except RuntimeError as error:
            # torch's own words for a failed write hide what failed
            raise hashing.error or error
        write_atomically(_digest_path(path), f"{hashing.digest.hexdigest()}  {path.name}\n")


class Saver:
    """Writes a run's checkpoints in the background, one at a time.

    Args:
        out_dir: the run's folder; no other process may be training in it.
        keep: checkpoints to keep, the newest, beside the best; 0: all.

    A failed write (a full disk) is said and leaves the older checkpoints; `finish` raises
    UserError if the last one failed. Raises UserError where another run holds the folder.
    """

    def __init__(self, out_dir: str | Path, keep: int):
        self.out_dir, self.keep = Path(out_dir), keep
        self.best = read_best(out_dir)
        self._thread: threading.Thread | None = None
        self._failure, self._bug = "", None
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.out_dir / ".lock")
        self._clear(self.out_dir / "checkpoints")

    def save(self, position: Position, state: dict, best: dict | None = None) -> None:
        """Write `state`, whose tensors may change as soon as this returns.

        best: `metric` and `value`, where this is the best checkpoint so far.
        """
        self.wait()
        path = checkpoint_path(self.out_dir, position)
        self._thread = threading.Thread(target=self._write, args=(path, _copy(state), best))
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._bug:
            raise self._bug

    def finish(self) -> None:
        """Wait; raise UserError if the last checkpoint could not be written."""
        self.wait()
        if self._failure:
            raise UserError(f"{self._failure}: the run can go on from the checkpoint before")

    def _write(self, path: Path, state: dict, best: dict | None) -> None:
        self._failure = ""
        try:
            save_checkpoint(path, state)
            if best:
                self.best = {"file": path.name, **best}
                write_atomically(path.with_name("best.json"), json.dumps(self.best) + "\n")
            self._remove_old(path)
        except OSError as error:
            self._failure = f"could not write {path}: {error.strerror or error}"
            before = next((p.name for p in checkpoints(self.out_dir) if p != path), "none")
            say(f"WARNING: {self._failure}. Training goes on; the newest whole checkpoint is {before}")
        except Exception as error:
            self._bug = error       # of this thread, for the one that waits

    def _remove_old(self, newest: Path) -> None:
        # One that is farther on is damaged, or this run would have gone on from it
        whole = [path for path in checkpoints(self.out_dir) if _position(path) <= _position(newest)]
        for path in whole[self.keep:] if self.keep else []:
            if path.name != self.best.get("file"):
                path.unlink()
                _digest_path(path).unlink(missing_ok=True)

    def _clear(self, folder: Path) -> None:
        """Remove what a killed process left half written."""
        for path in folder.glob(".*.tmp"):
            path.unlink()
            say(f"{path.name} was never finished: removed")
        for digest in folder.glob("model_epoch_*.pyth.sha256"):
            if not digest.with_suffix("").exists():
                digest.unlink()


class _HashingFile:
    """Passes on what is written, and takes its SHA-256; keeps the `error` of a failed write."""

    def __init__(self, file: BinaryIO):
        self._file, self.digest, self.error = file, hashlib.sha256(), None

    def write(self, data) -> int:
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _position(path: Path) -> Position:
    epoch, step = _NAME.match(path.name).groups()
    return Position(int(epoch), int(step or 0))


def _lock(file: Path):
    """Hold `file` until this process ends, however it ends; its children do not hold it."""
    handle = open(file, "w", encoding="utf-8")
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        handle.close()
        raise UserError(f"another run is training in {file.parent}: wait for its end, or "
                        "give another OUT_DIR") from None
    except OSError:
        say(f"{file.parent} is on a file system without locks: start no second run in it")
    return handle


def _copy(value):
    """`value` with its tensors copied to the CPU's memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return type(value)((key, _copy(part)) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(part) for part in value)
    return value
