"""--check: every image decoded once, every list as it was made; and what manifests record."""
import hashlib
import json
import pickle
import re

import cv2
import numpy as np
import pytest
from tqdm import tqdm

from dolg.data.landmarks import LandmarkParams, make_landmarks
from dolg.data.manifest import COMMANDS, data_record, how_to_get, read_manifest
from dolg.errors import UserError
from dolg.prepare import check as check_module
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
    assert "18 images, all of them there and decodable; 4 lists and other" in capsys.readouterr().out
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
    with pytest.raises(UserError, match=r"mine: 5 of 18 images or lists are not as they should be;"):
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


def _prepare(root, lines: list[str], val_share: float):
    """A data set of a table of images, which are there already."""
    (root / "from" / "images.csv").write_text("\n".join(["path,role,label", *lines]) + "\n")
    work = Work(MINE, root / "data", root / "from")
    write_manifests(work, prepare_table(work, val_share, 0), {})
    return work.folder


def test_an_empty_list_has_no_images(tmp_path, capsys):
    for number in range(3):
        _image(tmp_path / "from" / f"{number}.jpg", number)
    folder = _prepare(tmp_path, [f"{number}.jpg,train,{number}" for number in range(3)], 0.5)
    assert (folder / "val_list.txt").read_bytes() == b""        # a class of one image lends none
    check(folder, 0)
    assert "3 images, all of them there" in capsys.readouterr().out
    (folder / "train_list.txt").write_bytes(b"")
    with pytest.raises(UserError, match="mine: 1 of 0"):
        check(folder, 0)
    assert "train_list.txt: the list was changed" in capsys.readouterr().out


def test_what_cannot_be_read_does_not_hide_the_rest(prepared, capsys):
    work, _ = prepared
    (work.folder / "distractors.txt").write_bytes(b"images/i/\xff.jpg\n")
    (work.folder / "gnd_mine.pkl").write_bytes(b"no pickle")
    (work.given / "i" / "t4.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="3 of 9"):
        check(work.folder, 0)
    said = capsys.readouterr().out
    assert re.search(r"distractors.txt: the list was changed since it was made; .* in UTF-8", said)
    assert re.search(r"gnd_mine.pkl: the file was changed since it was made; .*gnd_mine.pkl", said)
    assert re.search(r"t4.jpg: .*empty", said)


def test_problems_are_said_where_no_report_can_be_written(prepared, capsys):
    work, _ = prepared
    listed = [f"images/i/no{number}.jpg" for number in range(30)]
    with open(work.folder / "distractors.txt", "a") as file:
        file.write("\n".join(listed) + "\n")
    with pytest.raises(UserError, match="31 of 48"):
        check(work.folder, 0)
    said = capsys.readouterr().out
    assert "no18.jpg" in said and "no19.jpg" not in said
    assert f"  and 11 more, all in {work.folder / 'check.json'}\n" in said
    assert len(json.loads((work.folder / "check.json").read_text())["problems"]) == 31
    (work.folder / "check.json").unlink()
    (work.folder / "check.json").mkdir()            # as good as a disk that nothing can be written to
    with pytest.raises(UserError, match="31 of 48"):
        check(work.folder, 0)
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in listed) and "more" not in said
    assert re.search(r"\nWARNING: .*check.json cannot be written \(.+\)\n", said)


def test_files_that_are_no_lists_are_held_against_their_digests(prepared, capsys):
    work, _ = prepared
    (work.folder / "classes.csv").write_text("label,name\n0,a\n")
    manifest = read_manifest(work.folder)
    digest = hashlib.sha256((work.folder / "classes.csv").read_bytes()).hexdigest()
    manifest["lists"]["classes.csv"] = {"lines": 2, "sha256": digest}
    (work.folder / "manifest.json").write_text(json.dumps(manifest))
    check(work.folder, 0)
    assert "5 lists and other files as they were made" in capsys.readouterr().out
    (work.folder / "classes.csv").write_text("label,name\n0,b\n")
    truth = pickle.loads((work.folder / "gnd_mine.pkl").read_bytes())
    truth["gnd"][0]["easy"] = []
    (work.folder / "gnd_mine.pkl").write_bytes(pickle.dumps(truth))
    with pytest.raises(UserError, match="2 of 18"):
        check(work.folder, 0)
    said = capsys.readouterr().out
    for name in ("classes.csv", "gnd_mine.pkl"):
        assert f"  {name}: the file was changed since it was made\n" in said
    (work.folder / "gnd_mine.pkl").unlink()
    with pytest.raises(UserError, match="2 of 12"):
        check(work.folder, 0)
    assert "  gnd_mine.pkl: the file is gone\n" in capsys.readouterr().out


def test_names_are_dealt_with_in_blocks(prepared, monkeypatch, capsys):
    """Each image once, whichever block and list it stands in, and never many names at the same time."""
    work, _ = prepared
    listed = [f"images/i/{name}.jpg" for name in ("x0", "t0", "x0", "t1", "x1", "x0", "t0")]
    (work.folder / "distractors.txt").write_text("\n".join(listed) + "\n")
    together, digests = [], check_module.name_digests
    monkeypatch.setattr(check_module, "_BLOCK", 3)
    monkeypatch.setattr(check_module, "name_digests",
                        lambda names: together.append(len(names)) or digests(names))
    bars = []
    monkeypatch.setattr(check_module, "tqdm", lambda **options: bars.append(options) or tqdm(**options))
    (work.given / "i" / "x1.jpg").unlink()
    with pytest.raises(UserError, match="2 of 17"):         # x2 is in no list any more
        check(work.folder, 0)
    assert max(together) == 3 and sum(together) == 9 + 7 + 2 + 4
    assert {"desc": "distractors.txt, names", "total": 7, "unit": "image", "leave": False,
            "disable": None} in bars
    assert capsys.readouterr().out.count("x1.jpg: ") == 1


def test_what_mends_it(prepared):
    work, _ = prepared
    command = re.escape(how_to_get(work.folder)) + " again"
    whole = (work.folder / "val_list.txt").read_bytes()
    (work.folder / "val_list.txt").write_bytes(whole + b"\n")
    with pytest.raises(UserError, match=f"should be; for the lists, {command}$"):
        check(work.folder, 0)
    (work.given / "i" / "x2.jpg").unlink()
    images = r"for the images, put whole ones where --from had them or, .* \.prepared; then "
    message = f"should be; for the lists, {command}; {images}{command}$"
    with pytest.raises(UserError, match=message) as error:
        check(work.folder, 0)
    assert "\n" not in str(error.value)
    (work.folder / "val_list.txt").write_bytes(whole)
    with pytest.raises(UserError, match=f"should be; {images}{command}$"):
        check(work.folder, 0)


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
    with pytest.raises(UserError, match="synthetic/manifest.json names no lists to check: tools/prepare"):
        check(tmp_path / "synthetic")
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
                                                   "sha256": hashlib.sha256(text).hexdigest(),
                                                   "options": {"val_share": 0.3}}
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
