"""Images that would hang, exhaust or mislead: through the commands, and by their pixels."""
import io
import os
import re
import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.fuzz.__main__ import summary
from benchmarks.fuzz.harness import fuzz
from benchmarks.fuzz.images import IMAGE
from dolg.config import load_cfg
from dolg.data.decode import ImageError, read_image
from dolg.features.store import FeatureStore
from dolg.models import build_model

PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def _saved(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def _chunk(kind: bytes, content: bytes, flaw: int = 0) -> bytes:
    checksum = zlib.crc32(kind + content) ^ flaw
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def _with_chunk(chunk: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    whole = _saved("PNG")
    return whole[:33] + chunk + whole[33:]


def _of_many_scans() -> bytes:
    """A progressive JPEG that claims 4000 x 4000 pixels, and has its last scan 3,000 times."""
    whole = _saved("JPEG", progressive=True)
    size, last = whole.index(b"\xff\xc2") + 5, whole.rindex(b"\xff\xda")
    whole = whole[:size] + struct.pack(">HH", 4000, 4000) + whole[size + 4:]
    return whole[:last] + whole[last:-2] * 3000 + whole[-2:]


def _of_many_pixels() -> bytes:
    """A lossless WebP of few bytes that claims 16383 x 16383 pixels."""
    whole = bytearray(_saved("WEBP", lossless=True))
    place = whole.index(b"VP8L") + 9        # 14 bits each: width - 1, height - 1
    size, = struct.unpack_from("<I", whole, place)
    struct.pack_into("<I", whole, place, size & ~0xFFFFFFF | 16382 | 16382 << 14)
    return bytes(whole)


TEXT = _with_chunk(_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000))))
WRONG_EXIF = _with_chunk(_chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0\0\0\0\0", flaw=1))


@pytest.fixture
def hostile(tmp_path):
    """A folder of two images and what is none, and what is to be said of each."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "text.png").write_bytes(TEXT)
    (folder / "whole.png").write_bytes(_saved("PNG"))
    (folder / "scans.jpg").write_bytes(_of_many_scans())
    (folder / "pixels.webp").write_bytes(_of_many_pixels())
    os.mkfifo(folder / "pipe.jpg")
    (folder / "endless.jpg").symlink_to("/dev/zero")
    return folder, {"scans.jpg": "300[0-9] scans of 4000 x 4000", "pixels.webp": "claims 16383 x 16383",
                    "pipe.jpg": "a named pipe", "endless.jpg": "a .*device"}


def test_extraction_names_what_would_hang_or_exhaust(run_tool, tiny, hostile, tmp_path):
    folder, wrong = hostile
    torch.save(build_model(load_cfg(tiny[1], [str(t) for t in tiny[2:]])).state_dict(), tmp_path / "w.pyth")
    (tmp_path / "list.txt").write_text("".join(f"images/{name}\n" for name in sorted(os.listdir(folder))))
    done = run_tool("tools/infer.py", *tiny, "INFER.DATASET", "", "INFER.IMAGES", tmp_path / "list.txt",
                    "TEST.WEIGHTS", tmp_path / "w.pyth", "INFER.SCALES", "[1.0]", "OUT_DIR", tmp_path,
                    timeout=60)
    assert done.returncode == 0, done.stderr
    errors = {name.removeprefix("images/"): reason
              for name, reason in FeatureStore(tmp_path / "features" / "list").errors()}
    assert errors.keys() == wrong.keys()
    for name, reason in wrong.items():
        assert re.search(reason, errors[name]), errors[name]


def test_training_stops_at_a_pipe_and_at_too_many_pixels(run_tool, tiny, toy_images, tmp_path):
    shutil.copytree(toy_images / "toy", tmp_path / "toy")
    command = ["tools/train.py", *tiny, "DATA_DIR", tmp_path, "OPTIM.MAX_EPOCH", 1]
    # The images have 72 x 56 pixels
    done = run_tool(*command, "OUT_DIR", tmp_path / "a", "INFER.MAX_PIXELS", 4000)
    assert done.returncode == 1 and "72 x 56 pixels, more than the 4000 allowed" in done.stderr
    pipe = tmp_path / "toy" / "jpg" / "class 2 photo 3.jpg"
    pipe.unlink()
    os.mkfifo(pipe)
    done = run_tool(*command, "OUT_DIR", tmp_path / "b", "DATA_LOADER.CHECK", "none", timeout=60)
    assert done.returncode == 1 and "it is a named pipe, not a regular file" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_pillows_limit_decides_nothing(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "a").write_bytes(_saved(kind))
    assert read_image(tmp_path / "a", max_pixels=2400).shape == (3, 40, 60)
    with pytest.raises(ImageError, match="60 x 40 pixels, more than the 2399 allowed"):
        read_image(tmp_path / "a", max_pixels=2399)


@pytest.mark.parametrize("content", [TEXT, WRONG_EXIF])
def test_side_chunks_of_a_png_do_not_matter(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), PIXELS)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a.png"))[..., ::-1], PIXELS)


def test_a_png_whose_pixels_are_damaged_is_refused(tmp_path):
    whole = bytearray(_saved("PNG"))
    whole[whole.index(b"IDAT") + 100] ^= 4
    (tmp_path / "a.png").write_bytes(whole)
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.png")


def test_generated_and_damaged_images():
    """A small part of python -m benchmarks.fuzz image --count 30000."""
    outcome = fuzz("image", IMAGE, 300, seed=1)
    assert not outcome.failures, summary("image", 1, outcome)
    assert outcome.counts["read"] and outcome.counts["refused"]
