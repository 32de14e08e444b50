"""Checkpoints of a run: whole or not there, proved by digest, kept sparingly."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dolg.core.saving import (Position, Saver, best_checkpoint, checkpoint_path, checkpoints,
                              is_whole, newest_checkpoint, save_checkpoint)
from dolg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def _state(number: float) -> dict:
    return {"model": {"weight": torch.full((100, 10), number)}, "epoch": 1, "rng": [{"cpu": 1}]}


def _write(folder: Path, *positions: Position) -> list[Path]:
    for position in positions:
        save_checkpoint(checkpoint_path(folder, position), _state(position.step))
    return [checkpoint_path(folder, position) for position in positions]


def test_the_farthest_comes_first(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    _write(tmp_path, Position(2), Position(10), Position(9, 7), Position(10, 120), Position(2, 99))
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == ["model_epoch_0010_step_000120.pyth", "model_epoch_0010.pyth",
                     "model_epoch_0009_step_000007.pyth", "model_epoch_0002_step_000099.pyth",
                     "model_epoch_0002.pyth"]


def test_the_digest_is_that_of_sha256sum(tmp_path):
    path, = _write(tmp_path, Position(1))
    done = subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=path.parent)
    assert done.returncode == 0


@pytest.mark.parametrize("damage", ["half", "empty", "flipped", "longer"])
def test_a_damaged_file_is_passed_over(tmp_path, capsys, damage):
    before, last = _write(tmp_path, Position(1), Position(1, 50))
    content = bytearray(last.read_bytes())
    if damage == "half":
        content = content[:len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content += b"\0"
    last.write_bytes(content)
    assert not is_whole(last)
    assert newest_checkpoint(tmp_path) == before
    assert f"{last} is damaged" in capsys.readouterr().out
    before.write_bytes(b"")
    with pytest.raises(UserError, match="all checkpoints .* are damaged"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("digest", [None, b"", b"\xff\xfe\0", b"0" * 64 + b"  model_epoch_0001.pyth\n"])
def test_a_checkpoint_without_its_digest_is_judged_by_its_records(tmp_path, capsys, digest):
    path, = _write(tmp_path, Position(1))
    beside = path.with_name(path.name + ".sha256")
    beside.unlink() if digest is None else beside.write_bytes(digest)
    assert newest_checkpoint(tmp_path) == path
    said = "does not hold the digest of model_epoch_0001.pyth" in capsys.readouterr().out
    assert said == (digest is not None)
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):      # a flipped bit, wherever it is, is seen or harmless
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])
        if is_whole(path):
            torch.testing.assert_close(torch.load(path, weights_only=True), _state(0), rtol=0, atol=0)
    record = whole.rfind(b"PK\x01\x02", 0, whole.rfind(b"data/0"))
    folder = bytearray(whole)
    folder[record + 38] = 0x10      # the record of the weights is marked as a folder
    for part in (folder, b"", whole[:-1], whole[:len(whole) // 2], whole + b"\0", b"\0" * 100):
        path.write_bytes(part)
        assert not is_whole(path)


@pytest.mark.parametrize("content", [
    b"", b"\xff\0", b"[1]", b"[" * 100_000, b'{"file": "../../x.pyth", "metric": "mAP", "value": 1}', b'"a"',
    b'{"file": "model_epoch_0001.pyth", "metric": "mAP", "value": NaN}'])
def test_a_damaged_record_of_the_best_is_named(tmp_path, content):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.json").write_bytes(content)
    with pytest.raises(UserError, match="best.json is damaged .*: start the same training command again"):
        best_checkpoint(tmp_path)


def test_what_is_saved_is_what_was_there_at_the_call(tmp_path):
    saver, weight = Saver(tmp_path, 0), torch.zeros(3_000_000)
    saver.save(Position(1), {"model": {"weight": weight}})
    weight += 1
    saver.save(Position(2), {"model": {"weight": weight}})
    weight += 1
    saver.finish()
    first, second = (torch.load(checkpoint_path(tmp_path, Position(epoch)), weights_only=True)
                     for epoch in (1, 2))
    assert (first["model"]["weight"] == 0).all() and (second["model"]["weight"] == 1).all()


def test_the_newest_and_the_best_are_kept(tmp_path):
    saver = Saver(tmp_path, keep=2)
    for epoch in range(6):
        saver.save(Position(epoch), _state(epoch))
        if epoch == 1:
            saver.mark_best(Position(epoch), {"metric": "mAP", "value": 50.0})
    saver.finish()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    kept = [f"model_epoch_{epoch:04d}.pyth" for epoch in (1, 4, 5)]
    assert names == sorted(["best.json", *kept, *(f"{name}.sha256" for name in kept)])
    assert best_checkpoint(tmp_path).name == kept[0]
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text())["value"] == 50.0
    saver.save(Position(6), _state(6))
    saver.mark_best(Position(6), {"metric": "mAP", "value": 60.0})
    saver.mark_best(Position(7), {"metric": "mAP", "value": 70.0})     # which could not be written
    assert best_checkpoint(tmp_path).name == "model_epoch_0006.pyth"
    assert not (tmp_path / "checkpoints" / kept[0]).exists()


def test_no_best_without_an_evaluation(tmp_path):
    _write(tmp_path, Position(1))
    with pytest.raises(UserError, match="no best checkpoint"):
        best_checkpoint(tmp_path)


_FILL = """
import resource, sys, torch
from dolg.core.saving import Position, Saver
from dolg.errors import UserError
saver = Saver(sys.argv[1], 0)
saver.save(Position(1), {"weight": torch.zeros(1000)})
saver.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))   # as a full disk, writing fails
saver.save(Position(2), {"weight": torch.zeros(1_000_000)})
saver.wait()
print("went on")
try:
    saver.finish()
except UserError as error:
    print("error:", error)
"""


def test_a_full_disk_costs_the_new_checkpoint_only(tmp_path):
    done = subprocess.run([sys.executable, "-c", _FILL, str(tmp_path)], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    warning, went_on, error = done.stdout.splitlines()
    assert "WARNING: could not write" in warning and "is model_epoch_0001.pyth" in warning
    assert went_on == "went on" and error.startswith("error: could not write")
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, Position(1))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "model_epoch_0001.pyth", "model_epoch_0001.pyth.sha256"]


_KEEP_WRITING = """
import sys, torch
from dolg.core.saving import Position, Saver
saver = Saver(sys.argv[1], 2)
saver.save(Position(0), {"weight": torch.zeros(10)})
for epoch in range(1, 100):
    saver.save(Position(epoch), {"weight": torch.zeros(20_000_000)})
"""


def test_killed_while_it_writes(tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    process = subprocess.Popen([sys.executable, "-c", _KEEP_WRITING, str(tmp_path)], cwd=ROOT,
                               stdout=subprocess.DEVNULL,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not list(folder.glob(".*_0003*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = list(folder.glob(".*.tmp"))
    newest = newest_checkpoint(tmp_path)
    assert newest and is_whole(newest) and torch.load(newest, weights_only=True)
    Saver(tmp_path, 0)
    assert not list(folder.glob(".*.tmp"))
    assert capsys.readouterr().out.count("was never finished: removed") == len(left)


def test_two_runs_cannot_share_a_folder(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys, time\nfrom dolg.core.saving import Saver\n"
         "saver = Saver(sys.argv[1], 0)\nprint('held', flush=True)\ntime.sleep(60)", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is training"):
            Saver(tmp_path, 0)
    finally:
        holder.kill()
        holder.wait()
    Saver(tmp_path, 0)
