"""dolg.load, Describer and Index, as a user calls them."""
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import dolg
from dolg.config import load_cfg
from dolg.data.decode import ImageError
from dolg.errors import UserError
from dolg.features.sources import ImageSource, images_of, revisited_set
from dolg.features.store import FeatureStore, StoreWriter
from dolg.search.indexes import build_index
from tests.conftest import ROOT
from tests.python.conftest import TINY

SCALES = ("INFER.SCALES", [0.5, 1.0])


def _pixels(path) -> np.ndarray:
    return np.array(Image.open(path).convert("RGB"))


def test_its_descriptors_are_those_of_a_store_to_the_last_bit(run_tool, tiny_model, landmarks, tmp_path):
    model = tiny_model(*SCALES)
    done = run_tool("tools/infer.py", "--cfg", "configs/quickstart.yaml", *TINY, "DATA_DIR", landmarks,
                    "TEST.WEIGHTS", model.cfg.TEST.WEIGHTS, "INFER.OUT_DIR", tmp_path / "stores",
                    "INFER.SCALES", "[0.5, 1.0]", "DATA_LOADER.NUM_WORKERS", 0,
                    env={"OMP_NUM_THREADS": str(torch.get_num_threads())})
    assert done.returncode == 0, done.stderr
    sources = revisited_set(landmarks, "synthetic", crop_queries=True)
    assert len(sources["query"].boxes) == 3
    for part, source in sources.items():
        store = FeatureStore(tmp_path / "stores" / "synthetic" / part)
        boxes = [source.boxes.get(i) for i in range(len(source))]
        found = model.describe([source.path(i) for i in range(len(source))], boxes)
        assert found.dtype == np.float32 and found.shape == (store.count, 16)
        assert np.array_equal(found, np.asarray(store.global_descriptors()))
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        # ... as are those of `extract`, whose manifest tells the same of how they were made
        own = model.extract(tmp_path / "own" / part, source)
        assert own.names == store.names and np.array_equal(np.asarray(own.global_descriptors()), found)
        assert {key: own.manifest[key] for key in model.settings} == model.settings
        same = ("scales", "weights_digest", "images_digest", "cropped", "precision", "library")
        assert {key: own.manifest[key] for key in same} == {key: store.manifest[key] for key in same}


def test_all_kinds_of_images_give_the_same(tiny_model, photos, tmp_path):
    model, path = tiny_model(*SCALES), tmp_path / "photo.png"
    array = _pixels(photos[0])
    Image.fromarray(array).save(path)
    expected = model.describe(path)
    assert expected.shape == (1, 16)
    kinds = {"text": str(path), "opened": Image.open(path), "array": array, "list": [path],
             "tuple": (array,), "turned": np.ascontiguousarray(array[:, :, ::-1])[:, :, ::-1],
             "strided": array.repeat(2, 0)[::2],
             "fortran": np.asfortranarray(array), "tensor": torch.from_numpy(array).permute(2, 0, 1),
             "whole tensor": torch.from_numpy(array).permute(2, 0, 1).contiguous()}
    for name, kind in kinds.items():
        assert np.array_equal(model.describe(kind), expected), name
    # Several kinds in one list; each gets its own row, in order
    other = _pixels(photos[1])
    rows = model.describe([other, path, Image.fromarray(other)])
    np.testing.assert_allclose(rows[1], expected[0], atol=1e-6)
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-6)
    assert np.abs(rows[0] - rows[1]).max() > 1e-4
    # What was given is left as it was
    assert np.array_equal(array, _pixels(photos[0]))


def test_a_box_is_a_crop_and_other_images_do_not_matter(tiny_model, photos):
    model, array = tiny_model(*SCALES), _pixels(photos[0])
    height, width = array.shape[:2]
    boxes = [(10.9, 5.2, 90.7, 70.1), None, (-20, -5, 60, height + 30)]
    found = model.describe([array] * 3, boxes)
    crops = [array[5:70, 10:90], array, array[:, :60]]      # corners truncated, what is outside cut off
    lone = np.concatenate([model.describe(crop) for crop in crops])
    np.testing.assert_allclose(found, lone, atol=1e-6)


def _distance(model, one, other) -> float:
    return float(np.linalg.norm(model.describe(one) - model.describe(other)))


def test_grey_images(tiny_model, photos, tmp_path):
    model = tiny_model(*SCALES)
    grey = Image.open(photos[0]).convert("L")
    grey.save(tmp_path / "grey.png")
    in_colour = np.repeat(np.asarray(grey)[:, :, None], 3, 2)
    expected = model.describe(in_colour)
    for kind in (tmp_path / "grey.png", grey, np.asarray(grey)):
        assert np.array_equal(model.describe(kind), expected)


def test_images_of_16_bits(tiny_model, photos, tmp_path):
    model = tiny_model(*SCALES)
    grey = np.asarray(Image.open(photos[0]).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 256 + 77).save(tmp_path / "sixteen.png")
    expected = model.describe(grey)
    for kind in (tmp_path / "sixteen.png", Image.open(tmp_path / "sixteen.png")):
        assert np.array_equal(model.describe(kind), expected)
    with pytest.raises(UserError, match="image 1 has Pillow's mode F, which does not say what is white"):
        model.describe([grey, Image.fromarray(grey.astype(np.float32))])


def test_transparent_images_as_read_image_reads_them(tiny_model, photos, tmp_path):
    model, array = tiny_model(*SCALES), _pixels(photos[0])
    alpha = np.full(array.shape[:2], 255, np.uint8)
    alpha[:40] = 90
    image = Image.fromarray(np.dstack([array, alpha]))
    image.save(tmp_path / "transparent.png")
    assert np.array_equal(model.describe(tmp_path / "transparent.png"), model.describe(image))


def test_cmyk_photographs(tiny_model, photos, tmp_path):
    model, photo = tiny_model(*SCALES), Image.open(photos[0])
    photo.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    negative = 255 - _pixels(photos[0])
    far = _distance(model, photo, negative)
    # Decoders turn CMYK into RGB in slightly different ways, and none gives the negative
    assert _distance(model, tmp_path / "cmyk.jpg", photo) < 0.3 * far
    assert _distance(model, tmp_path / "cmyk.jpg", Image.open(tmp_path / "cmyk.jpg")) < 0.3 * far


@pytest.mark.parametrize(("orientation", "stored"), [
    (3, lambda a: np.rot90(a, 2)), (6, np.rot90), (8, lambda a: np.rot90(a, -1)), (2, np.fliplr)])
def test_photographs_are_turned_upright(orientation, stored, tiny_model, photos, tmp_path):
    """`stored` is how a camera held like that stores an upright picture."""
    model, upright = tiny_model(*SCALES), _pixels(photos[0])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(np.ascontiguousarray(stored(upright))).save(path, quality=98, subsampling=0, exif=exif)
    far = _distance(model, upright, np.ascontiguousarray(stored(upright)))
    for kind in (path, Image.open(path)):
        assert _distance(model, kind, upright) < 0.2 * far
    assert np.array_equal(model.describe(path), model.describe(Image.open(path)))


def test_several_calls_and_the_order_of_images(tiny_model, photos):
    model = tiny_model(*SCALES)
    found = model.describe(photos)
    np.testing.assert_allclose(model.describe(photos[::-1])[::-1], found, atol=1e-6)
    lone = np.concatenate([model.describe(photo) for photo in photos])
    np.testing.assert_allclose(lone, found, atol=1e-6)
    assert len(np.unique(found.round(5), axis=0)) == len(photos)
    assert model.describe([]).shape == (0, 16)
    assert not model.network.training and not any(p.grad is not None for p in model.network.parameters())


def test_local_features_are_those_of_a_store(tiny_model, photos, tmp_path):
    model = tiny_model("INFER.LOCAL", True, "INFER.LOCAL_TOPK", 30, "INFER.LOCAL_SCALES", [0.7, 1.0],
                       "INFER.LOCAL_THRESHOLD", 0.0, "INFER.LOCAL_DTYPE", "float16", *SCALES)
    source = ImageSource([photos[0].name], photos[0].parent)
    stored = model.extract(tmp_path / "store", source).local(0)
    found = model.describe_local(photos[0])
    assert 0 < len(found.xy) <= 30 and found.offsets.tolist() == [0, len(found.xy)]
    assert np.array_equal(found.xy, stored.xy) and np.array_equal(found.scores, stored.scores)
    assert np.array_equal(found.scales, stored.scales)
    np.testing.assert_allclose(found.descriptors, stored.descriptors, atol=1e-3)       # stored as float16
    # Of a box: positions are those in the whole image
    array = _pixels(photos[0])
    box, part = model.describe_local(array, (20, 10, 110, 90)), model.describe_local(array[10:90, 20:110])
    assert len(box.xy) and np.array_equal(box.descriptors, part.descriptors)
    np.testing.assert_allclose(box.xy, part.xy + [20, 10], atol=1e-5)


def test_images_that_fail_are_marked_in_a_store_and_raised_by_describe(tiny_model, photos, tmp_path):
    model = tiny_model(*SCALES)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(photos[0].read_bytes())
    (tmp_path / "images" / "b.jpg").write_bytes(photos[0].read_bytes()[:500])
    store = model.extract(tmp_path / "store", images_of(tmp_path / "images"))
    assert store.names == ["a.jpg", "b.jpg"] and store.status.tolist() == [0, 1]
    with pytest.raises(ImageError, match="cannot read image .*b.jpg: ") as caught:
        model.describe([tmp_path / "images" / "a.jpg", tmp_path / "images" / "b.jpg"])
    assert caught.value.path.endswith("b.jpg") and "\n" not in str(caught.value)
    # Started again, nothing is computed anew
    chunk = tmp_path / "store" / "chunk-000000.safetensors"
    written = chunk.stat().st_mtime_ns
    model.extract(tmp_path / "store", images_of(tmp_path / "images"))
    assert chunk.stat().st_mtime_ns == written


BAD = {
    "floats": (np.zeros((8, 9, 3), np.float32), "image 0 is no image of RGB pixels in uint8"),
    "channels first": (np.zeros((3, 80, 90), np.uint8), "image 0 is no image of RGB pixels in uint8"),
    "a tensor, channels last": (torch.zeros(80, 90, 3, dtype=torch.uint8), "image 0 is no image"),
    "a batch": (np.zeros((2, 8, 9, 3), np.uint8), "image 0 is no image of RGB pixels in uint8"),
    "no pixels": (np.zeros((0, 9, 3), np.uint8), "image 0 is no image"),
    "four channels": (np.zeros((8, 9, 4), np.uint8), "image 0 is no image"),
    "objects": (np.zeros((8, 9, 3), object), "image 0 is no image"),
    "a number": (7, "image 0 is no image"),
    "numbers": ([7], "image 0 is no image"),
    "the second one": ([np.zeros((64, 64, 3), np.uint8), None], "image 1 is no image"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_image(kind, tiny_model):
    image, says = BAD[kind]
    with pytest.raises(UserError, match=says) as caught:
        tiny_model(*SCALES).describe(image)
    assert "\n" not in str(caught.value) and "(height, width, 3)" in str(caught.value)


@pytest.mark.parametrize(("boxes", "says"), [
    ([None], "1 boxes are given for 2 images: give one for each, None for a whole one"),
    ([None] * 3, "3 boxes are given for 2 images"),
    ([None, (500, 500, 600, 600)], r"box \(500, 500, 600, 600\) of number 1"),
    ([(30, 30, 10, 10), None], r"box \(30, 30, 10, 10\) of number 0")])
def test_boxes_that_do_not_fit(boxes, says, tiny_model):
    with pytest.raises(UserError, match=says):
        tiny_model(*SCALES).describe([np.zeros((64, 64, 3), np.uint8)] * 2, boxes)


def test_missing_files_and_local_features_that_were_not_asked_for(tiny_model, tmp_path):
    model = tiny_model(*SCALES)
    with pytest.raises(ImageError, match=f"cannot read image {tmp_path}/none.jpg: No such file"):
        model.describe(tmp_path / "none.jpg")
    with pytest.raises(UserError, match="INFER.LOCAL is False: load the model with INFER.LOCAL True"):
        model.describe_local(np.zeros((64, 64, 3), np.uint8))


def test_wrong_configurations_and_weights(tiny_model, tmp_path):
    with pytest.raises(UserError, match="no configuration file .*did you mean 'quickstart.yaml'"):
        dolg.load(ROOT / "configs" / "quickstart.yml", "x.pth")
    with pytest.raises(UserError, match=f"no weights file {tmp_path}/none.pth"):
        dolg.load(load_cfg(None, TINY), tmp_path / "none.pth")
    with pytest.raises(UserError, match="is not of this DOLG: .*missing.*fc_global"):
        gem = tiny_model("MODEL.ARCH", "gem")
        dolg.load(load_cfg(None, TINY), gem.cfg.TEST.WEIGHTS)
    with pytest.raises(UserError, match="TEST.WEIGHTS is empty, and .*holds no checkpoint"):
        dolg.load(load_cfg(None, [*TINY, "OUT_DIR", str(tmp_path)]))
    with pytest.raises(UserError, match="unknown configuration key INFER.SCALE "):
        dolg.load(ROOT / "configs" / "quickstart.yaml", "x.pth", ["INFER.SCALE", 1])
    with pytest.raises(UserError, match="opts go with the path of a YAML file"):
        dolg.load(load_cfg(None, TINY), "x.pth", ["INFER.SCALES", [1.0]])


def test_options_and_the_newest_checkpoint(quickstart):
    config, run = ROOT / "configs" / "quickstart.yaml", quickstart / "output" / "quickstart" / "train"
    model = dolg.load(config, opts=["OUT_DIR", run, "INFER.SCALES", [1.0], "DEVICE", "cpu"])
    assert model.cfg.INFER.SCALES == [1.0] == model.settings["scales"] and model.dim == 128
    assert model.device == torch.device("cpu") and model.settings["model"] == "dolg on ResNet-18"
    named = dolg.load(config, run / "checkpoints" / "model_epoch_0012.pyth", ["DEVICE", "cpu"])
    assert named.settings["weights_digest"] == model.settings["weights_digest"]


@pytest.mark.filterwarnings("error")
def test_arrays_that_may_not_be_written_to_give_no_warning(tiny_model, photos):
    array = np.asarray(Image.open(photos[0]))
    assert not array.flags.writeable
    assert tiny_model(*SCALES).describe(array).shape == (1, 16)


def test_importing_the_package_imports_no_torch():
    script = ("import sys, dolg, revisitop; assert not {'torch', 'faiss'} & set(sys.modules); "
              "from dolg import UserError; assert 'torch' not in sys.modules; "
              "print(dolg.load.__module__, dolg.Index.__module__, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True,
                          timeout=120)
    assert done.stdout.split() == ["dolg.features.describer", "dolg.search.indexes", "True"], done.stderr


def test_names_that_the_package_does_not_have():
    with pytest.raises(AttributeError, match="module 'dolg' has no attribute 'lod'"):
        dolg.lod


def test_an_index_finds_what_slow_code_finds(tmp_path):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(4)
    table = rng.normal(size=(40, 8)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    table[[7, 31]] = table[3]                                  # twins: equal scores
    table[12] = np.nan                                         # failed
    writer = StoreWriter(tmp_path / "store", [f"image {i}" for i in range(40)], 8, 16,
                         {"model": "none", "weights_digest": "0"})
    writer.create()
    for chunk in range(3):
        rows = writer.rows(chunk)
        failed = {i - rows.start: "bad" for i in rows if i == 12}
        writer.write_chunk(chunk, table[rows.start:rows.stop], failed)
    build_index(tmp_path / "index", [FeatureStore(tmp_path / "store")], kind="flat")
    index, queries = dolg.Index(tmp_path / "index"), np.vstack([table[3], rng.normal(size=(4, 8))])
    scores, rows = index.search(queries.astype(np.float32), 45)
    assert scores.shape == rows.shape == (5, 45)
    for q, query in enumerate(queries):
        exact = [(float(np.dot(query, table[i])), i) for i in range(40) if i != 12]
        best = sorted(exact, key=lambda pair: (-round(pair[0], 6), pair[1]))
        assert rows[q].tolist() == [i for _, i in best] + [-1] * 6
        np.testing.assert_allclose(scores[q][:39], [score for score, _ in best], atol=1e-6)
        assert np.isneginf(scores[q][39:]).all()
    assert rows[0, :3].tolist() == [3, 7, 31] and index.names[31] == "image 31"
    with pytest.raises(UserError, match="0 results are asked for; give at least 1"):
        index.search(queries, 0)
    with pytest.raises(UserError, match=r"queries have shape \(5, 7\).*8 dimensions"):
        index.search(queries[:, :7], 3)
    with pytest.raises(UserError, match="holds no index that is whole"):
        dolg.Index(tmp_path / "none")
