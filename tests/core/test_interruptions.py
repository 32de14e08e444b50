"""What happens to long jobs: killed processes, signals, full disks, damaged files, NaN."""
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dolg.config import load_cfg
from dolg.core.saving import Position, checkpoint_path, checkpoints, newest_checkpoint
from dolg.core.trainer import train

ROOT = Path(__file__).resolve().parents[2]
# Six steps an epoch, a checkpoint after each; the statistics of batches depend on their sizes
STEPS = ["TRAIN.BATCH_SIZE", "4", "TRAIN.CHECKPOINT_MINUTES", "1e-9", "BN.FREEZE", "True",
         "TRAIN.KEEP_CHECKPOINTS", "4"]
TWO = ["DEVICE", "cpu", "NUM_GPUS", "2"]


@pytest.fixture(scope="module")
def training(tiny, start_command):
    """`training(out_dir, *options)` starts a run, its errors among its output."""

    def start(out_dir: Path, *options):
        return start_command(["tools/train.py", *tiny, "OUT_DIR", out_dir, *STEPS, *options],
                             env={"OMP_NUM_THREADS": "1"}, together=True, session=True, fork=True)

    return start


def _end(process) -> str:
    """Its output, once it has ended well."""
    try:
        output = process.communicate(timeout=240)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


def _lines(out_dir: Path, kind: str = "train") -> list[dict]:
    log = out_dir / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def _wait(condition, process) -> None:
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    if process.poll() is not None:
        pytest.fail(f"the run ended before it could be disturbed:\n{process.communicate(timeout=60)[0]}")


def _children(process) -> list[int]:
    """Its worker processes."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in pids
            if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _last(out_dir: Path) -> dict:
    return torch.load(newest_checkpoint(out_dir), weights_only=True)


def _assert_same_run(out_dir: Path, undisturbed: Path) -> None:
    """Bit for bit the same weights, and the same loss over every epoch: no sample was repeated or
    skipped."""
    final, expected = _last(out_dir), _last(undisturbed)
    assert (final["epoch"], final["step"]) == (3, 0)
    for part in ("model", "loss"):
        assert final[part].keys() == expected[part].keys()
        assert all(torch.equal(final[part][key], expected[part][key]) for key in expected[part])
    losses, wanted = ({line["epoch"]: line["loss"] for line in _lines(folder, "train_epoch")}
                      for folder in (out_dir, undisturbed))
    assert losses == pytest.approx(wanted, rel=1e-6) and set(losses) == {1, 2, 3}


def _assert_near(state: dict, expected: dict) -> None:
    """The same weights but for the order in which several processes round, which leaves 0.003 of a
    tensor's length; one skipped step leaves 0.27 (both measured)."""
    for part in ("model", "loss"):
        for key, value in expected[part].items():
            distance = (state[part][key].double() - value.double()).norm()
            assert distance <= 0.02 * value.double().norm(), key


@pytest.fixture(scope="module")
def alone(training, tmp_path_factory) -> Path:
    """A run of one process that nothing disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    _end(training(folder))
    return folder


@pytest.fixture(scope="module")
def pair(training, tmp_path_factory) -> Path:
    """A run of two processes that nothing disturbs."""
    folder = tmp_path_factory.mktemp("pair")
    _end(training(folder, *TWO))
    return folder


def test_one_of_two_processes_is_killed(pair, training, tmp_path):
    process = training(tmp_path, *TWO)
    _wait(lambda: len(_lines(tmp_path)) >= 8, process)
    os.kill(_children(process)[-1], signal.SIGKILL)
    output = _end(process)
    assert "a process died: all are started again (restart 1 of 3)" in output
    assert "going on from" in output and "_step_" in output
    _assert_same_run(tmp_path, pair)


def test_sigterm_saves_and_ends(alone, training, tmp_path):
    process = training(tmp_path, "TRAIN.CHECKPOINT_MINUTES", 0, "DATA_LOADER.NUM_WORKERS", 2)
    _wait(lambda: len(_lines(tmp_path)) >= 8, process)
    os.killpg(process.pid, signal.SIGTERM)      # the processes that decode get it as well
    assert "SIGTERM asked to stop: epoch 1 and " in _end(process)
    assert "_step_" in newest_checkpoint(tmp_path).name
    assert "going on from" in _end(training(tmp_path))
    _assert_same_run(tmp_path, alone)


def test_sigusr1_reaches_all_processes(alone, pair, training, tmp_path):
    process = training(tmp_path, *TWO)
    _wait(lambda: len(_lines(tmp_path)) >= 3, process)
    process.send_signal(signal.SIGUSR1)
    assert "SIGUSR1 asked to stop" in _end(process)
    stopped = newest_checkpoint(tmp_path)
    assert "_step_" in stopped.name and torch.load(stopped, weights_only=True)["step"] >= 3
    # One process takes over the work of two, within an epoch
    _end(training(tmp_path))
    _assert_near(_last(tmp_path), _last(alone))


@pytest.mark.parametrize("options", [["DATA_LOADER.NUM_WORKERS", 2], TWO])
def test_ctrl_c_saves_and_ends(alone, pair, training, tmp_path, options):
    process = training(tmp_path, "TRAIN.CHECKPOINT_MINUTES", 0, *options)
    _wait(lambda: len(_lines(tmp_path)) >= 8, process)
    os.killpg(process.pid, signal.SIGINT)       # as a terminal does; launchers pass it on besides
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    assert "SIGINT asked to stop: epoch 1 and " in output and "Traceback" not in output
    assert output.endswith("interrupted\n") and "_step_" in newest_checkpoint(tmp_path).name
    assert "going on from" in _end(training(tmp_path, *options))
    _assert_same_run(tmp_path, pair if options is TWO else alone)


def test_ctrl_c_under_torchrun(training, tiny, start_command, tmp_path):
    process = start_command(
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 1, "tools/train.py", *tiny,
         "OUT_DIR", tmp_path, *STEPS, "OPTIM.MAX_EPOCH", 1000, "TRAIN.CHECKPOINT_MINUTES", 0],
        env={"OMP_NUM_THREADS": "1"}, together=True, session=True)
    _wait(lambda: len(_lines(tmp_path)) >= 2, process)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode != 0 and "SIGINT asked to stop: epoch " in output
    assert torch.load(newest_checkpoint(tmp_path), weights_only=True)["epoch"] < 1000


def test_a_full_disk_while_training(alone, training, tmp_path):
    process = training(tmp_path)
    _wait(lambda: len(_lines(tmp_path)) >= 3, process)
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    # Nothing larger than this can be written: the checkpoints fail, as on a full disk
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, before[1]))
    _wait(lambda: len(_lines(tmp_path)) >= 9, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)
    output = _end(process)
    assert "WARNING: could not write" in output and "the newest whole checkpoint is" in output
    _assert_same_run(tmp_path, alone)


def test_a_disk_that_stays_full(training, tmp_path):
    process = training(tmp_path)
    _wait(lambda: len(_lines(tmp_path)) >= 3, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output + errors
    assert "error: could not write" in output.splitlines()[-1] and "Traceback" not in output
    assert torch.load(newest_checkpoint(tmp_path), weights_only=True)["step"] > 0


def test_a_checkpoint_cut_in_half(alone, training, tmp_path):
    process = training(tmp_path)
    _wait(lambda: len(_lines(tmp_path)) >= 9, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    newest, before = checkpoints(tmp_path)[:2]
    os.truncate(newest, newest.stat().st_size // 2)
    output = _end(training(tmp_path))
    assert f"{newest} is damaged" in output and f"going on from {before}" in output
    _assert_same_run(tmp_path, alone)


def test_a_second_run_in_the_same_folder_is_refused(training, tmp_path):
    process = training(tmp_path)
    _wait(lambda: len(_lines(tmp_path)) >= 1, process)
    process.send_signal(signal.SIGSTOP)     # it would be done before the second has begun
    second = training(tmp_path)
    output = second.communicate(timeout=120)[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert second.returncode == 1
    assert output.startswith("error: another run is training in") and output.count("\n") == 1


POISON = """
import sys, torch
from dolg.config import load_cfg
from dolg.core.cli import run
from dolg.core.distributed import launch, rank
from dolg.core.trainer import Trainer

class Poisoned(Trainer):
    steps = 0

    def step(self, batch):
        self.steps += 1
        if rank() == 1 and self.steps == 9:
            batch.images.fill_(float("nan"))
        return super().step(batch)

def job(cfg):
    Poisoned(cfg).run()

if __name__ == "__main__":
    cfg = load_cfg(sys.argv[2], sys.argv[3:])
    run(lambda: launch(job, 2, cfg, device_name="cpu", max_restarts=2))
"""


def test_nan_stops_the_run_and_is_traced(tiny, start_command, tmp_path):
    script, out_dir = tmp_path / "poisoned.py", tmp_path / "out"
    script.write_text(POISON)
    options = [*tiny, "OUT_DIR", out_dir, *STEPS, *TWO, "LOG_PERIOD", 100,
               "TRAIN.CHECKPOINT_MINUTES", 0]
    process = start_command([script, *options], fork=True,
                            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    output, errors = process.communicate(timeout=200)
    assert process.returncode == 1, output + errors
    assert "error: the loss is nan at epoch 2, step 3, rank 1; the 2 images" in errors
    assert "Traceback" not in errors and "started again" not in output
    # The batch: the third of the second epoch's permutation, dealt to two processes in turn
    listed = (out_dir / "failed_batch_rank1.txt").read_text().splitlines()
    cfg = load_cfg(str(ROOT / tiny[1]), [str(part) for part in options[2:]])
    from dolg.data.sampler import StepSampler

    sampler = StepSampler(24, 4, 1, 2, cfg.RNG_SEED, shuffle=True)
    sampler.epoch = 1
    lines = (Path(cfg.DATA_DIR) / "toy" / "train_list.txt").read_text().splitlines()
    expected = [lines[index].rpartition(" ")[0] for _, index in list(sampler)[2]]
    assert [name.endswith(path) for name, path in zip(listed, expected)] == [True, True]
    assert not (out_dir / "failed_batch_rank0.txt").exists()
    # No poisoned weights were saved
    assert checkpoints(out_dir)[0] == checkpoint_path(out_dir, Position(1))


TRAIN_ALL = """
import sys
from dolg.config import load_cfg
from dolg.core.cli import run
from dolg.core.distributed import launch
from dolg.core.trainer import train

def job(configs):
    for cfg in configs:
        train(cfg)

if __name__ == "__main__":
    processes, runs, file, *options = sys.argv[1:]
    configs = [load_cfg(file, [*options, *eval(run)]) for run in runs.split("|")]
    run(lambda: launch(job, int(processes), configs, device_name="cpu"))
"""
MODELS = {"dolg": [], "delg": ["MODEL.DELG.LOCAL_DIM", "16", "LOSS.NAME", ""],
          "cgd": ["MODEL.CGD.FEATURE_DIM", "16", "LOSS.NAME", "", "TRAIN.IMAGES_PER_CLASS", "2"],
          "sharded": ["LOSS.NAME", "curricularface", "LOSS.SHARD_CLASSES", "True"]}


def _options(tiny, name: str, out_dir: Path) -> list[str]:
    arch = name if name != "sharded" else "dolg"
    return [str(part) for part in (*tiny[2:], *STEPS, "TRAIN.BATCH_SIZE", 8, "MODEL.ARCH", arch,
                                   "TRAIN.CHECKPOINT_MINUTES", 0, "OPTIM.CLIP_NORM", 1.0,
                                   *MODELS[name], "OUT_DIR", out_dir / name)]


@pytest.fixture(scope="module")
def single_runs(tiny, tmp_path_factory) -> Path:
    """Each model trained in one process."""
    folder = tmp_path_factory.mktemp("single")
    for name in MODELS:
        train(load_cfg(str(ROOT / tiny[1]), _options(tiny, name, folder)))
    return folder


@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_train_as_one(single_runs, tiny, start_command, tmp_path, processes):
    script = tmp_path / "train_all.py"
    script.write_text(TRAIN_ALL)
    runs = "|".join(repr(_options(tiny, name, tmp_path)) for name in MODELS)
    _end(start_command([script, processes, runs, ROOT / tiny[1]], session=True, together=True,
                       fork=processes > 2, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}))
    for name in MODELS:
        curve = [line["loss"] for line in _lines(tmp_path / name)]
        assert len(curve) == 9
        torch.testing.assert_close(curve, [line["loss"] for line in _lines(single_runs / name)],
                                   rtol=1e-4, atol=1e-4)
        several, single = _last(tmp_path / name), _last(single_runs / name)
        assert len(several["rng"]) == processes
        _assert_near(several, single)


def test_two_nodes_train_together(single_runs, tiny, tmp_path):
    """Two elastic agents, as on two machines, that meet on the loopback."""
    import socket

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node",
               "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}",
               "--rdzv-id", "test", "tools/train.py", "--cfg", tiny[1],
               *_options(tiny, "dolg", tmp_path)]
    nodes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
             for _ in range(2)]
    outputs = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sum("2 process(es)" in output for output, _ in outputs) == 1
    torch.testing.assert_close([line["loss"] for line in _lines(tmp_path / "dolg")],
                               [line["loss"] for line in _lines(single_runs / "dolg")],
                               rtol=1e-4, atol=1e-4)
