"""Fixtures shared by all tests."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.preloaded import Command, Server

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DOLG_SHARED", ROOT.parent / "shared"))


# Files that take most of a minute or more: first, so that none is begun when all others are done
SLOW = ("test_real_photographs.py", "test_commands.py", "test_interruptions.py", "test_configs.py",
        "test_models.py", "test_counting.py", "test_real_truth.py", "test_extract.py",
        "test_rrt_training.py", "test_training.py", "test_landmarks.py", "test_export.py",
        "test_notebook.py", "test_pages_of_published.py", "test_pages_of_scripts.py", "test_browser.py",
        "test_server.py", "test_photo.py")


def pytest_configure():
    # Where the tests run in a shell's background, Ctrl-C is ignored, and by all that they start
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: SLOW.index(item.path.name) if item.path.name in SLOW else len(SLOW))
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the conformance vectors and the small real data set, or a skip."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent (set DOLG_SHARED to the folder with conformance/ and data/)")
    return SHARED


@pytest.fixture(scope="session")
def conformance(shared):
    """The module that makes the weights and inputs of the golden files."""
    sys.path.insert(0, str(shared / "conformance"))
    try:
        import conformance as module
    finally:
        sys.path.pop(0)
    return module


@pytest.fixture(scope="session")
def start_command(tmp_path_factory):
    """`start_command(["tools/train.py", ...], ...)` starts a command as a process of its own, as
    subprocess.Popen does with the interpreter before it; see Command."""
    server = None

    def start(command: list, cwd: Path = ROOT, env: dict | None = None, **options) -> Command:
        nonlocal server
        server = server or Server()
        return Command(server, command, tmp_path_factory.mktemp("command"), cwd,
                       {**os.environ, **(env or {})}, **options)

    yield start
    if server:
        server.close()


@pytest.fixture(scope="session")
def run_tool(start_command):
    """`run_tool("tools/train.py", ...)` runs a command as a user does; gives the finished process.

    Each command has a test that gives `fresh`, for a new interpreter: what a command forgets to
    import might be there already otherwise.
    """

    def run(script: str, *args, env: dict | None = None, timeout: int = 300, fresh: bool = False):
        command = [str(ROOT / script), *map(str, args)]
        if fresh or script.startswith("revisitop/"):        # those start in no time
            return subprocess.run([sys.executable, *command], cwd=ROOT, text=True, timeout=timeout,
                                  capture_output=True, env={**os.environ, **(env or {})})
        process = start_command(command, env=env)
        output = process.communicate(timeout)
        return subprocess.CompletedProcess(command, process.returncode, *output)

    return run


@pytest.fixture(scope="session")
def torchrun(start_command):
    """`torchrun(2, "tools/train.py", ...)` runs a command in two processes, each of which torchrun
    begins with a new interpreter; gives the finished torchrun."""

    def run(processes: int, script: str, *args, env: dict | None = None, timeout: int = 300):
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
        process = start_command([*launcher, script, *args], env={"OMP_NUM_THREADS": "1", **(env or {})})
        output = process.communicate(timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, *output)

    return run


@pytest.fixture(scope="session")
def toy_images(tmp_path_factory) -> Path:
    """A data root with `toy/train_list.txt`: 4 classes of 6 noisy photographs, 72 x 56 pixels,
    labels by pattern, names with blanks; and `toy/val_list.txt`, every third of them."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "toy" / "jpg"
    folder.mkdir(parents=True)
    rng, lines = np.random.default_rng(0), []
    for label in range(4):
        pattern = cv2.resize(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8), (72, 56),
                             interpolation=cv2.INTER_NEAREST)
        for number in range(6):
            noisy = np.clip(pattern + rng.normal(0, 20, pattern.shape), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / f"class {label} photo {number}.jpg"), noisy)
            lines.append(f"jpg/class {label} photo {number}.jpg {label}\n")
    (root / "toy" / "train_list.txt").write_text("".join(lines))
    (root / "toy" / "val_list.txt").write_text("".join(lines[::3]))
    return root


@pytest.fixture(scope="session")
def tiny(toy_images) -> list:
    """Command-line options for a network and a run small enough for a test."""
    return ["--cfg", "configs/quickstart.yaml", "DATA_DIR", toy_images, "TRAIN.DATASET", "toy",
            "TEST.DATASET", "", "MODEL.NUM_CLASSES", 4, "RESNET.STEM_WIDTH", 8,
            "MODEL.HEADS.REDUCTION_DIM", 16, "TRAIN.IM_SIZE", 48, "TRAIN.BATCH_SIZE", 8,
            "OPTIM.MAX_EPOCH", 3, "OPTIM.NAME", "sgd", "OPTIM.BASE_LR", 0.003, "LOG_PERIOD", 1,
            "DATA_LOADER.NUM_WORKERS", 0]
