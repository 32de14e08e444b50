"""Asking: against slow searches, and what tools/infer.py and tools/rerank.py make; and mistakes."""
import csv
import shutil
import tempfile

import cv2
import numpy as np
import pytest

from dolg.config import load_cfg
from dolg.data.decode import ImageError
from dolg.errors import UserError
from dolg.features.store import FeatureStore, StoreWriter
from dolg.rerank.run import rerank
from dolg.search.indexes import build_index
from dolg.serve.database import Database, ImageFiles
from dolg.serve.finder import open_finder
from dolg.serve.photo import Limits
from dolg.serve.rerankers import LOCAL

METHODS = ["aqe", "alpha", "superglobal", "kreciprocal", "diffusion", "spatial", "rrt", "rrt@0.5+spatial"]


@pytest.fixture
def described(finder, monkeypatch) -> list[np.ndarray]:
    """The descriptors that the finder searches for, as it is asked."""
    seen, search = [], finder.database.search

    def watched(descriptor, k, device):
        seen.append(descriptor.copy())
        return search(descriptor, k, device)

    monkeypatch.setattr(finder.database, "search", watched)
    return seen


def _slow_search(descriptor: np.ndarray, stores: list[FeatureStore]) -> list[tuple[float, int, str]]:
    """(score, row, name) of all images that did not fail, best first, equal ones by row."""
    found, row = [], 0
    for store in stores:
        for descriptors, status, name in zip(np.asarray(store.global_descriptors()), store.status,
                                             store.names):
            if status == 0:
                score = float(sum(float(a) * float(b) for a, b in zip(descriptors, descriptor)))
                found.append((score, row, name))
            row += 1
    return sorted(found, key=lambda entry: (-entry[0], entry[1]))


def test_results_are_those_of_a_slow_search(asked, finder, described):
    photo = asked.queries / "0.jpg"
    found = finder.find(photo, top=15)
    stores = [FeatureStore(asked.database), FeatureStore(asked.distractors)]
    want = _slow_search(described[0], stores)
    assert len(want) == 15 and 12 not in [row for _, row, _ in want]       # others/2.jpg is no image
    assert [result.row for result in found.results] == [row for _, row, _ in want]
    assert [result.name for result in found.results] == [name for _, _, name in want]
    np.testing.assert_allclose([result.score for result in found.results], [score for score, _, _ in want],
                               atol=1e-6)
    assert [(result.place, result.found_at) for result in found.results] == [(n, n) for n in range(1, 16)]
    for result in found.results:
        folder, name = (asked.jpg, result.name) if result.row < 10 else (asked.others, result.name)
        assert result.image == folder / name and result.score == result.similarity
    assert finder.find(photo, top=4).results == found.results[:4]
    assert len(finder.find(photo, top=100).results) == 15
    assert list(found.seconds) == ["decode", "describe", "search"] and min(found.seconds.values()) > 0
    assert found.size == (128, 96) and found.region == (0, 0, 128, 96) and found.described_at is None


@pytest.mark.parametrize("query", [0, 1, 2])
def test_the_descriptor_is_that_of_a_store(asked, finder, described, query):
    """Bit for bit, with the box, from a path and from bytes."""
    photo = asked.queries / f"{query}.jpg"
    finder.find(photo, asked.boxes[query])
    finder.find(photo.read_bytes(), asked.boxes[query])
    want = FeatureStore(asked.query).rows(np.array([query]))[0]
    for descriptor in described:
        assert descriptor.tobytes() == want.tobytes()
    finder.find(photo)
    assert np.array_equal(described[-1], want) == (query == 1)     # whose box is all of it


def test_an_image_of_the_database_finds_itself(asked, finder, described):
    for row, name in enumerate(FeatureStore(asked.database).names):
        found = finder.find(asked.jpg / name, top=1)
        assert (found.results[0].row, found.results[0].name) == (row, name)
        assert described[-1].tobytes() == FeatureStore(asked.database).rows(np.array([row])).tobytes()


def test_a_box_that_sticks_out_is_cut(asked, finder, described):
    finder.find(asked.queries / "0.jpg", (-50, 10, 60, 1e9))
    found = finder.find(asked.queries / "0.jpg", (0, 10, 60, 96))
    assert described[0].tobytes() == described[1].tobytes() and found.region == (0, 10, 60, 96)


@pytest.mark.parametrize("parts", ["index", "index and store"])
def test_an_index_finds_what_stores_do(asked, finder, tmp_path, parts):
    stores = [FeatureStore(asked.database), FeatureStore(asked.distractors)]
    whole = parts == "index"
    build_index(tmp_path / "index", stores if whole else stores[:1], "flat")
    paths = [tmp_path / "index"] if whole else [tmp_path / "index", asked.distractors]
    other = open_finder(asked.cfg, asked.weights, asked.keys, paths, [asked.jpg, asked.others])
    for query in range(2):
        mine, theirs = (one.find(asked.queries / f"{query}.jpg", top=15).results for one in (other, finder))
        assert [(one.row, one.name, one.image) for one in mine] == [
            (one.row, one.name, one.image) for one in theirs]
        np.testing.assert_allclose([one.score for one in mine], [one.score for one in theirs], atol=1e-6)
    reranked = [one.find(asked.queries / "0.jpg", reranker="superglobal").results
                for one in (other, finder)]
    # The index's finder has a RERANK.TOP_K of 100, the other of 6
    assert [one.row for one in reranked[0]] != [one.row for one in reranked[1]]


def test_rerankers_give_the_scores_of_the_command(asked, finder, rrt_keys, tmp_path):
    """All methods and a chain, three queries in turn: what is kept of one would show in the next."""
    cfg = load_cfg(asked.cfg, [*asked.keys, *rrt_keys, "RERANK.QUERY", str(asked.query), "RERANK.DATABASE",
                               str(asked.database), "RERANK.DISTRACTORS", f"[{asked.distractors}]",
                               "RERANK.OUT_DIR", str(tmp_path), "RERANK.TOP_K", "[6]"])
    rerank(cfg, [method.split("+") for method in METHODS])
    for query in range(3):
        for method in METHODS:
            found = finder.find(asked.queries / f"{query}.jpg", asked.boxes[query], 6, method)
            with open(tmp_path / f"{method}_top6.csv", encoding="utf-8") as file:
                want = [line for line in csv.DictReader(file) if line["query"] == f"{query}.jpg"]
            assert [result.name for result in found.results] == [line["image"] for line in want], method
            np.testing.assert_allclose([result.score for result in found.results],
                                       [float(line["score"]) for line in want], atol=2e-6, err_msg=method)
            assert (found.reranker, found.reranked, list(found.seconds)[-1]) == (method, 6, "rerank")


def test_asmk_by_words_that_were_learned_before(asked, tmp_path):
    """It keeps the query that it saw last: two in turn."""
    pytest.importorskip("asmk", reason="the package asmk is absent")
    keys = [*asked.keys, "RERANK.TOP_K", "[6]", "RERANK.ASMK.WORDS", "8", "RERANK.ASMK.FOLDER",
            str(tmp_path)]
    cfg = load_cfg(asked.cfg, [*keys, "RERANK.QUERY", str(asked.query), "RERANK.DATABASE",
                               str(asked.database), "RERANK.OUT_DIR", str(tmp_path)])
    rerank(cfg, [["asmk"]])
    finder = open_finder(asked.cfg, asked.weights, keys, [asked.database], (), "asmk")
    for query in (0, 1, 0):
        found = finder.find(asked.queries / f"{query}.jpg", asked.boxes[query], 6, "asmk")
        with open(tmp_path / "asmk_top6.csv", encoding="utf-8") as file:
            want = [line for line in csv.DictReader(file) if line["query"] == f"{query}.jpg"]
        assert [result.name for result in found.results] == [line["image"] for line in want]
        np.testing.assert_allclose([result.score for result in found.results],
                                   [float(line["score"]) for line in want], atol=2e-6)


def test_places_before_and_images_behind_the_first(asked, finder):
    before = finder.find(asked.queries / "0.jpg", top=15).results
    after = finder.find(asked.queries / "0.jpg", top=15, reranker="rrt").results
    assert sorted(result.row for result in before) == sorted(result.row for result in after)
    assert [result.row for result in before] != [result.row for result in after]
    for result in after:
        assert before[result.found_at - 1].row == result.row
        assert before[result.found_at - 1].score == result.similarity
    assert [result.place for result in after] == list(range(1, 16))
    assert [result.reranked for result in after] == [True] * 6 + [False] * 9
    assert not any(result.reranked for result in before)
    assert after[6:] == before[6:]
    assert len(finder.rerankers._made["rrt"].known._known) == 1     # of queries before nothing is kept


def test_rerankers_that_can_be_had(finder):
    offered = finder.rerankers.offer()
    assert [name for name, why in offered.items() if not why] == [
        "rrt", "spatial", "superglobal", "aqe", "alpha", "kreciprocal", "diffusion"]
    assert "visual words" in offered["asmk"] and "codebook.npz is not there" in offered["asmk"]
    with pytest.raises(UserError, match="asmk needs visual words"):
        finder.find(b"", reranker="asmk")
    with pytest.raises(UserError, match="choose one of .*did you mean 'spatial'"):
        finder.find(b"", reranker="spatail")
    with pytest.raises(UserError, match="the weight behind @ is a share"):
        finder.find(b"", reranker="spatial@2")


def test_rerankers_that_cannot_be_had(asked, tmp_path):
    """No weights; local features that were not asked for; none in the database; other ones; stores gone."""
    plain = open_finder(asked.cfg, asked.weights, asked.keys, [asked.database])
    why = plain.rerankers.offer()
    assert "give RERANK.RRT.WEIGHTS" in open_finder(
        asked.cfg, asked.weights, asked.keys, [asked.database], (), "all").rerankers.offer()["rrt"]
    assert all("give INFER.LOCAL True, as" in why[name] for name in LOCAL) and not why["aqe"]
    bare = tmp_path / "bare"
    plain.describer.extract(bare, _source(asked.jpg))
    why = open_finder(asked.cfg, asked.weights, asked.keys, [bare], (), "all").rerankers.offer()
    assert all("bare has none: extract it with INFER.LOCAL True" in why[name] for name in LOCAL)
    fewer = [*asked.keys, "INFER.LOCAL_TOPK", "7"]
    why = open_finder(asked.cfg, asked.weights, fewer, [asked.database], (), "all").rerankers.offer()
    assert "other INFER.LOCAL_* keys than these (local differs)" in why["spatial"] and not why["alpha"]
    build_index(tmp_path / "index", [FeatureStore(bare)], "flat")
    shutil.rmtree(bare)
    lone = open_finder(asked.cfg, asked.weights, asked.keys, [tmp_path / "index"], (), "all")
    assert all("aqe reads the stores of the database: a store of the index" in why.replace(name, "aqe", 1)
               for name, why in lone.rerankers.offer().items())
    assert len(lone.find(asked.queries / "0.jpg", top=3).results) == 3
    with pytest.raises(UserError, match="reads the stores of the database"):
        lone.find(asked.queries / "0.jpg", reranker="aqe")


def _source(folder):
    from dolg.features.sources import images_of

    return images_of(folder)


@pytest.mark.parametrize("keys, message", [
    (["INFER.SCALES", "[1.0]"], r"different scales: \[1.0\] and \[0.7071, 1.0\]"),
    (["INFER.SCALE_POOLING", "max"], "different scale_pooling: max and mean"),
    (["INFER.SIZE", "64"], "different INFER.SIZE: 64 and 0"),
    (["MODEL.HEADS.REDUCTION_DIM", "8"], "has descriptors of 16 dimensions, this model of 8")])
def test_a_database_of_other_settings(asked, tmp_path, keys, message):
    import torch

    from dolg.models import build_model

    weights = tmp_path / "w.pyth"
    shutil.copy(asked.weights, weights)
    if keys[0].startswith("MODEL"):
        torch.save(build_model(load_cfg(asked.cfg, [*asked.keys, *keys])).state_dict(), weights)
    with pytest.raises(UserError, match=message):
        open_finder(asked.cfg, str(weights), [*asked.keys, *keys], [asked.database])


@pytest.mark.parametrize("kind", ["store", "index"])
def test_a_database_of_other_weights(asked, tmp_path, kind):
    import torch

    from dolg.models import build_model

    torch.manual_seed(5)
    torch.save(build_model(load_cfg(asked.cfg, asked.keys)).state_dict(), tmp_path / "w.pyth")
    path = asked.database
    if kind == "index":
        path = tmp_path / "index"
        build_index(path, [FeatureStore(asked.database)], "flat")
    with pytest.raises(UserError, match="by another model than this one: .*different weights") as caught:
        open_finder(asked.cfg, str(tmp_path / "w.pyth"), asked.keys, [path])
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_database(asked, tmp_path):
    for paths, message in (([], "there is no database to ask"),
                           ([tmp_path / "none"], "none does not exist"),
                           ([tmp_path], "holds neither an index nor a store"),
                           ([asked.database, asked.database],
                            "has images that .* has as well: give each once")):
        with pytest.raises(UserError, match=message):
            Database(paths)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="manifest.json"):
        Database([tmp_path])
    with pytest.raises(UserError, match="w.pyth is no folder of images"):
        ImageFiles(Database([asked.database]), [asked.weights])


def test_damaged_photographs_and_impossible_boxes(asked, finder, tmp_path):
    whole = (asked.queries / "0.jpg").read_bytes()
    for data in (b"", b"no image", whole[:300]):
        with pytest.raises(ImageError, match="cannot read image the photo: "):
            finder.find(data)
    with pytest.raises(ImageError, match="none.jpg"):
        finder.find(tmp_path / "none.jpg")
    for box in ((200, 0, 300, 50), (10, 10, 10, 20), (50, 50, 20, 80), (0, -9, 128, 0), (-5, -5, -1, -1),
                (3.2, 0, 3.9, 96)):
        with pytest.raises(UserError, match="leaves nothing of the photo, which has 128 x 96 pixels: give"):
            finder.find(whole, box)
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(UserError, match="the box is not of finite numbers"):
            finder.find(whole, (0, 0, bad, 50))
    with pytest.raises(UserError, match="0 results are asked for"):
        finder.find(whole, top=0)


def test_limits(asked, finder, monkeypatch):
    whole = (asked.queries / "0.jpg").read_bytes()
    for limits, message in ((Limits(pixels=128 * 96 - 1), "claims 128 x 96 pixels, more than the"),
                            (Limits(side=127), "its sides may have 127"),
                            (Limits(kinds=("PNG", "WebP", "BMP")), "is no PNG, WebP or BMP file")):
        monkeypatch.setattr(finder, "limits", limits)
        with pytest.raises((UserError, ImageError), match=message):
            finder.find(whole)
    monkeypatch.setattr(finder, "limits", Limits(128 * 96, 128, ("JPEG", "PNG", "WebP", "BMP")))
    pixels = cv2.imread(str(asked.queries / "0.jpg"))
    for ending in (".jpg", ".png", ".webp", ".bmp"):
        assert finder.find(cv2.imencode(ending, pixels)[1].tobytes()).size == (128, 96)
    for ending in (".tiff", ".ppm"):
        with pytest.raises(UserError, match="is no JPEG, PNG, WebP or BMP file: save it as one"):
            finder.find(cv2.imencode(ending, pixels)[1].tobytes())


@pytest.mark.parametrize("box, size", [(None, (64, 48)), ((10, 20, 110, 96), (64, 49)),
                                       ((3, 3, 60, 60), None)])
def test_large_regions_are_shrunk(asked, finder, described, monkeypatch, box, size):
    """To the mean of what each pixel covers: what OpenCV makes of the region; no larger than asked for."""
    pixels = cv2.imread(str(asked.queries / "1.jpg"))
    x1, y1, x2, y2 = box or (0, 0, 128, 96)
    region = pixels[y1:y2, x1:x2]
    finder.find(cv2.imencode(".png", cv2.resize(region, size, interpolation=cv2.INTER_AREA) if size
                             else region)[1].tobytes())
    monkeypatch.setattr(finder, "side", 64)
    found = finder.find(cv2.imencode(".png", pixels)[1].tobytes(), box)
    assert described[0].tobytes() == described[1].tobytes()
    assert (found.described_at, found.size, found.region) == (size, (128, 96), (x1, y1, x2, y2))


def test_an_upright_photograph(asked, finder, described):
    """A box is in pixels of what people see: a photograph turned by its EXIF is turned back."""
    from PIL import Image

    image = Image.open(asked.queries / "2.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6        # to be turned clockwise
    turned, upright = asked.folder / "turned.jpg", asked.folder / "upright.png"
    image.save(turned, quality=100, subsampling=0, exif=exif)
    Image.open(turned).transpose(Image.Transpose.ROTATE_270).save(upright)
    found = finder.find(turned, (0, 30, 96, 128))
    finder.find(upright, (0, 30, 96, 128))
    assert found.size == (96, 128) and found.region == (0, 30, 96, 128)
    np.testing.assert_allclose(described[0], described[1], atol=1e-5)


def test_nothing_is_left_behind(asked, finder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    finder.find(asked.queries / "0.jpg", reranker="spatial")
    with pytest.raises(ImageError):
        finder.find(b"\xff\xd8\xff")
    monkeypatch.setattr(finder.describer.extractor, "model", None)
    with pytest.raises(AttributeError):
        finder.find(asked.queries / "0.jpg")
    left = [file.name for file in tmp_path.iterdir()]
    assert [name for name in left if not name.startswith("torchinductor")] == []


def test_names_do_not_lead_out_of_a_folder(tmp_path):
    (tmp_path / "in").mkdir()
    names = ["../secret.jpg", str(tmp_path / "secret.jpg"), "a/../../secret.jpg", "x\0y.jpg", "plain",
             "gone.jpg"]
    for file in ("secret.jpg", "in/plain.jpg"):
        (tmp_path / file).write_bytes(b"x")
    writer = StoreWriter(tmp_path / "store", names, 2, 10, {})
    writer.write_chunk(0, np.eye(6, 2, dtype=np.float32), {})
    files = ImageFiles(Database([tmp_path / "store"]), [tmp_path / "in", tmp_path / "in"])
    assert [files.find(row) for row in range(6)] == [None] * 4 + [tmp_path / "in" / "plain.jpg", None]


def test_names_that_no_file_can_have(tmp_path):
    """255 bytes are the most of most file systems."""
    (tmp_path / "a.jpg").write_bytes(b"x")
    names = ["x" * 300, "é" * 140 + ".jpg", "y" * 5000 + "/a.jpg", "a.jpg"]
    StoreWriter(tmp_path / "store", names, 2, 10, {}).write_chunk(0, np.eye(4, 2, dtype=np.float32), {})
    files = ImageFiles(Database([tmp_path / "store"]), [tmp_path])
    assert [files.find(row) for row in range(4)] == [None] * 3 + [tmp_path / "a.jpg"]


def test_each_store_has_its_folder(asked, tmp_path):
    """Images of one name in two stores; with another number of folders, the first that has it."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "1.jpg").write_bytes(b"x")
        StoreWriter(tmp_path / f"store {folder}", ["1.jpg"], 2, 10, {"imported_digest": folder}).write_chunk(
            0, np.full((1, 2), ord(folder), np.float32), {})
    database = Database([tmp_path / "store a", tmp_path / "store b"])
    build_index(tmp_path / "index", database.stores, "flat")
    for one in (database, Database([tmp_path / "index"])):
        assert ImageFiles(one, [tmp_path / "a", tmp_path / "b"]).find(1) == tmp_path / "b" / "1.jpg"
        assert ImageFiles(one, [tmp_path / "a", tmp_path / "b"]).find(0) == tmp_path / "a" / "1.jpg"
        assert ImageFiles(one, [tmp_path / "b"]).find(0) == tmp_path / "b" / "1.jpg"
