"""One's own images: folders of classes, and tables."""
import os
import shutil
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from dolg.errors import UserError
from dolg.features.sources import images_of, revisited_set
from dolg.prepare.catalogue import DataSet
from dolg.prepare.own import prepare_folder, prepare_table
from dolg.prepare.work import Work
from revisitop import compute_map, load_ground_truth, split


def _image(file, seed: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.random.default_rng(seed).integers(0, 255, (9, 8, 3), np.uint8))


def _work(tmp_path, **options) -> Work:
    return Work(DataSet("mine", "", "", ""), tmp_path / "data", tmp_path / "from", **options)


def _lines(file) -> list[str]:
    return file.read_text().splitlines()


def test_a_folder_per_class(tmp_path):
    for name, count in (("Big Ben", 5), ("arc", 3), ("x", 1)):
        for i in range(count):
            _image(tmp_path / "from" / name / ("deep" if i else "") / f"{i} a.png", seed=10 * count + i)
    (tmp_path / "from" / "arc" / "notes.txt").write_text("no image")
    prepared = prepare_folder(_work(tmp_path), 0.4, 0, depth=1)
    folder = tmp_path / "data" / "mine"
    train, val = _lines(folder / "train_list.txt"), _lines(folder / "val_list.txt")
    expected = {f"images/{name}/{'deep/' if i else ''}{i} a.png {label}"
                for label, (name, count) in enumerate((("Big Ben", 5), ("arc", 3), ("x", 1)))
                for i in range(count)}
    assert set(train) | set(val) == expected and not set(train) & set(val)
    assert sum(line.endswith(" 0") for line in val) == 2 and not any(line.endswith(" 2") for line in val)
    assert prepared.counts == {"training images": len(train), "held-out images": len(val), "classes": 3}
    source = images_of(folder / "train_list.txt")
    assert all(source.path(i).is_file() for i in range(len(source)))
    _image(tmp_path / "from" / "loose.png")
    with pytest.raises(UserError, match=r"1 in no folder of its own \(loose.png\)"):
        prepare_folder(_work(tmp_path), 0.4, 0)


IMAGES = """path,role,label,x1,y1,x2,y2
q/one.png,query,a,1,2,7.5,8
q/two.png,query,b,,,,
"q/with, comma.jpg",query,,,,,
d/1.jpg,database,a
d/2.png,database,b
d/3.jpg,database,a
d/4.jpg,database,
x/5.jpg,distractor,
t/6.jpg,train,z
t/7.jpg,train,y
t/8.jpg,train,z
"""


@pytest.fixture
def tables(tmp_path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "images.csv").write_text(IMAGES)
    for name in ("q/one.png", "q/two.png", "q/with, comma.jpg", "d/1.jpg", "d/2.png", "d/3.jpg", "d/4.jpg",
                 "x/5.jpg", "t/6.jpg", "t/7.jpg", "t/8.jpg"):
        _image(tmp_path / "from" / name)
    return tmp_path


def test_labels_are_the_ground_truth(tables):
    prepared = prepare_table(_work(tables), 0.0, 0)
    folder = tables / "data" / "mine"
    truth = load_ground_truth(folder / "gnd_mine.pkl")
    assert truth.queries == ["q/one.png", "q/two.png", "q/with, comma.jpg"]
    assert truth.images == ["d/1.jpg", "d/2.png", "d/3.jpg", "d/4.jpg"]
    assert [found.tolist() for found in truth.easy] == [[0, 2], [1], []]
    assert all(not len(found) for found in (*truth.hard, *truth.junk))
    assert truth.boxes == [(1, 2, 7.5, 8), None, None]
    sources = revisited_set(tables / "data", "mine", crop_queries=True)
    assert all(source.path(i).is_file() for source in sources.values() for i in range(len(source)))
    assert _lines(folder / "distractors.txt") == ["images/x/5.jpg"]
    assert _lines(folder / "train_list.txt") == ["images/t/6.jpg 1", "images/t/7.jpg 0", "images/t/8.jpg 1"]
    assert prepared.counts == {"training images": 3, "held-out images": 0, "classes": 2, "queries": 3,
                               "database images": 4, "distractors": 1}
    # It is scored as any other benchmark: the first query finds one of two, second
    ranks = np.array([[1, 0, 3, 2], [1, 0, 2, 3], [0, 1, 2, 3]])
    aps = compute_map(ranks, split(truth, "easy")).aps
    assert aps[:2].tolist() == pytest.approx([(0.25 + (1 / 3 + 0.5) / 2) / 2, 1])


def test_a_table_of_the_ground_truth(tables):
    (tables / "from" / "ground_truth.csv").write_text(
        "query,image,relevance\nq/one.png,d/3.jpg,hard\nq/one.png,d/1.jpg,easy\nq/two.png,d/4.jpg,junk\n"
        '"q/with, comma.jpg",d/2.png,hard\nq/one.png,d/1.jpg,easy\n')
    prepare_table(_work(tables), 0.0, 0)
    truth = load_ground_truth(tables / "data" / "mine" / "gnd_mine.pkl")
    assert [[found.tolist() for found in kind] for kind in (truth.easy, truth.hard, truth.junk)] == \
        [[[0], [], []], [[2], [], [1]], [[], [3], []]]


@pytest.mark.parametrize("table, message", [
    ("path,label\n", "has no column role"),
    ("path,role\n", "names no images"),
    ("path,role\na.jpg,gallery\n", "line 2: role 'gallery' is none of train, query"),
    ("path,role\n/etc/a.jpg,query\n", "line 2: path '/etc/a.jpg' does not lead below"),
    ("path,role\nd/../../a.jpg,query\n", "line 2: path .* does not lead below"),
    ("path,role\n,query\n", "line 2: path '' does not lead below"),
    ("path,role\nd/1.jpg,database\nd/1.jpg,query\n", "line 3: 'd/1.jpg' stands in line 2 already"),
    ("path,role,x1,y1,x2,y2\nd/1.jpg,query,1,2,3,\n",
     "line 2: x1, y1, x2, y2 are 1, 2, 3, , not four numbers"),
    ("path,role,x1,y1,x2,y2\nd/1.jpg,query,5,2,3,9\n", "line 2: the box 5, 2, 3, 9 holds nothing"),
    ("path,role,x1,y1,x2,y2\nd/1.jpg,query,1,2,inf,9\n", "line 2: the box .* holds nothing"),
    ("path,role\nd/1.jpg,query,x\n", "line 2: more values than columns"),
    ("path,role,label\nt/6.jpg,train,\n", "line 2: a training image needs a label"),
    ("path,role\nd/1.jpg,query\n", "has 1 queries and 0 database images"),
    ("path,role\nd/9.jpg,distractor\n", "of the 1 images of images.csv, 1 are not in"),
])
def test_mistakes_in_the_table_of_images(tables, table, message):
    (tables / "from" / "images.csv").write_text(table)
    with pytest.raises(UserError, match=message):
        prepare_table(_work(tables), 0.0, 0)
    assert not list((tables / "data" / "mine").glob("*_list.txt"))


@pytest.mark.parametrize("line, message", [
    ("q/none.png,d/1.jpg,easy", "'q/none.png' is no query"),
    ("q/one.png,d/9.jpg,easy", "'d/9.jpg' is no database image"),
    ("q/one.png,d/1.jpg,good", "relevance 'good' is none of easy, hard, junk"),
    ("q/one.png,d/3.jpg,junk", "'d/3.jpg' has another relevance for 'q/one.png'"),
])
def test_mistakes_in_the_ground_truth(tables, line, message):
    (tables / "from" / "ground_truth.csv").write_text(
        f"query,image,relevance\nq/one.png,d/3.jpg,hard\n{line}\n")
    with pytest.raises(UserError, match=f"line 3: {message}"):
        prepare_table(_work(tables), 0.0, 0)


def test_missing_tables_and_another_folder(tables):
    (tables / "from" / "images.csv").rename(tables / "from" / "other.csv")
    with pytest.raises(UserError, match="no table .*images.csv: it has the columns path, role"):
        prepare_table(_work(tables), 0.0, 0)
    (tables / "from" / "other.csv").rename(tables / "from" / "images.csv")
    prepare_table(_work(tables), 0.0, 0)
    (tables / "from").rename(tables / "moved")
    (tables / "from").mkdir()
    (tables / "from" / "images.csv").write_text("path,role\nd/1.jpg,distractor\n")
    _image(tables / "from" / "d" / "1.jpg")
    prepare_table(_work(tables), 0.0, 0)        # the link leads to the same place
    (tables / "data" / "mine" / "images").unlink()
    (tables / "data" / "mine" / "images").mkdir()
    with pytest.raises(UserError, match="images is there already and is no link to"):
        prepare_table(_work(tables), 0.0, 0)


def _classes(folder, **counts: int) -> None:
    for name, count in counts.items():
        for i in range(count):
            _image(folder / name / f"{i}.png")


@pytest.mark.parametrize("given, root, name", [
    ("data/mine", "data", "mine"),              # the set's own folder
    ("photos", "photos", "mine"),               # which is in --from
    ("photos", "photos/data/deep", "mine"),
    ("data/mine/photos", "data", "mine"),       # which --from is in
    ("link", "photos", "mine"),                 # the same by another name
])
@pytest.mark.parametrize("prepare", [prepare_folder, prepare_table])
def test_images_are_never_linked_into_themselves(tmp_path, prepare, given, root, name):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    given, root = tmp_path / given, tmp_path / root
    _classes(given, a=2, b=2)
    (given / "images.csv").write_text("path,role,label\na/0.png,train,a\na/1.png,train,b\n")
    work = Work(DataSet(name, "", "", ""), root, given)
    with pytest.raises(UserError, match=f"--from {given} and the data set's folder .* choose another"):
        prepare(work, 0.0, 0)
    assert not list(tmp_path.rglob("*_list.txt")) and not (work.folder / "images").exists()


def test_neighbours_are_apart(tmp_path):
    """A name that begins as another folder's does is not in that folder; the set's own link leads out."""
    _classes(tmp_path / "data" / "mine too", a=2)
    work = Work(DataSet("mine", "", "", ""), tmp_path / "data", tmp_path / "data" / "mine too")
    assert prepare_folder(work, 0.0, 0).counts["training images"] == 2
    again = Work(DataSet("mine", "", "", ""), tmp_path / "data", work.folder / "images")
    assert prepare_folder(again, 0.0, 0).counts["training images"] == 2
    assert (work.folder / "images").readlink() == tmp_path / "data" / "mine too"
    part = Work(DataSet("mine", "", "", ""), tmp_path / "data", work.folder / "images" / "a")
    _classes(tmp_path / "data" / "mine too" / "a", b=1)
    for i in range(2):
        (tmp_path / "data" / "mine too" / "a" / f"{i}.png").unlink()
    assert prepare_folder(part, 0.0, 0).counts["training images"] == 1
    assert (work.folder / "images" / "b" / "0.png").is_file()


@pytest.mark.parametrize("content, message", [
    (b"path,role\nd/1.jpg,\xe4\n", "line 2: not in UTF-8"),
    (b"path,r\xf6le\n", "line 1: not in UTF-8"),
    (b"path,role\n" + b"".join(b"d/%d.jpg,train\n" % i for i in range(2000)) + b"\xff\xfe,x\n",
     "line 2002: not in UTF-8"),
    (b'path,role\nd/1.jpg,train\nd/2.jpg,"' + b"x" * 150_000,
     r"line 3: field larger .* \(is a quote left open\?\)"),
    (b'path,role\n"d/1\n.jpg",train\n', r"line 3: path 'd/1\\n.jpg', which has a line break in it"),
    ("path,role\nd/\u2028.jpg,train\n".encode(), r"line 2: path 'd/\\u2028.jpg', which has a line break"),
    (b"path,role\nd/\0.jpg,train\n", r"line 2: path 'd/\\x00.jpg', which has a zero byte in it"),
    (b'path,role\nd/1.jpg,"tra\nin"\n', r"line 3: role 'tra\\nin' is none of"),
])
def test_tables_that_are_none(tables, content, message):
    (tables / "from" / "images.csv").write_bytes(content)
    with pytest.raises(UserError, match=f"images.csv, {message}") as error:
        prepare_table(_work(tables), 0.0, 0)
    assert "\n" not in str(error.value)
    # The other table is read the same way
    (tables / "from" / "images.csv").write_text(IMAGES)
    (tables / "from" / "ground_truth.csv").write_bytes(b"query,image,relevance\nq/one.png,d/1.jpg,\xff\n")
    with pytest.raises(UserError, match="ground_truth.csv, line 2: not in UTF-8"):
        prepare_table(_work(tables), 0.0, 0)
    assert not list((tables / "data").rglob("*.txt"))


@pytest.mark.parametrize("name, shown, fault", [
    (b"a/1\n2.png", r"'a/1\\n2.png'", "which has a line break"),
    (b"a\r/1.png", r"'a\\r/1.png'", "which has a line break"),
    ("a/1\u20282.png".encode(), r"'a/1\\u20282.png'", "which has a line break"),
    (b"a/gr\xfc\xdfe.png", r"'a/gr\\udcfc\\udcdfe.png'", "which is not in UTF-8"),
    (b"\xff.png", r"'\\udcff.png'", "which is not in UTF-8"),
])
def test_names_that_lists_cannot_hold(tmp_path, name, shown, fault):
    _classes(tmp_path / "from", **{"grün": 2})          # a name like any other
    file = Path(os.fsdecode(os.fsencode(tmp_path / "from") + b"/" + name))
    file.parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "from" / "grün" / "0.png", file)
    with pytest.raises(UserError, match=f"from holds {shown}, {fault}.*: rename it") as error:
        prepare_folder(_work(tmp_path), 0.0, 0)
    assert str(error.value).isprintable()
    file.unlink()
    prepare_folder(_work(tmp_path), 0.0, 0)
    train = (tmp_path / "data" / "mine" / "train_list.txt").read_text(encoding="utf-8")
    assert train.splitlines() == ["images/grün/0.png 0", "images/grün/1.png 0"]


def test_an_earlier_runs_lists_go(tables):
    folder = tables / "data" / "mine"
    everything = {"images", "jpg", "gnd_mine.pkl", "train_list.txt", "val_list.txt", "distractors.txt"}
    prepare_table(_work(tables), 0.0, 0)
    assert {file.name for file in folder.iterdir()} == everything
    (folder / "notes.txt").write_text("mine")
    (tables / "from" / "images.csv").write_text("path,role\nx/5.jpg,distractor\n")
    prepare_table(_work(tables), 0.0, 0)
    assert {file.name for file in folder.iterdir()} == {"images", "distractors.txt", "notes.txt"}
    (tables / "from" / "images.csv").write_text(IMAGES)
    prepare_table(_work(tables), 0.0, 0)
    prepare_folder(_work(tables), 0.0, 0)
    assert {file.name for file in folder.iterdir()} == {"images", "train_list.txt", "val_list.txt",
                                                        "notes.txt"}
    rows = [line for line in IMAGES.splitlines() if ",train," not in line]
    (tables / "from" / "images.csv").write_text("\n".join(rows) + "\n")
    prepare_table(_work(tables), 0.0, 0)
    assert {file.name for file in folder.iterdir()} == everything - {"train_list.txt", "val_list.txt"} \
        | {"notes.txt"}
    assert (tables / "from" / "q" / "one.png").is_file()        # links go, and not what they lead to


def test_what_others_made_stays(tables):
    """A benchmark made by hand, in the folder that the name leads to."""
    folder = tables / "data" / "mine"
    folder.mkdir(parents=True)
    (folder / "gnd_mine.pkl").write_bytes(b"by hand")
    (folder / "jpg").symlink_to(tables / "from")
    (tables / "from" / "images.csv").write_text("path,role\nx/5.jpg,distractor\n")
    (folder / "train_list.txt").write_text("by hand\n")
    prepare_table(_work(tables), 0.0, 0)
    assert (folder / "gnd_mine.pkl").read_bytes() == b"by hand" and (folder / "jpg").is_symlink()
    assert _lines(folder / "train_list.txt") == ["by hand"]
    (folder / "jpg").unlink()
    (folder / "jpg").mkdir()            # not of ours, whose jpg are links
    prepare_table(_work(tables), 0.0, 0)
    assert (folder / "gnd_mine.pkl").read_bytes() == b"by hand" and (folder / "jpg").is_dir()


def test_a_mistake_leaves_all_as_it_was(tables):
    folder = tables / "data" / "mine"
    prepare_table(_work(tables), 0.0, 0)
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    (tables / "from" / "ground_truth.csv").write_text("query,image,relevance\nq/one.png,d/1.jpg,good\n")
    (tables / "from" / "images.csv").write_text(IMAGES.replace("t/6.jpg,train,z", "t/6.jpg,train,q"))
    with pytest.raises(UserError, match="relevance 'good'"):
        prepare_table(_work(tables), 0.0, 0)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before
    (tables / "from" / "ground_truth.csv").unlink()
    (folder / "jpg").unlink()
    (folder / "jpg").mkdir()
    with pytest.raises(UserError, match="jpg is there already and is no link to"):
        prepare_table(_work(tables), 0.0, 0)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before


def test_a_part_of_the_images_with_a_ground_truth(tables, capsys):
    (tables / "from" / "ground_truth.csv").write_text(
        "query,image,relevance\nq/two.png,d/2.png,easy\nq/one.png,d/2.png,easy\nq/one.png,d/1.jpg,hard\n"
        "q/one.png,d/3.jpg,junk\nq/two.png,d/3.jpg,easy\n")
    for name in ("q/two.png", "d/1.jpg"):
        (tables / "from" / name).unlink()
    with pytest.raises(UserError, match="of the 11 images of images.csv, 2 are not in"):
        prepare_table(_work(tables), 0.0, 0)
    prepare_table(_work(tables, partial=True), 0.0, 0)
    assert "2 of the 11 images of images.csv are not there and are left out" in capsys.readouterr().out
    truth = load_ground_truth(tables / "data" / "mine" / "gnd_mine.pkl")
    assert truth.queries == ["q/one.png", "q/with, comma.jpg"]
    assert truth.images == ["d/2.png", "d/3.jpg", "d/4.jpg"]
    assert [[found.tolist() for found in kind] for kind in (truth.easy, truth.hard, truth.junk)] == \
        [[[0], []], [[], []], [[1], []]]
    # An absent image is still no query if it is a database image, and no line is read less carefully
    table = tables / "from" / "ground_truth.csv"
    for line, message in (("d/1.jpg,d/2.png,easy", "'d/1.jpg' is no query"),
                          ("q/one.png,q/two.png,easy", "'q/two.png' is no database image"),
                          ("q/two.png,d/2.png,good", "relevance 'good' is none of")):
        table.write_text(f"query,image,relevance\n{line}\n")
        with pytest.raises(UserError, match=f"line 2: {message}"):
            prepare_table(_work(tables, partial=True), 0.0, 0)


def test_long_names_of_classes_take_no_memory(tables):
    """Labels follow the order of the names, however long one of them is."""
    long = "y" * 100_000
    (tables / "from" / "images.csv").write_text("path,role,label\n" + "".join(
        f"l/{i}.png,train,{long if i == 7 else f'z{i % 3}' if i % 2 else 'X'}\n" for i in range(300)))
    _image(tables / "from" / "l" / "0.png")
    for i in range(1, 300):
        os.link(tables / "from" / "l" / "0.png", tables / "from" / "l" / f"{i}.png")
    tracemalloc.start()
    prepared = prepare_table(_work(tables), 0.0, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6          # an array of 300 names of that length has 120 MB
    assert prepared.counts["classes"] == 5
    assert _lines(tables / "data" / "mine" / "train_list.txt") == [
        f"images/l/{i}.png {1 if i == 7 else 2 + i % 3 if i % 2 else 0}" for i in range(300)]


def test_empty_files_are_no_images(tmp_path, capsys):
    _classes(tmp_path / "from", a=2, b=2, c=1)
    for name in ("b/1.png", "c/0.png"):
        (tmp_path / "from" / name).write_bytes(b"")
    message = r"of the 5 images, 2 are not in .*: b/1.png, c/0.png \(files of 0 bytes are none; --partial"
    with pytest.raises(UserError, match=message):
        prepare_folder(_work(tmp_path), 0.0, 0)
    assert not (tmp_path / "data" / "mine" / "images").exists()
    prepared = prepare_folder(_work(tmp_path, partial=True), 0.0, 0)
    assert _lines(tmp_path / "data" / "mine" / "train_list.txt") == [
        "images/a/0.png 0", "images/a/1.png 0", "images/b/0.png 1"]
    assert prepared.counts["classes"] == 2


def test_photographs_that_have_moved(tables):
    folder = tables / "data" / "mine"
    prepare_table(_work(tables), 0.0, 0)
    (tables / "from").rename(tables / "moved")          # the links lead nowhere
    prepare_table(Work(DataSet("mine", "", "", ""), tables / "data", tables / "moved"), 0.0, 0)
    assert (folder / "images").samefile(tables / "moved") and (folder / "jpg").samefile(tables / "moved")
    shutil.copytree(tables / "moved", tables / "from")  # they lead elsewhere
    prepare_table(_work(tables), 0.0, 0)
    assert (folder / "images").samefile(tables / "from") and (folder / "jpg").samefile(tables / "from")
    assert (tables / "moved" / "images.csv").is_file()
