"""The checkpoints of a run: written in the background, proved by their digests, kept sparingly."""
import fcntl
import hashlib
import json
import math
import re
import threading
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from dolg.core.logging import say
from dolg.core.weight_files import read_file
from dolg.errors import UserError
from dolg.files import atomic_file, file_digest, read_json, write_atomically

_NAME = re.compile(r"model_epoch_(\d{4,})(?:_step_(\d{6,}))?\.pyth$")
_ZIP_START, _ZIP_END, _ZIP_END_SIZE, _ZIP_FOLDER = b"PK\x03\x04", b"PK\x05\x06", 22, 0x10


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
        say(f"{path} is damaged: it is not what was written. Looking for the one before")
    if found:
        raise UserError(f"all checkpoints in {found[0].parent} are damaged: restore one, or delete "
                        "them to start anew")
    return None


def best_checkpoint(out_dir: str | Path) -> Path:
    """The checkpoint with the best evaluation. Raises UserError where none was evaluated."""
    try:
        best = read_best(out_dir)
    except UserError as error:
        raise UserError(f"{error}: start the same training command again, which finds the best in log.jsonl, "
                        "or name a checkpoint in TEST.WEIGHTS") from None
    if not best:
        raise UserError(f"{out_dir}/checkpoints has no best checkpoint: train with TEST.DATASET or "
                        "TEST.RETRIEVAL, which judge them")
    return Path(out_dir) / "checkpoints" / best["file"]


def read_best(out_dir: str | Path) -> dict:
    """The `file` of the best checkpoint, its `metric` and `value`; empty where there is none. Raises
    UserError where best.json is damaged."""
    file = _best_path(out_dir)
    if not file.exists():
        return {}
    try:
        best = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error})") from None
    if not (isinstance(best, dict) and isinstance(best.get("file"), str) and _NAME.match(best["file"])
            and isinstance(best.get("metric"), str) and isinstance(best.get("value"), (int, float))
            and math.isfinite(best["value"])):
        raise UserError(f"{file} is damaged (it does not have the file, metric and value of a checkpoint)")
    return best


def write_best(out_dir: str | Path, best: dict) -> None:
    """Record the `file` of the best checkpoint, its `metric` and `value`; remove the record if empty."""
    if best:
        write_atomically(_best_path(out_dir), json.dumps(best) + "\n")
    else:
        _best_path(out_dir).unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is what was written, by the SHA-256 beside it; where there is none, or another,
    by the CRC-32 of each of its own records."""
    digest = _digest_path(path)
    try:
        written = digest.read_bytes().split()[:1]
    except FileNotFoundError:
        return _records_are_whole(path)
    if written == [file_digest(path).encode()]:
        return True
    if not _records_are_whole(path):
        return False
    say(f"WARNING: {digest} does not hold the digest of {path.name}, all of whose records are whole: "
        "the checkpoint is used")
    return True


def _records_are_whole(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            if file.read(len(_ZIP_START)) == _ZIP_START:
                file.seek(-_ZIP_END_SIZE, 2)
                if file.read(len(_ZIP_END)) != _ZIP_END:
                    return False
                archive = zipfile.ZipFile(file)
                # Of a record that is marked as a folder PyTorch reads nothing, and gives what is in memory
                if archive.testzip() or any(r.external_attr & _ZIP_FOLDER for r in archive.infolist()):
                    return False
        read_file(path)
    except Exception:       # a damaged file makes its readers raise almost anything
        return False
    return True


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

    Attributes:
        best: the best checkpoint so far, as `read_best` gives it.

    A failed write (a full disk) is said and leaves the older checkpoints; `finish` raises
    UserError if the last one failed. Raises UserError where another run holds the folder.
    """

    def __init__(self, out_dir: str | Path, keep: int):
        self.out_dir, self.keep = Path(out_dir), keep
        self.best: dict = {}
        self._thread: threading.Thread | None = None
        self._failure, self._bug = "", None
        self.out_dir.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.out_dir / ".lock")
        self._clear(self.out_dir / "checkpoints")

    def save(self, position: Position, state: dict) -> None:
        """Write `state`, whose tensors may change as soon as this returns."""
        self.wait()
        path = checkpoint_path(self.out_dir, position)
        self._thread = threading.Thread(target=self._write, args=(path, _copy(state)))
        self._thread.start()

    def mark_best(self, position: Position, best: dict) -> None:
        """Record the checkpoint at `position` as the best so far, by `metric` and `value`; one that could
        not be written cannot be it."""
        self.wait()
        path = checkpoint_path(self.out_dir, position)
        if not path.exists():
            return
        self.best = {"file": path.name, **best}
        try:
            write_best(self.out_dir, self.best)
            self._remove_old(path)
        except OSError as error:
            say(f"WARNING: could not write {_best_path(self.out_dir)}: {error.strerror or error}")

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

    def _write(self, path: Path, state: dict) -> None:
        self._failure = ""
        try:
            save_checkpoint(path, state)
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


def _best_path(out_dir: str | Path) -> Path:
    return Path(out_dir) / "checkpoints" / "best.json"


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
