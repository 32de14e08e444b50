"""A user's mistakes, through the command line: one clear line, status 1, nothing lost."""
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.models import build_model


def _line(done) -> str:
    """The one line that the command said before it stopped with status 1."""
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr, done.stderr
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], done.stderr
    return errors[0]


@pytest.mark.parametrize("options, message", [
    (["TRAIN.BATCHSIZE", "8"], "unknown configuration key TRAIN.BATCHSIZE (did you mean "
                               "'TRAIN.BATCH_SIZE'?)"),
    (["OPTIM.MAX_EPOCH", "ten"], "OPTIM.MAX_EPOCH is 'ten', of type str; it takes int"),
    (["TRAIN.SPLIT", "absent.txt"], "no image list"),
    (["MODEL.NUM_CLASSES", "3"], "train_list.txt, line 19: label 3 is outside 0 .. 2"),
    (["TRAIN.BATCH_SIZE", "100"], "TRAIN.SPLIT has 24 images, fewer than TRAIN.BATCH_SIZE 100"),
    (["TRAIN.WEIGHTS", "absent.pyth"], "no weights file absent.pyth"),
    (["MODEL.ARCH", "golg"], "choose one of cgd, delg, dolg, gem, rrt, rrt_sop, superglobal (did you mean 'dolg'?)"),
])
def test_training(run_tool, tiny, tmp_path, options, message):
    done = run_tool("tools/train.py", *tiny, "OUT_DIR", tmp_path / "out", *options,
                    fresh="OPTIM.MAX_EPOCH" in options)
    assert message in _line(done)
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize("content, message", [
    ("", "is empty"), ("a.jpg\n", "line 1"),
    # A byte order mark, tabs and runs of blanks are read: the first image is found
    ("\ufeff{0}/class 0 photo 0.jpg\t0\r\n{0}/class 0 photo 1.jpg  0\r\n{0}/absent.jpg 1",
     "1 of the 3 images"),
    ("{0}/class 0 photo 0.jpg 0\n{0}/class 0 photo 1.jpg\n", "line 2: '"),
    ("a.jpg\t-1\n", r"line 1: label -1 is outside 0 .. 3 (MODEL.NUM_CLASSES is 4): 'a.jpg\t-1'"),
    ("a.jpg,1\n", "put a blank or a tab in the place of ','"),
])
def test_a_bad_list(run_tool, tiny, toy_images, tmp_path, content, message):
    file = tmp_path / "list.txt"
    file.write_text(content.format(toy_images / "toy" / "jpg"), encoding="utf-8", newline="")
    done = run_tool("tools/train.py", *tiny, "OUT_DIR", tmp_path / "out", "TRAIN.SPLIT", file)
    assert message in _line(done) and ("1 of the" in message or str(file) in _line(done))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bad, reason", [
    (lambda path: path.write_bytes(path.read_bytes()[:600]), ""),
    (lambda path: path.write_text("this is no image"), "not an image"),
])
def test_an_unreadable_training_image_names_itself(run_tool, tiny, toy_images, tmp_path, workers,
                                                   bad, reason):
    shutil.copytree(toy_images / "toy", tmp_path / "toy")
    bad(tmp_path / "toy" / "jpg" / "class 2 photo 3.jpg")
    done = run_tool("tools/train.py", *tiny, "OUT_DIR", tmp_path / "out", "DATA_DIR", tmp_path,
                    "DATA_LOADER.NUM_WORKERS", workers)
    line = _line(done)
    assert "class 2 photo 3.jpg" in line and reason in line
    # The start is kept, and with a mended file the same command goes on
    assert (tmp_path / "out" / "checkpoints" / "model_epoch_0000.pyth").is_file()


def test_a_loss_that_is_not_finite_names_its_batch(run_tool, tiny, tmp_path):
    done = run_tool("tools/train.py", *tiny, "OUT_DIR", tmp_path, "OPTIM.BASE_LR", "1e30",
                    "OPTIM.WARMUP_EPOCHS", "0")
    line = _line(done)
    assert "the loss is nan at epoch 1, step" in line
    listed = (tmp_path / "failed_batch_rank0.txt").read_text().splitlines()
    assert len(listed) == 8 and all("photo" in path for path in listed)
    assert torch.load(tmp_path / "checkpoints" / "model_epoch_0000.pyth")["epoch"] == 0


def test_a_run_is_not_mixed_with_another(run_tool, tiny, tmp_path):
    command = ["tools/train.py", *tiny, "OUT_DIR", tmp_path, "OPTIM.MAX_EPOCH", "1"]
    assert run_tool(*command).returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    changed = run_tool(*command, "OPTIM.BASE_LR", "0.5", "MODEL.HEADS.MARGIN", "0.3")
    assert "MODEL.HEADS was" in _line(changed) and "OPTIM.BASE_LR was 0.003, is 0.5" in _line(changed)
    anew = run_tool(*command, "TRAIN.AUTO_RESUME", "False")
    assert "TRAIN.AUTO_RESUME is False" in _line(anew)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory, tiny):
    """A file of the tiny model's weights."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pyth"
    torch.save(build_model(load_cfg(tiny[1], [str(t) for t in tiny[2:]])).state_dict(), path)
    return path


class _Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class _Calls:
    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def test_weights(run_tool, tiny, toy_images, weights, tmp_path):
    command = ["tools/infer.py", *tiny, "INFER.DATASET", "", "INFER.OUT_DIR", tmp_path / "out",
               "INFER.IMAGES", toy_images / "toy" / "jpg", "OUT_DIR", tmp_path / "none"]
    assert "TEST.WEIGHTS is empty, and" in _line(run_tool(*command))
    assert "no weights file" in _line(run_tool(*command, "TEST.WEIGHTS", "absent.pyth"))
    other = run_tool(*command, "TEST.WEIGHTS", weights, "MODEL.HEADS.REDUCTION_DIM", "32")
    assert "of another shape: fc.bias (16,) for (32,)" in _line(other)
    other = run_tool(*command, "TEST.WEIGHTS", weights, "MODEL.ARCH", "gem")
    assert "is not of this GeMModel" in _line(other) and "fc_global.weight" in _line(other)
    torch.save({"model": _Evil(tmp_path / "pwned")}, tmp_path / "evil.pyth")
    evil = run_tool(*command, "TEST.WEIGHTS", tmp_path / "evil.pyth")
    assert "is refused, nothing in it was run" in _line(evil)
    assert not (tmp_path / "pwned").exists() and not (tmp_path / "out").exists()


def _set(root, name, gnd):
    (root / name / "jpg").mkdir(parents=True)
    content = gnd if isinstance(gnd, bytes) else pickle.dumps(gnd)
    (root / name / f"gnd_{name}.pkl").write_bytes(content)


def test_ground_truth(run_tool, tiny, toy_images, weights, tmp_path):
    command = ["tools/infer.py", *tiny, "TEST.WEIGHTS", weights, "INFER.DATA_DIR", tmp_path,
               "INFER.OUT_DIR", tmp_path / "out", "INFER.DATASET"]
    _set(tmp_path, "evil", pickle.dumps(_Evil(tmp_path / "pwned")))
    _set(tmp_path, "cut", pickle.dumps({"imlist": ["a"]})[:12])
    _set(tmp_path, "lacking", {"imlist": ["there", "gone"], "qimlist": ["there"],
                               "gnd": [{"bbx": [0, 0, 9, 9], "easy": [0], "hard": [], "junk": []}]})
    shutil.copy(toy_images / "toy" / "jpg" / "class 0 photo 0.jpg",
                tmp_path / "lacking" / "jpg" / "there.jpg")
    pointers = {"imlist": _Calls(np.ndarray, (1,), "O", b"A" * 8), "qimlist": ["q"], "gnd": [{"ok": [0]}]}
    _set(tmp_path, "pointers", pointers)
    assert "asks for 'numpy.ndarray', which is not plain data" in _line(run_tool(*command, "pointers"))
    evil = _line(run_tool(*command, "evil"))
    assert "gnd_evil.pkl" in evil and not (tmp_path / "pwned").exists()
    assert "gnd_cut.pkl" in _line(run_tool(*command, "cut"))
    lacking = _line(run_tool(*command, "lacking"))
    assert "names 1 images that" in lacking and "gone.jpg" in lacking
    assert "no ground truth" in _line(run_tool(*command, "absent"))
    assert "nothing to extract" in _line(run_tool(*command, ""))
    assert not (tmp_path / "out").exists()


def test_extraction_into_a_store_of_other_settings(run_tool, tiny, toy_images, weights, tmp_path):
    command = ["tools/infer.py", *tiny, "INFER.DATASET", "", "TEST.WEIGHTS", weights,
               "INFER.IMAGES", toy_images / "toy" / "jpg", "INFER.OUT_DIR", tmp_path]
    assert run_tool(*command).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "jpg").iterdir()}
    assert json.loads((tmp_path / "jpg" / "manifest.json").read_text())["count"] == 24
    line = _line(run_tool(*command, "INFER.SCALES", "[1.0]"))
    assert "scales was [0.5, 0.7071, 1.0], is [1.0]" in line
    assert before == {path: path.read_bytes() for path in (tmp_path / "jpg").iterdir()}
