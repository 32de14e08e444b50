"""One process or several: rank helpers that work without a process group, and the launch."""
import logging
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from dolg.core.memory import keep_freed_memory
from dolg.data.decode import ImageError
from dolg.errors import UserError
from dolg.files import write_atomically

# What asks a job to stop: a cluster's end of time, the warning that Slurm sends before it, Ctrl-C
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# Ctrl-C reaches a worker from the terminal and from its launcher as well, within less than so many seconds
_SAME_INTERRUPT = 2.0
# What ends a loop over batches that the user, or the machine, can mend
READ_ERRORS = (ImageError, UserError)

Item = TypeVar("Item")


def rank() -> int:
    """This process's number; without a process group, the one that the launcher gave it, or 0."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files and talks to the user."""
    return rank() == 0


def device(name: str = "auto") -> torch.device:
    """This process's device: its GPU where there is one and `name` is not "cpu", else the CPU."""
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def barrier() -> None:
    """Wait for all processes."""
    gather(None)


def gather(mine: object) -> list:
    """Every process's object, by rank (each process must call this)."""
    everyones = [mine] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(everyones, mine)
    return everyones


def from_main(compute: Callable[[], object]):
    """What `compute` gives in the main process, or the UserError or OSError that it raises there, as
    UserError, in all processes (each must call this)."""
    answer = None
    if is_main():
        try:
            answer = compute()
        except UserError as error:
            answer = error
        except OSError as error:        # a full disk, no permission
            answer = UserError(str(error))
    answer = gather(answer)[0]
    if isinstance(answer, UserError):
        raise answer
    return answer


def any_process(*flags: bool) -> list[bool]:
    """For each flag, whether some process has it (each process must call this).

    Goes by the CPU, so that nobody waits for a GPU.
    """
    if world_size() == 1:
        return list(flags)
    counts = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(counts, dist.ReduceOp.MAX)
    return [bool(count) for count in counts]


@contextmanager
def failing_together(*kinds: type[Exception]) -> Iterator[None]:
    """An exception of these kinds in one process is raised in all, at the end of the block (each process
    must enter it). Inside there may be no exchange between the processes but those of this function and
    of `agreed`."""
    failure = None
    try:
        yield
    except kinds as error:
        if getattr(error, "everywhere", False):     # by a block inside this one
            raise
        failure = error
    if any_process(failure is not None)[0]:
        failures = gather(failure)
        failure = failure or next(filter(None, failures))
        failure.everywhere = True
        raise failure


def agreed(batches: Iterable[Item]) -> Iterator[Item]:
    """The same batches; one of READ_ERRORS in one process is raised in all, before any of them gets its
    batch. Each process must go through as many."""
    batches, nothing = iter(batches), object()
    while True:
        with failing_together(*READ_ERRORS):
            batch = next(batches, nothing)
        if batch is nothing:
            return
        yield batch


def is_launched() -> bool:
    """Whether a launcher, torchrun or ours, started this process."""
    return "WORLD_SIZE" in os.environ


def _handle_stops(handler: Callable) -> dict:
    """Let `handler` have the STOP_SIGNALS that this process does not ignore (as a shell's background
    does with Ctrl-C); their handlers before."""
    return {number: signal.signal(number, handler) for number in STOP_SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN}


class StopRequest:
    """`asked` names the signal of STOP_SIGNALS that came since this was entered, or is empty.

    Entered by the main thread, it takes these signals from their handlers until it is left, except
    those that the process ignores. A second Ctrl-C ends the process at once.
    """

    asked = ""

    def __enter__(self) -> "StopRequest":
        self._before = _handle_stops(self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def end(self) -> None:
        """End as a process that was asked to stop does, once its work is saved: with KeyboardInterrupt
        after Ctrl-C, unless its launcher, which got Ctrl-C as well, says how the job ends."""
        if self.asked == signal.SIGINT.name and not is_launched():
            raise KeyboardInterrupt

    def _note(self, number: int, _frame) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.asked == signal.SIGINT.name:
            if not is_launched() or now - self._since > _SAME_INTERRUPT:
                os._exit(128 + number)
            return
        self.asked, self._since = signal.Signals(number).name, now


@contextmanager
def process_group(device_name: str = "auto") -> Iterator[None]:
    """Join torchrun's processes, if it started this one.

    Tensors on GPUs go by nccl; those on the CPU by gloo, with GPUs as well, so that small
    agreements need not wait for a GPU.
    """
    if "WORLD_SIZE" not in os.environ or "MASTER_ADDR" not in os.environ:
        yield
        return
    with own_device(device_name) as mine:
        dist.init_process_group("cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo")
        try:
            yield
        finally:
            dist.destroy_process_group()


@contextmanager
def own_device(device_name: str = "auto") -> Iterator[torch.device]:
    """This process's device, current. Raises UserError if torchrun has started more processes than
    there are GPUs."""
    mine = device(device_name)
    if mine.type == "cuda":
        _check_gpus(int(os.environ.get("LOCAL_WORLD_SIZE", 1)), "torchrun asks for")
        torch.cuda.set_device(mine)
    yield mine


def launch(job: Callable, num_gpus: int, *args, device_name: str = "auto",
           max_restarts: int = 0, grouped: bool = True) -> bool:
    """Run `job(*args)` in `num_gpus` processes, each with its own GPU, or all on the CPU; False where
    they were asked to stop.

    They are a process group if `grouped`; else they know of each other by RANK and WORLD_SIZE alone.
    Under torchrun, and for one process, it runs right here. Otherwise torch's elastic launcher
    starts the processes on this machine, and when one dies, all of them again, up to
    `max_restarts` times; STOP_SIGNALS are passed on to them, and a second Ctrl-C kills them. Raises
    UserError where there are fewer GPUs than asked for, and the UserError or ImageError of a process,
    without a restart; ChildFailedError, once the processes have said why, where no restart is left;
    KeyboardInterrupt after Ctrl-C, once they have ended.
    """
    join = partial(process_group if grouped else own_device, device_name)
    if processes_started(num_gpus, device_name) == 1:
        if not is_launched() and num_gpus > 1:
            print(f"NUM_GPUS is {num_gpus}, but this machine has no GPU that PyTorch can use: one "
                  f"process runs on the CPU (DEVICE cpu starts {num_gpus} there)", flush=True)
        with join():
            job(*args)
        return True
    if device(device_name).type != "cpu":
        _check_gpus(num_gpus, "NUM_GPUS is")
    with tempfile.TemporaryDirectory() as folder:
        _launch_elastic(Path(folder), join, job, num_gpus, args, max_restarts)
        return not (Path(folder) / "stop").exists()


def processes_started(num_gpus: int, device_name: str = "auto") -> int:
    """How many processes `launch` has here: under torchrun, and on a CPU that was not asked for by
    name, this one alone."""
    no_gpu = device_name == "auto" and device(device_name).type == "cpu"
    return 1 if is_launched() or no_gpu else num_gpus


def _check_gpus(wanted: int, who: str) -> None:
    if wanted > torch.cuda.device_count():
        raise UserError(f"{who} {wanted}, but this machine has {torch.cuda.device_count()} GPU(s): "
                        f"give NUM_GPUS {torch.cuda.device_count()}, or as many processes")


def _launch_elastic(folder: Path, join: Callable, job: Callable, processes: int, args: tuple,
                    max_restarts: int) -> None:
    """`folder` is where the processes and this one leave word for each other: `mistake` holds the
    message of a user's mistake, `stop` is there once a stop was asked for; both end the job."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes say themselves what happened to them; the launcher would add a page to it
    for name in ("torch.distributed.elastic", "torch.distributed.launcher",
                 "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # Processes started again meet in a store of their own: in the launcher's they would find, and
    # try, the addresses of those that died (pytorch/pytorch#135712)
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id="dolg", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=max_restarts,
        # Its own handler of STOP_SIGNALS would give the processes half a minute, then kill them
        signals_to_handle="SIGHUP,SIGQUIT")
    asked = set()

    def pass_on(number: int, _frame) -> None:
        # The file is for processes that are not yet ready to stop well: they die, and are started
        (folder / "stop").touch()
        again = number == signal.SIGINT and number in asked
        asked.add(number)
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL if again else number)
        if again:
            raise KeyboardInterrupt

    mistake = folder / "mistake"
    before = _handle_stops(pass_on)
    try:
        elastic_launch(config, _run_process)(folder, join, job, args)
    except ChildFailedError:
        if not mistake.exists() and signal.SIGINT not in asked:
            raise
    except SignalException:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if mistake.exists():
        raise UserError(mistake.read_text(encoding="utf-8"))
    if signal.SIGINT in asked:
        raise KeyboardInterrupt


def _run_process(folder: Path, join: Callable, job: Callable, args: tuple) -> None:
    """What each process of the elastic launcher runs."""
    mistake = folder / "mistake"
    if mistake.exists() or (folder / "stop").exists():
        return      # started again for nothing
    keep_freed_memory()
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0))
        torch.set_num_threads(max(1, cores // int(os.environ["LOCAL_WORLD_SIZE"])))
    # What went wrong is said before the group is left, which the other processes will notice
    with ExitStack() as group, _errors_said(mistake):
        group.enter_context(join())
        job(*args)


@contextmanager
def _errors_said(mistake: Path) -> Iterator[None]:
    """Write a user's mistake into the file `mistake`; print the trace of any other error, unless
    another process has made a mistake, of which this one only lost its peer."""
    try:
        yield
    except (UserError, ImageError) as error:
        write_atomically(mistake, str(error))
        raise
    except Exception:
        if not mistake.exists():
            traceback.print_exc()
        raise
