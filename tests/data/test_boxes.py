"""Images cut to boxes: against files that were cut before, in training and in extraction."""
import csv
import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dolg.config import load_cfg
from dolg.data.boxes import BoxesByIndex, pixels_inside, read_boxes, write_boxes
from dolg.data.datasets import CentredImages, TrainingImages
from dolg.data.decode import ImageError
from dolg.data.image_list import ImageList, read_image_list
from dolg.data.images import open_images
from dolg.data.loader import StepLoader
from dolg.data.preprocess import crop_to_box
from dolg.data.sampler import StepSampler
from dolg.errors import UserError
from dolg.features.decoding import DecodedImages
from dolg.features.extract import Extractor
from dolg.features.local import LocalSettings
from dolg.features.sources import images_of
from dolg.features.store import FeatureStore, StoreWriter
from dolg.models import build_model

KINDS = ["random", "random squares", "centre", "square"]
HEADER = "path,x1,y1,x2,y2\n"


def _photo(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    noise = rng.integers(0, 255, (6, 7, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def _slow_crop(pixels: np.ndarray, box) -> np.ndarray:
    """Of (H,W,3), each pixel whose place is in the box: row by row, pixel by pixel."""
    x1, y1, x2, y2 = (int(corner) for corner in box)
    rows = [row for y, row in enumerate(pixels) if y1 <= y < y2]
    return np.array([[pixel for x, pixel in enumerate(row) if x1 <= x < x2] for row in rows], np.uint8)


def _some_box(height: int, width: int, rng: np.random.Generator) -> tuple[float, ...]:
    """A box that has some pixels of the image: inside, sticking out of it, or of one pixel."""
    kind = rng.integers(4)
    if kind == 0:
        x, y = int(rng.integers(width)), int(rng.integers(height))
        return float(x), float(y), x + 1.0, y + 1.0
    out = 0.3 if kind == 1 else 0
    x1, x2 = rng.uniform(-out * width, width / 2), rng.uniform(width / 2 + 1, (1 + out) * width)
    y1, y2 = rng.uniform(-out * height, height / 2), rng.uniform(height / 2 + 1, (1 + out) * height)
    return x1, y1, x2, y2


def _write_csv(folder: Path, rows: dict[str, tuple]) -> None:
    with open(folder / "boxes.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER.strip().split(","), *((p, *box) for p, box in rows.items())])


# ---- the file

@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_is_read(tmp_path, seed):
    rng = np.random.default_rng(seed)
    names = ["a.jpg", "../b c/d, e.jpg", 'say "x".png', "é 日本.webp", " blank.jpg ", "/abs/f.jpg", "'", "#"]
    boxes = {name: _some_box(300, 400, rng) for name in rng.permutation(names).tolist()}
    write_boxes(tmp_path / "boxes.csv", boxes.items())
    with open(tmp_path / "boxes.csv", encoding="utf-8", newline="") as file:
        assert [row[0] for row in csv.reader(file)] == ["path", *boxes]
    order = rng.choice(names, 20).tolist()
    table = read_boxes(tmp_path).of(order, tmp_path / "list.txt")
    assert table.dtype == np.float64 and table.tolist() == [list(boxes[name]) for name in order]
    assert [path.name for path in tmp_path.iterdir()] == ["boxes.csv"]


def test_a_file_half_written_is_not_there(tmp_path):
    def rows():
        yield "a.jpg", (0, 0, 1, 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_boxes(tmp_path / "boxes.csv", rows())
    assert not list(tmp_path.iterdir()) and read_boxes(tmp_path) is None


@pytest.mark.parametrize("text", [
    HEADER + "a.jpg,1,2.5,3,4\nb.jpg,-1e1,0,7, 8 \n",
    "\ufeff" + HEADER + "\r\na.jpg,1,2.5,3,4\r\n\r\nb.jpg,-10,0,7,8",
    "y2,kind,x1,path,y1,x2\n4,bird,1,a.jpg,2.5,3\n8,\"car, red\",-10,\"b.jpg\",0,7\n",
    HEADER + "a.jpg,1,2.5,3,4\nb.jpg,-10,0,7,8\na.jpg,1.0,2.50,3,4\n",
])
def test_forms_of_the_file(tmp_path, text):
    (tmp_path / "boxes.csv").write_text(text, encoding="utf-8", newline="")
    table = read_boxes(tmp_path).of(iter(["b.jpg", "a.jpg"]), tmp_path / "list.txt")
    assert table.tolist() == [[-10, 0, 7, 8], [1, 2.5, 3, 4]]


@pytest.mark.parametrize("text, message", [
    ("", "boxes.csv has no header with the columns path,x1,y1,x2,y2: its first line is ''"),
    ("a.jpg,1,2,3,4\n", "has no header .* 'a.jpg,1,2,3,4'"),
    ("path,x1,y1,x2\na.jpg,1,2,3\n", "has no header"),
    (HEADER + "a.jpg,1,2,3\n", "boxes.csv, line 2: 4 columns, and the header has 5"),
    (HEADER + "\n\na.jpg,1,2,3,4\nb,c.jpg,1,2,3,4\n", "line 5: 6 columns"),
    (HEADER + "a.jpg,1,2,3,4\nb.jpg,1,x,3,4\n", "line 3: the box '1,x,3,4' is not four numbers"),
    (HEADER + "a.jpg,1,,3,4\n", "line 2: the box '1,,3,4' is not four numbers"),
    (HEADER + "a.jpg,1,2,3,4\nb.jpg,1,nan,3,4\n", "line 3: the box 1,nan,3,4 is not of finite numbers"),
    (HEADER + "a.jpg,1,2,inf,4\n", "line 2: the box 1,2,inf,4 is not of finite"),
    (HEADER + "a.jpg,1,2,1e999,4\n", "not of finite"),
    (HEADER + "a.jpg,1,2,3,4\nb.jpg,3,2,1,4\n", "line 3: the box 3,2,1,4 has no pixel: x2 must be above"),
    (HEADER + "a.jpg,1,4,3,4\n", "line 2: the box 1,4,3,4 has no pixel"),
    (HEADER + "a.jpg,1.2,1,1.9,4\n", "line 2: the box 1.2,1,1.9,4 has no pixel"),
    (HEADER + "a.jpg,1,2,3,4\nb.jpg,1,2,3,4\na.jpg,1,2,3,5\n",
     "line 4: 'a.jpg' has another box than in line 2"),
    (HEADER + "\"two\nlines\",1,2,3,4\na.jpg,5,2,3,4\n", "line 4: the box 5,2,3,4 has no pixel"),
    (HEADER + "a.jpg,1,2,3,4\n\"b.jpg,1,2,3,4\n", "line 3: not CSV"),
])
def test_bad_files(tmp_path, text, message):
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_boxes(tmp_path)
    assert str(tmp_path / "boxes.csv") in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "boxes.csv").write_bytes(HEADER.encode() + b"\xff.jpg,1,2,3,4\n")
    with pytest.raises(UserError, match="boxes.csv is not a text file in UTF-8"):
        read_boxes(tmp_path)
    (tmp_path / "boxes.csv").unlink()
    (tmp_path / "boxes.csv").symlink_to("absent.csv")       # a disk that is not mounted
    with pytest.raises(UserError, match="cannot read .*boxes.csv: No such file"):
        read_boxes(tmp_path)


@pytest.mark.parametrize("seed", range(40))
def test_the_pixels_are_those_that_slicing_leaves(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 12, 2).tolist()
    numbers = np.arange(height * width).reshape(height, width)
    for _ in range(60):
        x1, y1, x2, y2 = box = tuple(rng.uniform(-4, 16, 4).tolist())
        expected = numbers[max(int(y1), 0):max(int(y2), 0), max(int(x1), 0):max(int(x2), 0)]
        if not expected.size:
            with pytest.raises(ValueError, match="leaves nothing of an image"):
                pixels_inside(box, height, width)
        else:
            top, left, h, w = pixels_inside(box, height, width)
            assert h > 0 and w > 0 and top >= 0 and left >= 0
            assert np.array_equal(numbers[top:top + h, left:left + w], expected)
            crop = crop_to_box(torch.from_numpy(numbers).expand(3, -1, -1), box)
            assert np.array_equal(crop, np.broadcast_to(expected, (3, *expected.shape)))
    assert pixels_inside((-1e300, 0, 1e300, 1e300), 7, 5) == (0, 0, 7, 5)
    for box in ((0, 0, float("inf"), 5), (float("nan"), 0, 3, 5), (0, 0, 3)):
        with pytest.raises(ValueError, match="is no box: give four finite numbers"):
            pixels_inside(box, 7, 5)


def test_boxes_by_index():
    boxes = BoxesByIndex(np.array([[1, 2.5, 3, 4], [5, 6, 7, 8]]))
    assert boxes.get(0) == (1.0, 2.5, 3.0, 4.0) and boxes[1] == (5.0, 6.0, 7.0, 8.0)
    assert boxes.get(2) is None and boxes.get(-1) is None and len(boxes) == 2 and boxes
    assert dict(boxes) == {0: (1.0, 2.5, 3.0, 4.0), 1: (5.0, 6.0, 7.0, 8.0)}
    assert all(type(corner) is float for corner in boxes[1])


# ---- lists

def test_a_list_has_the_boxes_of_its_folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("list.txt", "sub/list.txt"):
        (tmp_path / name).write_text(" c d.jpg 3\n../x/ü,1.jpg 0\n\nc d.jpg 1")
    assert read_image_list(tmp_path / "list.txt").boxes is None
    _write_csv(tmp_path, {"other.jpg": (0, 0, 9, 9), "../x/ü,1.jpg": (1, 2, 3, 4.5),
                          "c d.jpg": (5, 6, 7, 8)})
    images = read_image_list(tmp_path / "list.txt", num_classes=4)
    assert images.boxes.tolist() == [[5, 6, 7, 8], [1, 2, 3, 4.5], [5, 6, 7, 8]]
    assert images.labels.tolist() == [3, 0, 1]
    assert read_image_list(tmp_path / "sub" / "list.txt").boxes is None
    taken = images.taken(np.array([2, 1]))
    assert taken.boxes.tolist() == [[5, 6, 7, 8], [1, 2, 3, 4.5]] and taken.labels.tolist() == [1, 0]
    assert [taken.name(i) for i in range(2)] == [images.name(i) for i in (2, 1)]
    whole = read_image_list(tmp_path / "sub" / "list.txt").taken(np.array([1]))
    assert whole.boxes is None and len(whole) == 1 and whole.labels.tolist() == [0]


def test_an_image_without_a_box_is_named(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("a.jpg 0\nb c.jpg 1\n")
    _write_csv(tmp_path, {"a.jpg": (0, 0, 9, 9), "b c.jpg 1": (0, 0, 9, 9), "c.jpg": (0, 0, 9, 9)})
    for read in (read_image_list, images_of):
        with pytest.raises(UserError, match="boxes.csv has no box for 'b c.jpg' of .*list.txt") as error:
            read(tmp_path / "list.txt")
        assert "\n" not in str(error.value)


def test_shards_hold_whole_images(tmp_path, run_tool):
    folder = tmp_path / "cropped"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), np.zeros((8, 8, 3), np.uint8))
    (folder / "list.txt").write_text("a.png 0\n")
    _write_csv(folder, {"a.png": (0, 0, 4, 4)})
    done = run_tool("tools/make_shards.py", "--list", folder / "list.txt", "--output", tmp_path / "out")
    assert done.returncode == 1 and "boxes.csv, and shards hold whole images" in done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="cropped holds boxes.csv, and a.tar shards, which hold whole"):
        open_images(folder, "a.tar")


# ---- views

@pytest.fixture(scope="module", params=["png", "jpg"])
def pair(request, tmp_path_factory) -> tuple[ImageList, ImageList]:
    """Images with boxes, and the same cut and saved as PNG. JPEGs have any EXIF orientation."""
    root, rng = tmp_path_factory.mktemp("pair"), np.random.default_rng(1)
    whole, cut, lines, boxes = root / "whole", root / "cut", [], {}
    (cut / "in").mkdir(parents=True)
    (whole / "in").mkdir(parents=True)
    for number in range(24):
        name, exif = f"in/{number}, é.{request.param}", Image.Exif()
        exif[0x0112] = 1 if request.param == "png" else max(1, number - 15)
        photo = _photo(*rng.integers(30, 220, 2).tolist(), rng)
        Image.fromarray(photo).save(whole / name, quality=95, exif=exif)
        upright = cv2.imdecode(np.fromfile(whole / name, np.uint8), cv2.IMREAD_COLOR)
        boxes[name] = _some_box(*upright.shape[:2], rng)
        crop = _slow_crop(upright, boxes[name])
        cv2.imencode(".png", crop)[1].tofile(cut / name)
        lines.append(f"{name} {number % 5}\n")
    for folder in (whole, cut):
        (folder / "list.txt").write_text("".join(lines))
    _write_csv(whole, dict(reversed(boxes.items())))
    sizes = [pixels_inside(box, 10 ** 6, 10 ** 6)[2:] for box in boxes.values()]
    assert (1, 1) in sizes and max(sizes) > (100, 0)
    return read_image_list(whole / "list.txt"), read_image_list(cut / "list.txt")


def _dataset(images, kind: str = "random", size: int = 32, **options):
    if kind == "random":
        return TrainingImages(images, size, 0.08, seed=1, **options)
    if kind == "random squares":
        return TrainingImages(images, size, 0.08, seed=1, resize=size + 8, **options)
    return CentredImages(images, size + 8, size, square=kind == "square", **options)


class _Spec:
    colour, mean, sd = "bgr", (0.4, 0.45, 0.5), (0.2, 0.21, 0.22)


def _loader(dataset, workers: int = 0) -> StepLoader:
    sampler = StepSampler(len(dataset.images), 8, 0, 1, seed=5, shuffle=False)
    return StepLoader(dataset, sampler, _Spec, workers, False, "cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_device", ["", "augment", "decode"])
def test_views_are_those_of_files_cut_before(pair, kind, on_device):
    with_boxes, cut = (_loader(_dataset(images, kind, on_device=on_device)) for images in pair)
    for epoch in range(3):
        for one, other in zip(with_boxes.epoch(epoch), cut.epoch(epoch), strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_the_boxes(pair, workers):
    with_boxes, cut = _loader(_dataset(pair[0], on_device="augment"), workers), _loader(_dataset(pair[1]))
    for one, other in zip(with_boxes.epoch(4), cut.epoch(4), strict=True):
        assert torch.equal(one.images, other.images)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[ImageList, ImageList]:
    """JPEGs with boxes of whole blocks of 8 x 8 pixels, and JPEGs of these blocks alone, which are stored
    alike, number by number: nothing of the glaring noise around them is in those."""
    root, rng, lines, boxes = tmp_path_factory.mktemp("large"), np.random.default_rng(2), [], {}
    whole, cut = root / "whole", root / "cut"
    for number in range(12):
        # (By 16, so that halves of a pixel at 1/8 are rounded to the same side)
        (height, width), (top, left) = 8 * rng.integers(2, 90, 2), 16 * rng.integers(0, 5, 2)
        noise = 255 * rng.integers(0, 2, (top + height + 8 * rng.integers(9), left + width + 13, 3))
        inside = np.s_[top:top + height, left:left + width]
        noise[inside] = 64 + _photo(height, width, rng) // 2
        for folder, pixels in ((whole, noise), (cut, noise[inside])):
            folder.mkdir(exist_ok=True)
            image = Image.fromarray(pixels.astype(np.uint8))
            image.save(folder / f"{number}.jpg", quality=95, subsampling=0)
        boxes[f"{number}.jpg"] = (left + 0.9, top, left + width, top + height + 0.5)
        lines.append(f"{number}.jpg 0\n")
    for folder in (whole, cut):
        (folder / "list.txt").write_text("".join(lines))
    _write_csv(whole, boxes)
    return read_image_list(whole / "list.txt"), read_image_list(cut / "list.txt")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("on_device", ["", "augment", "decode"])
@pytest.mark.parametrize("reduced", [False, True])
def test_reduced_views_of_whole_blocks_are_those_of_files_cut_before(large, kind, on_device, reduced):
    with_boxes, cut = (_dataset(images, kind, on_device=on_device, reduced=reduced) for images in large)
    full, seen = _dataset(large[1], kind), set()
    for index in range(12):
        for epoch in range(4):
            one, other = with_boxes[epoch, index], cut[epoch, index]
            seen.add(full[epoch, index].view.reduction())
            if one.pixels.ndim > 1:     # else it is the file
                assert torch.equal(one.pixels, other.pixels)
            assert (one.view.side, one.view.mirror) == (other.view.side, other.view.mirror)
    assert len(seen) > 1
    for one, other in zip(_loader(with_boxes).epoch(1), _loader(cut).epoch(1), strict=True):
        assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("kind", KINDS)
def test_reduced_views_end_within_half_a_pixel_of_the_box(tmp_path, kind):
    rng, boxes = np.random.default_rng(3), {}
    for number in range(12):
        height, width = rng.integers(200, 700, 2).tolist()
        exif = Image.Exif()
        exif[0x0112] = number % 8 + 1
        smooth = 96 + _photo(height, width, rng) // 4
        Image.fromarray(smooth).save(tmp_path / f"{number}.jpg", quality=95, exif=exif)
        height, width = (height, width) if number % 8 < 4 else (width, height)
        boxes[f"{number}.jpg"] = _some_box(height, width, rng)
    (tmp_path / "list.txt").write_text("".join(f"{number}.jpg 0\n" for number in range(12)))
    _write_csv(tmp_path, boxes)
    images, counts = read_image_list(tmp_path / "list.txt"), {}
    full, quick = (_dataset(images, kind, reduced=reduced) for reduced in (False, True))
    for index in range(12):
        for epoch in range(8):
            view, small = full[epoch, index], quick[epoch, index]
            n = view.view.reduction()
            counts[n] = counts.get(n, 0) + 1
            x1, y1, x2, y2 = (max(0, int(corner)) for corner in boxes[f"{index}.jpg"])
            for start, side, low, high in zip(small.view.box, small.view.box[2:], (y1, x1), (y2, x2)):
                assert side > 0 and start >= low / n - 0.5 and start + side <= high / n + 0.5
            assert (view.pixels - small.pixels).abs().mean() < (0.001 if n == 1 else 2)
    assert counts.keys() >= {1, 2} and sum(counts.values()) - counts[1] > 20


def test_without_boxes_nothing_is_cut(pair):
    images = pair[1]
    dataset = _dataset(images)
    assert images.boxes is None and dataset.boxes is None
    for index in range(len(images)):
        height, width = cv2.imdecode(np.frombuffer(images.read(index), np.uint8), 1).shape[:2]
        assert dataset[2, index].view == dataset.view(2, index, height, width)


@pytest.fixture(params=["png", "jpg"])
def outside(request, tmp_path) -> Path:
    """A list of two images of 40 x 30 pixels; the box of the second is beside it."""
    for number in range(2):
        cv2.imwrite(str(tmp_path / f"{number}.{request.param}"), np.full((30, 40, 3), 90, np.uint8))
    (tmp_path / "list.txt").write_text("".join(f"{number}.{request.param} 0\n" for number in range(2)))
    _write_csv(tmp_path, {f"0.{request.param}": (5, 5, 90, 90), f"1.{request.param}": (40, 5, 90, 90)})
    return tmp_path / "list.txt"


@pytest.mark.parametrize("on_device", ["", "augment", "decode"])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_box_outside_its_image(outside, on_device, reduced):
    images = read_image_list(outside)
    dataset = _dataset(images, on_device=on_device, reduced=reduced)
    assert not isinstance(dataset[0, 0], ImageError)
    with pytest.raises(ImageError, match="leaves nothing of an image of 40 x 30 pixels") as error:
        list(_loader(dataset).epoch(0))
    assert error.value.path == images.name(1)


# ---- extraction

@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(load_cfg(None, ["MODEL.ARCH", "delg", "MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "8",
                                       "MODEL.NUM_CLASSES", "4", "MODEL.HEADS.REDUCTION_DIM", "16"])).eval()


def _store(model, source, path: Path, workers: int) -> FeatureStore:
    extractor = Extractor(model, [0.7071, 1.0], torch.float32, 40_000, workers, 10 ** 8, strict=False,
                          local=LocalSettings((1.0,), 9, threshold=0.0))
    writer = StoreWriter(path, source.names, extractor.dim, 10, {}, extractor.local_dim)
    extractor.fill(writer, source, writer.missing_chunks())
    return FeatureStore(path)


@pytest.mark.parametrize("workers", [0, 2])
def test_descriptors_are_those_of_files_cut_before(pair, model, tmp_path, workers):
    with_boxes, cut = (images_of(images.file) for images in pair)
    one, other = (_store(model, source, tmp_path / name, workers)
                  for source, name in ((with_boxes, "with boxes"), (cut, "cut")))
    assert list(one.names) == list(other.names) and (one.status == other.status).all()
    fine = np.flatnonzero(other.status == 0)
    assert len(fine) > 15
    np.testing.assert_array_equal(one.rows(fine), other.rows(fine))
    counts = set()
    for row in fine.tolist():
        mine, theirs, box = one.local(row), other.local(row), pair[0].boxes[row]
        np.testing.assert_array_equal(mine.descriptors, theirs.descriptors)
        # Where they are in the whole image
        corner = np.maximum(box[:2].astype(int), 0)
        np.testing.assert_allclose(mine.xy, theirs.xy + corner, atol=1e-3)
        counts.add(len(mine.xy))
    assert max(counts) == 9


def test_a_list_of_cropped_images_is_a_source_of_its_own(pair, tmp_path):
    source, cut = images_of(pair[0].file), images_of(pair[1].file)
    assert list(source.names) == list(cut.names) and source.names[3].startswith("in/3, é.")
    assert bool(source.boxes) and not cut.boxes
    lines = ((name, tuple(map(float, box))) for name, box in zip(source.names, pair[0].boxes))
    text = "".join(f"{name}\t{box}\n" for name, box in lines)
    assert source.digest() == hashlib.sha256(text.encode()).hexdigest()
    text = "".join(f"{name}\tNone\n" for name in cut.names)
    assert cut.digest() == hashlib.sha256(text.encode()).hexdigest()
    # A list without labels, and one of only some images
    unlabelled = pair[0].file.parent / "some.txt"
    unlabelled.write_text("".join(f"{source.names[i]}\n" for i in (5, 2)), encoding="utf-8")
    some = images_of(unlabelled)
    assert [some.boxes.get(i) for i in range(3)] == [tuple(pair[0].boxes[5]), tuple(pair[0].boxes[2]), None]


def test_extraction_of_a_box_outside_its_image(outside):
    images = DecodedImages(images_of(outside), 10 ** 8)
    assert images[0].pixels.shape == (3, 25, 35) and images[0].corner == (5, 5)
    error = images[1].pixels
    assert isinstance(error, ImageError) and error.path.endswith(str(Path(images.source.names[1])))
    assert error.reason == "the box (40.0, 5.0, 90.0, 90.0) leaves nothing of an image of 40 x 30 pixels"


def test_a_folder_with_boxes_is_no_folder_of_whole_images(outside):
    with pytest.raises(UserError, match="is a folder with boxes.csv, .* give a list in it") as error:
        images_of(outside.parent)
    assert "\n" not in str(error.value)
