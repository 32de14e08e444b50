"""Decoding at a half, a quarter or an eighth: against the full image, averaged."""
import struct

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dolg.data.augment import View, random_view, render, square_view
from dolg.data.datasets import CentredImages, TrainingImages
from dolg.data.decode import ImageError, decode, read_header, read_image
from dolg.data.image_list import read_image_list


def _photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth pseudo-photo, uint8 (height,width,3), RGB."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(40, 215, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def _save(path, photo: np.ndarray, orientation: int = 1, **options) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(path, quality=95, exif=exif, **options)


def _averaged(image: torch.Tensor, n: int) -> np.ndarray:
    """The means of n x n pixels of (3,H,W), as (H/n,W/n,3); where the last are less than half
    there, they are left out, and where they are more, the edge is repeated."""
    height, width = image.shape[1:]
    pixels = np.pad(image.permute(1, 2, 0).numpy().astype(np.float64),
                    [(0, -height % n), (0, -width % n), (0, 0)], mode="edge")
    blocks = pixels.reshape(pixels.shape[0] // n, n, pixels.shape[1] // n, n, 3)
    return blocks.mean(axis=(1, 3))[:round(height / n), :round(width / n)]


def _decode(path, reduction: int) -> np.ndarray:
    data = path.read_bytes()
    return decode(path, data, read_header(path, data), reduction).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("size", [(96, 128), (97, 131), (111, 109), (64, 200)])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_decoding_at_a_part_of_the_size_averages(tmp_path, n, size, options):
    path = tmp_path / "a.jpg"
    _save(path, _photo(*size), **options)
    got, expected = _decode(path, n), _averaged(read_image(path), n)
    assert got.dtype == np.uint8 and got.shape == expected.shape
    assert np.abs(got - expected).mean() < 0.8 and np.abs(got - expected).max() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(96, 128), (98, 134)])       # 98 and 134 are 1/4 of no whole size
def test_orientation(tmp_path, orientation, size):
    path = tmp_path / "a.jpg"
    _save(path, _photo(*size), orientation)
    header = read_header(path, path.read_bytes())
    upright = read_image(path)
    assert (header.height, header.width) == upright.shape[1:] == tuple(
        size if orientation < 5 else size[::-1])
    for n in (2, 4):
        got = _decode(path, n)
        assert got.shape == _averaged(upright, n).shape
        # Upright, it may begin with what was the last column, which is within half a pixel
        assert np.abs(got - _averaged(upright, n)).mean() < (0.8 if size == (96, 128) else 7)
        for other in (upright.flip(1), upright.flip(2), upright.flip(1, 2)):
            assert np.abs(got - _averaged(other, n)).mean() > 15


def _exif(*entries: tuple[int, int, int], order: str = "<") -> bytes:
    body = b"".join(struct.pack(order + "HHIHH", tag, kind, 1, value, 0)
                    for tag, kind, value in entries)
    return ({"<": b"II", ">": b"MM"}[order] + struct.pack(order + "HIH", 42, 8, len(entries)) + body
            + bytes(4))


@pytest.mark.parametrize("exif", [
    _exif((0x0112, 3, 6), order=">"), _exif((0x010F, 3, 1), (0x0112, 3, 6), (0x0128, 3, 2)),
    _exif((0x0112, 3, 9)), _exif((0x0112, 3, 0)), _exif((0x0110, 3, 6)), _exif(), b"", b"II",
    b"XX*\0",
    _exif((0x0112, 3, 6))[:14], struct.pack("<2sHI", b"II", 42, 10 ** 9),
])
def test_exif_blocks_mean_what_they_do_to_opencv(tmp_path, exif):
    photo = _photo(40, 60)
    Image.fromarray(photo).save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0" + exif)
    theirs = cv2.imread(str(tmp_path / "a.jpg"), cv2.IMREAD_COLOR_RGB)
    ours = read_image(tmp_path / "a.jpg")
    assert torch.equal(ours, torch.from_numpy(theirs).permute(2, 0, 1))


def _dataset(tmp_path, kind: str, reduced: bool):
    images = read_image_list(tmp_path / "list.txt")
    if kind == "random":
        return TrainingImages(images, 48, 0.08, seed=1, reduced=reduced)
    if kind == "random squares":
        return TrainingImages(images, 40, 0.08, seed=1, resize=48, reduced=reduced)
    return CentredImages(images, 56, 48, square=kind == "square", reduced=reduced)


@pytest.mark.parametrize("kind", ["random", "random squares", "centre", "square"])
def test_views_of_reduced_images_show_the_same(tmp_path, kind):
    sizes = [(400, 500), (401, 331), (130, 170), (800, 1000), (60, 70)]
    for number, size in enumerate(sizes):
        _save(tmp_path / f"{number}.jpg", _photo(*size, seed=number), (1, 6, 3, 1, 8)[number])
    (tmp_path / "list.txt").write_text("".join(f"{i}.jpg 0\n" for i in range(len(sizes))))
    whole, reduced = _dataset(tmp_path, kind, False), _dataset(tmp_path, kind, True)
    seen = set()
    for index in range(len(sizes)):
        for epoch in range(6):
            full, quick = whole[epoch, index], reduced[epoch, index]
            n = full.view.reduction()
            seen.add(n)
            # The crop is drawn from the full size, and means the same part of the image
            assert quick.view == full.view.reduced(n)
            assert (quick.pixels - full.pixels).abs().mean() < (0.001 if n == 1 else 2.5)
            image = read_image(tmp_path / f"{index}.jpg")
            averaged = torch.from_numpy(_averaged(image, n)).permute(2, 0, 1)
            if n > 1 and all(side % n == 0 for side in image.shape[1:]):
                assert (quick.pixels - render(averaged, quick.view)).abs().mean() < 0.6
    assert seen == {1, 2, 4, 8}


@pytest.mark.parametrize("seed", range(30))
def test_how_much_a_view_allows(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(20, 3000, 2))
    view = random_view(height, width, int(rng.integers(10, 300)), 0.08, rng)
    n = view.reduction()
    small = view.reduced(n)
    assert n in (1, 2, 4, 8)
    assert n == 1 or min(small.box[2:]) >= view.side
    assert n == 8 or min(view.reduced(2 * n).box[2:]) < view.side
    top, left, h, w = view.box
    edges = np.array([top, left, top + h, left + w]) / n
    found = np.array([*small.box[:2], small.box[0] + small.box[2], small.box[1] + small.box[3]])
    assert np.abs(edges - found).max() <= 0.5
    assert (small.size, small.mirror, small.shift) == (view.size, view.mirror, view.shift)
    assert found[2] <= round(height / n) and found[3] <= round(width / n)


def test_smoothed_views_keep_twice_their_side():
    assert square_view(1000, 800, 100).reduction() == 4
    assert square_view(1000, 799, 100).reduction() == 4         # 199.75 pixels are 200
    assert square_view(1000, 796, 100).reduction() == 2
    assert View((0, 0, 1000, 800), 100, 100).reduction() == 8


def _reading(tmp_path, content: bytes, name: str = "a.jpg"):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "list.txt").write_text(f"{name} 0\n")
    return _dataset(tmp_path, "centre", True)[0, 0]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_file_is_never_reduced(tmp_path, progressive):
    _save(tmp_path / "whole.jpg", _photo(300, 400), progressive=progressive)
    data = (tmp_path / "whole.jpg").read_bytes()
    assert _reading(tmp_path, data).view.box[2] < 150       # it is reduced
    for end in (50, 150):           # within the headers
        error = _reading(tmp_path, data[:end])
        assert isinstance(error, ImageError) and error.path.endswith("a.jpg"), end
    for end in (len(data) // 3, len(data) // 2, len(data) - 100, len(data) - 3):
        sample = _reading(tmp_path, data[:end])
        assert sample.cut and sample.view.box[2] > 150, end
    # Some versions of OpenCV say nothing of what a file lacks: it is not asked
    assert read_header("whole.jpg", data).plain and not read_header("cut.jpg", data[:-3]).plain


def test_what_a_reduced_decoder_must_not_touch(tmp_path):
    photo = _photo(300, 400)
    Image.fromarray(photo).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    Image.fromarray(photo).save(tmp_path / "plain.jpg", quality=95)
    files = {"cmyk.jpg": (tmp_path / "cmyk.jpg").read_bytes(),
             "a.png": cv2.imencode(".png", photo)[1].tobytes(),
             # More after the last marker, which some cameras leave: whole, but nobody knows
             "tail.jpg": (tmp_path / "plain.jpg").read_bytes() + b"more"}
    for name, content in files.items():
        quick = _reading(tmp_path, content, name)
        whole = _dataset(tmp_path, "centre", False)[0, 0]
        assert quick.view == whole.view
        assert (quick.pixels - whole.pixels).abs().max() < 0.01


def test_grey_images_are_reduced(tmp_path):
    Image.fromarray(_photo(300, 400)).convert("L").save(tmp_path / "grey.jpg", quality=95)
    quick = _reading(tmp_path, (tmp_path / "grey.jpg").read_bytes())
    assert quick.view.box[2] < 150 and torch.equal(quick.pixels[0], quick.pixels[2])
    whole = _dataset(tmp_path, "centre", False)[0, 0]
    assert (quick.pixels - whole.pixels).abs().mean() < 2
