"""Which kinds of files are images here."""
import io

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from dolg.data.decode import ImageError, read_image

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
PIXELS = np.random.default_rng(0).integers(0, 255, (12, 18, 3), dtype=np.uint8)


def _saved(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def test_no_file_starts_another_program(tmp_path, monkeypatch):
    """Pillow would give an EPS to Ghostscript, whatever its name ends in."""
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("was started"))
    for name in ("a.jpg", "a.png", "a.eps"):
        (tmp_path / name).write_bytes(EPS)
        with pytest.raises(ImageError, match="not an image"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("kind", ["TGA", "ICO", "PCX", "SGI", "JPEG2000"])
def test_kinds_that_are_none(tmp_path, kind):
    """Pillow reads them, with decoders that nobody's photographs need."""
    content = _saved(kind)
    assert Image.open(io.BytesIO(content)).format == kind
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(ImageError, match="not an image"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind, options", [
    ("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {}), ("WEBP", {"lossless": True})])
def test_kinds_that_keep_their_pixels(tmp_path, kind, options):
    (tmp_path / "a.jpg").write_bytes(_saved(kind, **options))
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg").permute(1, 2, 0).numpy(), PIXELS)


def test_telephones_photographs_of_two_images(tmp_path):
    """An MPO is called .jpg, and shown by its first image."""
    first, second = (Image.new("RGB", (16, 8), colour) for colour in ("red", "blue"))
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[second], quality=95)
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    seen = read_image(tmp_path / "a.jpg")
    assert seen.shape == (3, 8, 16)
    np.testing.assert_allclose(seen[:, 4, 8].numpy(), [255, 0, 0], atol=4)


def test_one_image_of_a_gif(tmp_path):
    Image.new("RGB", (16, 8), (250, 120, 30)).save(tmp_path / "a.gif")
    np.testing.assert_allclose(read_image(tmp_path / "a.gif")[:, 4, 8].numpy(), [250, 120, 30], atol=4)
