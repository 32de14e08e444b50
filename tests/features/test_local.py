"""Local features: the selection, against the original's procedure step by step; the store."""
import cv2
import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.errors import UserError
from dolg.features.extract import Extractor, describe, describe_all
from dolg.features.local import LocalSettings, select_local
from dolg.features.sources import ImageSource
from dolg.features.store import FeatureStore, LocalTable, StoreWriter
from dolg.models import build_model

SCALES = (0.25, 0.3535, 0.5, 0.7071, 1.0, 1.4142, 2.0)


def _slow_selection(maps, topk, overlap, start=260.0):
    """One image, as feymanpriv/DELG does it, less what it does wrong: halve the threshold until enough
    positions pass, join the scales, take the best, then suppress greedily."""
    entries = []
    for scale, local, attention in maps:
        height, width = attention.shape[1:]
        threshold = start
        while True:
            passing = attention[0] > threshold
            threshold /= 2
            if passing.sum() >= topk or threshold < 0.1:
                break
        for row in range(height):
            for column in range(width):
                if passing[row, column]:
                    vector = local[:, row, column].double()
                    entries.append((float(attention[0, row, column]), 16 * column / scale,
                                    16 * row / scale, scale, vector / vector.norm()))
    entries.sort(key=lambda entry: -entry[0])       # stable
    kept = []
    for entry in entries[:topk]:
        if all(_overlap(entry, other) <= overlap for other in kept):
            kept.append(entry)
    return kept


def _overlap(a, b):
    """Intersection over union of two receptive fields of 291 pixels at their scales."""
    sides = [290 / a[3], 290 / b[3]]
    shared = [max(0.0, min(a[axis] + sides[0] / 2, b[axis] + sides[1] / 2)
                  - max(a[axis] - sides[0] / 2, b[axis] - sides[1] / 2)) for axis in (1, 2)]
    both = shared[0] * shared[1]
    return both / (sides[0] ** 2 + sides[1] ** 2 - both)


def _random_maps(seed, images, height, width, peak):
    generator = torch.Generator().manual_seed(seed)
    maps = []
    for scale in SCALES:
        h, w = max(1, round(height * scale / 16)), max(1, round(width * scale / 16))
        attention = peak * torch.rand(images, 1, h, w, generator=generator) ** 4
        maps.append((scale, torch.randn(images, 6, h, w, generator=generator), attention))
    return maps


@pytest.mark.parametrize("seed, topk, overlap, peak", [
    (0, 50, 0.98, 1.0), (1, 50, 0.8, 300.0), (2, 1000, 0.98, 0.4), (3, 20, 0.3, 5.0),
    (4, 7, 0.98, 0.13), (5, 100, 0.6, 0.1)])
def test_against_the_original_procedure(seed, topk, overlap, peak):
    maps = _random_maps(seed, 3, 120, 170, peak)
    found = select_local(maps, LocalSettings(SCALES, topk, overlap=overlap))
    expected = [_slow_selection([(scale, local[i], attention[i]) for scale, local, attention in maps],
                                topk, overlap) for i in range(3)]
    assert found.counts.tolist() == [len(entries) for entries in expected]
    entries = [entry for image in expected for entry in image]
    assert (peak > 0.127) == bool(entries)
    if entries:
        scores, x, y, scales, vectors = zip(*entries)
        assert torch.equal(found.scores, torch.tensor(scores))
        torch.testing.assert_close(found.xy, torch.tensor([x, y]).T.float())
        torch.testing.assert_close(found.scales, torch.tensor(scales).float())
        torch.testing.assert_close(found.descriptors.double(), torch.stack(vectors), atol=1e-6,
                                   rtol=0)


def test_what_is_not_finite_is_no_feature():
    maps = _random_maps(7, 1, 80, 80, 3.0)
    for number, (_, local, attention) in enumerate(maps):
        attention[0, 0, 0, 0] = torch.nan if number % 2 else torch.inf
        local[0, 3, -1, -1] = torch.inf
    found = select_local(maps, LocalSettings(SCALES, 30))
    assert found.counts.tolist() == [30]
    assert found.scores.isfinite().all() and found.descriptors.isfinite().all()


def test_one_position_above_the_threshold():
    """Where the original crashes."""
    maps = [(1.0, torch.ones(1, 4, 3, 5), torch.zeros(1, 1, 3, 5))]
    maps[0][2][0, 0, 2, 1] = 1.0
    found = select_local(maps, LocalSettings((1.0,)))
    assert found.counts.tolist() == [1] and found.xy.tolist() == [[16.0, 32.0]]
    assert found.descriptors.tolist() == [[0.5] * 4]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_model(load_cfg(None, ["MODEL.ARCH", "delg", "MODEL.DEPTH", "18", "RESNET.STEM_WIDTH",
                                       "8", "MODEL.DELG.LOCAL_DIM", "12",
                                       "MODEL.HEADS.REDUCTION_DIM", "16"])).eval()


def test_both_in_one_pass_are_what_each_is_alone(model):
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    settings = LocalSettings((0.5, 1.0, 2.0), 30)
    calls = []
    hooks = [getattr(model.backbone, stage).register_forward_hook(
        lambda *_, stage=stage: calls.append(stage)) for stage in ("s3", "s4")]
    both = describe_all(model, images, [0.7071, 1.0], settings)
    for hook in hooks:
        hook.remove()
    assert calls.count("s3") == 4       # 1.0 is wanted by both, and passes once
    assert calls.count("s4") == 2       # local features do without
    torch.testing.assert_close(both[0], describe(model, images, [0.7071, 1.0]))
    nothing, local = describe_all(model, images, [], settings)
    assert nothing is None
    for name, value in vars(local).items():
        torch.testing.assert_close(getattr(both[1], name), value)
    assert local.counts.tolist() == [30, 30]
    assert local.xy[:, 0].max() < 96 and local.xy[:, 1].max() < 64


def test_locations_are_those_of_the_whole_image(model, tmp_path):
    """A box's features, and those of a file that was cut to it, which has its corner at 0, 0."""
    pixels = np.random.default_rng(0).integers(0, 255, (90, 120, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "whole.png"), pixels)
    cv2.imwrite(str(tmp_path / "part.png"), pixels[12:80, 31:111])
    source = ImageSource(["box", "part"], tmp_path, ["whole.png", "part.png"],
                         {0: (31.9, 12.2, 111.0, 80.5)})
    extractor = Extractor(model, [1.0], torch.float32, 1, 0, 10 ** 8, strict=True,
                          local=LocalSettings((0.5, 1.0), 25, threshold=0.0))
    writer = StoreWriter(tmp_path / "store", source.names, extractor.dim, 2, {},
                         extractor.local_dim)
    extractor.fill(writer, source, [0])
    box, part = (FeatureStore(tmp_path / "store").local(row) for row in (0, 1))
    assert len(box.xy) == 25
    np.testing.assert_array_equal(box.xy, part.xy + [31, 12])
    np.testing.assert_array_equal(box.scales, part.scales)


def _table(rng, counts, dim):
    vectors = rng.normal(size=(sum(counts), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    numbers = rng.random((sum(counts), 4)).astype(np.float32)
    return LocalTable(np.cumsum([0, *counts]), vectors, numbers[:, :2], numbers[:, 2], numbers[:, 3])


@pytest.mark.parametrize("dtype, error", [("float16", 5e-4), ("int8", 4e-3)])
def test_stored_and_read(tmp_path, dtype, error):
    rng, names = np.random.default_rng(0), [str(i) for i in range(5)]
    writer = StoreWriter(tmp_path, names, 4, 3, {}, local_dim=8, local_dtype=dtype)
    counts = [[2, 0, 5], [0, 3]]
    tables = [_table(rng, part, 8) for part in counts]
    for chunk, table in enumerate(tables):
        writer.write_chunk(chunk, np.ones((len(counts[chunk]), 4), np.float32), {}, table)
    store = FeatureStore(tmp_path)
    store.verify()
    for image, (chunk, row) in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]):
        expected, found = tables[chunk].of_images(row, row + 1), store.local(image)
        assert len(found.xy) == counts[chunk][row]
        np.testing.assert_allclose(found.descriptors, expected.descriptors, atol=error)
        for name in ("offsets", "xy", "scales", "scores"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    everything = np.concatenate(list(store.local_chunks()))
    np.testing.assert_allclose(everything, np.concatenate([t.descriptors for t in tables]),
                               atol=error)


def test_a_store_without_local_features_says_so(tmp_path):
    StoreWriter(tmp_path, ["a"], 2, 1, {}).write_chunk(0, np.ones((1, 2), np.float32), {})
    with pytest.raises(UserError, match="has no local features.*INFER.LOCAL True"):
        FeatureStore(tmp_path).local(0)
