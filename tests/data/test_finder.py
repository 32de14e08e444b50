"""Image files: found in folders by ending and content, each once, and by the names that mean them."""
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dolg.data.finder import find_images, image_file


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """`photo(path, kind)` writes a small image there, whatever the ending."""
    def write(path: Path, kind: str = "JPEG") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 9, 3), len(str(path)), np.uint8)).save(path, kind)
    return write


@pytest.mark.parametrize("name, files, expected", [
    ("x", ["x.jpg"], "x.jpg"), ("x", ["x", "x.jpg"], "x"), ("x", ["x.png", "x.JPG"], "x.JPG"),
    ("x", ["x.tiff"], "x.tiff"), ("x", ["x/y.jpg"], "x.jpg"), ("x.jfif", ["x.jfif", "x.jfif.jpg"], "x.jfif"),
    ("v1.2.final", ["v1.2.final"], "v1.2.final"), ("st.peter_1", ["st.peter_1.jpg"], "st.peter_1.jpg"),
    ("0/12.JPG", ["0/12.JPG"], "0/12.JPG"), ("x.txt", ["x.txt.PGM"], "x.txt.PGM"),
    # None is there: the file that is missed
    ("st.peter_1", [], "st.peter_1.jpg"), ("0/12.JPG", [], "0/12.JPG"), ("x.avif", [], "x.avif"),
    ("n" * 300, [], "n" * 300 + ".jpg"), ("a\0b", [], "a\0b.jpg"),
])
def test_the_file_that_a_name_means(tmp_path, name, files, expected):
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    assert image_file(tmp_path, name) == expected


def test_images_by_their_ending_or_their_content(photo, tmp_path):
    images = {"a.jpg": "JPEG", "B.JPE": "JPEG", "c.jfif": "JPEG", "d.mpo": "JPEG", "e.gif": "GIF",
              "f.ppm": "PPM", "g.tif": "TIFF", "noext": "PNG", "sub/v1.2.final": "JPEG",
              "sub/h.jpg.txt": "BMP"}
    for name, kind in images.items():
        photo(tmp_path / name, kind)
    photo(tmp_path / "raw.NEF", "TIFF")
    damaged = {"cut.jpg": b"", "text.png": b"text", "lost.jpg": None}
    others = {"notes.txt": b"P6 and BM are words", "bm.doc": b"BMW", "empty": b"", "sub/x.heic": b"x",
              "odd\x1b.md": b"x"}
    silent = {"train_list.txt": b"a.jpg 0\n", "Thumbs.db": b"x", ".DS_Store": b"x", "._a.jpg": b"\0\5\x16\7"}
    for name, content in {**damaged, **others, **silent}.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    (tmp_path / "lost.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = find_images(tmp_path)
    assert set(found.names) == {*images, *damaged}
    assert found.skipped == sorted([*others, "pipe", "pipe.jpg", "raw.NEF"])
    assert list(found.remarks(Path("photos"))) == [
        r"photos: skipped 8 files that are not images: bm.doc, empty, notes.txt, ..."]
    assert found.names == sorted(found.names, key=lambda name: name.split("/"))
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "odd\x1b[31m.md").touch()
    assert list(find_images(tmp_path / "only").remarks(Path("x"))) == [
        r"x: skipped 1 file that is not an image: odd\x1b[31m.md"]


def test_each_folder_and_each_file_is_taken_once(photo, tmp_path):
    folder = tmp_path / "above" / "photos"
    for name in ("m/0.jpg", "m/deep/1.jpg", "z/2.jpg"):
        photo(folder / name)
    photo(tmp_path / "above" / "unwanted.jpg")
    photo(tmp_path / "elsewhere" / "3.jpg")
    photo(tmp_path / "elsewhere" / "on" / "4.jpg")
    links = {"a": "z", "m/deep/up": "..", "m/upup": "../..", "z/self": ".", "linked": "../../elsewhere",
             "twice": "../../elsewhere/on", "b.jpg": "m/0.jpg", "linked_file": "../../elsewhere/3.jpg"}
    for link, target in links.items():
        (folder / link).symlink_to(target)
    os.link(folder / "z/2.jpg", folder / "z/hard.jpg")
    found = find_images(folder)
    # By names without links, where there are some
    assert found.names == ["linked/3.jpg", "linked/on/4.jpg", "m/0.jpg", "m/deep/1.jpg", "z/2.jpg"]
    assert found.file_links.items() >= {"b.jpg": "m/0.jpg", "z/hard.jpg": "z/2.jpg"}.items()
    assert len(found.file_links) == 3
    assert found.folder_links == {"a": "z", "m/deep/up": "m", "m/upup": "", "z/self": "z",
                                  "twice": "linked/on"}
    assert [line.partition(" in all")[0] for line in found.remarks(Path("p"))] == [
        "p: links to images that are there already are left out, 3",
        "p: links to folders that are there already are left out, 5"]
