"""The commands around extraction, run as a user runs them."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.features.builders import build_extractor
from dolg.features.claims import Claims
from dolg.features.store import FeatureStore
from dolg.models import build_model

ROOT = Path(__file__).resolve().parents[2]
MODEL = ["MODEL.ARCH", "delg", "MODEL.DELG.LOCAL_DIM", "12", "RESNET.STEM_WIDTH", "8",
         "MODEL.HEADS.REDUCTION_DIM", "16", "LOSS.NAME", ""]
CFG = "configs/quickstart.yaml"     # a ResNet-18


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> list[str]:
    """Keys of an extraction of 30 photographs, one of them no image, in chunks of 4."""
    folder, rng = tmp_path_factory.mktemp("commands"), np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(30):
        pixels = rng.integers(0, 255, (72, 56 + 16 * (number % 2), 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "photos" / f"{number:02d}.jpg"), pixels)
    (folder / "photos" / "07.jpg").write_text("no image")
    torch.manual_seed(0)
    torch.save(build_model(load_cfg(str(ROOT / CFG), MODEL)).state_dict(), folder / "w.pyth")
    return [*MODEL, "TEST.WEIGHTS", str(folder / "w.pyth"), "INFER.DATASET", "", "INFER.IMAGES",
            str(folder / "photos"), "INFER.CHUNK_SIZE", "4", "DATA_LOADER.NUM_WORKERS", "0",
            "INFER.LOCAL", "True", "INFER.LOCAL_TOPK", "20", "INFER.LOCAL_THRESHOLD", "0"]


def _shell(*command, **env) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True,
                          timeout=300, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **env})


@pytest.fixture(scope="module")
def store(keys, tmp_path_factory) -> Path:
    """What scripts/run_extractor.sh makes with two workers, under sh, from another folder."""
    out = tmp_path_factory.mktemp("out")
    done = subprocess.run(
        ["sh", str(ROOT / "scripts" / "run_extractor.sh"), str(ROOT / CFG), *keys, "INFER.OUT_DIR",
         str(out)], cwd=out, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
             "NPROC": "2", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{out}/photos is whole: 30 images, 1 of them failed" in done.stdout
    return out / "photos"


def test_the_script_makes_what_one_worker_makes(store, keys, run_tool, tmp_path):
    done = run_tool("tools/infer.py", "--cfg", CFG, *keys, "INFER.OUT_DIR", tmp_path,
                    env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in store.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "photos").iterdir())
    for name in names:
        assert (store / name).read_bytes() == (tmp_path / "photos" / name).read_bytes()
    assert "1 FAILED" in done.stdout and "07.jpg: not an image" in done.stdout
    assert FeatureStore(store).local(0).descriptors.shape == (20, 12)


def test_an_incomplete_store_ends_the_script_with_an_error(keys, tmp_path):
    """Workers that cannot go on: the weights are not there; then a chunk is missing."""
    done = _shell("sh", "scripts/run_extractor.sh", CFG, *keys, "INFER.OUT_DIR", tmp_path,
                  "TEST.WEIGHTS", tmp_path / "none.pyth")
    assert done.returncode == 1 and "none.pyth" in done.stderr
    assert "photos is not a feature store" in done.stderr.splitlines()[-1]
    done = _shell("sh", "scripts/run_extractor.sh")
    assert done.returncode == 2 and done.stderr.startswith("usage: ")


def test_check_names_what_is_missing(store, keys, run_tool, tmp_path):
    part = tmp_path / "photos"
    part.mkdir()
    for file in store.iterdir():
        (part / file.name).write_bytes(file.read_bytes())
    (part / "chunk-000002.safetensors").unlink()
    done = run_tool("tools/infer.py", "--cfg", CFG, "--check", *keys, "INFER.OUT_DIR", tmp_path)
    assert done.returncode == 1
    assert "lacks 1 of 8 chunks (chunk-000002.safetensors; the first is of images 8 to 11)" \
        in done.stderr
    done = run_tool("tools/info.py", part)
    assert done.returncode == 0, done.stderr
    assert f"{part}: NOT WHOLE" in done.stdout and "26 of 30 (7 of 8 chunks)" in done.stdout


def test_info_says_what_is_in_a_store(store, run_tool):
    done = run_tool("tools/info.py", store)
    assert done.returncode == 0, done.stderr
    for text in (f"{store}: whole", "30 of 30 (8 of 8 chunks)", "16 dimensions",
                 "12 dimensions, float16", "weights_digest", "07.jpg: not an image"):
        assert text in done.stdout, done.stdout
    assert run_tool("tools/info.py", store.parent, fresh=True).returncode == 1


def test_info_says_who_is_at_work(store, run_tool, tmp_path):
    (tmp_path / "manifest.json").write_text((store / "manifest.json").read_text())
    claims = Claims(tmp_path / ".claims", 60)
    assert claims.take(2) and claims.take(5)
    done = run_tool("tools/info.py", tmp_path)
    assert "0 of 30 (0 of 8 chunks)" in done.stdout
    assert re.search(rf"at work .*process {os.getpid()}, seen \d+ s ago: chunk-000002, chunk-000005\n",
                     done.stdout)


@pytest.mark.parametrize("gpus, env, keys", [
    (8, {}, ["NUM_GPUS", "8"]), (8, {"NPROC": "2"}, ["NUM_GPUS", "2"]),
    (0, {}, ["NUM_GPUS", "1", "DEVICE", "cpu"]), (0, {"NPROC": "3"}, ["NUM_GPUS", "3", "DEVICE", "cpu"]),
    (4, {"SLURM_NNODES": "3", "SLURM_NODEID": "1"},
     ["INFER.TOTAL_NUM", "3", "INFER.CUT_NUM", "2", "NUM_GPUS", "4"])])
def test_the_script_takes_what_there_is(tmp_path, gpus, env, keys):
    """With a `python` that says how many GPUs there are, and what it was asked."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && echo {gpus} && exit\nshift; echo "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(["sh", "scripts/run_extractor.sh", "a b.yaml", "INFER.STRICT", "True"],
                          cwd=ROOT, capture_output=True, text=True,
                          env={"PATH": f"{tmp_path}:{os.environ['PATH']}", **env})
    asked = " ".join([*keys, "INFER.STRICT", "True"])
    assert done.stdout.splitlines() == [f"--cfg a b.yaml {asked}", f"--cfg a b.yaml --check {asked}"]


def test_a_worker_killed_under_the_script(store, keys, tmp_path):
    """The launcher starts it again; the store is what it is without."""
    out = tmp_path / "out"
    process = subprocess.Popen(
        ["sh", "scripts/run_extractor.sh", CFG, *keys, "INFER.OUT_DIR", str(out), "INFER.CHUNK_SIZE", "4"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NPROC": "2",
             "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not (
            claims := list((out / "photos" / ".claims").glob("chunk-*"))):
        time.sleep(0.002)
    os.kill(json.loads(claims[0].read_text())["pid"], signal.SIGKILL)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert f"{out}/photos is whole: 30 images, 1 of them failed" in output
    for file in store.iterdir():
        assert (out / "photos" / file.name).read_bytes() == file.read_bytes()
    assert len(list((out / "photos").iterdir())) == len(list(store.iterdir()))


def test_a_stopped_extraction_is_no_success(keys, start_command, tmp_path):
    command = ["tools/infer.py", "--cfg", CFG, *keys, "INFER.OUT_DIR", tmp_path,
               "NUM_GPUS", "2", "DEVICE", "cpu", "INFER.CHUNK_SIZE", "1", "INFER.SCALES", "[4.0]"]
    process = start_command(command, env={"OMP_NUM_THREADS": "1"}, together=True, fork=True)
    while process.poll() is None and not list((tmp_path / "photos").glob("chunk-*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    assert "error: stopped before all was done: the same command goes on from there" in output


def test_estimate_writes_nothing(keys, run_tool, tmp_path):
    done = run_tool("tools/infer.py", "--cfg", CFG, "--estimate", *keys, "INFER.OUT_DIR",
                    tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "30 of 30 images to do" in done.stdout and "(28 images tried, 1 failed)" in done.stdout
    # 64 bytes of descriptor, and 20 features of 12 half-precision numbers and four floats
    assert "disk    0.00 GB" in done.stdout and not (tmp_path / "out").exists()


def test_whitening_after_and_at_extraction(store, keys, run_tool, capsys, tmp_path):
    for name, options in (("w", ["--dim", "6"]), ("l", ["--local", "--turn", "--dim", "4"])):
        done = run_tool("tools/whiten.py", store, tmp_path / f"{name}.safetensors", *options)
        assert done.returncode == 0, done.stderr
    done = run_tool("tools/whiten.py", store, tmp_path / "after", "--apply",
                    tmp_path / "w.safetensors", "--apply-local", tmp_path / "l.safetensors",
                    fresh=True)
    assert done.returncode == 0, done.stderr
    done = run_tool("tools/infer.py", "--cfg", CFG, *keys, "INFER.OUT_DIR", tmp_path,
                    "INFER.WHITENING", tmp_path / "w.safetensors", "INFER.LOCAL_WHITENING",
                    tmp_path / "l.safetensors")
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout
    build_extractor(load_cfg(str(ROOT / CFG), [*map(str, keys), "INFER.SCALES", "[0.5]", "INFER.WHITENING",
                                        str(tmp_path / "w.safetensors")]))
    assert "w.safetensors was learned from descriptors that were made with different scales: " in (
        capsys.readouterr().out)
    after, at_once = FeatureStore(tmp_path / "after"), FeatureStore(tmp_path / "photos")
    assert at_once.dim == after.dim == 6 and at_once.local_dim == after.local_dim == 4
    assert after.manifest["whitening"] == at_once.manifest["whitening"]
    fine = np.flatnonzero(after.status == 0)
    np.testing.assert_allclose(after.rows(fine), at_once.rows(fine), atol=1e-5)
    # The features of one had been rounded to half precision before
    np.testing.assert_allclose(after.local(3).descriptors, at_once.local(3).descriptors, atol=5e-3)


def test_stores_are_verified_turned_and_cut(store, run_tool, tmp_path):
    assert run_tool("tools/store.py", "verify", store).returncode == 0
    done = run_tool("tools/store.py", "export", store, tmp_path / "f.mat", "--key", "Q")
    assert done.returncode == 0, done.stderr
    done = run_tool("tools/store.py", "import", tmp_path / "f.mat", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    again = FeatureStore(tmp_path / "again")
    assert again.count == 30 and list(again.reasons()) == [7]
    (tmp_path / "names.txt").write_text("03.jpg\n01.jpg\n")
    for name, command in (("some", ["subset", store, tmp_path / "names.txt", tmp_path / "some"]),
                          ("both", ["merge", tmp_path / "both", tmp_path / "some"])):
        done = run_tool("tools/store.py", *command)
        assert done.returncode == 0, done.stderr
        assert FeatureStore(tmp_path / name).names == ["03.jpg", "01.jpg"]
    done = run_tool("tools/store.py", "export", store, tmp_path / "f.doc", fresh=True)
    assert done.returncode == 1 and "ends in none of" in done.stderr


def test_stores_of_two_sizes_and_damaged_names_are_refused(store, keys, run_tool, tmp_path):
    extract = ["tools/infer.py", "--cfg", CFG, *keys, "INFER.OUT_DIR", tmp_path, "INFER.SIZE", "32",
               "INFER.LOCAL", "False"]
    assert run_tool(*extract).returncode == 0
    done = run_tool("tools/search.py", "build", tmp_path / "index", store, tmp_path / "photos")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert f"{store} and {tmp_path}/photos were made with different INFER.SIZE: 0 and 32 (" in done.stderr
    file = tmp_path / "photos" / "chunk-000003.safetensors"
    file.write_bytes(file.read_bytes().replace(b"12.jpg", b"12.jpf"))
    for command in ([*extract, "--check"], extract):
        done = run_tool(*command)
        assert done.returncode == 1
        assert re.search(f"{re.escape(str(file))} (has other images than its store|is damaged)", done.stderr)


def test_local_features_need_attention(keys, run_tool, tmp_path):
    done = run_tool("tools/infer.py", "--cfg", CFG, *keys, "MODEL.ARCH", "cgd", "INFER.OUT_DIR",
                    tmp_path)
    assert done.returncode == 1
    assert done.stderr == ("error: INFER.LOCAL is True, but MODEL.ARCH cgd on this backbone has no attention "
                           "to select local features by: take delg, dolg or gem\n")
