"""Small copies of photographs: upright, made once, and never a reason to stop."""
import io
import os

import numpy as np
import pytest
from PIL import Image

from dolg.report import thumbnails
from dolg.report.thumbnails import Wanted, make_thumbnail, make_thumbnails


def opened(thumbnail):
    return Image.open(io.BytesIO(thumbnail.jpeg))


def test_thumbnails_are_small_and_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by a quarter to show"
    photo = Image.new("RGB", (800, 400), "blue")
    photo.paste("red", (0, 0, 400, 400))  # the left half as stored, the upper half as shown
    photo.save(tmp_path / "a.jpg", exif=exif)
    thumbnail = make_thumbnail(Wanted(tmp_path / "a.jpg", 120))
    small = opened(thumbnail)
    assert small.size == (thumbnail.width, thumbnail.height) == (60, 120)
    assert (thumbnail.source_width, thumbnail.source_height) == (400, 800)
    assert small.getpixel((30, 20))[0] > 200 and small.getpixel((30, 100))[2] > 200
    cut = make_thumbnail(Wanted(tmp_path / "a.jpg", 120, (0, 400, 400, 800)))     # upright as well
    assert opened(cut).size == (120, 120) and opened(cut).getpixel((60, 8))[2] > 200
    for mode in ("L", "P", "CMYK", "RGBA", "1", "I;16"):
        Image.new(mode, (30, 20)).save(tmp_path / "mode.tif")
        assert make_thumbnail(Wanted(tmp_path / "mode.tif", 120)).width == 30


@pytest.mark.parametrize("box, size", [
    ((2.9, 3.9, 11.2, 13.9), (9, 10)), ((-5, -5, 99, 99), (30, 20)), ((4, 4, 4, 4), (1, 1)),
    ((90, 90, 95, 95), (1, 1))])
def test_boxes_are_whole_pixels_inside(tmp_path, box, size):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    thumbnail = make_thumbnail(Wanted(tmp_path / "a.png", 120, box))
    assert (thumbnail.width, thumbnail.height) == size
    assert (thumbnail.source_width, thumbnail.source_height) == (30, 20)


def test_unreadable_images_give_a_reason(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    (tmp_path / "folder.jpg").mkdir()
    # A BMP header that claims 60000 x 60000 pixels.
    size = (60000).to_bytes(4, "little")
    (tmp_path / "huge.bmp").write_bytes(
        b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little") + size + size
        + (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + bytes(24))
    files = [*tmp_path.iterdir(), tmp_path / "nul\0.jpg", tmp_path / "absent.jpg"]
    for folder in (None, tmp_path / "kept"):
        found = make_thumbnails([Wanted(path, 120) for path in files], folder)
        problems = {wanted.path.name: thumbnail.problem for wanted, thumbnail in found.items()}
        assert problems["text.jpg"] == "not an image" and problems["empty.jpg"] == "the file is empty"
        assert problems["cut.jpg"] == "" and "directory" in problems["folder.jpg"]
        assert "claims 60000 x 60000 pixels" in problems["huge.bmp"] and problems["whole.jpg"] == ""
        assert problems["nul\0.jpg"] and problems["absent.jpg"] == "no such file"
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_what_is_there_is_reused_and_what_changed_is_made_anew(tmp_path, monkeypatch):
    made, make = [], thumbnails.make_thumbnail
    monkeypatch.setattr(thumbnails, "make_thumbnail", lambda one: made.append(one) or make(one))
    photos = [tmp_path / f"{number}.bmp" for number in range(3)]      # all of one size
    for photo, colour in zip(photos, ("red", "green", "blue")):
        Image.new("RGB", (300, 200), colour).save(photo)
    wanted = [Wanted(photo, 100) for photo in photos]
    kept = tmp_path / "kept"
    first = make_thumbnails(wanted, kept)
    assert len(made) == 3 and make_thumbnails(wanted, kept) == first and len(made) == 3
    for thumbnail in first.values():
        assert Image.open(kept / thumbnail.file).size == (150, 100)
        assert (thumbnail.source_width, thumbnail.source_height) == (300, 200)
    Image.new("RGB", (300, 200), "black").save(photos[1])
    os.utime(photos[1], ns=(1, 1))
    second = make_thumbnails(wanted, kept)
    assert [one.path for one in made[3:]] == [photos[1]]
    assert sum(Image.open(kept / second[wanted[1]].file).getpixel((9, 9))) < 9
    assert second[wanted[0]] == first[wanted[0]]
    make_thumbnails([Wanted(photos[0], 50), Wanted(photos[0], 100, (0, 0, 5, 5))], kept)
    assert len(made) == 6       # another height, another box
    file = kept / second[wanted[2]].file
    file.write_bytes(file.read_bytes()[:-9])        # cut off, as a power failure may leave it
    assert make_thumbnails(wanted, kept) == second and len(made) == 7
    assert file.read_bytes().endswith(b"\xff\xd9")
    assert not list(kept.glob(".*"))


def test_only_regular_files_of_photographs_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "eps.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    files = [tmp_path / "pipe.jpg", tmp_path / "eps.jpg", None, tmp_path / f"{'x' * 300}.jpg"]
    for folder in (None, tmp_path / "kept"):
        found = make_thumbnails([Wanted(path, 120) for path in files], folder)
        assert [thumbnail.problem for thumbnail in found.values()] == [
            "it is a named pipe, not a regular file", "not an image", "no such file", "file name too long"]


@pytest.mark.parametrize("mode, levels", [
    ("I;16", [0, 16448, 32896, 65535]), ("I", [0, 16448, 32896, 65535]), ("F", [-1.0, -0.5, 0.00392, 1.0])])
def test_more_than_eight_bits_are_not_cut_off(tmp_path, mode, levels):
    """Quarters, of grey 0, 64, 128 and 255."""
    values = np.repeat(np.repeat(np.array(levels), 100)[None], 200, axis=0)
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    path = tmp_path / ("a.tif" if mode != "I;16" else "a.png")
    Image.fromarray(values.astype(dtype)).save(path)
    small = opened(make_thumbnail(Wanted(path, 100)))
    assert small.size == (200, 100)
    found = [small.getpixel((x, 50))[0] for x in (25, 75, 125, 175)]
    assert found == pytest.approx([0, 64, 128, 255], abs=3)
