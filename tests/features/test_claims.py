"""Claims: one worker per chunk, whatever becomes of the others."""
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest

from dolg.errors import UserError
from dolg.features.claims import Claims


def test_one_worker_per_chunk(tmp_path):
    first, second = Claims(tmp_path / "c", 60), Claims(tmp_path / "c", 60)
    assert first.take(0) and not second.take(0) and second.take(1) and not first.take(1)
    first.release(0)
    assert second.take(0)
    second.close(done=False)
    assert first.take(0) and first.take(1)
    first.close(done=True)
    assert not (tmp_path / "c").exists()


def _take_and_die(folder, chunk):
    Claims(folder, 600).take(chunk)
    os._exit(1)


def test_a_dead_process_holds_nothing(tmp_path):
    claims = Claims(tmp_path, 600)
    process = multiprocessing.get_context("fork").Process(target=_take_and_die, args=(tmp_path, 7))
    process.start()
    process.join()
    assert (tmp_path / "chunk-000007").exists()
    assert claims.take(7)


def test_another_machine_holds_until_its_lease_is_over(tmp_path):
    other, mine = Claims(tmp_path, 60), Claims(tmp_path, 60)
    # As a worker elsewhere would have written it
    identity = {**json.loads(other._me.read_text()), "machine": "elsewhere", "pid": 1}
    other._me.write_text(json.dumps(identity))
    assert other.take(3) and not mine.take(3)
    _last_seen(other, 40)
    assert not mine.take(3)
    other._renewed = 0              # as if long ago: not each of its batches renews
    other.renew()
    assert other._me.stat().st_mtime > time.time() - 10
    _last_seen(other, 80)
    assert mine.take(3)
    # The late worker comes back: the claim it lets go is no longer its own
    other.release(3)
    assert (tmp_path / "chunk-000003").samefile(mine._me)


def _last_seen(claims, seconds):
    """Put back the time at which a worker was last at work."""
    then = time.time() - seconds
    os.utime(claims._me, (then, then))


def test_a_claim_emptied_by_a_power_failure_ends_with_its_lease(tmp_path):
    other, mine = Claims(tmp_path, 60), Claims(tmp_path, 60)
    assert other.take(1)
    other._me.write_text("")
    assert not mine.take(1)
    _last_seen(other, 80)
    assert mine.take(1)


def test_a_clock_that_was_set_back(tmp_path, monkeypatch):
    """A claim from the future holds while it changes, and a lease longer."""
    other, mine = Claims(tmp_path, 60), Claims(tmp_path, 60)
    other._me.write_text(json.dumps({"machine": "elsewhere", "pid": 1, "started": None}))
    assert other.take(1)
    now, clock = time.monotonic(), time.time()
    for seconds, ahead in ((0, 3600), (50, 3600), (55, 3610), (110, 3610)):
        os.utime(other._me, (clock + ahead, clock + ahead))
        monkeypatch.setattr(time, "monotonic", lambda: now + seconds)
        assert not mine.take(1), seconds
    monkeypatch.setattr(time, "monotonic", lambda: now + 116)
    assert mine.take(1)


def test_a_folder_that_is_removed_is_made_anew(tmp_path):
    mine = Claims(tmp_path / "claims", 0.001)
    assert mine.take(1)
    shutil.rmtree(tmp_path / "claims")
    time.sleep(0.01)
    mine.renew()
    # What it holds it holds again
    assert (tmp_path / "claims" / "chunk-000001").samefile(mine._me)
    shutil.rmtree(tmp_path / "claims")
    assert mine.take(2)


def _take_all(folder, chunks, barrier, queue):
    claims = Claims(folder, 600)
    barrier.wait()
    queue.put([chunk for chunk in range(chunks) if claims.take(chunk)])
    queue.close()
    queue.join_thread()
    barrier.wait()          # none is dead before all have tried


def test_many_processes_at_once(tmp_path):
    context, chunks = multiprocessing.get_context("fork"), 200
    barrier, queue = context.Barrier(4), context.Queue()
    # Abandoned claims among them, over which takers race
    for chunk in range(0, chunks, 3):
        process = context.Process(target=_take_and_die, args=(tmp_path, chunk))
        process.start()
        process.join()
        if chunk >= 30:
            break
    processes = [context.Process(target=_take_all, args=(tmp_path, chunks, barrier, queue))
                 for _ in range(4)]
    for process in processes:
        process.start()
    taken = [chunk for _ in processes for chunk in queue.get(timeout=60)]
    for process in processes:
        process.join()
    assert sorted(taken) == list(range(chunks))


def test_a_file_system_without_links_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(95, "Operation not supported")

    claims = Claims(tmp_path, 60)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match="Operation not supported"):
        claims.take(0)


def test_a_worker_that_is_done_removes_the_folder_as_another_begins(tmp_path, monkeypatch):
    mkdir, made = Path.mkdir, []

    def vanish(path, *args, **options):
        mkdir(path, *args, **options)
        made.append(path)
        if len(made) == 1:
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", vanish)
    assert Claims(tmp_path / "claims", 60).take(3)
    assert len(made) == 2
