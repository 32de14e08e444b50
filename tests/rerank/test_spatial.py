"""Spatial verification: planted transformations, degenerate points, and what it makes of lists."""
import itertools
import json
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch

from dolg.errors import UserError
from dolg.features.store import LocalTable
from dolg.rerank.images import ArrayImages, StoredImages
from dolg.rerank.interface import Stage, rerank_list
from dolg.rerank.spatial import ESTIMATORS, MIN_MATCHES, Geometry, SpatialReranker, verify

HOMOGRAPHY = np.array([[1.1, 0.1, 30], [-0.05, 0.9, 10], [1e-4, 2e-4, 1]])
KINDS = [pair for pair in itertools.product(MIN_MATCHES, ESTIMATORS) if pair != ("affine", "pydegensac")]


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Points (m,2) by a matrix (2,3) or (3,3)."""
    new = np.c_[points, np.ones(len(points))] @ matrix.T
    return new[:, :2] / new[:, 2:] if new.shape[1] == 3 else new


def two_views(rng, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (m,2), (m,2) of points in space, in pixels, and the fundamental matrix."""
    points = rng.uniform(-1, 1, (count, 3)) + [0, 0, 4]
    angle, shift = 0.3, np.array([1.0, 0.2, 0.1])
    turn = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
    camera = np.array([[1000, 0, 500], [0, 1000, 500], [0, 0, 1.0]])
    views = [(points @ camera.T), (points @ turn.T + shift) @ camera.T]
    cross = np.array([[0, -shift[2], shift[1]], [shift[2], 0, -shift[0]], [-shift[1], shift[0], 0]])
    inverse = np.linalg.inv(camera)
    return *(view[:, :2] / view[:, 2:] for view in views), inverse.T @ cross @ turn @ inverse


def line_distances(matrix, query_xy, candidate_xy) -> np.ndarray:
    """Pixels of candidate points from the lines that F says they are on."""
    lines = np.c_[query_xy, np.ones(len(query_xy))] @ matrix.T
    points = np.c_[candidate_xy, np.ones(len(candidate_xy))]
    return np.abs((lines * points).sum(axis=1)) / np.linalg.norm(lines[:, :2], axis=1)


def planted(rng, model: str, good: int, bad: int):
    """Matches (m,2), (m,2), of which the first `good` are right to a pixel, and pixels (m,) from where the
    transformation puts them."""
    if model == "fundamental":
        query, candidate, matrix = two_views(rng, good + bad)
    else:
        query, matrix = rng.uniform(0, 1000, (good + bad, 2)), HOMOGRAPHY
        matrix = matrix if model == "homography" else HOMOGRAPHY[:2]
        candidate = moved(query, matrix)
    candidate += rng.uniform(-0.7, 0.7, candidate.shape)
    candidate[good:] = rng.uniform(0, 1000, (bad, 2))
    off = line_distances(matrix, query, candidate) if model == "fundamental" else np.linalg.norm(
        candidate - moved(query, matrix), axis=1)
    return query, candidate, off


@pytest.mark.parametrize("model, estimator", KINDS)
def test_planted_transformations_are_found(model, estimator):
    if estimator == "pydegensac":
        pytest.importorskip("pydegensac")
    rng = np.random.default_rng(0)
    for good, bad in ((100, 0), (80, 80), (40, 20)):
        query, candidate, off = planted(rng, model, good, bad)
        matrix, inliers = Geometry(model, estimator, threshold=4.0).estimate(query, candidate)
        assert inliers.dtype == bool and inliers.shape == (good + bad,)
        # Right ones are lost where the matrix is a little off, most where it is that of one sample
        kept = 0.8 if (model, estimator) == ("fundamental", "ransac") else 0.95
        assert inliers[:good].mean() > kept and not inliers[off > 30].any()
        assert matrix.shape == ((2, 3) if model == "affine" else (3, 3)) and matrix.dtype == np.float64
        found = (line_distances(matrix, query, candidate) if model == "fundamental"
                 else np.linalg.norm(moved(query, matrix) - candidate, axis=1))
        assert found[:good][inliers[:good]].max() < 6
        np.testing.assert_array_equal(inliers, verify(query, candidate, model=model, estimator=estimator,
                                                      threshold=4.0))


@pytest.mark.parametrize("estimator", ["magsac", "usac", "ransac"])
def test_inliers_are_within_the_threshold(estimator):
    rng = np.random.default_rng(1)
    for threshold in (5.0, 20.0, 60.0):
        query, candidate = (rng.uniform(0, 300, (200, 2)) for _ in range(2))
        candidate[:90] = moved(query[:90], HOMOGRAPHY) + rng.normal(0, 6, (90, 2))
        matrix, inliers = Geometry("homography", estimator, threshold).estimate(query, candidate)
        off = np.linalg.norm(moved(query, matrix) - candidate, axis=1)
        assert inliers.sum() > 20
        if estimator == "ransac":       # some versions of OpenCV refine the matrix afterwards
            assert inliers[off < 0.5 * threshold].all() and not inliers[off > 2 * threshold].any()
        else:
            np.testing.assert_array_equal(inliers, off < threshold)


def test_more_samples_find_what_few_do_not():
    query, candidate, off = planted(np.random.default_rng(2), "homography", 60, 140)
    few, many = (Geometry("homography", "ransac", 5.0, n).estimate(query, candidate)[1] for n in (2, 2000))
    assert few.sum() < 30 and many[:60].all()
    hasty = Geometry("homography", "ransac", 5.0, 2000, confidence=1e-6).estimate(query, candidate)[1]
    assert hasty.sum() < 30


@pytest.mark.parametrize("model, estimator", KINDS)
def test_too_few_matches_verify_nothing(model, estimator):
    if estimator == "pydegensac":
        pytest.importorskip("pydegensac")
    least = {"homography": 5, "affine": 4, "fundamental": 8}[model]
    rng = np.random.default_rng(3)
    query, candidate, _ = planted(rng, model, 12, 0)
    for count in range(least):
        matrix, inliers = Geometry(model, estimator).estimate(query[:count], candidate[:count])
        assert matrix is None and inliers.tolist() == [False] * count
    if model != "fundamental":
        assert verify(query[:least], candidate[:least], model=model, estimator=estimator).all()


LINE = np.c_[np.arange(30.0), 2 * np.arange(30.0) + 1]
SPOT = np.full((30, 2), 50.0)
SPOTS = SPOT * (np.arange(30) % 2)[:, None]
RANDOM = np.random.default_rng(4).uniform(0, 500, (30, 2))
# Matches for which OpenCV's fundamental matrices end in an error
CORNERS = (np.array([[5, 7], [0, 1], [8, 0], [2, 0], [6, 7], [0, 9], [0, 3], [1, 1]]) * 16,
           np.array([[1, 8], [1, 8], [1, 8], [0, 4], [0, 4], [8, 8], [8, 8], [8, 8]]) * 16)


@pytest.mark.parametrize("model, estimator", KINDS)
@pytest.mark.parametrize("query, candidate", [
    (LINE, 1.5 * LINE + 3), (LINE, LINE[::-1]), (LINE, RANDOM), (RANDOM, LINE), (SPOT, SPOT),
    (SPOT, RANDOM), (RANDOM, SPOT), (SPOTS, SPOTS), ((LINE * 0.1).astype(np.float32), RANDOM)],
    ids=["line", "mirrored", "from a line", "to a line", "spot", "from a spot", "to a spot", "two spots",
         "rounded line"])
def test_degenerate_points_verify_nothing(model, estimator, query, candidate):
    if estimator == "pydegensac":
        pytest.importorskip("pydegensac")
    matrix, inliers = Geometry(model, estimator).estimate(query, candidate)
    assert matrix is None and inliers.tolist() == [False] * 30


@pytest.mark.parametrize("estimator", ["magsac", "usac", "ransac"])
def test_points_that_are_an_error_for_opencv(estimator):
    assert not verify(*CORNERS, model="fundamental", estimator=estimator).any()


def test_a_narrow_plane_is_none_of_a_line():
    rng = np.random.default_rng(5)
    query = np.c_[rng.uniform(0, 1000, 40), rng.uniform(0, 1, 40)]
    for model in ("homography", "affine"):
        assert verify(query, query + 7, model=model, threshold=5.0).all()


def test_what_estimators_may_answer(monkeypatch):
    """No matrix, one that is not finite, errors; what is a mistake of ours is not taken for one."""
    query, candidate, _ = planted(np.random.default_rng(6), "homography", 9, 0)
    marked = np.ones((9, 1), np.uint8)
    for answer in ((None, marked), (np.full((3, 3), np.nan), marked), (np.eye(3), 0 * marked)):
        monkeypatch.setattr(cv2, "findHomography", lambda *args, **settings: answer)
        assert not verify(query, candidate).any()

    def failing(error):
        def find(*args, **settings):
            raise error
        return find

    for error in (cv2.error("assertion failed"), np.linalg.LinAlgError("singular")):
        monkeypatch.setattr(cv2, "findHomography", failing(error))
        assert not verify(query, candidate).any()
    monkeypatch.setattr(cv2, "findHomography", failing(TypeError("no such argument")))
    with pytest.raises(TypeError):
        verify(query, candidate)


def test_what_was_before_changes_nothing():
    rng = np.random.default_rng(7)
    for model, estimator in KINDS:
        if estimator == "pydegensac":
            pytest.importorskip("pydegensac")
        settings = {"model": model, "estimator": estimator, "threshold": 3.0}
        query, candidate, _ = planted(rng, model, 30, 200)
        masks = set()
        for seed in range(3):
            cv2.setRNGSeed(seed)
            for _ in range(seed):
                verify(*rng.uniform(0, 9, (2, 50, 2)), **settings)
            masks.add(verify(query, candidate, **settings).tobytes())
        assert len(masks) == 1


def test_pydegensac_is_called_as_it_wants(monkeypatch):
    package, calls = types.ModuleType("pydegensac"), []

    def find(*args, **settings):
        calls.append((args, settings))
        return np.eye(3), np.array([True] * 10 + [False] * 2)

    package.findHomography = package.findFundamentalMatrix = find
    monkeypatch.setitem(sys.modules, "pydegensac", package)
    query, candidate, _ = planted(np.random.default_rng(8), "homography", 12, 0)
    for model in ("homography", "fundamental"):
        assert verify(query, candidate, model=model, estimator="pydegensac", threshold=7.0, iterations=50,
                      confidence=0.9).sum() == 10
    assert len(calls) == 2
    for args, settings in calls:
        np.testing.assert_array_equal(args[0], query)
        np.testing.assert_array_equal(args[1], candidate)
        # pixels, confidence, samples, in this order; a seed, so that all runs are the same
        assert args[2:] == (7.0, 0.9, 50) and settings == {"seed": 1}


def features(descriptors, xy) -> LocalTable:
    count = len(xy)
    return LocalTable(np.array([0, count]), np.asarray(descriptors, np.float32).reshape(count, -1),
                      np.asarray(xy, np.float32), np.ones(count, np.float32),
                      np.linspace(1, 0.5, count, dtype=np.float32))


NOTHING = LocalTable(np.array([0, 0]), np.empty((0, 64), np.float32), np.empty((0, 2), np.float32),
                     np.empty(0, np.float32), np.empty(0, np.float32))
# Features that a candidate shares with the query, in its geometry, and how many the verification counts:
# of three and one in a wrong place none
SHARED = [0, 30, 3, 12, 0, 60, 2, 5, 12]
COUNTED = [0, 30, 0, 12, 0, 60, 0, 5, 12]


@pytest.fixture
def pictures():
    """Two queries of 64 orthogonal features each (the second one's are the first's, negative), and
    candidates that have SHARED of the first query's, moved, and one more in a wrong place.

    The ninth candidate shares as many as the fourth; the last two have no features.
    """
    rng, axes = np.random.default_rng(9), np.eye(64)
    xy = rng.uniform(0, 500, (64, 2))
    database = []
    for shared in SHARED:
        places = moved(xy[:shared], HOMOGRAPHY) + rng.uniform(-1, 1, (shared, 2))
        wrong = moved(xy[-1:], HOMOGRAPHY) + 200
        order = rng.permutation(shared + 1)
        database.append(features(np.r_[axes[:shared], axes[-1:]][order], np.r_[places, wrong][order]))
    database += [NOTHING, NOTHING]
    globals_ = unit_rows(rng, 2), unit_rows(rng, len(database))
    queries = [features(axes, xy), features(-axes, xy)]
    return (ArrayImages(globals_[0], queries), ArrayImages(globals_[1], database))


def unit_rows(rng, count: int) -> np.ndarray:
    table = rng.standard_normal((count, 6)).astype(np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


@pytest.mark.parametrize("settings", [
    {}, {"matching": "ratio"}, {"matching": "mutual", "estimator": "ransac"}, {"estimator": "usac"}])
def test_scores_are_inliers(pictures, settings):
    reranker = SpatialReranker(*pictures, **settings)
    rows = np.arange(11)
    scores = reranker.score_pairs(0, rows)
    assert scores.dtype == np.float64 and scores.tolist() == COUNTED + [0, 0]
    assert reranker.score_pairs(0, rows[::-1]).tolist() == (COUNTED + [0, 0])[::-1]
    assert reranker.score_pairs(0, rows[:0]).shape == (0,)
    if settings.get("matching") != "ratio":     # by which all that are equally far are no match either
        assert reranker.score_pairs(1, rows).tolist() == [0] * 11


def test_settings_reach_matching_and_geometry(pictures):
    near = SpatialReranker(*pictures, max_distance=1e-9)
    assert near.score_pairs(0, np.array([1, 5])).tolist() == [30, 60]
    rng, table = np.random.default_rng(10), pictures[1].local(5)
    table.descriptors = table.descriptors + rng.normal(0, 0.05, table.descriptors.shape).astype(np.float32)
    for far, count in ((0.99, 60), (0.01, 0)):
        assert SpatialReranker(*pictures, max_distance=far).score_pairs(0, np.array([5])) == [count]
    # Orthogonal features: the second nearest is about 1.4 away, the nearest about 0.4
    for ratio, count in ((0.6, 60), (0.01, 0)):
        reranker = SpatialReranker(*pictures, matching="ratio", ratio=ratio)
        assert reranker.score_pairs(0, np.array([5])) == [count]
    tight, loose = (SpatialReranker(*pictures, threshold=pixels).score_pairs(0, np.array([5]))[0]
                    for pixels in (0.3, 20.0))
    assert 0 < tight < 50 and loose == 60
    # Affine: no perspective; what is far from the best affine map is lost
    flat = SpatialReranker(*pictures, model="affine", threshold=5.0).score_pairs(0, np.array([5]))[0]
    assert 0 < flat < 60


def test_only_the_first_features_are_used(pictures):
    query, database = pictures
    for limit in (8, 20, 64):
        # Candidate 5 has 61 in a random order; those among both firsts match
        own = database.local(5).descriptors[:limit].argmax(axis=1)
        expected = int((own < min(60, limit)).sum())
        reranker = SpatialReranker(query, database, locals_per_image=limit)
        assert reranker.score_pairs(0, np.array([5])) == [expected if expected >= 5 else 0]


def test_lists_keep_their_order_among_equal_counts(pictures):
    """The original's unstable sort shuffles them; all without inliers come out as they were found."""
    reranker = SpatialReranker(*pictures)
    candidates = np.array([9, 2, 8, 4, 10, 3, 0, 5, 6, 1, 7])
    scores = np.linspace(0.9, 0.1, 11)
    ranked, new = rerank_list([Stage(reranker, 11, temperature=40.0)], 0, candidates, scores)
    assert ranked.tolist() == [5, 1, 8, 3, 7, 9, 2, 4, 10, 0, 6]
    np.testing.assert_allclose(new, 1 - np.exp(-np.array([60, 30, 12, 12, 5, 0, 0, 0, 0, 0, 0]) / 40))
    ranked, _ = rerank_list([Stage(reranker, 4)], 0, candidates, scores)
    assert ranked.tolist() == [8, 9, 2, 4, 10, 3, 0, 5, 6, 1, 7]
    # A query that matches nothing, and one without features
    query, database = pictures
    nothing = ArrayImages(query.descriptors(np.arange(2)), [query.local(0), NOTHING])
    for images, row in ((query, 1), (nothing, 1)):
        ranked, new = rerank_list([Stage(SpatialReranker(images, database), 11)], row, candidates, scores)
        assert ranked.tolist() == candidates.tolist() and not new.any()


def test_a_weighted_sum(pictures):
    reranker = SpatialReranker(*pictures)
    np.testing.assert_allclose(reranker.unit(np.array([0., 10, 20, 1e9]), 20.0),
                               [0, 1 - np.e ** -0.5, 1 - 1 / np.e, 1], atol=1e-12)
    ranked, new = rerank_list([Stage(reranker, 3, weight=0.25, temperature=30.0)], 0, np.array([0, 1, 3]),
                              np.array([0.9, 0.5, 0.8]))
    expected = {0: 0.75 * 0.9, 1: 0.75 * 0.5 + 0.25 * (1 - np.exp(-1)),
                3: 0.75 * 0.8 + 0.25 * (1 - np.exp(-0.4))}
    assert ranked.tolist() == sorted(expected, key=expected.get, reverse=True)
    np.testing.assert_allclose(new, [expected[row] for row in ranked.tolist()])


class Counting:
    """Images that count how often each one's features are read."""

    def __init__(self, images):
        self.images, self.reads = images, {}
        self.dim, self.local_dim = images.dim, images.local_dim

    def local(self, row: int) -> LocalTable:
        self.reads[row] = self.reads.get(row, 0) + 1
        return self.images.local(row)


def test_features_are_read_once(pictures):
    query, database = map(Counting, pictures)
    reranker = SpatialReranker(query, database)
    reranker.rerank(0, np.arange(5), np.zeros(5))
    assert query.reads == {0: 1} and database.reads == {row: 1 for row in range(5)}
    assert reranker.rerank(0, np.array([4, 1]), np.zeros(2)).tolist() == [0, 30]     # known
    assert query.reads == {0: 1} and database.reads[1] == 1
    reranker.rerank(0, np.arange(11), np.zeros(11))
    assert database.reads == {row: 1 for row in range(11)} and reranker.pairs_scored == 11


def test_bytes_per_image(pictures):
    reranker = SpatialReranker(*pictures, locals_per_image=50)
    assert reranker.bytes_per_image == 0
    reranker.score_pairs(0, np.array([1, 5, 9]))
    # 31, 50 of 61, and no features of 64 float16 and 2 float32; read again, an image counts once
    assert reranker.bytes_per_image == pytest.approx((31 + 50 + 0) * (64 * 2 + 8) / 3)
    reranker.score_pairs(1, np.array([5]))
    assert reranker.bytes_per_image == pytest.approx((31 + 50 + 0) * (64 * 2 + 8) / 3)


def test_neither_threads_nor_company_change_a_count():
    """Hard pairs, whose counts depend on the samples."""
    rng = np.random.default_rng(11)
    things = unit_rows(rng, 40)

    def image():
        chosen = things[rng.integers(0, 40, 120)]
        return features(chosen + rng.normal(0, 0.1, chosen.shape), rng.uniform(0, 400, (120, 2)))

    images = [ArrayImages(np.ones((count, 3)), [image() for _ in range(count)]) for count in (1, 25)]
    rows, counts = np.arange(25), []
    for threads, order in ((1, rows), (4, rows), (3, rows[::-1]), (0, rows[::2])):
        scores = SpatialReranker(*images, threads=threads).score_pairs(0, order)
        counts.append(dict(zip(order.tolist(), scores.tolist())))
    single = SpatialReranker(*images)
    counts.append({row: single.score_pairs(0, np.array([row]))[0] for row in (3, 14)})
    assert len(set(counts[0].values())) > 5
    assert all(each.items() <= counts[0].items() for each in counts)


def test_threads_are_those_of_torch(pictures):
    """And what torch has is as before, also for threads that are begun later."""
    assert SpatialReranker(*pictures, threads=3).threads == 3
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            reranker = SpatialReranker(*pictures)
            assert reranker.threads == count
            reranker.score_pairs(0, np.arange(11))
            with ThreadPoolExecutor(1) as pool:
                assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def test_errors_of_a_thread_are_not_lost(pictures):
    query, database = pictures

    class Broken(Counting):
        def local(self, row: int) -> LocalTable:
            if row == 4:
                raise UserError("chunk 0 is damaged")
            return super().local(row)

    threads = torch.get_num_threads()
    with pytest.raises(UserError, match="chunk 0 is damaged"):
        SpatialReranker(query, Broken(database), threads=2).score_pairs(0, np.arange(11))
    assert torch.get_num_threads() == threads


def test_a_pair_to_look_at(pictures):
    reranker = SpatialReranker(*pictures)
    pair = reranker.verify_pair(0, 5)
    query, candidate = pictures[0].local(0), pictures[1].local(5)
    assert pair.query_xy.shape == pair.candidate_xy.shape == (61, 2) and pair.inliers.sum() == 60
    own = {tuple(xy): descriptor.argmax() for xy, descriptor in zip(query.xy, query.descriptors)}
    theirs = {tuple(xy): descriptor.argmax() for xy, descriptor in zip(candidate.xy, candidate.descriptors)}
    for mine, other, inlier in zip(pair.query_xy, pair.candidate_xy, pair.inliers):
        assert own[tuple(mine)] == theirs[tuple(other)]
        assert inlier == (own[tuple(mine)] != 63)
    off = np.linalg.norm(moved(pair.query_xy, pair.matrix) - pair.candidate_xy, axis=1)
    assert off[pair.inliers].max() < 5 and off[~pair.inliers].min() > 100
    for row in (0, 9):
        nothing = reranker.verify_pair(0, row)
        assert nothing.matrix is None and not nothing.inliers.any()
    assert nothing.query_xy.shape == nothing.candidate_xy.shape == (0, 2)


def test_stores(pictures, write_store):
    """As arrays, but for the rounding to float16; an image that failed has 0."""
    query, database = pictures
    tables = [database.local(row) for row in range(11)]
    descriptors = database.descriptors(np.arange(11)).copy()
    descriptors[10] = np.nan
    stores = [write_store("query", query.descriptors(np.arange(2)), [query.local(0), query.local(1)]),
              write_store("database", descriptors[:7], tables[:7], 3),
              write_store("distractors", descriptors[7:], tables[7:], 3)]
    reranker = SpatialReranker(StoredImages(stores[:1]), StoredImages(stores[1:]))
    assert reranker.score_pairs(0, np.arange(11)).tolist() == COUNTED + [0, 0]


def test_settings_are_recorded(pictures):
    settings = SpatialReranker(*pictures, threshold=7.0, threads=2).settings
    assert json.loads(json.dumps(settings)) == {
        "matching": "distance", "max_distance": 0.99, "ratio": 0.95, "locals_per_image": 1000,
        "model": "homography", "estimator": "magsac", "threshold": 7.0, "iterations": 1000,
        "confidence": 0.9999}


def test_users_mistakes_are_named(pictures, monkeypatch):
    for settings, message in (
            ({"matching": "nearest"}, "RERANK.SPATIAL.MATCHING is 'nearest': choose one of"),
            ({"model": "homografy"}, "RERANK.SPATIAL.MODEL is 'homografy'.*did you mean 'homography'"),
            ({"estimator": "lmeds"}, "RERANK.SPATIAL.ESTIMATOR is 'lmeds': choose one of magsac, "),
            ({"threshold": 0.0}, "RERANK.SPATIAL.THRESHOLD is 0.0: it must be above 0"),
            ({"iterations": 0}, "RERANK.SPATIAL.ITERATIONS is 0: give 1 or more"),
            ({"confidence": 1.0}, "RERANK.SPATIAL.CONFIDENCE is 1.0: it must be between 0 and 1"),
            ({"locals_per_image": 0}, "RERANK.SPATIAL.LOCALS is 0: give 1 or more"),
            ({"estimator": "pydegensac", "model": "affine"}, "pydegensac finds homographies and")):
        with pytest.raises(UserError, match=message):
            SpatialReranker(*pictures, **settings)
    monkeypatch.setitem(sys.modules, "pydegensac", None)
    with pytest.raises(UserError, match="pydegensac, which is not installed: pip install pydegensac"):
        SpatialReranker(*pictures, estimator="pydegensac")
    bare = ArrayImages(np.ones((3, 6)))
    for images in ((bare, pictures[1]), (pictures[0], bare)):
        with pytest.raises(UserError, match="RERANK.METHOD spatial needs local features"):
            SpatialReranker(*images)
