"""--check: every image decoded once, every list as it was made; and what manifests record."""
import hashlib
import json
import re

import cv2
import numpy as np
import pytest

from dolg.data.landmarks import LandmarkParams, make_landmarks
from dolg.data.manifest import COMMANDS, data_record, how_to_get, read_manifest
from dolg.errors import UserError
from dolg.prepare.catalogue import DATA_SETS, DataSet
from dolg.prepare.check import check
from dolg.prepare.own import prepare_table
from dolg.prepare.record import say_counts, write_manifests
from dolg.prepare.work import Work

MINE = DataSet("mine", "my photographs", "", "mine", {"queries": 2, "database images": 9})


def _image(file, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.random.default_rng(seed).integers(0, 255, (30, 20, 3), np.uint8))


@pytest.fixture
def prepared(tmp_path):
    """A benchmark with training images, distractors and manifest; some are in several lists."""
    lines = ["path,role,label,x1,y1,x2,y2"]
    lines += [f"i/q{i}.jpg,query,{i},1,2,15,25" for i in range(2)]
    lines += [f"i/d{i}.png,database,{i % 2},,,," for i in range(4)]
    lines += [f"i/x{i}.jpg,distractor,,,,," for i in range(3)]
    lines += [f"i/t{i}.jpg,train,{i % 3},,,," for i in range(9)]
    for number, line in enumerate(lines[1:]):
        _image(tmp_path / "from" / line.partition(",")[0], number)
    (tmp_path / "from" / "images.csv").write_text("\n".join(lines) + "\n")
    work = Work(MINE, tmp_path / "data", tmp_path / "from")
    made = prepare_table(work, 0.3, 0)
    write_manifests(work, made, {"val_share": 0.3})
    return work, made


@pytest.mark.parametrize("workers", [0, 2])
def test_a_whole_set_is_whole(prepared, capsys, workers):
    work, _ = prepared
    check(work.folder, workers)
    assert "18 images, all of them there and decodable; 3 lists" in capsys.readouterr().out
    report = json.loads((work.folder / "check.json").read_text())
    manifest = (work.folder / "manifest.json").read_bytes()
    assert report == {"manifest_sha256": hashlib.sha256(manifest).hexdigest(), "images": 18, "problems": []}


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_wrong_is_named(prepared, capsys, workers):
    work, _ = prepared
    images = work.given / "i"
    content = (images / "t4.jpg").read_bytes()
    (images / "t4.jpg").write_bytes(content[:len(content) // 2])
    (images / "d1.png").write_bytes(b"<html>not found</html>")
    (images / "x2.jpg").unlink()
    (images / "x0.jpg").write_bytes(b"")
    with open(work.folder / "val_list.txt", "a") as file:
        file.write("images/i/t4.jpg 1\n")
    with pytest.raises(UserError, match=r"mine: 5 of 18 images or lists are not as they should be$"):
        check(work.folder, workers)
    problems = json.loads((work.folder / "check.json").read_text())["problems"]
    assert len(problems) == 5
    said = capsys.readouterr().out
    for what, why in (("val_list.txt", "the list was changed"), ("t4.jpg", ""), ("d1.png", "not an image"),
                      ("x2.jpg", "No such file"), ("x0.jpg", "empty")):
        found = [line for line in problems if f"{what}: " in line and why in line]
        assert len(found) == 1, (what, problems)
        assert f"  {found[0]}\n" in said
    (work.folder / "val_list.txt").unlink()
    with pytest.raises(UserError, match="5 of 16"):     # its two images are in no other list
        check(work.folder, workers)
    assert "val_list.txt: the list is gone" in capsys.readouterr().out


def test_boxes_that_hold_nothing_of_their_image_are_found(prepared):
    work, _ = prepared
    folder = work.folder.with_name("mine_cropped")
    folder.mkdir()
    (folder / "train_list.txt").write_text("../mine/images/i/t0.jpg 0\n../mine/images/i/t1.jpg 1\n")
    (folder / "boxes.csv").write_text("path,x1,y1,x2,y2\n../mine/images/i/t0.jpg,1,1,9,9\n"
                                      "../mine/images/i/t1.jpg,100,100,120,120\n")
    manifest = read_manifest(work.folder)
    digest = hashlib.sha256((folder / "train_list.txt").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(
        {**manifest, "name": "mine_cropped", "lists": {"train_list.txt": {"lines": 2, "sha256": digest}}}))
    with pytest.raises(UserError, match="mine_cropped: 1 of 2"):
        check(folder, 0)
    assert "t1.jpg" in json.loads((folder / "check.json").read_text())["problems"][0]


def test_a_folder_that_nothing_prepared(tmp_path):
    message = "cub has no manifest.json: python tools/prepare_data.py cub --root .* makes"
    with pytest.raises(UserError, match=message):
        check(tmp_path / "cub")
    (tmp_path / "cub").mkdir()
    (tmp_path / "cub" / "manifest.json").write_text('{"format": "something else"}')
    assert read_manifest(tmp_path / "cub") is None and data_record(tmp_path / "cub") is None
    (tmp_path / "cub" / "manifest.json").write_text("{")
    assert data_record(tmp_path / "cub") is None            # of somebody else
    (tmp_path / "cub" / "manifest.json").write_text('{"format": "dolg data set",')
    with pytest.raises(UserError, match="manifest.json is damaged"):
        data_record(tmp_path / "cub")


def test_synthetic_landmarks_are_recorded_too(tmp_path):
    params = LandmarkParams(train_landmarks=2, train_photos=2, val_photos=1, test_landmarks=2,
                            distractors=4)
    made = make_landmarks(tmp_path, params, 1, progress=False)
    record = data_record(tmp_path / "synthetic" / "jpg")
    counts = {what: count for what, count in made["synthetic"].items() if what != "made"}
    assert record["name"] == "synthetic" and record["counts"] == counts


def test_manifest(prepared, capsys):
    work, made = prepared
    manifest = read_manifest(work.folder)
    assert manifest["counts"]["queries"] == {"found": 2, "published": 2}
    assert manifest["counts"]["database images"] == {"found": 4, "published": 9}
    assert manifest["counts"]["training images"]["published"] is None
    text = (work.folder / "train_list.txt").read_bytes()
    assert manifest["lists"]["train_list.txt"] == {"lines": len(text.splitlines()),
                                                   "sha256": hashlib.sha256(text).hexdigest()}
    before = (work.folder / "manifest.json").read_bytes()
    write_manifests(work, made, {"val_share": 0.3})
    assert (work.folder / "manifest.json").read_bytes() == before
    for inside in (work.folder, work.folder / "images", work.folder / "images" / "i"):
        record = data_record(inside)
        assert record["manifest_sha256"] == hashlib.sha256(before).hexdigest() and record["name"] == "mine"
        assert record["counts"]["distractors"] == 3
    say_counts(work, made)
    said = capsys.readouterr().out
    assert re.search(r"queries +2  as published\n", said)
    assert re.search(r"database images +4  NOT as published: 9\n", said)
    assert re.search(r"distractors +3\n", said)


def test_every_folder_says_the_command_that_makes_it(tmp_path):
    for name in DATA_SETS:
        command = f"python tools/prepare_data.py {name} --root {tmp_path}"
        assert how_to_get(tmp_path / name) == f"{command} makes it"
    assert how_to_get(tmp_path / "landmark").startswith("python tools/prepare_data.py gldv2 --root")
    assert how_to_get(tmp_path / "cub_cropped").startswith("python tools/prepare_data.py cub --root")
    assert how_to_get(tmp_path / "synthetic").startswith("python tools/make_landmarks.py --root")
    assert "csv) --name bridges --from YOUR_IMAGES --root" in how_to_get(tmp_path / "bridges")
    assert set(DATA_SETS) < set(COMMANDS)
