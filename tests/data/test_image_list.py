"""Image lists: parsed at once against line by line, read, and checked for missing files."""
import re
from pathlib import Path

import numpy as np
import pytest

from dolg.data.decode import ImageError
from dolg.data.image_list import read_image_list
from dolg.data.images import check_images, open_images
from dolg.errors import UserError


def _line_by_line(file: Path, num_classes: int | None):
    """Paths and labels, or what is wrong, by the plainest means."""
    paths, labels = [], []
    for number, line in enumerate(open(file, encoding="utf-8-sig"), 1):
        line = line.strip()
        if not line:
            continue
        found = re.fullmatch(r"(.*[^\s,;])\s*[ \t](-?\d+)", line, re.ASCII)
        if not found:
            return f"line {number}: {line[:100]!r} is not 'path label', with a whole number"
        path, label = found.groups()
        if num_classes is None and int(label) < 0:
            return f"line {number}: label {label} is below 0"
        if num_classes is not None and not 0 <= int(label) < num_classes:
            return f"line {number}: label {label} is outside 0 .. {num_classes - 1} (MODEL.NUM_CLAS"
        paths.append(str(file.parent / path))
        labels.append(int(label))
    return (paths, labels) if paths else f"the image list {file} is empty"


def _some_line(rng: np.random.Generator, bad: float) -> str:
    def pick(*choices):
        return choices[rng.integers(len(choices))]

    path = pick("a.jpg", "b c/d  e.jpg", "/abs/é.png", "-1", "7", "a\tb 3", "x" * 150,
                "日本 語.webp")
    label = str(int(rng.integers(0, 10 ** int(rng.integers(1, 4)))))
    line = path + pick(" ", " ", "\t", "  ", " \t ") + label
    if rng.random() < bad:
        line = pick(path.replace(" ", ""), path + " x3", path + " -3", label, path + "," + label, path + ", 3",
                    path + " 3.0", path + " --1", path + " -", path + " 1500", path + " 3x",
                    "-" + label)
    before, after = pick("", "", " ", "\t ", "\f"), pick("", "", " ", " \t", "   ")
    return pick(before + line + after, before + line + after, "", " \t")


@pytest.mark.parametrize("seed", range(60))
def test_parsing_against_line_by_line(tmp_path, seed):
    rng = np.random.default_rng(seed)
    bad = [0.0, 0.0, 0.02, 0.3][seed % 4]
    lines = [_some_line(rng, bad) for _ in range(rng.integers(0, 60))]
    ends = [["\n", "\r\n", "\r"][kind] for kind in rng.integers(0, 1 + seed % 3, len(lines))]
    text = "".join(line + end for line, end in zip(lines, ends))
    if rng.random() < 0.5:
        text = text[:-1]
    file = tmp_path / "list.txt"
    file.write_bytes((b"\xef\xbb\xbf" if seed % 5 == 0 else b"") + text.encode())
    for num_classes in (None, 1000):
        expected = _line_by_line(file, num_classes)
        if isinstance(expected, str):
            with pytest.raises(UserError) as error:
                read_image_list(file, num_classes)
            assert expected in str(error.value) and "\n" not in str(error.value)
        else:
            images = read_image_list(file, num_classes)
            assert ([images.name(i) for i in range(len(images))],
                    images.labels.tolist()) == expected
            assert images.labels.dtype == np.int64


def test_image_lists(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text(f"a b/c.jpg 3\n\n d.jpg 0 \n{tmp_path}/e.jpg 000000002")
    images = read_image_list(file, num_classes=4)
    names = [str(tmp_path / "a b/c.jpg"), str(tmp_path / "d.jpg"), str(tmp_path / "e.jpg")]
    assert [images.name(i) for i in range(3)] == names
    assert images.labels.tolist() == [3, 0, 2] and len(images) == 3
    (tmp_path / "d.jpg").write_bytes(b"content")
    assert images.read(1) == b"content"
    with pytest.raises(ImageError, match="e.jpg: No such file"):
        images.read(2)


@pytest.mark.parametrize("content, message", [
    (b"", "is empty"), (b"\n\n", "is empty"), (b" \t \r\n", "is empty"),
    (b"a.jpg", "line 1: 'a.jpg' is not 'path label'"),
    (b"a.jpg 0\nb.jpg x", "line 2"), (b"a.jpg 0\nb.jpg 4\n", "line 2: label 4 is outside 0 .. 3"),
    (b"a.jpg -1", "label -1 is outside"),
    (b"a.jpg 0\n\r\n\rb.jpg 9", "line 4: label 9 is outside"),
    (b"a.jpg 99999999999999999999999", "label 99999999999999999999999 is outside 0 .. 3"),
    (b"a.jpg 18446744073709551616", "label 18446744073709551616 is outside 0 .. 3"),
    ("a.jpg 1\n".encode("utf-16"), "seems to be in UTF-16, which Windows calls Unicode: save it as UTF-8"),
    ("a.jpg 1\n".encode("utf-16-be"), "seems to be in UTF-16"),
    (b"a.jpg 1\n\xe4.jpg 1", "not a text file in UTF-8: line 2 holds the byte 0xe4; save it as UTF-8"),
    (b"a.jpg 1\nb\0.jpg 1", "line 2 holds the byte 0x00"),
    (b"a.jpg\t1\nb.jpg,2", "line 2: 'b.jpg,2' is not 'path label', with a whole number as label; put a "
                            "blank or a tab in the place of ','"),
    (b"a.jpg; 1", "in the place of ';'"),
    (b"a.jpg\t\t-1", r"label -1 is outside 0 .. 3 (MODEL.NUM_CLASSES is 4): 'a.jpg\t\t-1'"),
    (b"a.jpg\tx", r"line 1: 'a.jpg\tx' is not"),
    ("a.jpg\u00a01".encode(), r"line 1: 'a.jpg\xa01' is not"),
])
def test_bad_image_lists(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError) as error:
        read_image_list(tmp_path / "list.txt", num_classes=4)
    assert message in str(error.value) and str(tmp_path / "list.txt") in str(error.value)


def test_a_label_too_large_to_hold(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg 999999999999999999\nb.jpg 1000000000000000000\n")
    with pytest.raises(UserError, match="line 2: label 10{18} has more than 18 digits"):
        read_image_list(tmp_path / "list.txt")


def test_no_list(tmp_path):
    with pytest.raises(UserError, match="no image list .*absent.txt"):
        open_images(tmp_path, "absent.txt")


@pytest.fixture
def partly_there(tmp_path):
    """A list of 3,000 images of which 0, 7, 14, ... are absent, 3 is empty and 5 is a folder."""
    for i in range(3000):
        if i % 7 and i != 5:
            (tmp_path / f"{i}.jpg").write_bytes(b"" if i == 3 else b"x")
    (tmp_path / "5.jpg").mkdir()
    (tmp_path / "list.txt").write_text("".join(f"{i}.jpg 0\n" for i in range(3000)))
    bad = sorted({*range(0, 3000, 7), 3, 5})
    return open_images(tmp_path, "list.txt"), bad


def test_missing_images_are_counted_and_named(partly_there, tmp_path):
    images, bad = partly_there
    listing = tmp_path / "out" / "missing_images.txt"
    with pytest.raises(UserError) as error:
        check_images(images, "all", listing)
    assert (f"{len(bad)} of the 3000 images looked for, of 3000, are missing or empty ({listing} "
            f"names them): {tmp_path}/0.jpg, {tmp_path}/3.jpg, {tmp_path}/5.jpg, ..."
            ) == str(error.value)
    assert listing.read_text() == "".join(f"{tmp_path}/{i}.jpg\n" for i in bad)


def test_a_sample_of_images_is_looked_for(partly_there, tmp_path):
    images, bad = partly_there
    sampled = len(set(bad) & set(range(0, 3000, 3)))
    with pytest.raises(UserError, match=f"^{sampled} of the 1000 images looked for, of 3000,"):
        check_images(images, "sample")
    check_images(images, "none")
    for i in bad:
        if i == 5:
            (tmp_path / "5.jpg").rmdir()
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    listing = tmp_path / "missing_images.txt"
    for how in ("sample", "all"):
        check_images(images, how, listing)
    assert not listing.exists()


def test_fewer_images_than_a_sample_are_all_looked_for(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg 0\nb.jpg 0\n")
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="1 of the 2 images looked for, of 2, .*: .*/b.jpg$"):
        check_images(open_images(tmp_path, "list.txt"), "sample")
