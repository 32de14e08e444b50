"""What bad images, failed evaluations and damaged records do to a training: nothing is lost, all is said."""
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from dolg.config import load_cfg
from dolg.core.saving import newest_checkpoint
from dolg.core.trainer import train
from dolg.errors import UserError
from tests.conftest import ROOT

BAD = "class 2 photo 3.jpg"
# Six steps an epoch, without a checkpoint in between
STEPS = ["TRAIN.BATCH_SIZE", 4, "BN.FREEZE", "True", "TRAIN.CHECKPOINT_MINUTES", 0]


@pytest.fixture
def data(toy_images, tmp_path) -> Path:
    """A copy of the toy images that a test may damage."""
    shutil.copytree(toy_images, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def tool(start_command, tiny, data, tmp_path):
    """`tool(*options)` trains on the copy in OUT_DIR tmp_path/out."""

    def train_(*options):
        process = start_command(["tools/train.py", *tiny, "DATA_DIR", data, "OUT_DIR", tmp_path / "out",
                                 *STEPS, *options], env={"OMP_NUM_THREADS": "1"}, fork=True)
        output = process.communicate(240)
        return subprocess.CompletedProcess(process.args, process.returncode, *output)

    return train_


@pytest.fixture
def run(tiny, data, tmp_path):
    """`run(*options)` does so in this process."""
    return lambda *options: train(load_cfg(str(ROOT / tiny[1]), [str(part) for part in (
        *tiny[2:], "DATA_DIR", data, "OUT_DIR", tmp_path / "out", *STEPS, *options)]))


def _cut(data: Path, name: str = BAD) -> bytes:
    """Cut an image in half; the whole file."""
    file = data / "toy" / "jpg" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:300])       # headers alone
    return whole


def _without(listing: Path, name: str) -> str:
    return "".join(line for line in listing.read_text().splitlines(True) if name not in line)


def _log(out: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def _named(out: Path) -> list[str]:
    return [json.loads(line)["image"] for line in (out / "bad_images.jsonl").read_text().splitlines()]


def _last(out: Path) -> dict:
    return torch.load(newest_checkpoint(out), weights_only=True)


def _same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[part][key], b[part][key]) for part in ("model", "loss") for key in a[part])


def test_a_bad_image_stops_the_run_saved_and_mended_it_goes_on(tool, run, data, tmp_path):
    run("OUT_DIR", tmp_path / "undisturbed")
    whole = _cut(data)
    done = tool("DATA_LOADER.NUM_WORKERS", 2)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    line, = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert BAD in line and "DATA_LOADER.ON_ERROR skip" in line and "the run is saved (epoch 0 and " in line
    # Saved is the step before the one with the image, by its place in the epoch's order
    steps = _last(tmp_path / "out")["step"]
    assert 0 < steps < 6 and len(_log(tmp_path / "out", "train")) == steps
    assert _named(tmp_path / "out") == [str(data / "toy" / "jpg" / BAD)]
    (data / "toy" / "jpg" / BAD).write_bytes(whole)
    run()
    assert _same(_last(tmp_path / "out"), _last(tmp_path / "undisturbed"))


def test_only_bad_images_may_leave_the_list(tool, run, data, tmp_path):
    listing = data / "toy" / "train_list.txt"
    before = listing.read_text()
    _cut(data)
    assert "cannot read image" in tool().stderr
    listing.write_text(_without(listing, "class 0 photo 0.jpg"))
    assert "train_list.txt or its boxes were changed since the run in" in tool().stderr
    listing.write_text(before)
    listing.write_text(_without(listing, BAD))
    done = tool()
    assert done.returncode == 0, done.stderr
    assert "lost 1 image(s) that bad_images.jsonl names: the run goes on without them" in done.stdout
    recorded = json.loads((tmp_path / "out" / "data.json").read_text())
    assert recorded["removed"] == [str(data / "toy" / "jpg" / BAD)] and len(recorded["contents"]) == 23
    assert _last(tmp_path / "out")["epoch"] == 3 and _named(tmp_path / "out") == []
    listing.write_text(before)      # and not the other way round
    with pytest.raises(UserError, match="were changed since"):
        run("OPTIM.MAX_EPOCH", 4)


def test_skipped_images_are_replaced_counted_and_named(tool, run, data, tmp_path, capsys):
    _cut(data)
    missing = data / "toy" / "jpg" / "class 0 photo 1.jpg"
    missing.unlink()
    done = tool("DATA_LOADER.ON_ERROR", "skip", "NUM_GPUS", 2, "DEVICE", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"2 image(s) cannot be read and were replaced by others of their classes: see "
                             f"{tmp_path}/out/bad_images.jsonl") == 3
    assert sorted(_named(tmp_path / "out")) == [str(missing), str(data / "toy" / "jpg" / BAD)]
    assert [line["bad_images"] for line in _log(tmp_path / "out", "train_epoch")] == [2, 2, 2]
    # One process, stopped within an epoch and gone on with, does the same as two
    run("DATA_LOADER.ON_ERROR", "skip", "OUT_DIR", tmp_path / "one")
    a, b = _last(tmp_path / "one"), _last(tmp_path / "out")
    for key, value in a["model"].items():
        torch.testing.assert_close(b["model"][key], value, rtol=1e-3, atol=1e-3)
    for path in sorted((tmp_path / "one" / "checkpoints").glob("model_epoch_000[23]*.pyth")):
        path.unlink()
    run("DATA_LOADER.ON_ERROR", "skip", "DATA_LOADER.NUM_WORKERS", 2, "OUT_DIR", tmp_path / "one")
    assert _same(_last(tmp_path / "one"), a)


def test_what_takes_the_place_of_a_bad_image_is_of_its_class(data):
    from dolg.data.datasets import TrainingImages
    from dolg.data.image_list import read_image_list

    for number in (3, 4, 5):
        _cut(data, f"class 2 photo {number}.jpg")
    dataset = TrainingImages(read_image_list(data / "toy" / "train_list.txt"), 48, 0.5, seed=1, skip=True)
    first, second = dataset[(0, 15)], dataset[(0, 12)]
    assert (first.index, first.label) == (12, 2) and [index for index, _ in first.replaced] == [15, 16, 17]
    assert torch.equal(first.pixels, second.pixels) and not second.replaced
    for number in range(6):
        (data / "toy" / "jpg" / f"class 2 photo {number}.jpg").write_bytes(b"")
    assert dataset[(0, 15)].label == 3      # none of its class is left


def test_too_many_bad_images_end_the_run(run, data, tmp_path):
    for number in range(6):
        for label in (1, 2):
            _cut(data, f"class {label} photo {number}.jpg")
    with pytest.raises(UserError, match="1[12] images cannot be read, too many .* the run is saved"):
        run("DATA_LOADER.ON_ERROR", "skip")
    assert len(_named(tmp_path / "out")) in (11, 12)
    with pytest.raises(UserError, match="set ON_DEVICE to 'augment'"):
        run("DATA_LOADER.ON_ERROR", "skip", "DATA_LOADER.ON_DEVICE", "decode")


HELD_OUT = ["TEST.DATASET", "toy", "TEST.IM_SIZE", 48, "TEST.BATCH_SIZE", 4]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failed_evaluation_costs_no_epoch(tool, run, data, tmp_path, processes):
    images = data / "toy" / "jpg"
    (images / "held out.jpg").write_bytes((images / BAD).read_bytes()[:300])
    listing = data / "toy" / "val_list.txt"
    whole = listing.read_text()
    listing.write_text(whole + "jpg/held out.jpg 2\n")
    done = tool(*HELD_OUT, "NUM_GPUS", processes, "DEVICE", "cpu", "DATA_LOADER.NUM_WORKERS", 2 - processes)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stdout.count("WARNING: the evaluation after epoch ") == 3
    assert "error: training is done and saved, but its last evaluation failed: cannot read" in done.stderr
    assert (tmp_path / "out" / "checkpoints" / "model_epoch_0003.pyth").exists()
    assert not (tmp_path / "out" / "checkpoints" / "best.json").exists()
    failed = _log(tmp_path / "out", "test_failed")
    assert [line["epoch"] for line in failed] == [1, 2, 3] and "held out.jpg" in failed[0]["error"]
    if processes == 2:
        return
    listing.write_text(whole)
    run(*HELD_OUT)
    assert [line["epoch"] for line in _log(tmp_path / "out", "test_epoch")] == [3]
    best = json.loads((tmp_path / "out" / "checkpoints" / "best.json").read_text())
    assert best["file"] == "model_epoch_0003.pyth" and best["metric"] == "top1_err"
    run(*HELD_OUT)      # nothing is left
    assert len(_log(tmp_path / "out", "test_epoch")) == 1


def test_an_evaluation_that_was_cut_off_is_done_again(run, tmp_path, monkeypatch):
    from dolg.core.validation import Validation

    out = tmp_path / "out"
    run(*HELD_OUT, "OUT_DIR", tmp_path / "undisturbed")
    calls, evaluate = [], Validation.run

    def killed(self, module):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(self, module)

    monkeypatch.setattr(Validation, "run", killed)
    with pytest.raises(KeyboardInterrupt):
        run(*HELD_OUT)
    assert newest_checkpoint(out).name == "model_epoch_0002.pyth" and len(_log(out, "test_epoch")) == 1
    run(*HELD_OUT)
    keys = ("epoch", "step", "loss", "top1_err")
    tested, expected = ([{key: line[key] for key in keys} for line in _log(folder, "test_epoch")]
                        for folder in (out, tmp_path / "undisturbed"))
    assert tested == expected and len(tested) == 3
    assert _same(_last(out), _last(tmp_path / "undisturbed"))


def test_a_lack_of_memory_fails_the_evaluation_only(run, tmp_path, monkeypatch, capsys):
    from dolg.core import validation

    def no_memory(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(validation, "classification_error", no_memory)
    with pytest.raises(UserError, match="last evaluation failed: CUDA out of memory"):
        run(*HELD_OUT)
    assert _last(tmp_path / "out")["epoch"] == 3
    monkeypatch.setattr(validation, "classification_error", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):      # a bug is none of these
        run(*HELD_OUT)


@pytest.mark.parametrize("options, message", [
    (["LOSS.NAME", "triplet"], "and no class of single.txt has two images"),
    (["LOSS.NAME", "contrastive", "TRAIN.IMAGES_PER_CLASS", 1], "TRAIN.IMAGES_PER_CLASS is 1: give 2"),
    (["LOSS.NAME", "multi_similarity", "TRAIN.BATCH_SIZE", 1], "TRAIN.BATCH_SIZE 1 in TRAIN.ACCUMULATE 1"),
    (["LOSS.NAME", "triplet", "TRAIN.IMAGES_PER_CLASS", 2, "TRAIN.ACCUMULATE", 4], "leaves it no two"),
])
def test_a_loss_of_pairs_without_any_pair(run, tool, data, options, message):
    images = sorted(path.name for path in (data / "toy" / "jpg").iterdir())
    (data / "toy" / "single.txt").write_text("".join(f"jpg/{name} {i}\n" for i, name in enumerate(images)))
    options = [*options, "TRAIN.SPLIT", "single.txt", "MODEL.NUM_CLASSES", 24]
    if "no class" in message:
        done = tool(*options)
        assert done.returncode == 1 and message in done.stderr and "LOSS.NAME triplet" in done.stderr
        return
    with pytest.raises(UserError, match=message):
        run(*options)


def test_a_loss_of_pairs_with_hardly_any_pair(tool, run, data, capsys):
    images = sorted(path.name for path in (data / "toy" / "jpg").iterdir())
    labels = [0, 0, *range(1, 23)]
    (data / "toy" / "pair.txt").write_text("".join(f"jpg/{name} {i}\n" for i, name in zip(labels, images)))
    options = ["TRAIN.SPLIT", "pair.txt", "MODEL.NUM_CLASSES", 24, "OPTIM.MAX_EPOCH", 1]
    done = tool("LOSS.NAME", "triplet", *options)
    assert done.returncode == 0 and "set TRAIN.IMAGES_PER_CLASS" in done.stdout
    assert "only 0.0% of the images" in done.stdout or "only 8.3% of the images" in done.stdout
    run("LOSS.NAME", "arcface", *options, "OUT_DIR", data / "arcface")
    run("LOSS.NAME", "triplet", "OPTIM.MAX_EPOCH", 1, "OUT_DIR", data / "four classes")
    assert "IMAGES_PER_CLASS" not in capsys.readouterr().out


def test_damaged_records_are_named_and_gone_on_without(tool, run, data, tmp_path):
    out = tmp_path / "out"
    run(*HELD_OUT, "OPTIM.MAX_EPOCH", 2)
    best = json.loads((out / "checkpoints" / "best.json").read_text())
    with open(out / "log.jsonl", "ab") as file:
        file.write(b'{"kind": "train", "st')
    (out / "checkpoints" / "best.json").write_bytes(b"\xff\0")
    (out / "data.json").write_text("[" * 100_000)
    newest = newest_checkpoint(out)
    newest.with_name(newest.name + ".sha256").unlink()
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    done = tool(*HELD_OUT)
    assert done.returncode == 0, done.stderr
    for words in ("best.json is damaged", "data.json is damaged (it is nested too deeply)",
                  f"{newest} is damaged: it is not what was written", "going on from",
                  "model_epoch_0001.pyth", "1 damaged line(s) without a record are passed over"):
        assert words in done.stdout, words
    lines = (out / "log.jsonl").read_bytes().splitlines()
    torn, = [number for number, line in enumerate(lines) if line == b'{"kind": "train", "st']
    assert all(json.loads(line) for number, line in enumerate(lines) if number != torn)
    found = json.loads((out / "checkpoints" / "best.json").read_text())
    assert found["metric"] == best["metric"] and found["value"] <= best["value"]
    assert json.loads((out / "data.json").read_text())["TRAIN"]["file"] == "train_list.txt"


def test_what_changed_between_two_parts_of_a_run_is_said(tool, run, data, tmp_path):
    weights = tmp_path / "weights.pyth"
    run("OPTIM.MAX_EPOCH", 1, "OUT_DIR", tmp_path / "first")
    shutil.copy(newest_checkpoint(tmp_path / "first"), weights)
    run("TRAIN.WEIGHTS", weights, "OPTIM.MAX_EPOCH", 2)
    other = newest_checkpoint(tmp_path / "out")
    for options, message in (
            (["TRAIN.WEIGHTS", other], "began from TRAIN.WEIGHTS '.*weights.pyth', which names '.*' now"),
            (["OPTIM.MAX_EPOCH", 1], "has epoch 2 done, more than OPTIM.MAX_EPOCH 1: give at least")):
        with pytest.raises(UserError, match=message):
            run(*options)
    run("TRAIN.WEIGHTS", shutil.copy(weights, tmp_path / "moved.pyth"), "OPTIM.MAX_EPOCH", 2)
    file = data / "toy" / "jpg" / BAD
    shutil.copy(data / "toy" / "jpg" / "class 0 photo 0.jpg", file)
    done = tool("TRAIN.WEIGHTS", weights)
    assert done.returncode == 1
    assert "error: 1 of the 24 training images looked at have other contents than" in done.stderr
    assert f"began: jpg/{BAD}. Give another OUT_DIR" in done.stderr
    run("DATA_LOADER.CHECK", "none")
    assert _last(tmp_path / "out")["epoch"] == 3
