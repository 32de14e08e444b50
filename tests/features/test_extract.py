"""Extraction: what is stored, in which order, and what happens to bad images and kills."""
import errno
import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dolg.config import load_cfg
from dolg.data.decode import ImageError, read_image
from dolg.errors import UserError
from dolg.features.extract import Extractor, average_scales, describe
from dolg.features.sources import ImageSource, images_of, revisited_set
from dolg.features.store import FeatureStore, StoreWriter
from dolg.models import build_model
from revisitop.stores import StoreError

ROOT = Path(__file__).resolve().parents[2]
SCALES = [0.7071, 1.0, 1.4142]


@pytest.fixture(scope="module")
def cfg():
    return load_cfg(None, ["MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "8", "MODEL.NUM_CLASSES", "4",
                           "MODEL.HEADS.REDUCTION_DIM", "16"])


@pytest.fixture(scope="module")
def model(cfg):
    torch.manual_seed(0)
    return build_model(cfg).eval()


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.pyth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 23 images of four sizes, two of them unreadable."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    sizes = [(64, 48), (48, 64), (64, 48), (80, 56)]
    for i in range(21):
        pixels = rng.integers(0, 255, (*sizes[i % 4], 3), dtype=np.uint8)
        path = folder / ("sub dir" if i % 2 else ".") / f"photo.{i:02d} ü.jpg"
        path.parent.mkdir(exist_ok=True)
        cv2.imencode(".jpg", pixels)[1].tofile(path)
    (folder / "cut.jpg").write_bytes((folder / "photo.00 ü.jpg").read_bytes()[:300])
    (folder / "text.jpg").write_text("this is no image")
    return folder


def _extractor(model, **changes):
    settings = {"scales": SCALES, "precision": torch.float32, "batch_pixels": 40_000, "workers": 0,
                "max_pixels": 10 ** 8, "strict": False, **changes}
    return Extractor(model, **settings)


def _fill(model, source, path, chunk_size=5, **changes):
    writer = StoreWriter(path, source.names, model.dim, chunk_size, {"scales": SCALES})
    _extractor(model, **changes).fill(writer, source, writer.missing_chunks())
    return FeatureStore(path)


def _slow_descriptor(model, path, box=None):
    """One image, scale by scale, as the original does it: OpenCV's resize, then the network."""
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR).astype(np.float32)
    if box:
        x1, y1, x2, y2 = map(int, box)
        image = image[y1:y2, x1:x2]
    total = 0
    for scale in SCALES:
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        scaled = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) / 255
        scaled = (scaled - np.float32([0.406, 0.456, 0.485])) / np.float32([0.225, 0.224, 0.229])
        with torch.no_grad():
            raw = model(torch.from_numpy(scaled.transpose(2, 0, 1).copy())[None])["global"][0]
        total = total + raw.double().numpy() / np.linalg.norm(raw.double().numpy())
    return total / np.linalg.norm(total)


def test_against_one_image_at_a_time(model, photos, tmp_path):
    store = _fill(model, images_of(photos), tmp_path / "store")
    table = np.asarray(store.global_descriptors())
    assert store.count == 23 and table.shape == (23, 16)
    for name, row, status in zip(store.names, table, store.status):
        if name in ("cut.jpg", "text.jpg"):
            assert status != 0 and np.isnan(row).all()
        else:
            assert status == 0
            assert row @ _slow_descriptor(model, photos / name) > 1 - 1e-6


def test_names_are_in_order_and_failures_have_reasons(model, photos, tmp_path):
    store = _fill(model, images_of(photos), tmp_path / "store")
    assert store.names == sorted(store.names, key=lambda n: photos / n)
    assert len(store.names) == 23 and "sub dir/photo.01 ü.jpg" in store.names
    assert dict(store.errors()).keys() == {"cut.jpg", "text.jpg"}
    assert dict(store.errors())["text.jpg"] == "not an image"


@pytest.mark.parametrize("changes", [{"batch_pixels": 1}, {"workers": 2}, {"batch_pixels": 10**9}])
def test_batches_and_workers_do_not_matter(model, photos, tmp_path, changes):
    one = np.asarray(_fill(model, images_of(photos), tmp_path / "a").global_descriptors())
    two = np.asarray(_fill(model, images_of(photos), tmp_path / "b",
                           **changes).global_descriptors())
    fine = ~np.isnan(one[:, 0])
    assert np.array_equal(fine, ~np.isnan(two[:, 0]))
    assert ((one[fine] * two[fine]).sum(axis=1) > 1 - 1e-6).all()


def test_bf16_is_close(model, photos):
    images = torch.stack([read_image(photos / "photo.00 ü.jpg")])
    exact = describe(model, images, SCALES)
    rough = describe(model, images, SCALES, torch.bfloat16)
    assert rough.dtype == torch.float32
    assert 1 - 1e-3 < float((exact * rough).sum()) < 1 - 1e-9


def test_bf16_in_batches_is_what_it_is_one_by_one(model, photos, tmp_path):
    one, many = (_fill(model, images_of(photos), tmp_path / str(pixels), precision=torch.bfloat16,
                       batch_pixels=pixels) for pixels in (1, 10 ** 9))
    fine = np.flatnonzero(one.status == 0)
    assert ((one.rows(fine) * many.rows(fine)).sum(axis=1) > 0.9999).all()


class _Limited(torch.nn.Module):
    """A network on a device with little memory."""

    def __init__(self, model, most):
        super().__init__()
        self.model, self.most, self.batches = model, most, []
        self.dim, self.input_spec = model.dim, model.input_spec

    def forward(self, images):
        self.batches.append(len(images))
        if images[:, 0].numel() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.model(images)


def test_where_memory_does_not_suffice_batches_are_split(model, photos, tmp_path):
    whole = _fill(model, images_of(photos), tmp_path / "whole")
    limited = _Limited(model, 2 * 91 * 68)      # two images at 1.4142 times their size
    store = _fill(limited, images_of(photos), tmp_path / "split", batch_pixels=10 ** 9)
    assert max(limited.batches) > 2
    reasons = store.reasons()
    assert set(whole.reasons()) == set(reasons)
    fine = np.flatnonzero(store.status == 0)
    assert len(fine) == 21 and ((whole.rows(fine) * store.rows(fine)).sum(axis=1) > 1 - 1e-6).all()
    tiny = _fill(_Limited(model, 91 * 68), images_of(photos), tmp_path / "tiny")
    large = {name for name in tiny.names if cv2.imdecode(
        np.fromfile(photos / name, np.uint8), cv2.IMREAD_COLOR) is not None} - {
        name for name, status in zip(tiny.names, tiny.status) if status == 0}
    assert len(large) == 5      # of 56 x 80 pixels
    assert dict(tiny.errors())[min(large)] == "not enough memory for 56 x 80 pixels"


def test_where_an_image_does_not_fit_beside_those_that_wait(model, photos, monkeypatch):
    """There is memory for two images that wait for others of their size, and for none of 80 x 56."""
    to, waiting, refused = torch.Tensor.to, [0], [0]

    def limited(tensor, *args, **options):
        if options.get("copy"):
            if waiting[0] == 2 or tensor.shape[1] == 80:
                refused[0] += 1
                raise RuntimeError("CUDA error: out of memory")
            waiting[0] += 1
        return to(tensor, *args, **options)

    def described(images):
        waiting[0] = max(0, waiting[0] - images)

    source, extractor = images_of(photos), _extractor(model, batch_pixels=10 ** 9)
    whole = extractor.table(source, range(23))
    monkeypatch.setattr(torch.Tensor, "to", limited)
    table = extractor.table(source, range(23), on_batch=described)
    assert refused[0] > 10
    lost = np.isnan(table[:, 0]) & ~np.isnan(whole[:, 0])
    assert lost.sum() == 5
    both = ~np.isnan(table[:, 0])
    assert both.sum() == 16 and ((whole[both] * table[both]).sum(axis=1) > 1 - 1e-6).all()


@pytest.mark.parametrize("error, memory", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), True), (MemoryError(), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate "
                  "memory: you tried to allocate 8 bytes"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False)])
def test_errors_that_mean_too_little_memory(model, photos, tmp_path, error, memory):
    """Of batches alone: one image at a time fits."""
    class Sometimes(_Limited):
        def forward(self, images):
            if len(images) > 1:
                raise error
            return self.model(images)

    if not memory:
        with pytest.raises(RuntimeError, match="mat1"):
            _fill(Sometimes(model, 0), images_of(photos), tmp_path / "s", scales=[2.0])
        return
    store = _fill(Sometimes(model, 0), images_of(photos), tmp_path / "s", batch_pixels=10 ** 9)
    assert set(dict(store.errors())) == {"cut.jpg", "text.jpg"}


def test_images_of_all_sizes_share_a_batch_where_all_become_squares(model, photos, tmp_path):
    limited = _Limited(model, 10 ** 9)
    store = _fill(limited, images_of(photos), tmp_path / "a", chunk_size=100, side=32, scales=[1.0],
                  batch_pixels=10 ** 9)
    assert limited.batches == [21]
    one = _fill(model, images_of(photos), tmp_path / "b", side=32, scales=[1.0], batch_pixels=1)
    fine = np.flatnonzero(one.status == 0)
    assert ((one.rows(fine) * store.rows(fine)).sum(axis=1) > 1 - 1e-6).all()


def test_a_fault_of_the_machine_is_none_of_the_image(model, photos, tmp_path, monkeypatch):
    """A disk that fails, or a network: nothing is marked, and another run reads the image."""
    open_file = os.open

    def fail(path, *arguments, **options):
        if os.path.basename(path) == "photo.04 ü.jpg":
            raise OSError(errno.EIO, "Input/output error")
        return open_file(path, *arguments, **options)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(ImageError, match="photo.04 ü.jpg: Input/output error"):
        _fill(model, images_of(photos), tmp_path / "store", workers=1)
    monkeypatch.undo()
    store = _fill(model, images_of(photos), tmp_path / "store", workers=1)
    assert dict(store.errors()).keys() == {"cut.jpg", "text.jpg"}


def test_decoded_images_do_not_pile_up(model, tmp_path):
    """Every image of another size: no batch fills, and yet few wait."""
    for number in range(40):
        cv2.imwrite(str(tmp_path / f"{number:02d}.png"), np.zeros((40, 20 + number, 3), np.uint8))
    extractor, waiting = _extractor(model, scales=[1.0], batch_pixels=5000), [0]
    decoded, counts = extractor.decoded, []

    def counted(*args):
        for image in decoded(*args):
            waiting[0] += 1
            counts.append(waiting[0])
            yield image

    def described(images):
        waiting[0] -= images

    extractor.decoded = counted
    table = extractor.table(images_of(tmp_path), range(40), on_batch=described)
    assert np.isfinite(table).all() and waiting == [0]
    # 4 times 5000 pixels are the first 18 images; all would have waited for others of their size
    assert 10 < max(counts) <= 19


def test_average_of_scales_is_of_unit_vectors():
    small, large = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1000.0]])
    expected = torch.tensor([[0.5 ** 0.5, 0.5 ** 0.5]])
    torch.testing.assert_close(average_scales([small, large]), expected)


def test_boxes_cut_the_queries(model, photos, tmp_path):
    path, box = photos / "photo.00 ü.jpg", (3.7, 5.2, 40.9, 60.0)
    source = ImageSource(["whole", "cut", "nothing"], path.parent, [path.name] * 3,
                         {1: box, 2: (9.1, 9, 9.9, 20)})
    store = _fill(model, source, tmp_path / "store")
    table = np.asarray(store.global_descriptors())
    assert table[0] @ _slow_descriptor(model, path) > 1 - 1e-6
    assert table[1] @ _slow_descriptor(model, path, box) > 1 - 1e-6
    assert "leaves nothing" in dict(store.errors())["nothing"]


def test_a_descriptor_that_is_not_finite_is_a_failure(model, photos, tmp_path):
    class Broken(torch.nn.Module):
        dim, input_spec = 2, model.input_spec

        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images):
            value = torch.nan if images.shape[2] > images.shape[3] else 1.0
            return {"global": torch.full((len(images), 2), value)}

    store = _fill(Broken(), images_of(photos), tmp_path / "store")
    reasons = dict(store.errors())
    assert reasons["photo.00 ü.jpg"] == "no finite descriptor (48 x 64 pixels)"
    assert "sub dir/photo.01 ü.jpg" not in reasons


@pytest.mark.parametrize("antialias", ["True", "False"])
def test_squares_as_cgd_describes_them(photos, tmp_path, antialias):
    """Pillow's resize to a square, its colours and its statistics; or OpenCV's."""
    network = build_model(load_cfg(None, [
        "MODEL.ARCH", "cgd", "MODEL.CGD.FEATURE_DIM", "12", "MODEL.DEPTH", "18", "RESNET.STEM_WIDTH",
        "8", "INPUT.ANTIALIAS", antialias, "INPUT.MEAN", "[0.4, 0.5, 0.6]", "INPUT.SD",
        "[0.2, 0.3, 0.4]"])).eval()
    name = "photo.00 ü.jpg"
    store = _fill(network, ImageSource([name], photos), tmp_path / "store",
                  scales=[1.0], side=32)
    pixels = read_image(photos / name).permute(1, 2, 0).numpy()
    if antialias == "True":
        resized = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
    else:
        resized = cv2.resize(pixels.astype(np.float32), (32, 32))
    inputs = (resized / 255 - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.4]
    with torch.no_grad():
        expected = network(torch.from_numpy(inputs).float().permute(2, 0, 1)[None])["global"]
    mine = np.concatenate(list(store.global_descriptors()))
    np.testing.assert_allclose(mine, expected, atol=1e-2 if antialias == "True" else 1e-5)


def test_an_image_too_small_for_the_network_fails_alone(photos, tmp_path):
    names = ["tiny.png", "photo.00 ü.jpg"]
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((9, 12, 3), np.uint8))
    source = ImageSource(names, Path("/"), [str(tmp_path / "tiny.png"), str(photos / names[1])])
    network = build_model(load_cfg(None, ["MODEL.ARCH", "gem", "MODEL.TYPE", "timm", "TIMM.NAME",
                                          "convnext_atto", "MODEL.HEADS.REDUCTION_DIM", "0"]))
    store = _fill(network, source, tmp_path / "store")
    (name, reason), = store.errors()
    assert name == "tiny.png"
    assert reason.startswith("the network does not take 12 x 9 pixels: Calculated padded input size")


def test_a_chunk_is_whole_or_absent_and_the_rest_is_resumed(model, photos, tmp_path):
    source = images_of(photos)
    whole = _fill(model, source, tmp_path / "whole")
    writer = StoreWriter(tmp_path / "part", source.names, model.dim, 5, {"scales": SCALES})
    assert writer.num_chunks == 5 and list(writer.rows(4)) == [20, 21, 22]
    _extractor(model).fill(writer, source, [3, 1])
    assert writer.missing_chunks() == [0, 2, 4]
    with pytest.raises(StoreError):
        list(FeatureStore(tmp_path / "part").global_descriptors())
    before = writer.chunk_file(3).stat().st_mtime_ns
    part = _fill(model, source, tmp_path / "part")
    assert writer.chunk_file(3).stat().st_mtime_ns == before
    for file in sorted(path.name for path in whole.path.iterdir()):
        assert (whole.path / file).read_bytes() == (part.path / file).read_bytes(), file


def test_a_store_of_other_settings_is_refused(tmp_path):
    names = ["a", "b"]
    StoreWriter(tmp_path / "s", names, 4, 5, {"scales": [1.0]}).create()
    StoreWriter(tmp_path / "s", names, 4, 5, {"scales": (1.0,)})
    for changes in [(["a"], 4, 5, [1.0]), (names, 8, 5, [1.0]), (names, 4, 6, [1.0]),
                    (names, 4, 5, [0.5])]:
        with pytest.raises(UserError, match="was made by other settings: .* was .*, is "):
            StoreWriter(tmp_path / "s", *changes[:3], {"scales": changes[3]})


def test_strict_stops_at_the_first_bad_image(run_tool, weights, photos, tmp_path):
    done = run_tool(*_command(weights, photos, tmp_path), "INFER.STRICT", "True")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: cannot read image")
    done = run_tool(*_command(weights, photos, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "2 FAILED" in done.stdout and "text.jpg: not an image" in done.stdout


def _command(weights, photos, out_dir):
    return ["tools/infer.py", "--cfg", "configs/quickstart.yaml", "RESNET.STEM_WIDTH", "8",
            "MODEL.HEADS.REDUCTION_DIM", "16", "INFER.DATASET", "", "TEST.WEIGHTS", weights,
            "INFER.IMAGES", photos, "INFER.OUT_DIR", out_dir, "INFER.CHUNK_SIZE", "2",
            "INFER.BATCH_PIXELS", "20000"]


def test_killed_and_started_again_the_store_is_the_same(weights, photos, start_command, tmp_path):
    def start(out_dir):
        return start_command(_command(weights, photos, out_dir), session=True)

    assert start(tmp_path / "undisturbed").wait(timeout=300) == 0
    store, whole = tmp_path / "killed" / photos.name, tmp_path / "undisturbed" / photos.name
    for chunks in (1, 5):
        process = start(tmp_path / "killed")
        while process.poll() is None and len(list(store.glob("chunk-*"))) < chunks:
            time.sleep(0.001)
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    assert start(tmp_path / "killed").wait(timeout=300) == 0
    for file in whole.iterdir():
        assert (store / file.name).read_bytes() == file.read_bytes(), file.name
    assert len(FeatureStore(store).errors()) == 2


def test_two_processes_share_the_chunks(weights, photos, tmp_path, run_tool, torchrun):
    assert run_tool(*_command(weights, photos, tmp_path / "one")).returncode == 0
    done = torchrun(2, *_command(weights, photos, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    one, two = (FeatureStore(tmp_path / part / photos.name) for part in ("one", "two"))
    assert one.names == two.names and one.errors() == two.errors()
    a, b = np.asarray(one.global_descriptors()), np.asarray(two.global_descriptors())
    np.testing.assert_allclose(a, b, atol=1e-6)


def _benchmark(root, photos, **changes):
    """A Revisited set `mini` of the good photos; returns its ground truth file."""
    folder = root / "mini"
    (folder / "jpg").mkdir(parents=True)
    files = sorted(photos.glob("photo*.jpg"))
    for number, file in enumerate(files):
        shutil.copy(file, folder / "jpg" / f"image{number}.jpg")
    gnd = {"imlist": [f"image{i}" for i in range(2, len(files))], "qimlist": ["image0", "image1"],
           "gnd": [{"bbx": [2.5, 3, 40, 50.9], "easy": [0], "hard": [1], "junk": [2]},
                   {"bbx": [0, 0, 48, 48], "easy": [3], "hard": [], "junk": []}], **changes}
    (folder / "gnd_mini.pkl").write_bytes(pickle.dumps(gnd))
    return folder / "gnd_mini.pkl"


def test_a_revisited_set(photos, tmp_path):
    _benchmark(tmp_path, photos)
    cropped = revisited_set(tmp_path, "mini", crop_queries=True)
    assert cropped["query"].names == ["image0", "image1"]
    assert tuple(cropped["query"].boxes[0]) == (2.5, 3, 40, 50.9)
    assert not cropped["database"].boxes and len(cropped["database"]) == 9
    assert not revisited_set(tmp_path, "mini", crop_queries=False)["query"].boxes


def test_infer_makes_query_and_database(run_tool, weights, photos, tmp_path):
    _benchmark(tmp_path, photos)
    command = _command(weights, photos, tmp_path / "out")
    done = run_tool(*command, "INFER.DATASET", "mini", "INFER.DATA_DIR", tmp_path,
                    "INFER.IMAGE_VARIANT", "faces blurred")
    assert done.returncode == 0, done.stderr
    query = FeatureStore(tmp_path / "out" / "mini" / "query")
    assert query.names == ["image0", "image1"] and query.manifest["cropped"] is True
    assert FeatureStore(tmp_path / "out" / "mini" / "database").count == 9
    assert FeatureStore(tmp_path / "out" / photos.name).count == 23
    for field in ("images_digest", "scales", "config_digest", "weights_digest", "library"):
        assert query.manifest[field]
    result = tmp_path / "result.json"
    done = run_tool("revisitop/evaluate.py", "--gnd", tmp_path / "mini" / "gnd_mini.pkl",
                    "--query", query.path, "--database", tmp_path / "out" / "mini" / "database",
                    "--distractors", tmp_path / "out" / photos.name, "--json", result)
    assert done.returncode == 0, done.stderr
    written = json.loads(result.read_text())
    assert written["protocol"]["database"]["image_variant"] == "faces blurred"
    assert written["distractors"] == 23 and written["protocols"]["hard"]["ap"][1] is None


def test_infer_takes_each_image_of_a_folder_once_whatever_its_name(run_tool, weights, tmp_path):
    folder = tmp_path / "mixed"
    kinds = {"a.jpg": "JPEG", "b.jfif": "JPEG", "c.jpe": "JPEG", "d.mpo": "JPEG", "e.ppm": "PPM",
             "f.pgm": "PPM", "noext": "JPEG", "sub/v1.2.final": "JPEG", "sub/g.tif": "TIFF"}
    (folder / "sub").mkdir(parents=True)
    for number, (name, kind) in enumerate(kinds.items()):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert("L" if name == "f.pgm" else "RGB").save(folder / name, kind)
    (folder / "notes.txt").write_text("not an image")
    (folder / "odd\x1b[31m.doc").write_text("not an image")
    os.mkfifo(folder / "pipe.jpg")
    # Two folders that lead to each other hang what follows links; one and a further name multiply images
    (folder / "sub" / "up").symlink_to("..")
    (folder / "sub" / "again").symlink_to("../sub")
    (folder / "link.jpg").symlink_to("a.jpg")
    os.link(folder / "a.jpg", folder / "sub" / "hard.jpg")
    done = run_tool(*_command(weights, folder, tmp_path / "out"), timeout=60)
    assert done.returncode == 0, done.stderr
    store = FeatureStore(tmp_path / "out" / "mixed")
    assert set(store.names) == set(kinds) and len(store.names) == 9 and not store.errors()
    skipped = r"notes.txt, odd\x1b[31m.doc, pipe.jpg"
    assert f"{folder}: skipped 3 files that are not images: {skipped}" in done.stdout
    assert "links to images that are there already are left out, 2 in all: link.jpg is a.jpg" in done.stdout
    assert "links to folders that are there already are left out, 2 in all" in done.stdout


def test_a_benchmark_of_images_with_any_names(run_tool, weights, photos, tmp_path):
    names = {"noext": "query", "x.jfif": "database", "v1.2.final": "database", "short": "database"}
    (tmp_path / "mine").mkdir()
    for name in names:
        file = "short.png" if name == "short" else name
        shutil.copy(photos / "photo.00 ü.jpg", tmp_path / "mine" / file)
    lines = ["path,role,label", *(f"{name},{role},a" for name, role in names.items())]
    (tmp_path / "mine" / "images.csv").write_text("\n".join(lines))
    done = run_tool("tools/prepare_data.py", "csv", "--name", "own", "--root", tmp_path / "data", "--from",
                    tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    done = run_tool(*_command(weights, "", tmp_path / "out"), "INFER.DATASET", "own", "INFER.DATA_DIR",
                    tmp_path / "data")
    assert done.returncode == 0, done.stderr
    query, database = (FeatureStore(tmp_path / "out" / "own" / part) for part in ("query", "database"))
    assert query.names == ["noext"] and database.names == ["x.jfif", "v1.2.final", "short"]
    assert not query.errors() and not database.errors()


def test_infer_reads_lists_as_other_programs_write_them(run_tool, weights, photos, tmp_path):
    lines = [f"{photos}/photo.00 ü.jpg\t3", f"{photos}/photo.02 ü.jpg  0", f"{photos}/photo.04 ü.jpg 12"]
    (tmp_path / "list.txt").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    done = run_tool(*_command(weights, tmp_path / "list.txt", tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    store = FeatureStore(tmp_path / "out" / "list")
    assert store.names == [f"{photos}/photo.{number} ü.jpg" for number in ("00", "02", "04")]
    assert not store.errors()


@pytest.mark.parametrize("text, message", [
    ("{0} 1\n{1}\n", "line 2: '{1}' has no label, and '{0} 1' has one (LIST, line 1): give every line a "
                     "label, or none"),
    ("{0}\n\n{1}\t1\n", "line 1: '{0}' has no label, and '{1}\\t1' has one (LIST, line 3)"),
    ("{0} 1\n{1}\t-1\n", "line 2: label -1 is below 0: '{1}\\t-1'; leave out lines of images without "
                          "a label"),
    ("{0},1\n{1},0\n", "line 1: '{0},1' is not 'path label', with a whole number as label; put a blank or a "
                       "tab in the place of ','"),
    ("{0}\n{1},0\n", "line 2: '{1},0' is not 'path label'"),
])
def test_infer_refuses_lists_that_would_lose_images(run_tool, weights, photos, tmp_path, text, message):
    names = [f"sub dir/photo.0{number} ü.jpg" for number in (1, 3)]
    file = photos / f"list{os.getpid()}.txt"
    file.write_text(text.format(*names))
    done = run_tool(*_command(weights, file, tmp_path / "out"))
    file.unlink()
    assert done.returncode == 1 and not (tmp_path / "out").exists()
    expected = message.format(*names).replace("LIST", str(file))
    assert f"error: {file}, {expected}" in done.stderr and done.stderr.count("\n") == 1


def test_lists_and_folders(tmp_path, photos):
    (tmp_path / "list.txt").write_text("b.jpg\n\nsub/a b.jpg\n")
    (tmp_path / "b.jpg").write_bytes(b"")
    source = images_of(tmp_path / "list.txt")
    assert list(source.names) == ["b.jpg", "sub/a b.jpg"]
    assert source.path(1) == tmp_path / "sub" / "a b.jpg"
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "empty").mkdir()
    for location, message in [("empty.txt", "is empty"), ("empty", "holds no images"),
                              ("absent", "does not exist")]:
        with pytest.raises(UserError, match=message):
            images_of(tmp_path / location)
    # A training list will do: its labels are no part of the paths
    (photos / "labelled.txt").write_text("photo.00 ü.jpg 3\nsub dir/photo.01 ü.jpg 0\n")
    assert list(images_of(photos / "labelled.txt").names) == ["photo.00 ü.jpg",
                                                              "sub dir/photo.01 ü.jpg"]
    (tmp_path / "lost.txt").write_text("".join(f"{number}.jpg\n" for number in range(3000)))
    with pytest.raises(UserError, match="of the 3000 images of .* none .* such as .*/0.jpg: is their "
                                        "disk mounted"):
        images_of(tmp_path / "lost.txt")
    (tmp_path / "0.jpg").write_bytes(b"")
    assert len(images_of(tmp_path / "lost.txt")) == 3000        # one is there: others may be lost
    (tmp_path / "img 7").write_bytes(b"")
    (tmp_path / "numbered.txt").write_text("img 7\n")
    assert list(images_of(tmp_path / "numbered.txt").names) == ["img 7"]
    (tmp_path / "numbered.txt").write_text("b.jpg\n\u00e4.jpg\nimg 7\nimg 8\n", encoding="utf-8-sig")
    assert list(images_of(tmp_path / "numbered.txt").names) == ["b.jpg", "ä.jpg", "img 7", "img 8"]
    (tmp_path / "long.txt").write_text("n" * 5000)
    with pytest.raises(UserError, match="of the 1 images"):
        images_of(tmp_path / "long.txt")
