"""Starting processes: how many, where, and what the user hears when it cannot be."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dolg.core.distributed import launch, processes_started
from dolg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def test_more_gpus_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"NUM_GPUS is 8, but this machine has 2 GPU\(s\): give "
                                        "NUM_GPUS 2"):
        launch(print, 8)


def test_without_gpus_one_process_runs_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    launch(print, 8, "the job")
    said, job = capsys.readouterr().out.splitlines()
    assert "NUM_GPUS is 8, but this machine has no GPU" in said and "DEVICE cpu starts 8" in said
    assert job == "the job"


JOB = """
import os, sys, time
from dolg.core.cli import run
from dolg.core.distributed import (StopRequest, agreed, any_process, failing_together, from_main, gather,
                                   launch, rank, world_size)
from dolg.data.decode import ImageError
from dolg.errors import UserError

def job(kind):
    assert world_size() == 2
    gather(None)        # both are there
    if kind == "agree":
        answers = (gather(rank() * 10), any_process(rank() == 1, False, rank() == 0),
                   from_main(lambda: f"from {rank()}"))
        everyones = gather(answers)
        if rank() == 0:
            print(everyones, flush=True)
        from_main(lambda: [][0] if rank() else mistake())
    elif kind == "slow start":
        os.write(1, f"start {rank()}\\n".encode())
        time.sleep(60)
    elif kind == "mistake":
        if rank() == 1:
            raise UserError("only one of them knows")
        gather(None)
    elif kind == "unreadable":
        def batches():
            yield 1
            if rank() == 1:
                raise ImageError("a.jpg", "it is cut")
            yield 2
        seen = []
        with failing_together(MemoryError):     # what does not fail passes
            try:
                for batch in agreed(batches()):
                    seen.append(batch)
            except ImageError as error:
                seen.append(error.path)
        try:
            with failing_together(MemoryError, ImageError):
                if rank() == 1:
                    raise MemoryError("none is left")
                for batch in agreed(batches()):     # an exchange that the other has left
                    pass
        except MemoryError as error:
            seen.append(str(error))
        if rank() == 0:
            print(gather(seen), flush=True)
        else:
            gather(seen)
    elif kind == "stubborn":
        with StopRequest():
            open(f"{sys.argv[2]}/started {rank()}", "w").close()
            time.sleep(60)
    elif kind == "bug":
        if rank() == 0:
            raise ZeroDivisionError("a bug")
        gather(None)

def mistake():
    raise UserError("all hear of it")

if __name__ == "__main__":
    run(lambda: launch(job, 2, sys.argv[1], device_name="cpu", max_restarts=1))
"""


@pytest.fixture
def job(start_command, tmp_path):
    """`job(kind)` starts the job's processes by fork: that each with a new interpreter does the same,
    test_a_stop_while_the_processes_start and the tests of training see."""
    (tmp_path / "job.py").write_text(JOB)
    return lambda kind: start_command([tmp_path / "job.py", kind], fork=True,
                                      env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


def test_processes_agree_on_answers_and_on_mistakes(job):
    process = job("agree")
    output, errors = process.communicate(timeout=200)
    one = ([0, 10], [True, False, True], "from 0")
    assert output == f"{[one] * 2}\n"
    assert process.returncode == 1 and errors == "error: all hear of it\n"


def test_a_mistake_of_one_process_is_said_once_and_not_tried_again(job):
    process = job("mistake")
    errors = process.communicate(timeout=200)[1]
    assert process.returncode == 1
    assert errors == "error: only one of them knows\n"


def test_a_stop_while_the_processes_start(tmp_path):
    (tmp_path / "job.py").write_text(JOB)
    process = subprocess.Popen([sys.executable, str(tmp_path / "job.py"), "slow start"], cwd=ROOT,
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    started = sorted(process.stdout.readline() for _ in range(2))
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=50)
    assert started == ["start 0\n", "start 1\n"]
    assert (process.returncode, output, errors) == (0, "", "")


def test_what_one_process_cannot_read_is_raised_in_all(job):
    process = job("unreadable")
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (0, f"{[[1, 'a.jpg', 'none is left']] * 2}\n"), errors


@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_ctrl_c_ends_at_once(start_command, tmp_path, processes):
    (tmp_path / "job.py").write_text(JOB.replace("assert world_size() == 2", "").replace(
        "launch(job, 2", f"launch(job, {processes}"))
    process = start_command([tmp_path / "job.py", "stubborn", tmp_path], fork=True, session=True,
                            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("started *"))) < processes and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(2):
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == 130 and "Traceback" not in errors


def test_a_bug_is_shown_with_its_place(job):
    process = job("bug")
    errors = process.communicate(timeout=200)[1]
    assert process.returncode == 1
    assert "ZeroDivisionError: a bug" in errors and "job.py" in errors


@pytest.mark.parametrize("num_gpus, name, world, processes", [
    (1, "auto", None, 1), (8, "cpu", None, 8), (8, "auto", "2", 1), (8, "cpu", "2", 1), (8, "auto", None, 1)])
def test_how_many_processes_are_started(monkeypatch, num_gpus, name, world, processes):
    """Under torchrun this one alone, and where there is no GPU unless the CPU was asked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert processes_started(num_gpus, name) == processes
