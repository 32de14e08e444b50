"""Counting of ranks by a device's counter, and by several processes, against the plain one."""
import json
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from dolg.features.store import FeatureStore, StoreWriter
from dolg.search.counting import DeviceCounter, counting_options
from revisitop import count_ranks, counting

ROOT = Path(__file__).resolve().parents[2]


def _store(path: Path, table: np.ndarray, failed=(), chunk_size: int = 50) -> FeatureStore:
    writer = StoreWriter(path, [f"{path.name} {row}" for row in range(len(table))], table.shape[1],
                         chunk_size, {})
    for chunk in range(writer.num_chunks):
        rows = writer.rows(chunk)
        writer.write_chunk(chunk, table[rows.start:rows.stop],
                           {row - rows.start: "broken" for row in failed if row in rows})
    return FeatureStore(path)


def _case(folder: Path, seed: int, whole_numbers: bool) -> tuple:
    """Arguments of count_ranks with copies, ties, failed images and queries without labels."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        if whole_numbers:
            return rng.integers(-2, 3, (count, 6)).astype(np.float32)
        return rng.standard_normal((count, 6)).astype(np.float32)

    tables = [draw(260), draw(140), draw(1)]
    tables[0][[3, 70, 199]] = tables[1][[5, 90]][[0, 0, 1]]
    stores = [_store(folder / str(number), table, range(number, len(table), 17))
              for number, table in enumerate(tables)]
    labelled = [rng.permutation(260)[:count] for count in (0, 1, 30, 260, 4)] + [np.array([3, 70])]
    return draw(6), labelled, stores[0], rng.permutation(260), stores[1:]


def _device_counts(device: str, folder: Path, seed: int, whole_numbers: bool, double: bool) -> None:
    arguments = _case(folder, seed, whole_numbers)
    counter = partial(DeviceCounter, device=torch.device(device))
    got = count_ranks(*arguments, counter=counter, threads=2, double=double)
    want = count_ranks(*arguments, double=double)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(counting, "_BLOCK_ROWS", 64)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("whole_numbers", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_device_counts_alike(tmp_path, small_blocks, seed, whole_numbers, double):
    _device_counts("cpu", tmp_path, seed, whole_numbers, double)


@pytest.mark.gpu
@pytest.mark.parametrize("whole_numbers", [False, True])
def test_a_gpu_counts_alike(tmp_path, small_blocks, whole_numbers):
    """In float64: float32 sums may be rounded in another way there."""
    _device_counts("cuda", tmp_path, 0, whole_numbers, True)


def test_no_labels_at_all(tmp_path):
    store = _store(tmp_path / "s", np.ones((5, 3), np.float32))
    for how in ({}, {"counter": partial(DeviceCounter, device=torch.device("cpu"))}):
        ranks = count_ranks(np.ones((2, 3), np.float32), [np.empty(0, np.int64)] * 2, store,
                            np.arange(5), **how)
        assert [len(rank) for rank in ranks] == [0, 0]


def test_one_process_does_all():
    options = counting_options(torch.device("cpu"))
    assert options["share"] == (0, 1) and options["together"](lambda: np.arange(3)).tolist() == [0, 1, 2]
    assert "counter" not in options


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_give_what_one_gives(processes, tmp_path, run_tool, torchrun):
    """Bit for bit, with distractors over several stores."""
    rng = np.random.default_rng(7)
    labels = [{kind: part.tolist() for kind, part in
               zip(("easy", "hard", "junk"), np.split(rng.permutation(500)[:60], [20, 45]))}
              for _ in range(9)]
    for name, count in (("database", 500), ("query", 9), ("far", 20_000), ("farther", 3_333)):
        table = rng.standard_normal((count, 24)).astype(np.float32)
        _store(tmp_path / name, table / np.linalg.norm(table, axis=1, keepdims=True),
               range(0, count, 101) if count > 9 else (), 1000)
    gnd = tmp_path / "gnd_toy.pkl"
    gnd.write_bytes(pickle.dumps({"imlist": [f"database {i}" for i in range(500)],
                                  "qimlist": [f"query {i}" for i in range(9)], "gnd": labels}))
    arguments = ["--gnd", gnd, "--query", tmp_path / "query", "--database", tmp_path / "database",
                 "--distractors", tmp_path / "far", tmp_path / "farther"]
    alone = run_tool("revisitop/evaluate.py", *arguments, "--json", tmp_path / "one.json")
    assert alone.returncode == 0, alone.stderr
    several = torchrun(processes, "tools/evaluate.py", *arguments, "--device", "cpu", "--json",
                       tmp_path / "many.json")
    assert several.returncode == 0, several.stderr
    assert several.stdout == alone.stdout
    one, many = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "many.json"))
    assert one == many and 0 < one["protocols"]["medium"]["mAP"] < 1


def test_the_command_without_torchrun(run_tool, tmp_path):
    done = run_tool("tools/evaluate.py", "--gnd", tmp_path / "no.pkl", "--query", "a", "--database",
                    "b")
    assert done.returncode == 1 and "no.pkl" in done.stderr and "Traceback" not in done.stderr
    done = run_tool("tools/evaluate.py", "--gnd", tmp_path / "no.pkl", fresh=True)
    assert done.returncode == 1 and "--help lists the arguments" in done.stderr


def test_what_one_process_cannot_read_all_say(torchrun, tmp_path):
    """Nobody waits, or is told of a lost connection."""
    rng = np.random.default_rng(0)
    far = _store(tmp_path / "far", rng.standard_normal((30_000, 64)).astype(np.float32), (), 5000)
    _store(tmp_path / "database", rng.standard_normal((20, 64)).astype(np.float32))
    _store(tmp_path / "query", rng.standard_normal((2, 64)).astype(np.float32))
    file = far.path / "chunk-000005.safetensors"
    content = bytearray(file.read_bytes())
    content[-8192:-8188] = np.float32(np.nan).tobytes()
    file.write_bytes(bytes(content))
    (tmp_path / "gnd_toy.pkl").write_bytes(pickle.dumps({
        "imlist": [f"database {i}" for i in range(20)], "qimlist": ["query 0", "query 1"],
        "gnd": [{"easy": [1], "hard": [2], "junk": []}] * 2}))
    done = torchrun(2, "tools/evaluate.py", "--gnd", tmp_path / "gnd_toy.pkl", "--device", "cpu",
                    "--query", tmp_path / "query", "--database", tmp_path / "database",
                    "--distractors", far.path)
    assert done.returncode != 0
    errors = {line for line in done.stderr.splitlines() if line.startswith("error: ")}
    assert len(errors) == 1 and "is damaged: 1 of 5000 rows" in errors.pop()
    assert "Connection closed" not in done.stderr
