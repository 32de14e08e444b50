"""Going on with a store, as a user does: disks that vanish, images that fail, are added or change."""
import json
import os
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.features.sources import ImageSource
from dolg.features.store import FeatureStore, Written
from dolg.models import build_model

ROOT = Path(__file__).resolve().parents[2]
MODEL = ["MODEL.ARCH", "delg", "MODEL.DELG.LOCAL_DIM", "6", "RESNET.STEM_WIDTH", "4",
         "MODEL.HEADS.REDUCTION_DIM", "8", "LOSS.NAME", "", "MODEL.DEPTH", "18"]


def _photo(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "w.pyth"
    torch.save(build_model(load_cfg(None, MODEL)).state_dict(), file)
    return file


@pytest.fixture
def photos(tmp_path) -> Path:
    """30 photographs, 00.jpg to 29.jpg, of which 07.jpg is no image."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        _photo(folder / f"{number:02d}.jpg", number)
    (folder / "07.jpg").write_text("no image")
    return folder


@pytest.fixture
def command(weights, photos, tmp_path) -> list:
    """An extraction of `photos` into `tmp_path`/out, in chunks of 4."""
    return ["tools/infer.py", "--cfg", "configs/quickstart.yaml", *MODEL, "TEST.WEIGHTS", weights, "DEVICE",
            "cpu", "INFER.DATASET", "", "INFER.IMAGES", photos, "INFER.OUT_DIR", tmp_path / "out",
            "INFER.CHUNK_SIZE", "4", "INFER.SCALES", "[1.0]", "DATA_LOADER.NUM_WORKERS", "0",
            "INFER.LOCAL", "True", "INFER.LOCAL_SCALES", "[1.0]", "INFER.LOCAL_TOPK", "5",
            "INFER.LOCAL_THRESHOLD", "0"]


def _contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


def _good(done, text: str = ""):
    assert done.returncode == 0 and text in done.stdout, (done.stdout, done.stderr)


def _bad(done, *texts: str):
    """It ended with status 1, and with one line in which are these texts."""
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and done.stderr.count("error: ") == 1, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ") and all(text in line for text in texts), line


def _kill_at(process, reached) -> None:
    while process.poll() is None and not reached():
        time.sleep(0.0005)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)


def test_a_disk_that_vanishes_marks_no_image(run_tool, start_command, command, photos, tmp_path):
    """At whichever image: all that is written is right, and the same command goes on."""
    away, store, command = tmp_path / "away", tmp_path / "out" / "photos", [*command, "INFER.CHUNK_SIZE", "1"]
    process = start_command(command, env={"OMP_NUM_THREADS": "1"})
    while process.poll() is None and len(list(store.glob("chunk-*"))) < 3:
        time.sleep(0.0005)
    photos.rename(away)
    output, errors = process.communicate(timeout=100)
    assert process.returncode == 1, output + errors
    line = errors.strip().splitlines()[-1]
    assert line.startswith("error: cannot read image ") and "No such file" in line
    assert "the disk seems gone. Run the same command again once it is back" in line
    written = [Written.read(file) for file in store.glob("chunk-*")]
    assert 3 <= len(written) < 30
    assert {name for chunk in written for name in chunk.names if chunk.errors} <= {"07.jpg"}
    away.rename(photos)
    _good(run_tool(*command), "30 images, 8 dimensions, 1 FAILED")
    assert [name for name, _ in FeatureStore(store).errors()] == ["07.jpg"]


def test_a_disk_that_is_still_gone(run_tool, command, photos, tmp_path):
    """One of two: the store knows which images were there, so that the others on that disk do not fail."""
    (tmp_path / "other").mkdir()
    for number in range(20):
        _photo(tmp_path / "other" / f"{number:02d}.jpg", 400 + number)
    listing = tmp_path / "both.txt"
    listing.write_text("".join(f"{folder}/{number:02d}.jpg\n" for folder in ("photos", "other")
                               for number in range(20)))
    command = [*command, "INFER.IMAGES", listing]
    _good(run_tool(*command), "1 FAILED")
    store = tmp_path / "out" / "both"
    for chunk in (6, 7, 9):         # of the list's images 24 to 31 and 36 to 39, all of the folder `other`
        (store / f"chunk-{chunk:06d}.safetensors").unlink()
    (tmp_path / "other").rename(tmp_path / "away")
    _bad(run_tool(*command), "other/04.jpg: No such file",
         "images that were there before are gone as well")
    assert not (store / "chunk-000006.safetensors").exists()
    (tmp_path / "away").rename(tmp_path / "other")
    _good(run_tool(*command), "1 FAILED")


def test_an_image_that_is_missing_among_others_fails_and_is_tried_again(run_tool, start_command, command,
                                                                        photos, tmp_path):
    listing = tmp_path / "some.txt"
    listing.write_text("".join(f"photos/{number:02d}.jpg\n" for number in range(30)))
    (photos / "05.jpg").rename(tmp_path / "05.jpg")
    command = [*command, "INFER.IMAGES", listing]
    _good(run_tool(*command), "2 FAILED and are marked in the store (--retry-failed tries them again)")
    store = tmp_path / "out" / "some"
    assert FeatureStore(store).reasons() == {5: "No such file or directory", 7: "not an image"}
    before = _contents(store)
    # Nothing is tried again unasked; what fails again is what it was
    _good(run_tool(*command), "2 FAILED")
    _good(run_tool(*command, "--retry-failed"), "2 FAILED")
    assert _contents(store) == before
    (tmp_path / "05.jpg").rename(photos / "05.jpg")
    _photo(photos / "07.jpg", 7)
    _good(run_tool(*command), "2 FAILED")
    _good(run_tool(*command, "--retry-failed", "--check"), "30 images, 2 of them failed")
    assert _contents(store) == before
    # Killed while it is at work, the store is whole; the same command goes on
    _kill_at(start_command([*command, "--retry-failed"]), (store / ".claims").exists)
    FeatureStore(store).verify()
    _good(run_tool(*command, "--retry-failed"), "30 images, 8 dimensions\n")
    mended, after = FeatureStore(store), _contents(store)
    mended.verify()
    assert {name for name in after if after[name] != before[name]} == {"chunk-000001.safetensors"}
    # As if they had never failed; the others' bytes are what they were
    _good(run_tool(*command, "INFER.OUT_DIR", tmp_path / "anew"))
    anew = FeatureStore(tmp_path / "anew" / "some")
    np.testing.assert_allclose(mended.rows(np.arange(30)), anew.rows(np.arange(30)), atol=1e-6)
    old, new = (_tensors(before), _tensors(after))
    assert np.array_equal(old["global"][[0, 2]], new["global"][[0, 2]])
    for row in range(30):
        here, there = mended.local(row), anew.local(row)
        assert len(here.scores) == 5
        np.testing.assert_allclose(here.descriptors, there.descriptors, atol=2e-3)
        np.testing.assert_allclose(here.xy, there.xy)


def _tensors(contents: dict[str, bytes]) -> dict[str, np.ndarray]:
    from safetensors.numpy import load
    return load(contents["chunk-000001.safetensors"])


def test_added_images_are_appended_whatever_is_killed(run_tool, start_command, command, photos, tmp_path):
    store = tmp_path / "out" / "photos"
    _good(run_tool(*command))
    before = _contents(store)
    for number in (3, 11, 19, 27):         # in the middle of the folder's order, and at both ends
        _photo(photos / f"{number:02d} more.jpg", 100 + number)
    _photo(photos / "!first.jpg", 200)
    done = run_tool(*command, "--check")
    _bad(done, "lacks 5 images that were added since, such as !first.jpg")
    assert _contents(store) == before
    # Killed once the manifest says so, and once a chunk is written; two workers go on
    moments = [lambda: json.loads((store / "manifest.json").read_text())["count"] == 35,
             lambda: (store / "chunk-000008.safetensors").exists()
             or (store / "chunk-000007.safetensors").read_bytes() != before["chunk-000007.safetensors"]]
    for reached in moments:
        _kill_at(start_command(command), reached)
    _photo(photos / "zz.jpg", 300)          # and one more, while the store is not whole
    workers = [start_command([*command, "INFER.TOTAL_NUM", "2", "INFER.CUT_NUM", number])
               for number in (1, 2)]
    for worker in workers:
        assert worker.wait(timeout=100) == 0, worker.communicate()
    names = [f"{number:02d}.jpg" for number in range(30)]
    names += ["!first.jpg", "03 more.jpg", "11 more.jpg", "19 more.jpg", "27 more.jpg", "zz.jpg"]
    grown = FeatureStore(store)
    grown.verify()
    assert grown.names == names and grown.manifest["count"] == 36
    assert grown.manifest["images_digest"] == ImageSource(names, photos).digest()
    assert [name for name, _ in grown.errors()] == ["07.jpg"]
    after = _contents(store)
    assert {name for name in before if after[name] != before[name]} == {
        "manifest.json", "chunk-000007.safetensors"}
    # Nothing is left to do, and what is there is what another store of them has
    _good(run_tool(*command, "--check"), "is whole: 36 images, 1 of them failed")
    _good(run_tool(*command))
    assert _contents(store) == after
    _good(run_tool(*command, "INFER.OUT_DIR", tmp_path / "anew"))
    anew = FeatureStore(tmp_path / "anew" / "photos")
    rows = np.array([anew.names.index(name) for name in names])
    fine = np.flatnonzero(grown.status == 0)
    np.testing.assert_allclose(grown.rows(fine), anew.rows(rows[fine]), atol=1e-6)
    # One that goes is named
    (photos / "12.jpg").unlink()
    _bad(run_tool(*command), "is of 36 images, 1 of which are not among the 35 given, such as 12.jpg")
    assert _contents(store) == after


def test_changed_images_are_noticed(run_tool, command, photos, tmp_path):
    store = tmp_path / "out" / "photos"
    _good(run_tool(*command))
    before = _contents(store)
    # A copy, with times of its own, is the same
    os.utime(photos / "04.jpg", (1, 1))
    _good(run_tool(*command), "1 image files have another time of change than when they were described, and "
                              "the same contents")
    _photo(photos / "02.jpg", 1002)
    same_size = bytearray((photos / "03.jpg").read_bytes())
    same_size[-40] ^= 0x55
    (photos / "03.jpg").write_bytes(same_size)
    said = "2 of its 30 images have changed since they were described, such as "
    _bad(run_tool(*command), said, "02.jpg", "give --retry-failed to describe them again")
    _bad(run_tool(*command, "--check"), said)
    # Other contents under size and time of the old ones: on request
    times = (photos / "01.jpg").stat()
    same_size = bytearray((photos / "01.jpg").read_bytes())
    same_size[-40] ^= 0x55
    (photos / "01.jpg").write_bytes(same_size)
    os.utime(photos / "01.jpg", ns=(times.st_atime_ns, times.st_mtime_ns))
    _bad(run_tool(*command, "--check"), said)
    _bad(run_tool(*command, "--check", "--contents"), "3 of its 30 images",
         "01.jpg (other contents of the same size)")
    assert _contents(store) == before
    _good(run_tool(*command, "--retry-failed"))
    after = _contents(store)
    assert [name for name in sorted(after) if after[name] != before[name]] == ["chunk-000000.safetensors"]
    _good(run_tool(*command, "--check"), "is whole")


def test_other_images_of_the_same_names_are_noticed(run_tool, command, photos, tmp_path):
    _good(run_tool(*command))
    other = tmp_path / "elsewhere" / "photos"
    other.mkdir(parents=True)
    for number in range(30):
        _photo(other / f"{number:02d}.jpg", 500 + number)
    _bad(run_tool(*command, "INFER.IMAGES", other), "29 of its 30 images have changed", str(other / "00.jpg"))
    shutil.rmtree(other)
    shutil.copytree(photos, other, copy_function=shutil.copyfile)       # not their times
    _good(run_tool(*command, "INFER.IMAGES", other), "29 image files have another time of change")


def test_where_all_fails_the_status_is_not_0(run_tool, command, weights, photos, tmp_path):
    for file in photos.iterdir():
        file.write_text("no image")
    said = ["all 30 images of ", "photos failed (not an image)"]
    _bad(run_tool(*command), *said)
    assert (FeatureStore(tmp_path / "out" / "photos").status != 0).all()
    _bad(run_tool(*command), *said)
    _bad(run_tool(*command, "--check"), "all 30 images of ")
    broken = torch.load(weights)
    name = [name for name in broken if name.endswith("weight")][7]
    broken[name].view(-1)[3] = torch.nan
    torch.save(broken, tmp_path / "nan.pyth")
    _bad(run_tool(*command, "TEST.WEIGHTS", tmp_path / "nan.pyth", "INFER.OUT_DIR", tmp_path / "none"),
         f"nan.pyth: {name} has values that are NaN or infinite")
    assert not (tmp_path / "none").exists()


def test_stores_have_names_of_their_own(run_tool, command, photos, tmp_path):
    (photos / "inner").mkdir()
    for location in (photos / "inner" / "..", f"{photos}/."):
        _good(run_tool(*command, "INFER.IMAGES", location, "INFER.OUT_DIR", tmp_path / "a" / "out"))
        assert sorted(path.name for path in (tmp_path / "a").rglob("manifest.json")) == ["manifest.json"]
        assert FeatureStore(tmp_path / "a" / "out" / "photos").count == 30
    (tmp_path / "..txt").write_text("photos/00.jpg\n")
    (tmp_path / "...txt").write_text("photos/00.jpg\n")
    for location in ("/", tmp_path / "..txt", tmp_path / "...txt"):
        _bad(run_tool(*command, "INFER.IMAGES", location, "INFER.OUT_DIR", tmp_path / "b" / "out"),
             f"INFER.IMAGES {location} has no name")
    assert not (tmp_path / "b").exists()


def test_claims_that_are_removed_damaged_or_ahead_hold_nobody_up(run_tool, start_command, command, tmp_path):
    store, command = tmp_path / "out" / "photos", [*command, "INFER.CHUNK_SIZE", "1", "INFER.LEASE", "2"]
    process, removed, start = start_command(command), 0, time.monotonic()
    while process.poll() is None and time.monotonic() < start + 60:
        if len(list(store.glob("chunk-*"))) > removed and (store / ".claims").exists():
            shutil.rmtree(store / ".claims", ignore_errors=True)
            removed += 1
        time.sleep(0.0005)
    assert process.wait(timeout=1) == 0 and removed > 3, process.communicate()
    whole = _contents(store)
    identity = {"machine": "node7 boot \x1b[2J", "pid": 17, "started": "5"}
    damaged = [b"", b"\xff\x00\x80", b"[1, 2]", b"[" * 9999, b"null", b"{}",
               *(json.dumps({**identity, **wrong}).encode()
                 for wrong in ({"machine": 3}, {"machine": " "}, {"pid": 10 ** 30}))]
    (store / ".claims").mkdir()
    for number, content in enumerate([*damaged, json.dumps(identity).encode()]):
        (store / f"chunk-{number:06d}.safetensors").unlink()
        (store / ".claims" / f"chunk-{number:06d}").write_bytes(content)
    # As a worker elsewhere leaves it, whose clock is an hour ahead, or was until it was set back
    ahead = store / ".claims" / f"chunk-{len(damaged):06d}"
    os.utime(ahead, (time.time() + 3600, time.time() + 3600))
    os.mkfifo(store / ".claims" / "chunk-000020")
    (store / "chunk-000020.safetensors").unlink()
    done = run_tool("tools/info.py", store)
    assert done.returncode == 0 and "process 17, whose clock is 3600 s ahead: chunk-000009" in done.stdout
    assert "unknown, process 0, seen" in done.stdout
    start = time.monotonic()
    done = run_tool(*command, timeout=60)
    _good(done, "30 images")
    assert time.monotonic() - start > 2
    assert "photos: waiting for " in done.stderr and "INFER.LEASE (2) seconds" in done.stderr
    assert _contents(store) == whole
