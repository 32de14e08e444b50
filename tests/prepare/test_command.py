"""tools/prepare_data.py as a user types it, from a web server: every data set, broken off and resumed."""
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dolg.data.image_list import read_image_list
from dolg.data.manifest import COMMANDS, read_manifest
from dolg.features.sources import images_of, revisited_set
from dolg.prepare.catalogue import CARS_IMAGES, CARS_TABLE, CUB, IMAGENET_TRAINING, INSHOP_IMAGES, SOP
from tests.conftest import ROOT
from tests.prepare.landmark_miniatures import MakeGLDv2, make_distractors, make_oxford, make_paris
from tests.prepare.miniatures import (expected_lists, make_cars196, make_cub, make_imagenet, make_inshop,
                                      make_sop)

COMMAND = "tools/prepare_data.py"
# How each miniature is made, and what is typed beside the name
SETS = {"roxford5k": (make_oxford, []), "rparis6k": (make_paris, []),
        "revisitop1m": (make_distractors, ["--archives", "3"]),
        "gldv2": (MakeGLDv2, ["--archives", "2", "--parts", "train", "index", "test", "--sizes"]),
        "sop": (make_sop, []), "cub": (make_cub, []), "cars196": (make_cars196, []),
        "inshop": (make_inshop, []), "imagenet": (make_imagenet, [])}


@pytest.fixture
def publish(web, tmp_path):
    """`publish(name)` has a miniature on the server, and gives what made it returns."""

    def run(name: str):
        folder = tmp_path / "web"
        folder.mkdir()
        made = SETS[name][0](folder, np.random.default_rng(7))
        for file in folder.rglob("*"):
            if file.is_file():
                web.publish(file.relative_to(folder).as_posix(), file.read_bytes())
        return made

    return run


def _arguments(name, web, root, *more) -> list[str]:
    return [name, "--root", str(root), "--mirror", web.url, "--unverified", *SETS[name][1], *more]


def _tree(folder: Path) -> dict[str, bytes]:
    """All files below a folder, but for what only this run knows."""
    return {file.relative_to(folder).as_posix(): file.read_bytes()
            for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_is_prepared_and_whole(name, web, publish, tmp_path, run_tool):
    publish(name)
    root = tmp_path / "data"
    done = run_tool(COMMAND, *_arguments(name, web, root), fresh=name == "roxford5k")
    assert done.returncode == 0 and not done.stderr.count("Traceback"), done.stderr
    assert "NOT as published" in done.stdout            # miniatures are small
    asked = len(web.requests)
    for folder in {name, *read_manifest(root / name)["beside"]}:
        manifest = read_manifest(root / folder)
        assert manifest["name"] == folder and manifest["files"]
        for listing in manifest["lists"]:
            if listing.endswith(".txt"):
                source = images_of(root / folder / listing)
                assert all(source.path(i).is_file() for i in range(len(source)))
    before = _tree(root)
    assert run_tool(COMMAND, *_arguments(name, web, root)).returncode == 0
    assert _tree(root) == before and len(web.requests) == asked       # nothing is fetched twice
    checked = run_tool(COMMAND, name, "--root", root, "--check", "--workers", "0")
    assert checked.returncode == 0 and "all of them there and decodable" in checked.stdout, checked.stderr


def test_cropped_lists_are_the_official_ones(web, publish, tmp_path, run_tool):
    photos = publish("cub")
    root = tmp_path / "data"
    done = run_tool(COMMAND, *_arguments("cub", web, root, "--remove-archives"))
    assert done.returncode == 0, done.stderr
    lists = expected_lists(photos)
    for name, text in lists.items():
        assert (root / "cub" / name).read_text() == text
    cropped = read_image_list(root / "cub_cropped" / "train_list.txt")
    whole = read_image_list(root / "cub" / "train_list.txt")
    boxes = {photo.path: photo.box for photo in photos}
    for i in range(len(whole)):
        path = os.path.relpath(whole.name(i), root / "cub")
        assert os.path.realpath(cropped.name(i)) == os.path.realpath(whole.name(i))
        assert tuple(cropped.boxes[i]) == pytest.approx(boxes[path])
    assert not list((root / "cub" / "downloads").rglob("*.tgz"))        # as asked
    # Asked for later, it removes what an earlier command left; tables stay as they are
    for name in ("cars196", "revisitop1m"):
        shutil.rmtree(tmp_path / "web")
        publish(name)
        for more in ([], ["--remove-archives"], []):
            done = run_tool(COMMAND, *_arguments(name, web, root, *more))
            assert done.returncode == 0, done.stderr
        assert not [file for file in (root / name / "downloads").rglob("*") if file.is_file()]
    assert run_tool(COMMAND, *_arguments("cub", web, root)).returncode == 0     # and not fetched for that


def test_landmarks_have_the_name_of_the_originals_files_too(web, publish, tmp_path, run_tool):
    publish("gldv2")
    root = tmp_path / "data"
    assert run_tool(COMMAND, *_arguments("gldv2", web, root)).returncode == 0
    listing = (root / "gldv2" / "train_list.txt").read_bytes()
    assert (root / "landmark" / "train_list.txt").read_bytes() == listing
    assert set(os.listdir(root)) == {"gldv2", "landmark"}


@pytest.mark.parametrize("name, slow", [
    ("roxford5k", "oxbuild_images-v1.tgz"), ("rparis6k", "paris_2-v1.tgz"),
    ("revisitop1m", "jpg/revisitop1m.2.tar.gz"), ("gldv2", "train/images_001.tar"), ("sop", SOP.path),
    ("cub", CUB.path), ("cars196", CARS_IMAGES.path), ("inshop", INSHOP_IMAGES.path),
    ("imagenet", IMAGENET_TRAINING.path)])
def test_killed_in_the_middle_it_goes_on(name, slow, web, publish, tmp_path, run_tool, start_command):
    """Killed three times in the middle of a file; the result is that of a run which nobody killed."""
    publish(name)
    whole, root = tmp_path / "whole", tmp_path / "data"
    assert run_tool(COMMAND, *_arguments(name, web, whole)).returncode == 0
    page = web.page(slow)
    sent = []       # a note for each twelfth of the slow file
    page.block = max(1, len(page.content) // 12)
    page.after = lambda: (sent.append(page), time.sleep(0.05))
    for twelfths in (1, 3, 2):
        seen, process = len(sent), start_command([ROOT / COMMAND, *_arguments(name, web, root)])
        while len(sent) < seen + twelfths and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    done = run_tool(COMMAND, *_arguments(name, web, root))
    assert done.returncode == 0, done.stderr
    found, expected = (_tree(folder / name) for folder in (root, whole))
    assert found == expected
    # What a killed run had of the slow file was not asked for again
    assert any(request.range for request in web.requests if request.path == f"/{slow}")


def test_failures_say_what_to_do(web, publish, tmp_path, run_tool):
    publish("cub")
    root = tmp_path / "data"

    def fails(*arguments) -> str:
        done = run_tool(COMMAND, *arguments)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    arguments = ["cub", "--root", str(root), "--mirror", web.url]
    # The miniature is not the published archive
    message = fails(*arguments)
    assert "97eceeb196236b17998738112f37df78" in message and "--from DIR" in message
    content = web.page(CUB.path).content
    web.pages.pop(f"/{CUB.path}")
    message = fails(*arguments)
    assert "404" in message and "https://www.vision.caltech.edu/datasets/cub_200_2011/" in message
    web.publish(CUB.path, content[:len(content) // 2])
    message = fails(*arguments, "--unverified")
    assert "CUB_200_2011.tgz" in message and "cut" in message
    assert not (root / "cub" / "CUB_200_2011").exists() and not (root / "cub" / "train_list.txt").exists()
    message = fails("inshop", "--root", str(root))
    assert "not offered for direct download: Eval/list_eval_partition.txt, Img/img.zip; get" in message
    assert "--from DIR" in message
    assert "--from /nowhere is no folder" in fails("cub", "--root", str(root), "--from", "/nowhere")
    assert "needs --from DIR" in fails("folder", "--root", str(root), "--name", "mine")
    own = ["csv", "--root", str(root), "--from", str(tmp_path)]
    assert "--name cub is taken" in fails(*own, "--name", "cub")
    for taken in ("", "..", "landmark", "cub_cropped", "synthetic"):
        assert "is taken, or no name" in fails(*own, "--name", taken)
    (root / "alias").symlink_to("cub")
    assert "alias is a link" in fails(*own, "--name", "alias")
    assert "--seed is -1: give" in fails("gldv2", "--root", str(root), "--seed", "-1")
    assert "no name of a folder" in fails(*own, "--name", "../x")
    assert "--val-share is 1.5: give" in fails("gldv2", "--root", str(root), "--val-share", "1.5")
    assert "--jobs is 0: give" in fails("cub", "--root", str(root), "--jobs", "0")
    assert "makes it" in fails("sop", "--root", str(root), "--check")


def test_a_damaged_download_that_was_taken_is_fetched_again_once_deleted(web, publish, tmp_path, run_tool):
    """Redirected and unavailable for a moment; then the truncated archive of the last test, mended."""
    publish("cars196")
    root = tmp_path / "data"
    table = web.page(CARS_TABLE.path)
    web.publish("elsewhere.mat", table.content)
    table.redirect = f"{web.url}/elsewhere.mat"
    web.page("car_ims.tgz").next = [(503, {"Retry-After": "0"}), 100]
    done = run_tool(COMMAND, *_arguments("cars196", web, root))
    assert done.returncode == 0, done.stderr
    marks = read_manifest(root / "cars196")["files"]
    assert marks["car_ims.tgz"]["bytes"] == len(web.page("car_ims.tgz").content)
    assert [r.range for r in web.requests if r.path == "/car_ims.tgz"][-1] == "bytes=100-"


def test_two_commands_at_once_do_not_meet(web, publish, tmp_path, run_tool, start_command):
    publish("cub")
    root, page, release = tmp_path / "data", web.page(CUB.path), threading.Event()
    page.block, page.after = 200, lambda: release.wait(60)
    first = start_command([ROOT / COMMAND, *_arguments("cub", web, root)])
    while not web.requests:
        time.sleep(0.01)
    second = run_tool(COMMAND, *_arguments("cub", web, root))
    release.set()
    assert second.returncode == 1 and "another command prepares" in second.stderr
    assert first.wait(60) == 0 and (root / "cub" / "train_list.txt").exists()


def test_own_images_from_a_table_to_a_benchmark(tmp_path, run_tool):
    import cv2

    mine = tmp_path / "mine"
    mine.mkdir()
    lines = ["path,role,label"]
    for i in range(6):
        cv2.imwrite(str(mine / f"{i}.png"), np.full((12, 14, 3), 40 * i, np.uint8))
        lines.append(f"{i}.png,{'query' if i < 2 else 'database'},{i % 2}")
    (mine / "images.csv").write_text("\n".join(lines) + "\n")
    arguments = ["csv", "--name", "bridges", "--root", str(tmp_path / "data"), "--from", str(mine)]
    done = run_tool(COMMAND, *arguments)
    assert done.returncode == 0, done.stderr
    assert len(revisited_set(tmp_path / "data", "bridges", True)["database"]) == 4
    assert run_tool(COMMAND, *arguments, "--check").returncode == 0
    (mine / "5.png").unlink()
    checked = run_tool(COMMAND, *arguments, "--check")
    assert checked.returncode == 1 and "1 of 6 images or lists are not as they should be" in checked.stderr
    report = json.loads((tmp_path / "data" / "bridges" / "check.json").read_text())
    assert len(report["problems"]) == 1 and "5.png" in report["problems"][0]


def _photo(file: Path, seed: int, kind: str = "JPEG") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (9, 8, 3), np.uint8)).save(file, kind)


def test_own_folders_two_levels_deep(tmp_path, run_tool):
    classes = [f"{region}/{name}" for region in ("asia", "europe") for name in ("arc", "bridge", "church")]
    for number, name in enumerate(classes):
        for i in range(3):
            _photo(tmp_path / "mine" / name / f"{i}.{'gif' if 'arc' in name else 'jpg'}", 3 * number + i,
                   "GIF" if "arc" in name else "JPEG")
    (tmp_path / "mine" / "asia" / "heic").mkdir()
    (tmp_path / "mine" / "asia" / "heic" / "a.heic").write_bytes(b"x")
    arguments = ["folder", "--name", "bridges", "--root", tmp_path / "data", "--from", tmp_path / "mine"]
    asked = run_tool(COMMAND, *arguments)
    assert asked.returncode == 1 and not (tmp_path / "data" / "bridges" / "train_list.txt").exists()
    assert ("18 in folders of level 2 (such as asia/arc/0.gif); say which folders are the classes, with "
            "--depth 1 (2: asia, europe) or --depth 2 (6: asia/arc, asia/bridge, asia/church, ...)"
            ) in asked.stderr
    done = run_tool(COMMAND, *arguments, "--depth", 2)
    assert done.returncode == 0, done.stderr
    assert "1 folders hold no images and are no classes: asia/heic" in done.stdout
    folder = tmp_path / "data" / "bridges"
    lines = [line for part in ("train", "val")
             for line in (folder / f"{part}_list.txt").read_text().splitlines()]
    assert {line.rpartition("/")[0].removeprefix("images/") + line[-2:] for line in lines} == {
        f"{name} {label}" for label, name in enumerate(classes)} and len(lines) == 18
    assert read_manifest(folder)["lists"]["train_list.txt"]["options"]["depth"] == 2
    deeper = run_tool(COMMAND, *arguments, "--depth", 3)
    assert deeper.returncode == 1 and "--depth can be at most 2" in deeper.stderr
    _photo(tmp_path / "mine" / "loose.jpg", 99)
    mixed = run_tool(COMMAND, *arguments)
    assert "1 in no folder of its own (loose.jpg), 18 in folders of level 2" in mixed.stderr


def test_no_image_of_ones_own_is_in_both_lists(tmp_path, run_tool):
    """Links that lead back, further names of files, and copies; see the real list for each file once."""
    mine = tmp_path / "mine"
    for i in range(40):
        _photo(mine / "ab"[i % 2] / f"{i}.jpg", i)
    (mine / "a" / "up").symlink_to("..")
    (mine / "b" / "upup").symlink_to("../..")
    (mine / "a" / "link.jpg").symlink_to("0.jpg")
    os.link(mine / "b" / "1.jpg", mine / "b" / "hard.jpg")
    for i in range(40):
        shutil.copy(mine / "ab"[i % 2] / f"{i}.jpg", mine / "ab"[i % 2] / f"copy of {i}.jpg")
    arguments = ["folder", "--name", "mine", "--root", tmp_path / "data", "--from", mine, "--val-share", 0.5]
    done = run_tool(COMMAND, *arguments)
    assert done.returncode == 0, done.stderr
    assert "copies of images stay in the same list as these, 40 in all: " in done.stdout
    folder = tmp_path / "data" / "mine"
    train, held = ({(folder / line.rpartition(" ")[0]).read_bytes() for line in
                    (folder / f"{part}_list.txt").read_text().splitlines()} for part in ("train", "val"))
    assert len(train | held) == 40 and not train & held and held
    assert sum(len((folder / f"{part}_list.txt").read_text().splitlines()) for part in ("train", "val")) == 80
    before = (folder / "train_list.txt").read_bytes()
    (mine / "a" / "of b.jpg").symlink_to("../b/1.jpg")
    (mine / "c").symlink_to("a")
    done = run_tool(COMMAND, *arguments)
    assert done.returncode == 1 and (folder / "train_list.txt").read_bytes() == before
    assert ("has images in two classes, by 2 links: a/of b.jpg is b/1.jpg, c is a; delete one of each"
            in done.stderr)


def test_every_set_has_a_command():
    assert {f"python {COMMAND} {name}" for name in SETS} == \
        {command for command in COMMANDS.values() if COMMAND in command}
