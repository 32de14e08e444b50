"""ASMK against the package's own index and search, and against slow code in NumPy."""
import dataclasses
import sys

import numpy as np
import pytest

from dolg.errors import UserError
from dolg.rerank import asmk as module
from dolg.rerank import asmk_index
from dolg.rerank.asmk import ASMKReranker, learn_codebook, open_codebook
from dolg.rerank.asmk_index import ASMKIndex
from dolg.rerank.asmk_kernel import MatchKernel
from dolg.rerank.images import ArrayImages, StoredImages
from dolg.search.collection import store_digest
from dolg.search.rankings import Ranking
from revisitop.stores import StoreError

WORDS = 12
SETTINGS = [(True, 3.0, 0.0), (True, 1.5, 0.25), (False, 3.0, 0.0), (False, 1.0, 0.1)]


def tables(seed, sizes, make_local, dim):
    """Descriptors, and local features of so many images that have some directions in common."""
    rng = np.random.default_rng(seed)
    shared = np.random.default_rng(99).standard_normal((15, dim))
    local = []
    for size in sizes:
        table = make_local(rng, size, dim)
        noisy = shared[rng.integers(0, 15, size)] + 0.8 * rng.standard_normal((size, dim))
        noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
        local.append(dataclasses.replace(table, descriptors=noisy.astype(np.float32)))
    descriptors = rng.standard_normal((len(sizes), 4)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return descriptors, local


@pytest.fixture(scope="module", params=[32, 40])
def toy(request, make_local):
    """Queries, database and words; image 5 has no local feature, image 6 failed, nor has query 2 any."""
    pytest.importorskip("asmk")
    query = ArrayImages(*tables(0, [30, 17, 0, 1], make_local, request.param))
    descriptors, local = tables(1, [25, 40, 3, 1, 60, 0, 0, *range(10, 24)], make_local, request.param)
    descriptors[6] = np.nan
    database = ArrayImages(descriptors, local)
    return query, database, learn_codebook(database, WORDS, most_local=50)


def slow_image(descriptors, centres, assignments, binary):
    """word -> bits or unit vector."""
    sums = {}
    for x in descriptors.astype(np.float64):
        for word in np.argsort(((centres - x) ** 2).sum(axis=1))[:assignments].tolist():
            sums[word] = sums.get(word, 0) + x - centres[word]
    if binary:
        # The package fills the last 32 bits up
        size = -(-centres.shape[1] // 32) * 32
        return {word: np.pad(total > 0, (0, size - len(total))) for word, total in sums.items()}
    return {word: total / (np.linalg.norm(total) + 1e-6) for word, total in sums.items()}


def slow_score(query, image, binary, alpha, threshold):
    score = 0.0
    for word in set(query) & set(image):
        same = 1 - 2 * np.mean(query[word] != image[word]) if binary else query[word] @ image[word]
        score += same ** alpha if same >= threshold else 0
    return score / np.sqrt(len(query) * len(image)) if query and image else 0.0


@pytest.mark.parametrize("most_local", [1000, 20])
@pytest.mark.parametrize("assignments", [1, 4])
@pytest.mark.parametrize("binary, alpha, threshold", SETTINGS)
def test_against_slow_code(toy, binary, alpha, threshold, assignments, most_local):
    query, database, centres = toy
    reranker = ASMKReranker(query, database, MatchKernel(centres, binary, alpha, threshold), most_local,
                            assignments)
    rows, scores = np.arange(len(database)), []
    images = [slow_image(database.local(row).descriptors[:most_local], centres, 1, binary) for row in rows]
    for number in range(len(query)):
        own = slow_image(query.local(number).descriptors[:most_local], centres, assignments, binary)
        expected = [slow_score(own, image, binary, alpha, threshold) for image in images]
        scores.append(reranker.rerank(number, rows, np.zeros(len(rows))))
        np.testing.assert_allclose(scores[-1], expected, atol=1e-5)
    scores = np.array(scores)
    assert (scores[0] > 0).sum() > 7 and len(np.unique(scores[0])) > 7
    # Without local features nothing is in common, whether the image failed or has none
    assert (scores[:, 5:7] == 0).all() and (scores[2] == 0).all()


@pytest.mark.parametrize("assignments", [1, 5])
@pytest.mark.parametrize("binary, alpha, threshold", SETTINGS)
def test_against_the_packages_own_index(toy, binary, alpha, threshold, assignments):
    from asmk import ASMKMethod

    def columns(images):
        local = [images.local(row).descriptors for row in range(len(images))]
        return np.concatenate(local), np.repeat(np.arange(len(local)), [len(table) for table in local])

    query, database, centres = toy
    reranker = ASMKReranker(query, database, MatchKernel(centres, binary, alpha, threshold),
                            assignments=assignments)
    method = ASMKMethod.initialize_untrained({
        "index": {"gpu_id": None}, "train_codebook": {"codebook": {"size": WORDS}},
        "build_ivf": {"kernel": {"binary": binary}, "ivf": {"use_idf": False},
                      "quantize": {"multiple_assignment": 1}, "aggregate": {}},
        "query_ivf": {"quantize": {"multiple_assignment": assignments}, "aggregate": {},
                      "search": {"topk": None},
                      "similarity": {"similarity_threshold": threshold, "alpha": alpha}}})
    first = np.concatenate([database.local(row).descriptors[:50] for row in range(len(database))])
    trained = method.train_codebook(first)
    np.testing.assert_array_equal(trained.codebook.centroids, centres)
    # An image without any feature is nobody the package knows of: it would divide by 0
    with np.errstate(invalid="ignore"):
        _, images, ranks, scores = trained.build_ivf(*columns(database)).query_ivf(*columns(query))
    assert images.tolist() == [0, 1, 3] and ranks.shape == (3, len(database))
    for number, ranked, theirs in zip(images, ranks, scores):
        mine = reranker.rerank(int(number), ranked, np.zeros(len(ranked)))
        np.testing.assert_allclose(mine, np.nan_to_num(theirs), atol=1e-5)


def test_an_image_is_most_like_itself(toy):
    _, database, centres = toy
    for binary in (True, False):
        reranker = ASMKReranker(database, database, MatchKernel(centres, binary), assignments=1)
        for row in (0, 2, 4, 20):
            scores = reranker.rerank(row, np.arange(len(database)), np.zeros(len(database)))
            assert scores[row] == pytest.approx(1, abs=1e-4) and scores.argmax() == row
            assert scores.max() <= 1 and scores.min() >= 0


def test_a_pair_has_one_score_whatever_list_it_is_in(toy):
    query, database, centres = toy
    whole = ASMKReranker(query, database, MatchKernel(centres)).rerank(0, np.arange(21), np.zeros(21))
    for rows in ([20, 3, 0], [5], [6, 5], list(range(20, -1, -1))):
        other = ASMKReranker(query, database, MatchKernel(centres))
        np.testing.assert_array_equal(other.rerank(0, np.array(rows), np.zeros(len(rows))), whole[rows])


@pytest.mark.parametrize("binary", [True, False])
def test_images_are_aggregated_once_and_measured(toy, binary, monkeypatch):
    query, database, centres = toy
    asked, local = [], ArrayImages.local
    monkeypatch.setattr(ArrayImages, "local", lambda images, row: (
        asked.append((images is query, row)), local(images, row))[1])
    reranker = ASMKReranker(query, database, MatchKernel(centres, binary))
    assert reranker.bytes_per_image == 0
    for number, row in ((0, 7), (1, 8), (1, 9), (0, 7)):
        reranker.rerank(number, np.array([4, 5, row]), np.zeros(3))
    assert [row for own, row in asked if not own] == [4, 5, 7, 8, 9]
    assert [row for own, row in asked if own] == [0, 1]
    dim = centres.shape[1]
    entry = 4 + (4 * -(-dim // 32) if binary else 4 * dim)
    words = [len(slow_image(local(database, row).descriptors, centres, 1, True))
             for row in (4, 5, 7, 8, 9)]
    assert reranker.bytes_per_image == entry * sum(words) / 5


def test_what_is_kept_in_memory_is_bounded(toy, monkeypatch):
    query, database, centres = toy
    entry = 4 + 4 * -(-centres.shape[1] // 32)
    monkeypatch.setattr(module, "_CACHE_BYTES", 2 * entry * 1000)
    asked, local = [], ArrayImages.local
    monkeypatch.setattr(ArrayImages, "local", lambda images, row: (
        asked.append(row) if images is database else None, local(images, row))[1])
    reranker = ASMKReranker(query, database, MatchKernel(centres))
    for rows in ([0], [1], [2], [0]):
        reranker.score_pairs(0, np.array(rows))
    assert asked == [0, 1, 2, 0]
    reranker.score_pairs(1, np.array([2]))
    assert asked == [0, 1, 2, 0]


def test_what_it_was_told(toy):
    query, database, centres = toy
    one = ASMKReranker(query, database, MatchKernel(centres)).settings
    assert {key: one[key] for key in one if key != "codebook"} == {
        "words": WORDS, "binary": True, "alpha": 3.0, "threshold": 0.0, "most_local": 1000,
        "assignments": 5}
    moved = ASMKReranker(query, database, MatchKernel(centres + 1e-3)).settings
    assert one["codebook"] != moved["codebook"]


def test_users_mistakes_are_named(toy):
    query, database, centres = toy
    kernel = MatchKernel(centres)
    for alpha in (0.0, -1.0, np.nan):
        with pytest.raises(UserError, match="ASMK.ALPHA is"):
            MatchKernel(centres, alpha=alpha)
    for threshold in (-0.1, 1.5, np.nan):
        with pytest.raises(UserError, match="ASMK.THRESHOLD is"):
            MatchKernel(centres, threshold=threshold)
    for assignments in (0, WORDS + 1):
        with pytest.raises(UserError, match=f"ASSIGNMENTS is {assignments}: give 1 to {WORDS}"):
            ASMKReranker(query, database, kernel, assignments=assignments)
    with pytest.raises(UserError, match="LOCALS is 0"):
        ASMKReranker(query, database, kernel, 0)
    with pytest.raises(UserError, match=f"words have 8 dimensions, the local features {centres.shape[1]}"):
        ASMKReranker(query, database, MatchKernel(np.ascontiguousarray(centres[:, :8])))
    with pytest.raises(UserError, match="asmk needs local features, and the queries have none"):
        ASMKReranker(ArrayImages(np.ones((4, 4))), database, kernel)


@pytest.mark.parametrize("absent, message", [("asmk", "the package asmk.*pip install --no-deps asmk"),
                                             ("faiss", "needs faiss: pip install faiss-gpu")])
def test_absent_packages_are_named(absent, message, monkeypatch):
    if absent == "faiss":
        pytest.importorskip("asmk")
    for name in [name for name in sys.modules if name.split(".")[0] in ("asmk", "faiss")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(UserError, match=message):
        MatchKernel(np.eye(4, dtype=np.float32))
    with pytest.raises(UserError, match=message):
        learn_codebook(ArrayImages(np.ones((1, 4), np.float32)))


# ------------------------------------------------------------------- the visual words

class Counted(ArrayImages):
    """Remembers which images were read."""

    def __init__(self, *tables):
        super().__init__(*tables)
        self.asked = []

    def local(self, row):
        self.asked.append(row)
        return super().local(row)


def test_words_are_the_packages_of_the_first_features_of_some_images(make_local):
    pytest.importorskip("asmk")
    images = Counted(*tables(3, [40] * 30, make_local, 32))
    centres = learn_codebook(images, 7, 10, 25)
    read = images.asked[:]
    assert len(set(read)) == 10 and read == sorted(read)
    assert max(read) > 15, "not the first images, which may all be of one place"
    from asmk.codebook import Codebook
    from asmk.index import FaissL2Index
    codebook = Codebook(FaissL2Index(), size=7)
    codebook.train(np.concatenate([ArrayImages.local(images, row).descriptors[:25] for row in read]))
    assert centres.dtype == np.float32
    np.testing.assert_array_equal(centres, codebook.centroids)
    np.testing.assert_array_equal(centres, learn_codebook(images, 7, 10, 25))
    assert images.asked == 2 * read


def test_too_few_features_for_the_words(make_local):
    pytest.importorskip("asmk")
    images = ArrayImages(*tables(3, [40, 0, 38], make_local, 32))
    with pytest.raises(UserError, match="WORDS is 79, but the 3 images .* 78 local features: give 2 words"):
        learn_codebook(images, 79)
    with pytest.raises(UserError, match="the 3 images .* 20 local features: give 1 words"):
        learn_codebook(images, 21, most_local=10)
    for key, arguments in (("WORDS", {"words": 0}), ("TRAIN_IMAGES", {"train_images": 0}),
                           ("LOCALS", {"most_local": 0})):
        with pytest.raises(UserError, match=f"{key} is 0"):
            learn_codebook(images, **{"words": 2, **arguments})


@pytest.fixture
def stored(write_store, make_local):
    """Queries and a database of two stores; some images failed, some have no local features."""
    pytest.importorskip("asmk")
    query = write_store("query", *tables(4, [30, 0, 12], make_local, 32))
    descriptors, local = tables(5, [20, 0, 31, 0, *range(5, 30)], make_local, 32)
    descriptors[1] = np.nan
    stores = [write_store("database", descriptors[:18], local[:18]),
              write_store("distractors", descriptors[18:], local[18:])]
    return StoredImages([query]), StoredImages(stores)


def test_words_are_learned_once(stored, tmp_path, monkeypatch):
    folder = tmp_path / "words" / "asmk"
    centres = open_codebook(stored[1], folder, 9, 20, 15)
    np.testing.assert_array_equal(centres, learn_codebook(stored[1], 9, 20, 15))
    assert [file.name for file in folder.iterdir()] == ["codebook.npz"]

    def refuse(*args):
        raise AssertionError("learned again")

    monkeypatch.setattr(module, "learn_codebook", refuse)
    np.testing.assert_array_equal(open_codebook(stored[1], folder, 9, 20, 15), centres)


def test_more_images_than_there_are_is_all_of_them(stored, tmp_path):
    centres = open_codebook(stored[1], tmp_path, 9, 29)
    np.testing.assert_array_equal(open_codebook(stored[1], tmp_path, 9, 5000), centres)


def test_words_of_other_stores_or_settings_are_refused(stored, tmp_path):
    query, database = stored
    open_codebook(database, tmp_path, 9, 20, 15)
    for images, arguments, message in (
            (database, (8, 20, 15), "words was 9, is 8"),
            (database, (9, 10, 15), "train_images was 20, is 10"),
            (database, (9, 20, 16), "most_local was 15, is 16"),
            (StoredImages(database.collection.stores[::-1]), (9, 20, 15), r"\(stores\)"),
            (query, (9, 20, 15), "train_images was 20, is 3; stores")):
        with pytest.raises(UserError, match=f"learned otherwise.*{message}.*another RERANK.ASMK.FOLDER"):
            open_codebook(images, tmp_path, *arguments)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_damaged_words_are_named(stored, tmp_path, content):
    (tmp_path / "codebook.npz").write_bytes(content)
    with pytest.raises(UserError, match="codebook.npz cannot be read .*: delete it"):
        open_codebook(stored[1], tmp_path, 9)


@pytest.mark.parametrize("more", [{}, {"about": np.array("{}"), "centres": np.ones(3)},
                                  {"about": np.array("[]"), "centres": np.ones((3, 3), np.float32)}])
def test_other_files_are_no_words(stored, tmp_path, more):
    np.savez(tmp_path / "codebook.npz", **more)
    with pytest.raises(UserError, match="cannot be read|holds no visual words"):
        open_codebook(stored[1], tmp_path, 9)


def test_a_run_killed_while_learning_leaves_nothing(stored, tmp_path, monkeypatch):
    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "learn_codebook", killed)
    with pytest.raises(KeyboardInterrupt):
        open_codebook(stored[1], tmp_path, 9)
    assert not list(tmp_path.glob("codebook*"))


# ------------------------------------------------------------------- as the first stage

@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("part", [7, 29, 100])
def test_a_search_finds_what_the_reranker_scores(stored, tmp_path, monkeypatch, binary, part):
    monkeypatch.setattr(asmk_index, "PART_IMAGES", part)
    query, database = stored
    kernel = MatchKernel(learn_codebook(database, 9), binary, 2.0, 0.1)
    index = ASMKIndex(tmp_path / "index", database, kernel, 18)
    assert index.bytes_per_image == 0
    index.build()
    assert len(list((tmp_path / "index").glob("part-*"))) == -(-29 // part)
    reranker = ASMKReranker(query, database, kernel, 18, 3)
    scores = np.array([reranker.score_pairs(row, np.arange(29)) for row in range(3)])
    for k in (1, 6, 40):
        ranking = index.search(query, k, 3)
        assert ranking.indexes.shape == ranking.scores.shape == (3, k)
        for row, own in enumerate(scores):
            order = [i for i in sorted(range(29), key=lambda i: (-own[i], i)) if own[i] > 0][:k]
            assert ranking.indexes[row].tolist() == order + [-1] * (k - len(order))
            # Sums of float32 products may be rounded otherwise among other images
            np.testing.assert_allclose(ranking.scores[row], [*own[order], *[-np.inf] * (k - len(order))],
                                       rtol=0 if binary else 1e-5)
    assert (ranking.indexes[1] == -1).all(), "a query without local features finds nothing"
    assert ranking.settings == {"method": "asmk", "k": 40, "assignments": 3, "most_local": 18,
                                **kernel.settings}
    assert ranking.query == store_digest(query.collection.stores[0])
    assert ranking.database == database.collection.digests
    ranking.save(tmp_path / "ranking.npz")
    np.testing.assert_array_equal(Ranking.load(tmp_path / "ranking.npz").indexes, ranking.indexes)


def test_the_memory_of_an_image_is_that_of_its_files(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(asmk_index, "PART_IMAGES", 10)
    _, database = stored
    index = ASMKIndex(tmp_path, database, MatchKernel(learn_codebook(database, 9)))
    index.build()
    size = sum(file.stat().st_size for file in tmp_path.glob("part-*"))
    assert index.bytes_per_image == size / 29
    (tmp_path / "part-000002.safetensors").unlink()
    size = sum(file.stat().st_size for file in tmp_path.glob("part-*"))
    assert index.bytes_per_image == size / 20


def test_a_killed_build_goes_on(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(asmk_index, "PART_IMAGES", 6)
    query, database = stored
    kernel = MatchKernel(learn_codebook(database, 9))
    whole = ASMKIndex(tmp_path / "whole", database, kernel)
    whole.build()
    part, aggregated, done = ASMKIndex(tmp_path / "part", database, kernel), kernel.aggregated, []

    def killed(*args):
        if len(done) == 15:
            raise KeyboardInterrupt
        done.append(args)
        return aggregated(*args)

    monkeypatch.setattr(kernel, "aggregated", killed)
    with pytest.raises(KeyboardInterrupt):
        part.build()
    monkeypatch.setattr(kernel, "aggregated", aggregated)
    assert len(list((tmp_path / "part").glob("part-*"))) == 2
    with pytest.raises(UserError, match="lacks part-000002.safetensors: build the index first"):
        part.search(query, 3)
    kept = (tmp_path / "part" / "part-000001.safetensors").stat().st_mtime_ns
    ASMKIndex(tmp_path / "part", database, kernel).build()
    assert (tmp_path / "part" / "part-000001.safetensors").stat().st_mtime_ns == kept
    files = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert files == sorted(file.name for file in (tmp_path / "part").iterdir()) and len(files) == 6
    for name in files:
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_parts_of_another_size_are_refused(stored, tmp_path, monkeypatch):
    kernel = MatchKernel(learn_codebook(stored[1], 9))
    ASMKIndex(tmp_path, stored[1], kernel).build()
    monkeypatch.setattr(asmk_index, "PART_IMAGES", 10)
    with pytest.raises(UserError, match="made otherwise .part_images.: give another folder"):
        ASMKIndex(tmp_path, stored[1], kernel)


def test_indexes_that_do_not_fit_are_refused(stored, write_store, make_local, tmp_path):
    query, database = stored
    centres = learn_codebook(database, 9)
    index = ASMKIndex(tmp_path / "index", database, MatchKernel(centres))
    index.build()
    ASMKIndex(tmp_path / "index", database, MatchKernel(centres, alpha=2.0)).search(query, 3)
    for images, kernel, most_local, message in (
            (query, MatchKernel(centres), 1000, "stores"),
            (database, MatchKernel(centres), 10, "most_local"),
            (database, MatchKernel(centres, False), 1000, "binary"),
            (database, MatchKernel(centres * 2), 1000, "codebook")):
        with pytest.raises(UserError, match=f"made otherwise .*{message}.*: give another folder"):
            ASMKIndex(tmp_path / "index", images, kernel, most_local)
    for arguments, message in (((0,), "k is 0"), ((3, 10), "ASSIGNMENTS is 10")):
        with pytest.raises(UserError, match=message):
            index.search(query, *arguments)
    other = write_store("other", *tables(6, [3], make_local, 32), weights_digest="xyz")
    with pytest.raises(StoreError, match="different weights"):
        index.search(StoredImages([other]), 3)
    (tmp_path / "index" / "part-000000.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="part-000000.safetensors cannot be read .*delete it and build"):
        index.search(query, 3)
    (tmp_path / "index" / "index.json").write_text("{")
    with pytest.raises(UserError, match="index.json cannot be read .*: delete the folder"):
        ASMKIndex(tmp_path / "index", database, MatchKernel(centres))
    bare = StoredImages([write_store("bare", np.ones((3, 4), np.float32))])
    with pytest.raises(UserError, match="needs local features"):
        ASMKIndex(tmp_path / "new", bare, MatchKernel(centres))
    assert not (tmp_path / "new").exists()


@pytest.mark.gpu
def test_a_gpu_finds_the_same_words(toy):
    query, database, centres = toy
    on_cpu, on_gpu = (ASMKReranker(query, database, MatchKernel(centres, device=device)).rerank(
        0, np.arange(21), np.zeros(21)) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-5)
    features = np.concatenate([database.local(row).descriptors for row in range(21)]).astype(np.float64)

    def cost(words):
        return ((features[:, None] - words) ** 2).sum(axis=2).min(axis=1).mean()

    learned = learn_codebook(database, WORDS, most_local=50, device="cuda")
    assert cost(learned) == pytest.approx(cost(centres), rel=0.05)
