"""JPEGs that are cut short, through the commands: read, counted and named; strict on request."""
import io
import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dolg.data.decode import ImageError, decode, read_header, read_image
from dolg.features.store import FeatureStore

PHOTO = cv2.resize(np.random.default_rng(0).integers(0, 255, (9, 13, 3), dtype=np.uint8), (131, 97),
                   interpolation=cv2.INTER_CUBIC)


def _jpeg(kind: str = "baseline", **options) -> bytes:
    file, image = io.BytesIO(), Image.fromarray(PHOTO)
    modes = {"grey": "L", "cmyk": "CMYK"}
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert(modes.get(kind, "RGB")).save(file, "JPEG", progressive=kind == "progressive", exif=exif,
                                               **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["baseline", "progressive", "cmyk", "grey"])
def test_a_cut_jpeg_is_what_opencv_reads_of_it(tmp_path, kind):
    data, path = _jpeg(kind), tmp_path / "a.jpg"
    for lost in (1, 2, 3, 20, len(data) // 3, len(data) // 2):
        path.write_bytes(data[:-lost])
        expected = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
        header = read_header(path, data[:-lost])
        assert "cut short" in header.warning and not header.plain
        np.testing.assert_array_equal(read_image(path).permute(1, 2, 0).numpy(), expected)
        with pytest.raises(ImageError, match="cut short"):
            read_image(path, lenient=False)


def test_what_is_cut_and_what_is_not():
    data = _jpeg()
    scan = data.index(b"\xff\xda") + 2
    scan += int.from_bytes(data[scan:scan + 2], "big")
    for tail in (b"", b"trailing\xff\xd8\xff", b"\0" * 99):
        assert not read_header("a.jpg", data + tail).warning
    # The end of a thumbnail within EXIF is not the image's
    thumbnail = b"Exif\0\0MM\0*" + _jpeg(quality=10)[-500:]
    inside = b"\xff\xd8\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail + data[2:]
    assert not read_header("a.jpg", inside).warning and read_header("a.jpg", inside[:-2]).warning
    for end in (100, 300, data.index(b"\xff\xda") + 3, scan):
        with pytest.raises(ImageError, match="no pixels"):
            read_header("a.jpg", data[:end])
    assert read_header("a.jpg", data[:scan + 1]).warning


def test_messages_show_no_place_in_anybodys_source():
    data = _jpeg()
    tables = data.index(b"\xff\xc4") + 5        # the lengths of a Huffman table's codes
    broken = data[:tables] + b"\xff" * 16 + data[tables + 16:]
    with pytest.raises(ImageError) as error:
        decode("a.jpg", broken, read_header("a.jpg", broken))
    assert "uffman" in error.value.reason and ".cpp" not in error.value.reason


@pytest.fixture
def cut_images(toy_images, tmp_path):
    """The toy data set, in which one image lacks its last byte: (root, its name)."""
    shutil.copytree(toy_images / "toy", tmp_path / "toy")
    file = tmp_path / "toy" / "jpg" / "class 2 photo 3.jpg"
    file.write_bytes(file.read_bytes()[:-1])
    return tmp_path, file.name


def test_extraction_counts_cut_images(run_tool, tiny, cut_images, tmp_path):
    from dolg.config import load_cfg
    from dolg.models import build_model

    root, name = cut_images
    torch.save(build_model(load_cfg(tiny[1], [str(t) for t in tiny[2:]])).state_dict(), tmp_path / "w.pyth")
    command = ["tools/infer.py", *tiny, "INFER.DATASET", "", "INFER.IMAGES", root / "toy" / "jpg",
               "TEST.WEIGHTS", tmp_path / "w.pyth", "INFER.SCALES", "[1.0]", "OUT_DIR", tmp_path]
    done = run_tool(*command, "INFER.OUT_DIR", tmp_path / "lenient")
    assert done.returncode == 0, done.stderr
    assert "WARNING: 1 images were described all the same" in done.stdout and name in done.stdout
    store = FeatureStore(tmp_path / "lenient" / "jpg")
    assert [found for found, _ in store.warnings()] == [name] and not store.errors()
    strict = run_tool(*command, "INFER.OUT_DIR", tmp_path / "strict", "DATA_LOADER.TRUNCATED", "strict")
    assert f"{name}: it is cut short" in strict.stdout
    store = FeatureStore(tmp_path / "strict" / "jpg")
    assert [found for found, _ in store.errors()] == [name] and not store.warnings()


def test_training_counts_cut_images(run_tool, tiny, cut_images, tmp_path):
    root, name = cut_images
    command = ["tools/train.py", *tiny, "DATA_DIR", root, "OPTIM.MAX_EPOCH", 1]
    done = run_tool(*command, "OUT_DIR", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 images are cut short") == 1 and name in done.stdout
    strict = run_tool(*command, "OUT_DIR", tmp_path / "strict", "DATA_LOADER.TRUNCATED", "strict")
    assert strict.returncode == 1 and f"{name}: it is cut short" in strict.stderr
