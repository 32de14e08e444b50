"""Training steps: ours, a bare loop over the same model, and the originals' way.

    python benchmarks/train.py [--device cpu|cuda] [--only NAME ...] [--precision fp32|bf16|fp16]
                               [--compile] [--profile] [--threads N]

Every way runs in a process of its own, since how memory is handled is the whole process's affair;
all stay up and take turns, so that what else the machine does troubles all alike (cgd takes 16 GiB
of memory so, dolg 8). Data lie on the device. The original is in float32; on a GPU as PyTorch
starts, with TF32 in convolutions only.
"""
import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from originals import LOOPS

from dolg.config import load_cfg
from dolg.core.memory import keep_freed_memory
from dolg.core.trainer import Trainer
from dolg.data.loader import Batch
from dolg.models import build_model
from dolg.models.complexity import complexity

# Dense bf16 products per second of an H100 or H200 (NVIDIA's data sheets, SXM)
BF16_PEAKS = {"H100": 989e12, "H200": 989e12}
ORIGINAL, OURS, COMPILED = "the original's way", "the trainer's step", "compiled"
BARE = "the bare loop"
MOST = 600.0        # seconds to wait for an answer


@dataclass(frozen=True)
class Part:
    """What is trained, on which device: `rounds` turns of `steps` steps, after `steps` to warm up.

    `precision` is ours; `per_class` images share a label; `bare` says whether the bare loop runs.
    """

    file: str
    device: str
    batch: int
    size: int
    precision: str
    steps: int
    rounds: int
    target: float
    per_class: int = 1
    bare: bool = True

    def cfg(self, *options: str):
        return load_cfg(self.file, [
            "TRAIN.BATCH_SIZE", str(self.batch), "TRAIN.IM_SIZE", str(self.size), "TEST.BATCH_SIZE",
            str(self.batch), "NUM_GPUS", "1", "PRECISION", self.precision,
            "DEVICE", "cpu" if self.device == "cpu" else "auto", *options])

    def data(self, cfg) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (B,3,S,S) as if normalised, and labels (B,), `per_class` of each."""
        images = torch.randn(self.batch, 3, self.size, self.size)
        labels = torch.randperm(cfg.MODEL.NUM_CLASSES)[:self.batch // self.per_class]
        return images.to(self.device), labels.repeat_interleave(self.per_class).to(self.device)


DOLG_FILE, CGD_FILE = "configs/dolg/r50_gldv2_8gpu.yaml", "configs/cgd/r50_cars.yaml"
PARTS = {
    "dolg": Part(DOLG_FILE, "cpu", 8, 224, "fp32", steps=2, rounds=5, target=2),
    "cgd": Part(CGD_FILE, "cpu", 32, 224, "fp32", steps=1, rounds=3, target=2, per_class=4,
                bare=False),
    "dolg512": Part(DOLG_FILE, "cuda", 64, 512, "bf16", steps=10, rounds=5, target=3),
    "cgd_gpu": Part(CGD_FILE, "cuda", 128, 224, "bf16", steps=10, rounds=5, target=2, per_class=4),
}


def original_loops(part: Part, folder: str) -> dict[str, Callable[[], None]]:
    """The original's step, by its name."""
    torch.backends.cudnn.benchmark = True
    cfg = part.cfg()
    return {ORIGINAL: LOOPS[cfg.MODEL.ARCH](cfg, *part.data(cfg))}


def our_loops(part: Part, folder: str) -> dict[str, Callable[[], None]]:
    """The trainer's step, and a bare loop over its model and optimizer."""
    trainer, images, labels = _trainer(part, folder, "False")
    batch = Batch(images, labels, torch.arange(part.batch))

    def bare() -> None:
        with trainer.autocast():
            total = trainer.module(images, labels)["total"]
        trainer.optimizer.zero_grad()
        total.backward()
        trainer.optimizer.step()

    step = {OURS: lambda: trainer.step(batch)}
    return {**step, BARE: bare} if part.bare else step


def compiled_loops(part: Part, folder: str) -> dict[str, Callable[[], None]]:
    """The trainer's step with TRAIN.COMPILE."""
    trainer, images, labels = _trainer(part, folder, "True")
    batch = Batch(images, labels, torch.arange(part.batch))
    return {COMPILED: lambda: trainer.step(batch)}


WAYS = {"original": original_loops, "ours": our_loops, "compiled": compiled_loops}


def _trainer(part: Part, folder: str, compiled: str):
    """A trainer over a list of images that nobody looks for, and data for its step."""
    keep_freed_memory()     # as every command does (dolg/core/cli.py)
    (Path(folder) / "list.txt").write_text("".join(f"{i}.jpg 0\n" for i in range(part.batch)),
                                           encoding="utf-8")
    trainer = Trainer(part.cfg(
        "DATA_DIR", folder, "TRAIN.DATASET", ".", "TRAIN.SPLIT", "list.txt", "TEST.DATASET", "",
        "DATA_LOADER.CHECK", "none", "TRAIN.IMAGES_PER_CLASS", "0", "TRAIN.COMPILE", compiled,
        "TRAIN.WEIGHTS", "", "OUT_DIR", f"{folder}/{compiled}"))
    trainer.parallel.train()
    images, labels = part.data(trainer.cfg)
    return trainer, images.contiguous(memory_format=torch.channels_last), labels


def serve(pipe, part: Part, way: str, folder: str, threads: int) -> None:
    """Build a way's loops and say their names; then do what is asked, until None is."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    loops = WAYS[way](part, folder)
    for loop in loops.values():
        seconds_per_step(part, loop)
    pipe.send(list(loops))
    while request := pipe.recv():
        task, name = request
        pipe.send(TASKS[task](part, loops[name]))


def seconds_per_step(part: Part, loop: Callable[[], None]) -> float:
    _wait_for(part.device)
    start = time.perf_counter()
    for _ in range(part.steps):
        loop()
    _wait_for(part.device)
    return (time.perf_counter() - start) / part.steps


def profile(part: Part, loop: Callable[[], None]) -> str:
    """The operators that take most of a step, and their shares."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if part.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        loop()
        _wait_for(part.device)
    column = "self_device_time_total" if part.device == "cuda" else "self_cpu_time_total"
    events = sorted(profiler.key_averages(), key=lambda e: -getattr(e, column))
    events = [event for event in events if getattr(event, column)]
    if part.device == "cuda":
        # Kernels alone, lest operators count a second time
        events = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(getattr(event, column) for event in events)
    return "\n".join(f"    {getattr(e, column) / total:6.1%} {getattr(e, column) / 1e3:9.1f} ms "
                     f"{e.count:5d} x {e.key[:80]}" for e in events[:12])


def memory(part: Part, loop: Callable[[], None]) -> float:
    """GiB that a step takes on the GPU at most."""
    torch.cuda.reset_peak_memory_stats()
    loop()
    return torch.cuda.max_memory_allocated() / 2**30


TASKS = {"time": seconds_per_step, "profile": profile, "memory": memory}


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Runner:
    """A process with one way's loops; `ask(task, loop)` has it do something."""

    def __init__(self, part: Part, way: str, folder: str, threads: int):
        spawn = multiprocessing.get_context("spawn")
        self.pipe, theirs = spawn.Pipe()
        self.process = spawn.Process(target=serve, args=(theirs, part, way, folder, threads),
                                     daemon=True)
        self.process.start()
        theirs.close()
        self.way, self.loops = way, self._answer()

    def ask(self, task: str, loop: str):
        self.pipe.send((task, loop))
        return self._answer()

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()

    def _answer(self):
        if not self.pipe.poll(MOST):
            raise SystemExit(f"'{self.way}' has not answered for {MOST:.0f} s")
        try:
            return self.pipe.recv()
        except EOFError:
            raise SystemExit(f"the process of '{self.way}' died: see above") from None


def flops_per_step(part: Part) -> float:
    """Of convolutions and products, forward and twice that backward, with the class weights."""
    cfg = part.cfg()
    with torch.device("meta"):
        model = build_model(cfg)
    forward = 2 * complexity(model, part.size, part.size, depth=1)[0].multiply_adds
    if cfg.MODEL.ARCH == "dolg":
        forward += 2 * model.dim * cfg.MODEL.NUM_CLASSES
    return 3 * forward * part.batch


def measure(name: str, part: Part, compiled: bool, profiling: bool, threads: int) -> None:
    """Run a part and print what came out."""
    cfg, ways = part.cfg(), ["original", "ours", *(["compiled"] if compiled else [])]
    print(f"\n{name}: {cfg.MODEL.ARCH} on ResNet-{cfg.MODEL.DEPTH}, {part.batch} x {part.size} x "
          f"{part.size}, {cfg.MODEL.NUM_CLASSES} classes, {cfg.OPTIM.NAME}, "
          f"{_describe(part.device)}, the original in fp32, ours in {part.precision}; "
          f"{part.rounds} turns of {part.steps} step(s) each", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        runners = [Runner(part, way, folder, threads) for way in ways]
        asking = {loop: runner for runner in runners for loop in runner.loops}
        times = {loop: [] for loop in asking}
        for _ in range(part.rounds):
            for loop, runner in asking.items():
                times[loop].append(runner.ask("time", loop))
        print_times(part, times)
        for loop in [ORIGINAL, OURS] if profiling else []:
            print(f"  where the time goes in {loop}:\n{asking[loop].ask('profile', loop)}")
        for loop in [ORIGINAL, OURS] if part.device == "cuda" else []:
            print(f"  GPU memory of {loop}: {asking[loop].ask('memory', loop):.1f} GiB")
        for runner in runners:
            runner.close()


def print_times(part: Part, times: dict[str, list[float]]) -> None:
    flops = flops_per_step(part)
    peak = _peak(part.device)
    print(f"  {'seconds per step':22s}{'median':>9s}{'best':>9s}{'images/s':>10s}{'TFLOP/s':>9s}"
          + (f"{'of peak':>9s}" if peak else ""))
    for loop, seconds in times.items():
        median, best = statistics.median(seconds), min(seconds)
        print(f"  {loop:22s}{median:9.3f}{best:9.3f}{part.batch / median:10.2f}"
              f"{flops / median / 1e12:9.2f}" + (f"{flops / median / peak:9.1%}" if peak else ""))
    for loop in (OURS, COMPILED):
        if loop in times:
            print_ratio(f"{loop} against {ORIGINAL}", times[ORIGINAL], times[loop],
                        f"target {part.target}")
    if BARE in times:
        print_ratio(f"{OURS} against {BARE}", times[BARE], times[OURS], "target 0.95")


def print_ratio(what: str, theirs: list[float], ours: list[float], target: str) -> None:
    """How many times as fast, turn by turn and in the best turns."""
    turns = sorted(a / b for a, b in zip(theirs, ours))
    print(f"  {what}: {statistics.median(turns):.2f} times as fast (turns {turns[0]:.2f} to "
          f"{turns[-1]:.2f}; of the best {min(theirs) / min(ours):.2f}), {target}")


def _describe(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"


def _peak(device: str) -> float | None:
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((peak for chip, peak in BF16_PEAKS.items() if chip in name), None)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time training steps against the originals' way.")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="NAME",
                        help=f"of {', '.join(PARTS)}")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"],
                        help="ours (fp32 on the CPU, bf16 on a GPU)")
    parser.add_argument("--compile", action="store_true", help="time TRAIN.COMPILE as well")
    parser.add_argument("--profile", action="store_true", help="say where the time goes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    names = args.only or [name for name, part in PARTS.items() if part.device == args.device]
    print(f"torch {torch.__version__}, {args.threads} threads")
    for name in names:
        part = PARTS[name]
        part = replace(part, precision=args.precision or part.precision)
        measure(name, part, args.compile, args.profile, args.threads)


if __name__ == "__main__":
    main()
