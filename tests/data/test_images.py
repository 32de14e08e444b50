"""Decoding, preprocessing and augmentation."""
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dolg.data.augment import (View, centre_view, random_crop_box, random_square_view, random_view,
                               render, render_quickly, square_view)
from dolg.data.datasets import CentredImages, TrainingImages
from dolg.data.decode import ImageError, read_image
from dolg.data.image_list import read_image_list
from dolg.data.preprocess import crop_to_box, preprocess, scaled_size
from dolg.errors import UserError


@pytest.fixture(scope="module")
def photo():
    """A smooth pseudo-photo, uint8 (97,131,3), BGR."""
    noise = np.random.default_rng(0).integers(0, 255, (9, 13, 3), dtype=np.uint8)
    return cv2.resize(noise, (131, 97), interpolation=cv2.INTER_CUBIC)


def _as_opencv(path) -> torch.Tensor:
    return torch.from_numpy(cv2.imread(str(path))[..., ::-1].copy()).permute(2, 0, 1)


@pytest.mark.parametrize("name", ["a.jpg", "a b.jpeg", "a.b.png", "ü.bmp", "a.webp", "a.tiff"])
def test_pixels_are_opencvs(tmp_path, photo, name):
    path = tmp_path / name
    cv2.imencode("." + name.rsplit(".")[-1], photo)[1].tofile(path)
    expected = torch.from_numpy(cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
                                [..., ::-1].copy()).permute(2, 0, 1)
    assert torch.equal(read_image(path), expected)


def test_grey_alpha_and_16_bit_become_rgb(tmp_path, photo):
    grey = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)
    cv2.imwrite(str(tmp_path / "grey.jpg"), grey)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([photo, grey]))
    cv2.imwrite(str(tmp_path / "deep.png"), photo.astype(np.uint16) * 257)
    for name in ("grey.jpg", "alpha.png", "deep.png"):
        image = read_image(tmp_path / name)
        assert image.dtype == torch.uint8 and torch.equal(image, _as_opencv(tmp_path / name))


def test_cmyk_jpeg_is_close_to_opencvs(tmp_path, photo):
    Image.fromarray(photo[..., ::-1]).convert("CMYK").save(tmp_path / "cmyk.jpg")
    image = read_image(tmp_path / "cmyk.jpg")
    assert image.shape == (3, 97, 131)
    difference = (image.float() - _as_opencv(tmp_path / "cmyk.jpg").float()).abs()
    assert difference.mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(photo[..., ::-1]).save(path, exif=exif)
    assert torch.equal(read_image(path), _as_opencv(path))


def _png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
            + struct.pack(">I", zlib.crc32(chunk)) + struct.pack(">I", 1000) + b"IDAT")


@pytest.mark.parametrize("name, content, reason", [
    ("text.jpg", b"this is no image", "not an image"), ("empty.jpg", b"", "the file is empty"),
    ("bomb.png", _png_header(100_000, 100_000), "pixels"),
    ("half.png", _png_header(10, 10), ""),
    ("large.png", _png_header(15_000, 10_000), "claims 15000 x 10000 pixels"),
])
def test_what_is_no_image_says_so(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError) as error:
        read_image(tmp_path / name)
    assert name in str(error.value) and reason in error.value.reason
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_cut_file_is_refused(tmp_path, photo, suffix, share):
    data = cv2.imencode(suffix, photo)[1].tobytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[:int(len(data) * share)])
    with pytest.raises(ImageError):
        read_image(path)


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "absent.jpg")


def test_claimed_size_is_checked_against_the_limit(tmp_path, photo):
    cv2.imwrite(str(tmp_path / "a.jpg"), photo)
    assert read_image(tmp_path / "a.jpg", max_pixels=97 * 131).shape == (3, 97, 131)
    with pytest.raises(ImageError, match="131 x 97"):
        read_image(tmp_path / "a.jpg", max_pixels=97 * 131 - 1)


@pytest.mark.parametrize("scale", [0.3535, 0.5, 0.7071, 1.0, 1.4142])
@pytest.mark.parametrize("colour", ["rgb", "bgr"])
def test_preprocess_against_opencv(photo, scale, colour):
    size = scaled_size(97, 131, scale)
    assert size == (int(round(97 * scale)), int(round(131 * scale)))
    mean, sd = (0.4, 0.45, 0.5), (0.2, 0.21, 0.22)
    shift = np.array([[0.1, 0.0, -0.1]], np.float32)        # RGB
    pixels = photo if colour == "bgr" else photo[..., ::-1]
    resized = cv2.resize(pixels.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
    shifted = resized / 255 + (shift[0] if colour == "rgb" else shift[0, ::-1])
    expected = ((shifted - np.array(mean)) / np.array(sd)).transpose(2, 0, 1)
    rgb = torch.from_numpy(photo[..., ::-1].copy()).permute(2, 0, 1)[None]
    got = preprocess(rgb, size, colour, mean, sd, shift=torch.from_numpy(shift))
    assert got.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(got[0], expected, atol=1e-3)  # 0.05 of a grey level


def test_half_sizes_round_to_even():
    assert scaled_size(375, 373, 0.5) == (188, 186)
    assert scaled_size(1, 1, 0.3535) == (1, 1)


def test_crop_truncates_corners():
    image = torch.arange(3 * 10 * 20).reshape(3, 10, 20)
    assert torch.equal(crop_to_box(image, (2.9, 1.2, 15.99, 9.5)), image[:, 1:9, 2:15])
    assert torch.equal(crop_to_box(image, (-3.0, -1.0, 500, 500)), image)
    with pytest.raises(ValueError, match="leaves nothing of an image of 20 x 10"):
        crop_to_box(image, (5.2, 1, 5.9, 9))


def test_random_crops_keep_their_limits():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(300):
        top, left, h, w = random_crop_box(90, 140, 0.08, rng)
        assert 0 <= top <= 90 - h and 0 <= left <= 140 - w
        assert 0.72 < w / h < 1.4
        shares.append(h * w / (90 * 140))
    assert min(shares) > 0.075 and min(shares) < 0.2 and max(shares) > 0.6
    assert random_crop_box(10, 1000, 1.0, rng) == (0, 495, 10, 10)


def test_views():
    image = (torch.rand(3, 60, 80) * 255).byte()
    view = random_view(60, 80, 32, 0.5, np.random.default_rng(5))
    assert view == random_view(60, 80, 32, 0.5, np.random.default_rng(5))
    assert view != random_view(60, 80, 32, 0.5, np.random.default_rng(6))
    assert max(map(abs, view.shift)) < 0.15
    top, left, height, width = view.box
    expected = F.interpolate(image[:, top:top + height, left:left + width].float()[None],
                             size=(32, 32), mode="bilinear", align_corners=False)[0]
    assert torch.equal(render(image, view), expected.flip(2) if view.mirror else expected)
    # Shorter side to 60 (as it is), then the centre 48 x 48
    assert torch.equal(render(image, centre_view(60, 80, 60, 48)), image[:, 6:54, 16:64].float())


def test_a_part_of_an_image_shows_the_same():
    image = (torch.rand(3, 60, 80) * 255).byte()
    for seed in range(10):
        view = random_view(60, 80, 32, 0.2, np.random.default_rng(seed))
        part, view_of_part = view.cut_from(image)
        assert part.shape[1:] == view.box[2:]
        assert torch.equal(render(part, view_of_part), render(image, view))


@pytest.mark.parametrize("seed", range(10))
def test_rendering_quickly_gives_the_same(photo, seed):
    image = torch.from_numpy(photo).permute(2, 0, 1)
    for view in (random_view(97, 131, 32, 0.1, np.random.default_rng(seed)),
                 random_square_view(97, 131, 50, 40, np.random.default_rng(seed)),
                 View((3, 5, 60, 70), 40, 30, corner=(4, 7), mirror=bool(seed % 2))):
        quick = render_quickly(image, view)
        assert quick.shape == (3, view.size, view.size)
        assert (quick - render(image, view)).abs().max() < 0.01


def test_lighting_changes_colours_alone():
    views = [random_view(60, 80, 32, 0.5, np.random.default_rng(5), lighting)
             for lighting in (0.0, 0.1, 0.2)]
    assert len({(view.box, view.mirror) for view in views}) == 1
    none, shift, double = (np.array(view.shift) for view in views)
    assert not none.any() and shift.any() and np.allclose(double, 2 * shift)


def test_square_views_against_pillow(photo):
    image = torch.from_numpy(photo[..., ::-1].copy()).permute(2, 0, 1)
    for size in (40, 64, 200):
        theirs = Image.fromarray(photo[..., ::-1]).resize((size, size), Image.Resampling.BILINEAR)
        expected = np.asarray(theirs, np.float32).transpose(2, 0, 1)
        square = render(image, square_view(97, 131, size))
        assert np.abs(square.numpy() - expected).max() < 1.01       # Pillow rounds


def test_random_crops_of_squares(photo):
    image = torch.from_numpy(photo).permute(2, 0, 1)
    whole, corners, mirrored = render(image, square_view(97, 131, 50)), set(), 0
    for seed in range(60):
        drawn = random_square_view(97, 131, 50, 46, np.random.default_rng(seed))
        view = render(image, drawn)
        assert drawn.shift == (0, 0, 0)
        found = [(top, left, turned) for top in range(5) for left in range(5)
                 for turned in (False, True)
                 if torch.equal(view, (whole[:, top:top + 46, left:left + 46].flip(2) if turned
                                       else whole[:, top:top + 46, left:left + 46]))]
        assert len(found) == 1
        corners.add(found[0][:2])
        mirrored += found[0][2]
    assert len(corners) > 15 and 15 < mirrored < 45
    assert {top for top, _ in corners} == {left for _, left in corners} == set(range(5))


def test_data_sets_of_views(toy_images):
    images = read_image_list(toy_images / "toy" / "train_list.txt", num_classes=4)
    image = read_image(images.name(3))
    squares = TrainingImages(images, 32, 0.08, seed=1, lighting=0.0, resize=40)
    view, drawn, label, index, *_ = squares[2, 3]       # epoch 2, image 3
    assert view.shape == (3, 32, 32) and drawn.shift == (0, 0, 0)
    assert (label, index) == (images.labels[3], 3)
    whole = render(image, square_view(56, 72, 40))
    crops = [whole[:, top:top + 32, left:left + 32] for top in range(9) for left in range(9)]
    assert any(torch.equal(view, crop) or torch.equal(view, crop.flip(2)) for crop in crops)
    assert any(not torch.equal(view, squares[later, 3][0]) for later in range(3, 6))
    assert any(TrainingImages(images, 32, 0.08, seed=1)[2, 3].view.shift)
    assert torch.equal(CentredImages(images, 40, 32, square=True)[0, 3].pixels,
                       render(image, square_view(56, 72, 32)))
    assert torch.equal(CentredImages(images, 40, 32)[0, 3].pixels,
                       render(image, centre_view(56, 72, 40, 32)))
    with pytest.raises(UserError, match="TRAIN.RESIZE is 20, too small .*IM_SIZE 32"):
        TrainingImages(images, 32, 0.08, seed=1, resize=20)
