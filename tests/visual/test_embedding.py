"""Descriptors on a plane: PCA against NumPy's SVD, labels, thumbnails that do not overlap."""
import pickle
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from dolg.errors import UserError
from dolg.features.store import FeatureStore, StoreWriter
from dolg.visual import embedding
from dolg.visual.draw_embedding import MOST_LABELS, apart, draw_embedding, label_styles, spread
from dolg.visual.drawing import DPI, check_picture, write_picture
from dolg.visual.embedding import embed, principal_components
from dolg.visual.labels import labels_by_name
from dolg.visual.photographs import find_photograph, shrunk, thumbnail


@pytest.fixture
def write_store(tmp_path):
    def write(name, table, chunk_size=7):
        names = [f"{name}{row}" for row in range(len(table))]
        writer = StoreWriter(tmp_path / name, names, table.shape[1], chunk_size, {})
        for chunk in range(writer.num_chunks):
            rows = writer.rows(chunk)
            part = table[rows.start:rows.stop]
            writer.write_chunk(
                chunk, part, {row: "no photo" for row in np.flatnonzero(np.isnan(part[:, 0])).tolist()})
        return FeatureStore(tmp_path / name)

    return write


def tables():
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((9, 9)) * np.linspace(3, 0.2, 9)[:, None]
    first, second = (rng.standard_normal((n, 9)) @ mix + 5 for n in (23, 11))
    first[[2, 8]] = np.nan
    second[10] = np.nan
    return first.astype(np.float32), second.astype(np.float32)


def test_principal_components(write_store):
    parts = tables()
    places, shares = principal_components([write_store(n, t) for n, t in zip("ab", parts)], 4)
    table = np.concatenate(parts).astype(np.float64)
    table = table[np.isfinite(table).all(axis=1)]
    table = table - table.mean(axis=0)
    _, singular, directions = np.linalg.svd(table, full_matrices=False)
    for number in range(4):
        direction = directions[number]
        largest = max(range(9), key=lambda i: abs(direction[i]))
        expected = table @ (direction if direction[largest] > 0 else -direction)
        np.testing.assert_allclose(places[:, number], expected, atol=1e-6)
    np.testing.assert_allclose(shares, (singular ** 2 / (singular ** 2).sum())[:4], atol=1e-9)


def test_rows_are_counted_through_all_stores(write_store):
    places, rows = embed([write_store(n, t) for n, t in zip("ab", tables())])
    assert rows.tolist() == [i for i in range(33) if i not in (2, 8)] and places.shape == (31, 2)


def test_stores_without_a_map(write_store):
    rng = np.random.default_rng(0)
    with pytest.raises(UserError, match="descriptors of 4, 5 dimensions"):
        embed([write_store(name, rng.standard_normal((5, dim))) for name, dim in (("a", 4), ("b", 5))])
    table = rng.standard_normal((4, 4))
    table[1:3] = np.nan
    with pytest.raises(UserError, match="2 images have a descriptor: a map needs 3 or more"):
        embed([write_store("c", table)])
    with pytest.raises(UserError, match="--method is 'tnse': choose one of pca, tsne, umap"):
        embed([write_store("d", rng.standard_normal((5, 4)))], "tnse")


def test_one_dimension_and_equal_images(write_store):
    places, _ = embed([write_store("a", np.array([[1.0], [2.0], [4.0]]))])
    np.testing.assert_allclose(places, [[-4 / 3, 0], [-1 / 3, 0], [5 / 3, 0]], atol=1e-6)
    places, _ = embed([write_store("b", np.ones((4, 3)))])
    assert np.isfinite(spread(places, 3.0, 2.0, 0.1)).all()


class Recorder:
    """Stands for TSNE and UMAP: notes what it is told, and gives the first two columns of what it gets."""

    def __init__(self, **options):
        self.__class__.options = options

    def fit_transform(self, table):
        self.__class__.given = table
        return table[:, :2]


@pytest.mark.parametrize("method, module, name, package", [
    ("tsne", "sklearn.manifold", "TSNE", "scikit-learn"), ("umap", "umap", "UMAP", "umap-learn")])
def test_packages(write_store, monkeypatch, method, module, name, package):
    store = write_store("a", np.random.default_rng(0).standard_normal((70, 60)))
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: Recorder}))
    places, _ = embed([store], method, seed=5)
    assert Recorder.options["random_state"] == 5 and Recorder.given.shape == (70, 50)
    np.testing.assert_allclose(Recorder.given, principal_components([store], 50)[0], atol=1e-5)
    # Turned: distances stay, most variance from left to right
    distances = [np.linalg.norm(p[:, None] - p[None], axis=2) for p in (places, Recorder.given[:, :2])]
    np.testing.assert_allclose(*distances, atol=1e-4)
    covariance = np.cov(places.T)
    assert abs(covariance[0, 1]) < 1e-4 and covariance[0, 0] >= covariance[1, 1]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"{method} needs the package {package}: pip install {package}"):
        embed([store], method)


def test_tsne_keeps_groups_together(write_store):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    table = 4 * rng.standard_normal((3, 16))[labels] + rng.standard_normal((60, 16))
    store = write_store("a", table)
    places, _ = embed([store], "tsne", seed=1)
    np.testing.assert_array_equal(places, embed([store], "tsne", seed=1)[0])
    distances = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(60)
    assert (labels[distances.argmin(axis=1)] == labels).mean() > 0.9


# Where things are drawn

def test_spread_keeps_shape():
    rng = np.random.default_rng(0)
    for places in (rng.uniform(3, 900, (50, 2)), rng.uniform(
        0, 1e-3, (50, 2)) * [1, 20], np.array([[1, 1], [1, 5]])):
        found = spread(places.astype(float), 8.0, 5.0, 0.3)
        low, high = found.min(axis=0), found.max(axis=0)
        assert (low > 0.3 - 1e-9).all() and (high < np.array([7.7, 4.7]) + 1e-9).all()
        assert max((high - low) / [7.4, 4.4]) == pytest.approx(1)
        np.testing.assert_allclose((low + high) / 2, [4.0, 2.5])
        before, after = places - places[0], found - found[0]
        factor = np.linalg.norm(after) / np.linalg.norm(before)
        np.testing.assert_allclose(after, before * factor, atol=1e-6)


def test_thumbnails_do_not_overlap():
    rng = np.random.default_rng(0)
    for side in (0.05, 0.3, 2.0):
        spots = rng.uniform(0, 3, (400, 2))
        spots[100:200] = spots[100]
        order = rng.permutation(400)
        kept, expected = apart(spots, side, order), []
        for row in order.tolist():
            if all(max(abs(spots[row, 0] - spots[k, 0]),
                   abs(spots[row, 1] - spots[k, 1])) >= side for k in expected):
                expected.append(row)
        assert kept == expected


def test_label_styles():
    labels = ["b"] * 3 + ["a"] * 3 + ["c"] * 5 + [""] * 9
    assert list(label_styles(labels)) == ["c", "a", "b"]
    many = label_styles([f"{i:02d}" for i in range(40)])
    assert len(many) == len(set(many.values())) == MOST_LABELS == 18
    assert label_styles(["", ""]) == {}


def pixels_of(picture, colour):
    wanted = [int(colour[i:i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere((np.abs(picture.astype(int) - wanted) <= 6).all(axis=2))


def test_the_picture_has_thumbnails_and_dots_in_their_places(tmp_path):
    places = np.array([[0.0, 0.0], [10.0, 0.0], [10.0, 6.0], [10.0, 6.0]])
    tints = ["#ff00ff", "#00ff00", "#123456", "#654321"]
    asked = []

    def give(row):
        asked.append(row)
        return None if row == 1 else np.full(
            (30, 40, 3), [int(tints[row][i:i + 2], 16) for i in (1, 3, 5)], np.uint8)

    figure = draw_embedding(places, ["x", "y", "", ""], give, "four", side=0.5, seed=3)
    write_picture(figure, tmp_path / "map.png")
    picture = cv2.imread(str(tmp_path / "map.png"))[..., ::-1]
    # Of two in one place one is shown, and nobody is asked twice
    shown = next(row for row in (2, 3) if row in asked)
    assert sorted(asked) == [0, 1, shown]
    first, last = (pixels_of(picture, tints[row]) for row in (0, shown))
    for found in (first, last):
        height, width = np.ptp(found, axis=0) + 1
        assert abs(width - 0.5 * DPI) < 8 and abs(height - 0.375 * DPI) < 8
    # The first lies lower left of the last
    assert first.mean(axis=0)[0] > last.mean(axis=0)[0] + \
                      100 and first.mean(axis=0)[1] < last.mean(axis=0)[1] - 100
    # y's, which has no thumbnail; less the legend
    dot = pixels_of(picture[:, :round(7.6 * DPI)], "#E69F00")
    assert len(dot) > 10
    assert abs(dot.mean(axis=0)[1] - last.mean(axis=0)[1]) < 5
    assert abs(dot.mean(axis=0)[0] - first.mean(axis=0)[0]) < 5


def test_thumbnails(tmp_path):
    rows, columns = np.indices((400, 600))
    pixels = np.stack([rows * 255 // 400, columns * 255 // 600, rows * 0 + 90], axis=2).astype(np.uint8)
    for name in ("a.jpg", "a.png"):
        cv2.imwrite(str(tmp_path / name), pixels[..., ::-1])
        small = thumbnail(tmp_path / name)
        assert small.shape == (64, 96, 3)
        expected = cv2.resize(pixels, (96, 64), interpolation=cv2.INTER_AREA)
        assert np.abs(small.astype(int) - expected).mean() < 3
    (tmp_path / "b.jpg").write_bytes(b"no image")
    assert thumbnail(tmp_path / "b.jpg") is None
    assert shrunk(pixels[:10, :20], 50).shape == (10, 20, 3)


def test_files_of_names(tmp_path):
    for name in ("one/a.jpg", "two/a.png", "two/b.jpg", "two/sub/c.png", "two/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folders = [tmp_path / "one", tmp_path / "two"]
    for name, file in (("a", "one/a.jpg"), ("a.png", "two/a.png"), ("b", "two/b.jpg"),
                       ("sub/c.png", "two/sub/c.png"), ("d", "two/d")):
        assert find_photograph(folders, name) == tmp_path / file
    assert find_photograph(folders, "e") is None


# Labels

def truth(tmp_path, queries, images, labels):
    entries = [{"bbx": [0, 0, 9, 9], **{key: list(entry.get(key, [])) for key in ("easy", "hard", "junk")}}
               for entry in labels]
    file = tmp_path / "gnd_toy.pkl"
    file.write_bytes(pickle.dumps({"imlist": images, "qimlist": queries, "gnd": entries}))
    return file


def test_landmarks_of_a_ground_truth(tmp_path):
    file = truth(tmp_path, ["tower_1_q", "tower_2_q", "bridge0012_q0", "lone"],
                 ["tower_1_a", "tower_x", "other", "bridge0012_a", "paris_7", "junk_1"],
                 [{"easy": [0]}, {"hard": [0, 1], "junk": [5]}, {"easy": [3]}, {"easy": [4]}])
    assert labels_by_name(file, None) == {
        "tower_1_q": "tower", "tower_2_q": "tower", "tower_1_a": "tower", "tower_x": "tower",
        "bridge0012_q0": "bridge0012", "bridge0012_a": "bridge0012", "lone": "lone", "paris_7": "lone"}


def test_two_landmarks_with_one_name(tmp_path):
    file = truth(tmp_path, ["eiffel_1", "eiffel_2"], [
                 "eiffel_3", "eiffel_4"], [{"easy": [0]}, {"easy": [1]}])
    found = labels_by_name(file, None)
    assert found["eiffel_1"] == found["eiffel_3"] != found["eiffel_2"] == found["eiffel_4"]


def test_labels_of_a_list(tmp_path):
    (tmp_path / "list.txt").write_text("jpg/a b.jpg 3\njpg/c.jpg 0\n")
    found = labels_by_name(None, tmp_path / "list.txt")
    assert {name: label for name, label in found.items() if not name.startswith("/")} == {
        "jpg/a b.jpg": "3", "jpg/c.jpg": "0"}
    (tmp_path / "whole.txt").write_text(f"{tmp_path}/jpg/c.jpg 4\n/elsewhere/d.jpg 5\n")
    found = labels_by_name(None, tmp_path / "whole.txt")    # a store has the names that its list has
    assert found[f"{tmp_path}/jpg/c.jpg"] == "4" and found["/elsewhere/d.jpg"] == "5"
    assert labels_by_name(None, None) == {}
    with pytest.raises(UserError, match="give one"):
        labels_by_name(tmp_path / "g.pkl", tmp_path / "list.txt")


def test_endings_of_pictures(tmp_path):
    with pytest.raises(UserError, match="-o map.gif: a picture's name ends in .png, .jpg"):
        check_picture(tmp_path.joinpath("map.gif").relative_to(tmp_path))
    figure = draw_embedding(np.eye(3)[:, :2], [""] * 3, lambda row: None, "t", 0.0)
    for ending, start in ((".png", b"\x89PNG"), (".JPG", b"\xff\xd8"),
                          (".svg", b"<?xml"), (".pdf", b"%PDF")):
        write_picture(figure, tmp_path / f"map{ending}")
        assert (tmp_path / f"map{ending}").read_bytes().startswith(start)


def test_five_thousand_images_are_streamed(write_store, monkeypatch):
    """No more than a chunk is in memory as float64, and no thumbnail is made that is not shown."""
    store = write_store("a", np.random.default_rng(0).standard_normal((5000, 8)), chunk_size=500)
    sizes, before = [], embedding._chunks
    monkeypatch.setattr(embedding, "_chunks", lambda stores: (
        sizes.append(len(c)) or c for c in before(stores)))
    places, rows = embed([store])
    assert max(sizes) == 500 and len(sizes) == 20 and len(rows) == 5000
    asked = []
    draw_embedding(places, [""] * 5000, lambda row: asked.append(row), "many", 0.3)
    assert 20 < len(asked) == len(set(asked)) < 600
