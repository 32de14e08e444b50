"""Run a target on many generated files in processes that may die, hang or grow."""
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Target:
    """A kind of file and the code that reads it.

    Attributes:
        make: gives the name and the bytes of a file; all its choices come from the `random.Random` that
            it gets, so that (seed, case) always gives the same file.
        read: reads the file. It returns, or raises one of `refusals`.
        refusals: exceptions that stand for "refused": their message must be one line.
        seconds: that one file may take before it counts as a hang.
        memory: bytes that one file may take of memory, at its peak.
        prepare: what a process does first, such as importing what the first file would have to wait for.
    """

    make: Callable[[random.Random], tuple[str, bytes]]
    read: Callable[[Path], object]
    refusals: tuple[type[Exception], ...]
    seconds: float = 10.0
    memory: int = 1 << 30
    prepare: Callable[[], object] = lambda: None


@dataclass
class Outcome:
    """What became of all cases.

    Attributes:
        counts: of the cases, by "read", "refused", "signal", "hang", "traceback", "memory".
        failures: (case, what happened) of all but the first two.
        slowest: seconds of the slowest case.
        peak: the largest rise of the peak memory by one case, in bytes.
    """

    counts: Counter = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)
    slowest: float = 0.0
    peak: int = 0


def case_file(target: Target, seed: int, case: int) -> tuple[str, bytes]:
    """The file of one case."""
    return target.make(random.Random(f"{seed} {case}"))


def work(target: Target, seed: int, cases: range) -> None:
    """Read the files of `cases` one after another, with a JSON line before and after each; in a process
    that `fuzz` has started."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)       # what a reader prints goes elsewhere
    target.prepare()
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            name, content = case_file(target, seed, case)
            path = Path(folder) / name
            path.write_bytes(content)
            del content
            out.write(f"{json.dumps({'begin': case})}\n")
            Path("/proc/self/clear_refs").write_text("5")      # the peak starts anew
            before, start = _memory("VmRSS"), time.perf_counter()
            end, detail = _read(target, path)
            seconds, grown = time.perf_counter() - start, _memory("VmHWM") - before
            if end in ("read", "refused") and grown > target.memory:
                end, detail = "memory", f"the peak memory rose by {grown / 1e6:.0f} MB"
            out.write(json.dumps({"end": end, "detail": detail, "seconds": seconds, "peak": grown}) + "\n")
            with suppress(FileNotFoundError):
                path.unlink()


def fuzz(name: str, target: Target, count: int, seed: int, processes: int = 1,
         on_case: Callable[[int], None] = lambda cases: None) -> Outcome:
    """Read `count` files of the target `name` of __main__.py, in some processes at a time.

    A process that dies or hangs is replaced by one that goes on with the next case. `on_case` is told how
    many more cases are done.
    """
    outcome, lock = Outcome(), threading.Lock()

    def record(case: int, end: str, detail: str, seconds: float, peak: int = 0) -> None:
        with lock:
            outcome.counts[end] += 1
            outcome.slowest = max(outcome.slowest, seconds)
            outcome.peak = max(outcome.peak, peak)
            if end not in ("read", "refused"):
                outcome.failures.append((case, f"{end}: {detail}"))
            on_case(1)

    threads = [threading.Thread(target=_watch, args=(name, target, seed, part, record))
               for part in _parts(count, processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.failures.sort()
    return outcome


def _parts(count: int, processes: int) -> list[range]:
    return [range(count * part // processes, count * (part + 1) // processes) for part in range(processes)]


def _watch(name: str, target: Target, seed: int, cases: range, record: Callable) -> None:
    """Have `cases` read, by as many processes one after another as it takes."""
    start = cases.start
    while start < cases.stop:
        command = [sys.executable, "-m", "benchmarks.fuzz", name, "--seed", str(seed),
                   "--cases", str(start), str(cases.stop)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                              text=True) as process:
            start = _follow(process, target, start, cases.stop, record)


def _follow(process: subprocess.Popen, target: Target, start: int, stop: int, record: Callable) -> int:
    """Record what a process says; gives the first case that it has not dealt with."""
    begun, hung = None, threading.Event()
    watchdog = None

    def kill() -> None:
        hung.set()
        process.kill()

    for line in process.stdout:
        said = json.loads(line)
        if "begin" in said:
            begun, since = said["begin"], time.perf_counter()
            watchdog = threading.Timer(target.seconds, kill)
            watchdog.start()
        else:
            watchdog.cancel()
            record(begun, said["end"], said["detail"], said["seconds"], said["peak"])
            start, begun = begun + 1, None
    if watchdog:
        watchdog.cancel()
    status = process.wait()
    if begun is not None:
        end = "hang" if hung.is_set() else "signal"
        record(begun, end, f"status {status}", time.perf_counter() - since)
        return begun + 1
    if start < stop and status:
        raise RuntimeError(f"the process ended with status {status} before case {start}")
    return start


def _read(target: Target, path: Path) -> tuple[str, str]:
    try:
        target.read(path)
    except target.refusals as error:
        message = str(error)
        return ("traceback", f"a message of several lines: {message!r}") if "\n" in message else ("refused", "")
    except Exception:
        return "traceback", traceback.format_exc()
    return "read", ""


def _memory(what: str) -> int:
    """Bytes of this process that are (VmRSS), or were at most (VmHWM), in memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{what}:")[2].split()[0]) * 1024
