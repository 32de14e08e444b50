"""The synthetic benchmark: same parameters, same bytes; a ground truth that holds."""
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from dolg.data.facades import COMPOSITIONS, draw_facade
from dolg.data.landmarks import (SPLITS, LandmarkParams, _distractor_jobs, _plan_test,
                                 _plan_training, contact_sheet, make_landmarks)
from dolg.data.photographs import VIEWS, pyramid, take_photograph
from dolg.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TINY = LandmarkParams(seed=5, train_landmarks=3, train_photos=3, val_photos=1, test_landmarks=4,
                      queries=2, easy=2, hard=2, junk=1, distractors=5, train_size=48, size=80)
TINY_OPTIONS = [text for name, value in asdict(TINY).items()
                for text in ("--" + name.replace("_", "-"), str(value))]


def _digests(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("made")
    summary = make_landmarks(root, TINY, workers=2, progress=False)
    assert summary["synthetic_train"] == {"made": True, "landmarks": 3, "train": 9, "val": 3}
    return root


@pytest.fixture(scope="module")
def truth(made) -> dict:
    return pickle.loads((made / "synthetic" / "gnd_synthetic.pkl").read_bytes())


def test_one_worker_makes_the_same_bytes(made, tmp_path):
    make_landmarks(tmp_path, TINY, workers=1, progress=False)
    assert _digests(tmp_path) == _digests(made)


def test_a_killed_run_is_made_good(made, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "make_landmarks.py"), "--root",
               str(tmp_path), "--workers", "2", *TINY_OPTIONS]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.jpg")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    # The workers hold the other end of the pipe: it closes when the last of them has left
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    begun = _digests(tmp_path)
    assert begun and not (tmp_path / "synthetic" / "manifest.json").exists()
    (tmp_path / "synthetic_train" / "jpg" / ".half.jpg.1.tmp").write_bytes(b"half")
    with pytest.raises(UserError, match="seed is 5 there and 6 here"):
        make_landmarks(tmp_path, replace(TINY, seed=6), progress=False)
    make_landmarks(tmp_path, TINY, workers=2, progress=False)
    assert _digests(tmp_path) == _digests(made)


def test_a_finished_set_is_left_alone_and_other_parameters_refused(made):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    summary = make_landmarks(made, TINY, progress=False)
    assert not summary["synthetic"]["made"] and not summary["synthetic_train"]["made"]
    with pytest.raises(UserError, match=r"hard is 2 there and 3 here\).*delete the folder"):
        make_landmarks(made, replace(TINY, hard=3), progress=False)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_folders_of_others_are_refused(tmp_path):
    (tmp_path / "synthetic").mkdir()
    (tmp_path / "synthetic" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not made by this command"):
        make_landmarks(tmp_path, TINY, progress=False)
    assert not (tmp_path / "synthetic_train").exists()
    (tmp_path / "synthetic" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not a manifest"):
        make_landmarks(tmp_path, TINY, progress=False)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"test_landmarks": 0}, {"size": 8},
                                   {"easy": 1.5}])
def test_impossible_parameters_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        LandmarkParams(**wrong)


def test_ground_truth(made, truth):
    images, queries = truth["imlist"], truth["qimlist"]
    assert len(queries) == len(truth["gnd"]) == 8 and len(set(images)) == len(images)
    assert not set(images) & set(queries)
    on_disk = {path.stem for path in (made / "synthetic" / "jpg").iterdir()}
    assert on_disk == {*images, *queries}
    claimed = []
    for name, entry in zip(queries, truth["gnd"]):
        assert set(entry) == {"bbx", "easy", "hard", "junk"}
        for view in ("easy", "hard", "junk"):
            assert entry[view] and all(type(i) is int for i in entry[view])
            found = {images[i] for i in entry[view]}
            assert found == {image for image in images
                             if image.startswith(f"{name.partition('_')[0]}_{view}_")}
        claimed.append([i for view in ("easy", "hard", "junk") for i in entry[view]])
        height, width = cv2.imread(str(made / "synthetic" / "jpg" / f"{name}.jpg")).shape[:2]
        x0, y0, x1, y1 = entry["bbx"]
        assert all(type(value) is float for value in entry["bbx"])
        assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    # Each database image belongs to one landmark, and each landmark has two queries
    assert sorted(sum(claimed[::2], [])) == list(range(len(images)))
    assert claimed[::2] == claimed[1::2]


def test_images_decode_in_few_sizes(made, truth):
    shapes = set()
    for path in made.rglob("*.jpg"):
        image = cv2.imread(str(path))
        assert image is not None and image.std() > 1
        shapes.add((path.parent.parent.name, *image.shape))
    test = {shape[1:3] for shape in shapes if shape[0] == "synthetic"}
    assert test <= {(60, 80), (80, 60), (54, 72)} and len(test) > 1
    assert len(list((made / "synthetic" / "distractors").glob("*.jpg"))) == 5


def test_training_lists(made):
    folder, labels, seen = made / "synthetic_train", {}, set()
    for split, count in (("train", 9), ("val", 3)):
        lines = (folder / f"{split}_list.txt").read_text().splitlines()
        paths, numbers = zip(*(line.rsplit(" ", 1) for line in lines))
        assert len(lines) == count and all((folder / path).is_file() for path in paths)
        labels[split] = set(map(int, numbers))
        assert not seen & set(paths)
        seen |= set(paths)
    assert labels["train"] == labels["val"] == set(range(3))
    assert seen == {f"jpg/{path.name}" for path in (folder / "jpg").iterdir()}


def test_no_landmark_is_in_two_splits(tmp_path):
    params = LandmarkParams(distractors=100)
    training = {job.landmark for job in _plan_training(tmp_path, params)[0]}
    distractors = {job.landmark for job in _distractor_jobs(tmp_path, params)}
    test = {job.landmark for job in _plan_test(tmp_path, params)[0]} - distractors
    assert (len(training), len(test)) == (60, 24)
    assert not (training & test or training & distractors or test & distractors)
    # The largest number of landmarks that a split may have does not reach the next split
    starts = sorted(SPLITS.values())
    assert min(np.diff(starts)) >= 1_000_000
    with pytest.raises(UserError, match="train_landmarks"):
        LandmarkParams(train_landmarks=1_000_001)


@pytest.mark.parametrize("composition", COMPOSITIONS, ids=lambda made: made.__name__)
def test_compositions_stand_on_the_board(composition):
    for seed in range(20):
        for mass in composition(np.random.default_rng(seed)):
            assert -1 <= mass.x0 < mass.x1 <= 513 and mass.top < mass.base <= 512
            assert mass.top - mass.rise > -20 and mass.storeys >= 1 and mass.bays >= 1


def test_views_show_what_they_promise():
    """Easy photographs show most of the landmark, junk nearly nothing; premultiplied colours."""
    facade = draw_facade(np.random.default_rng(1), np.random.default_rng(2))
    assert (facade[..., :3] <= facade[..., 3:].astype(int) + 1).all()
    levels = pyramid(facade)
    for name, view in VIEWS.items():
        shares = [take_photograph(levels, [], np.random.default_rng((3, i)), view, (96, 72)).visible
                  for i in range(40)]
        inside = [view.visible[0] <= share <= view.visible[1] for share in shares]
        assert np.mean(inside) > 0.9, (name, shares)


def test_box_is_where_the_landmark_is():
    """A landmark drawn in one colour without alpha elsewhere: its pixels fill its box."""
    facade = np.zeros((512, 512, 4), np.uint8)
    facade[200:512, 100:400] = (0, 0, 255, 255)
    view = VIEWS["query"]
    for i in range(5):
        photograph = take_photograph(pyramid(facade), [], np.random.default_rng((4, i)), view,
                                     (320, 240))
        x0, y0, x1, y1 = map(int, photograph.box)
        blue, green, red = np.moveaxis(photograph.image.astype(int), -1, 0)
        reddish = red > 2.5 * np.maximum(green, blue)
        inside = reddish[y0:y1, x0:x1].sum()
        assert inside > 0.5 * (x1 - x0) * (y1 - y0)
        assert reddish.sum() - inside < 0.1 * inside


def test_command_and_contact_sheet(made, run_tool, tmp_path):
    sheet = tmp_path / "sheet.jpg"
    done = run_tool("tools/make_landmarks.py", "--root", made, *TINY_OPTIONS, "--contact-sheet",
                    sheet, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "already there" in done.stdout and "8 queries" in done.stdout
    assert sheet.stat().st_size <= 350_000
    rows = json.loads((made / "synthetic" / "manifest.json").read_text())["counts"]["landmarks"]
    assert cv2.imread(str(sheet)).shape == (30 + rows * 162, 7 * 212, 3)
    refused = run_tool("tools/make_landmarks.py", "--root", made,
                       env={"PYTHONPATH": str(ROOT)})
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr.startswith("error: ") and refused.stderr.count("\n") == 1


def test_contact_sheet_needs_a_finished_set(tmp_path):
    with pytest.raises(UserError, match="make the landmarks first"):
        contact_sheet(tmp_path, tmp_path / "sheet.jpg")
