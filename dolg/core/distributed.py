"""One process or several: rank helpers that work without a process group, and the launch."""
import os
from collections.abc import Callable
from contextlib import contextmanager

import torch
import torch.distributed as dist

from dolg.errors import UserError


def rank() -> int:
    """This process's number, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files and talks to the user."""
    return rank() == 0


def device() -> torch.device:
    """This process's device: its GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("cpu")


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def gather(mine: object) -> list:
    """Every process's object, by rank (each process must call this)."""
    everyones = [mine] * world_size()
    if dist.is_initialized():
        dist.all_gather_object(everyones, mine)
    return everyones


@contextmanager
def process_group():
    """Join torchrun's processes, if it started this one: nccl on GPUs, gloo on CPUs."""
    if "WORLD_SIZE" not in os.environ or "MASTER_ADDR" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def launch(job: Callable, num_gpus: int, *args) -> None:
    """Run `job(*args)` in `num_gpus` processes, each with its own GPU.

    Under torchrun, and with one GPU or none, it runs right here. Raises UserError where there
    are fewer GPUs than asked for.
    """
    if "WORLD_SIZE" in os.environ or num_gpus == 1 or not torch.cuda.is_available():
        with process_group():
            job(*args)
        return
    if num_gpus > torch.cuda.device_count():
        raise UserError(f"NUM_GPUS is {num_gpus}, but this machine has "
                        f"{torch.cuda.device_count()}: give NUM_GPUS {torch.cuda.device_count()}")
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=num_gpus,
                          rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0)
    elastic_launch(config, _join_and_run)(job, *args)


def _join_and_run(job: Callable, *args) -> None:
    with process_group():
        job(*args)
