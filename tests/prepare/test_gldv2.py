"""Google Landmarks v2: from tables and tars to lists, against slow code."""
import json
from collections import defaultdict

import cv2
import numpy as np
import pytest

from dolg.data.image_list import read_image_list
from dolg.data.manifest import read_manifest
from dolg.errors import UserError
from dolg.prepare.catalogue import DATA_SETS
from dolg.prepare.gldv2 import prepare, read_clean, read_table, training_split
from dolg.prepare.record import write_manifests
from dolg.prepare.work import Work
from tests.prepare.landmark_miniatures import MakeGLDv2, gldv2_path


@pytest.fixture
def miniature(tmp_path):
    (tmp_path / "web").mkdir()
    return MakeGLDv2(tmp_path / "web", np.random.default_rng(3))


def _prepare(work, parts=("train",), every_image=False, min_images=1, val_share=0.3, archives=2,
             sizes=False):
    return prepare(work, parts, every_image, min_images, val_share, 0, archives, sizes)


def _read(file) -> dict[str, int]:
    lines = (line.rsplit(" ", 1) for line in file.read_text().splitlines())
    return {path: int(label) for path, label in lines}


@pytest.mark.parametrize("every_image", [False, True])
@pytest.mark.parametrize("min_images", [1, 2])
def test_training_lists(tmp_path, miniature, every_image, min_images):
    work = Work(DATA_SETS["gldv2"], tmp_path / "data", miniature.folder)
    prepared = _prepare(work, every_image=every_image, min_images=min_images)
    names = list(miniature.landmarks) if every_image else miniature.clean
    counts = defaultdict(int)
    for name in names:
        counts[miniature.landmarks[name]] += 1
    kept = sorted(landmark for landmark, count in counts.items() if count >= min_images)
    expected = {gldv2_path("train", name): kept.index(miniature.landmarks[name]) for name in names
                if miniature.landmarks[name] in kept}
    train, val = (_read(work.folder / f"{part}_list.txt") for part in ("train", "val"))
    assert train | val == expected and not set(train) & set(val)
    assert set(train.values()) == set(range(len(kept))) and 0 < len(val) < len(train)
    assert (work.folder / "classes.csv").read_text().splitlines() == \
        ["label,landmark_id", *(f"{label},{landmark}" for label, landmark in enumerate(kept))]
    assert prepared.counts == {"training images": len(train), "held-out images": len(val),
                               "images" if every_image else "clean images": len(expected),
                               "classes": len(kept)}
    assert prepared.lists == ["train_list.txt", "val_list.txt", "classes.csv"]
    assert work.mark("train__images_001.tar")["md5_published"]
    images = read_image_list(work.folder / "train_list.txt", len(kept))
    assert not len(images.missing(np.arange(len(images))))
    for name in names[:5]:
        assert (work.folder / gldv2_path("train", name)).read_bytes() == miniature.images["train"][name]


def test_other_parts_and_sizes(tmp_path, miniature):
    work = Work(DATA_SETS["gldv2"], tmp_path / "data", miniature.folder)
    prepared = _prepare(work, ("index", "train", "test"), sizes=True)
    for part in ("index", "test"):
        lines = (work.folder / f"{part}_list.txt").read_text().splitlines()
        assert lines == [gldv2_path(part, name) for name in sorted(miniature.images[part])]
    assert (prepared.counts["index images"], prepared.counts["test images"]) == (12, 5)
    assert (work.folder / "retrieval_solution_v2.1.csv").exists()
    assert (work.folder / "recognition_solution_v2.1.csv").exists()
    assert sorted(prepared.lists) == ["classes.csv", "index_list.txt", "test_list.txt", "train_list.txt",
                                      "train_sizes.csv", "val_list.txt", "val_sizes.csv"]
    expected = []
    for path, label in _read(work.folder / "train_list.txt").items():
        height, width = cv2.imread(str(work.folder / path)).shape[:2]
        expected.append(f"{path},{label},{width},{height}")
    assert (work.folder / "train_sizes.csv").read_text().splitlines() == expected


def test_parts_of_several_runs_stay_together(tmp_path, miniature):
    work = Work(DATA_SETS["gldv2"], tmp_path / "data", miniature.folder)
    write_manifests(work, _prepare(work, ("train",), sizes=True, every_image=True), {"val_share": 0.3})
    for parts in (("index",), ("test", "test")):
        write_manifests(work, _prepare(work, parts), {"val_share": 0.2})
    manifest = read_manifest(work.folder)
    training = {"train_list.txt", "val_list.txt", "train_sizes.csv", "val_sizes.csv", "classes.csv"}
    assert set(manifest["lists"]) == training | {"index_list.txt", "test_list.txt"}
    assert manifest["counts"]["index images"]["found"] == 12 and manifest["counts"]["images"]["found"] == 60
    assert {manifest["lists"][name]["options"]["val_share"] for name in training} == {0.3}
    # Other training lists take the place of those, and of what was made of them
    (work.folder / "manifest.json").write_text(json.dumps(manifest))
    write_manifests(work, _prepare(work, ("train",)), {"val_share": 0.3})
    manifest = read_manifest(work.folder)
    assert set(manifest["lists"]) == training - {"train_sizes.csv", "val_sizes.csv"} | {"index_list.txt",
                                                                                        "test_list.txt"}
    assert not (work.folder / "train_sizes.csv").exists()
    assert "images" not in manifest["counts"] and manifest["counts"]["classes"]["published"] == 81_313
    (work.folder / "manifest.json").write_text('{"format": "dolg data set"')       # damaged
    write_manifests(work, _prepare(work, ("test",)), {})
    assert set(read_manifest(work.folder)["lists"]) == {"test_list.txt"}


def test_a_folder_without_a_name_is_one_part(tmp_path, miniature):
    """The images of train/ alone are not taken for those of index/ as well."""
    mine = tmp_path / "mine"
    for name, content in miniature.images["train"].items():
        (mine / gldv2_path("train", name)).parent.mkdir(parents=True, exist_ok=True)
        (mine / gldv2_path("train", name)).write_bytes(content)
    (mine / "train" / "0").mkdir(exist_ok=True)
    for file in (*miniature.folder.glob("metadata/*"), *miniature.folder.glob("ground_truth/*")):
        (mine / "train" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="has no train/images_000.tar"):
        work = Work(DATA_SETS["gldv2"], tmp_path / "data", mine / "train")
        _prepare(work, ("train", "index"), archives=None)
    assert not (tmp_path / "data" / "gldv2" / "index").exists()
    one = _prepare(Work(DATA_SETS["gldv2"], tmp_path / "data", mine / "train"), archives=None)
    assert one.counts["clean images"] == 50


def test_the_same_again_is_the_same_and_reads_no_archive(tmp_path, miniature):
    work = Work(DATA_SETS["gldv2"], tmp_path / "data", miniature.folder)
    _prepare(work)
    before = {file: file.read_bytes() for file in work.folder.iterdir() if file.is_file()}
    for file in (miniature.folder / "train").iterdir():
        file.unlink()
    _prepare(Work(DATA_SETS["gldv2"], tmp_path / "data", miniature.folder))
    assert {file: file.read_bytes() for file in work.folder.iterdir() if file.is_file()} == before


def test_an_unpacked_copy_is_linked(tmp_path, miniature):
    mine = tmp_path / "mine"
    for name, content in miniature.images["train"].items():
        (mine / gldv2_path("train", name)).parent.mkdir(parents=True, exist_ok=True)
        (mine / gldv2_path("train", name)).write_bytes(content)
    for file in (miniature.folder / "metadata").iterdir():
        (mine / file.name).write_bytes(file.read_bytes())
    (mine / "train" / "0").mkdir(exist_ok=True)
    prepared = _prepare(Work(DATA_SETS["gldv2"], tmp_path / "data", mine), archives=None)
    folder, (first, last) = tmp_path / "data" / "gldv2", (miniature.clean[0], miniature.clean[-1])
    assert (folder / "train").is_symlink() and prepared.counts["clean images"] == 50
    assert (folder / gldv2_path("train", first)).read_bytes() == miniature.images["train"][first]
    # Again, without --from
    assert _prepare(Work(DATA_SETS["gldv2"], tmp_path / "data"), archives=None) == prepared
    (mine / gldv2_path("train", last)).unlink()
    before = (folder / "train_list.txt").read_bytes()
    message = f"of the 50 training images, 1 are not in .*: {gldv2_path('train', last)} .--part"
    with pytest.raises(UserError, match=message):
        _prepare(Work(DATA_SETS["gldv2"], tmp_path / "data"), archives=None)
    assert (folder / "train_list.txt").read_bytes() == before
    _prepare(Work(DATA_SETS["gldv2"], tmp_path / "data", partial=True), archives=None)
    lists = _read(folder / "train_list.txt") | _read(folder / "val_list.txt")
    assert set(lists) == {gldv2_path("train", name) for name in miniature.clean[:-1]}


def test_missing_archives(tmp_path, miniature):
    work = Work(DATA_SETS["gldv2"], tmp_path / "data", miniature.folder)
    message = "has no train/images_002.tar, .* and 493 more; get it by hand from https://github.com/cvdf"
    with pytest.raises(UserError, match=message):
        _prepare(work, archives=None)
    prepared = _prepare(Work(DATA_SETS["gldv2"], tmp_path / "part", miniature.folder), archives=1)
    there = [name for number, name in enumerate(miniature.images["train"]) if number % 2 == 0]
    assert prepared.counts["clean images"] == len(set(there) & set(miniature.clean))


def test_a_wrong_digest_is_refused(tmp_path, miniature):
    published = miniature.folder / "md5sum" / "train" / "md5.images_001.txt"
    published.write_text("0" * 32 + "  images_001.tar\n")
    with pytest.raises(UserError, match="images_001.tar has the MD5 .*, and 0{32} is published"):
        _prepare(Work(DATA_SETS["gldv2"], tmp_path / "data", miniature.folder))
    work = Work(DATA_SETS["gldv2"], tmp_path / "data", miniature.folder, unverified=True)
    assert _prepare(work).counts["clean images"] == 50
    assert not work.mark("train__images_001.tar")["md5_published"]
    (miniature.folder / "md5sum" / "train" / "md5.images_001.txt").write_text("<html>404</html>")
    with pytest.raises(UserError, match="md5.images_001.txt does not begin with an MD5: delete it"):
        _prepare(Work(DATA_SETS["gldv2"], tmp_path / "third", miniature.folder))


@pytest.mark.parametrize("content, message", [
    ("", "its first line is not 'landmark_id,images'"),
    ("id,images\n", "its first line is not 'landmark_id,images'"),
    ("landmark_id,images\n7,0123456789abcdef\nx,0123456789abcdef\n", "line 3: not a landmark's number"),
    ("landmark_id,images\n7,0123456789abcde\n", "line 2: not a landmark's number"),
    ("landmark_id,images\n7,\n", "line 2: not a landmark's number"),
])
def test_damaged_clean_tables(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_clean(tmp_path / "t.csv")


@pytest.mark.parametrize("content, message", [
    ("", "has no columns id and landmark_id"),
    ("id,url\n", "has no columns id and landmark_id"),
    ("id,landmark_id\n0123456789abcdef,7\n0123456789abcdef,x\n", "line 3: not an id"),
    ("id,landmark_id\n0123,7\n", "line 2: not an id"),
    ("id,landmark_id\n0123456789abcdef\n", "line 2: not an id"),
    ("id,landmark_id\n../../../../../pw,7\n", "line 2: not an id"),
    ("id,landmark_id\n0123456789abcdéf,7\n", "line 2: not an id"),
    (f"id,landmark_id\n{'x' * 200_000},7\n", "line [12]: not CSV: field larger"),
])
def test_damaged_tables(tmp_path, content, message):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "t.csv", "landmark_id")


def test_a_class_of_ten_thousand_images_and_no_class_of_enough(tmp_path):
    """A line of the table may be longer than what the csv module reads."""
    rng = np.random.default_rng(0)
    names = [rng.bytes(8).hex() for _ in range(10_000)]
    (tmp_path / "t.csv").write_text("landmark_id,images\n5," + " ".join(names) + "\n")
    ids, landmarks = read_clean(tmp_path / "t.csv")
    assert ids.tolist() == [name.encode() for name in names] and set(landmarks.tolist()) == {5}
    with pytest.raises(UserError, match="no class has 10001 images"):
        training_split(ids, landmarks, 10_001, 0.2, 0)
