"""Matching of local features against slow code and k-d trees."""
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from dolg.errors import UserError
from dolg.rerank import matching
from dolg.rerank.matching import Matcher

METHODS = ("distance", "ratio", "mutual")


def unit(table: np.ndarray) -> np.ndarray:
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def images(rng, *counts: int, dim: int = 12) -> list[np.ndarray]:
    """Unit descriptors, float32, of images that show some of the same things."""
    things = rng.standard_normal((10, dim))
    return [unit(things[rng.integers(0, 10, count)] + 0.25 * rng.standard_normal((count, dim)))
            .astype(np.float32) for count in counts]


def slow_match(query, candidate, method, max_distance=0.99, ratio=0.95):
    """Query feature by query feature, [(query feature, candidate feature, distance)]."""
    query, candidate = ([row / np.sqrt((row ** 2).sum()) for row in np.asarray(table, np.float64)]
                        for table in (query, candidate))
    found = []
    for i, mine in enumerate(query):
        ranked = sorted((np.linalg.norm(mine - other), j) for j, other in enumerate(candidate))
        if not ranked:
            continue
        nearest, j = ranked[0]
        second = ranked[1][0] if len(ranked) > 1 else np.inf
        if method == "ratio":
            kept = nearest < ratio * second
        elif method == "distance":
            kept = nearest < max_distance
        else:
            back = min((np.linalg.norm(other - candidate[j]), k) for k, other in enumerate(query))[1]
            kept = nearest < max_distance and back == i
        if kept:
            found.append((i, j, nearest))
    return found


def check(found, expected, atol=1e-6):
    assert found.pairs.dtype == np.int64 and found.distances.dtype == np.float64
    assert found.pairs.shape == (len(expected), 2) and found.distances.shape == (len(expected),)
    assert found.pairs.tolist() == [[i, j] for i, j, _ in expected]
    np.testing.assert_allclose(found.distances, [d for _, _, d in expected], atol=atol, rtol=0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block, few", [(1, 8), (100, 0), (1 << 21, 8)])
def test_as_slow_code(method, block, few, monkeypatch):
    monkeypatch.setattr(matching, "_BLOCK", {"cpu": block})
    monkeypatch.setattr(matching, "_FEW", few)
    rng, most = np.random.default_rng(0), 0
    for m in (1, 2, 7, 30, 0):
        query, *candidates = images(rng, m, 12, 0, 0, 1, 45, m, 0, 2, 30)
        for max_distance, ratio in ((0.99, 0.95), (0.4, 0.6), (1.7, 1.0)):
            matcher = Matcher(method, max_distance, ratio)
            found = list(matcher.match(query, candidates))
            assert len(found) == len(candidates)
            for candidate, mine in zip(candidates, found):
                check(mine, slow_match(query, candidate, method, max_distance, ratio))
                most = max(most, len(mine.pairs))
    assert most >= 15
    assert list(Matcher(method).match(images(rng, 3)[0], [])) == []


@pytest.mark.parametrize("shape", [(200, 120), (120, 200), (5, 1), (1, 5)])
def test_as_a_tree(shape):
    query, candidate = images(np.random.default_rng(1), *shape, dim=32)
    query, candidate = (unit(table.astype(np.float64)) for table in (query, candidate))
    distances, nearest = cKDTree(candidate).query(query, distance_upper_bound=0.5)
    expected = [(i, j, d) for i, (d, j) in enumerate(zip(distances, nearest)) if j < len(candidate)]
    check(next(Matcher("distance", 0.5).match(query, [candidate])), expected)
    distances, nearest = cKDTree(candidate).query(query, k=2)       # infinity where there is one alone
    expected = [(i, j[0], d[0]) for i, (d, j) in enumerate(zip(distances, nearest)) if d[0] < 0.8 * d[1]]
    check(next(Matcher("ratio", ratio=0.8).match(query, [candidate])), expected)
    assert shape == (1, 5) or len(expected) > 0


def test_by_hand():
    query = np.array([[0, 1, 0], [1, 0, 0], [.8, .6, 0], [0, 0, -1]], np.float32)
    candidate = np.array([[1, 0, 0], [.6, .8, 0]], np.float32)
    matches = {method: next(Matcher(method, 0.7, 0.5).match(query, [candidate])) for method in METHODS}
    assert matches["distance"].pairs.tolist() == [[0, 1], [1, 0], [2, 1]]
    np.testing.assert_allclose(matches["distance"].distances, [.4 ** .5, 0, .08 ** .5], atol=1e-7)
    # 0.63 of 1.41, 0 of 0.89, 0.28 of 0.63; the last one's are 1.41 both
    assert matches["ratio"].pairs.tolist() == [[0, 1], [1, 0], [2, 1]]
    assert matches["mutual"].pairs.tolist() == [[1, 0], [2, 1]]
    tight = next(Matcher("ratio", ratio=0.4465).match(query, [candidate]))
    assert tight.pairs.tolist() == [[1, 0]]     # 0.6325 / 1.4142 and 0.2828 / 0.6325 are 0.4472


@pytest.mark.parametrize("method", METHODS)
def test_ties_go_to_the_first(method):
    """Unit vectors of entries 0, 1/2 and 1, between which many distances are equal, all exactly."""
    rng = np.random.default_rng(2)
    halves = np.array([*product((.5, -.5), repeat=4), *np.eye(4), *-np.eye(4)])
    seen = 0
    for m, n in ((40, 25), (25, 40), (6, 3), (1, 9)) * 5:
        query, candidate = halves[rng.integers(0, 24, m)], halves[rng.integers(0, 24, n)]
        found = next(Matcher(method, 1.01, 1.0).match(query, [candidate]))
        check(found, slow_match(query, candidate, method, 1.01, 1.0), atol=0)
        seen += len(found.pairs)
    assert seen


def test_distances_are_rounded_correctly():
    """torch's square root is MKL's on a CPU, and off by a bit for a hundredth of the values or more."""
    query, candidate = images(np.random.default_rng(13), 400, 300)
    found = next(Matcher("distance", 2.0).match(query, [candidate]))
    assert len(found.pairs) == 400
    for (i, j), distance in zip(found.pairs.tolist(), found.distances):
        assert distance == exact_distance(query[i], candidate[j])


def test_ties_do_not_hang_on_last_bits(monkeypatch):
    """Products and square roots that differ by a bit between places of a table, as those of processors do
    whose kernels treat the ends of a table in another way."""
    multiply, root = torch.Tensor.__matmul__, torch.Tensor.sqrt

    def uneven(table: torch.Tensor) -> torch.Tensor:
        signs = torch.arange(table.numel(), dtype=table.dtype).reshape(table.shape) % 3 - 1
        return table * (1 + signs * torch.finfo(table.dtype).eps)

    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda self, other: (
        uneven(multiply(self, other)) if self.dtype == torch.float32 else multiply(self, other)))
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda self: uneven(root(self)))
    for method in METHODS:
        test_ties_go_to_the_first(method)
        test_images_of_nothing_but_equal_features(method)


@pytest.mark.parametrize("method", METHODS)
def test_images_of_nothing_but_equal_features(method):
    """Each of a blank wall's is as near as the others."""
    walls = np.array([[.5, .5, .5, .5], [.5, .5, -.5, .5]])     # 1 apart
    for m, n in ((24, 40), (40, 24)):
        query = np.repeat(walls, m // 2, axis=0)
        for candidate in (np.repeat(walls[::-1], n // 2, axis=0), np.repeat(walls[:1], n, axis=0)):
            for limit in (0.5, 1.5):
                found = next(Matcher(method, limit, 1.5).match(query, [candidate]))
                check(found, slow_match(query, candidate, method, limit, 1.5), atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_near_ties_are_told_apart(method):
    """By less than a product in float32 tells: of features that differ by 5e-5 one is nearer."""
    rng, told = np.random.default_rng(12), 0
    for _ in range(20):
        query, = images(rng, 12, dim=64)
        candidate = np.repeat(query, 3, axis=0) + 5e-5 * rng.standard_normal((36, 64))
        expected = slow_match(query, candidate, method, 0.99, 0.9)
        check(next(Matcher(method, 0.99, 0.9).match(query, [candidate])), expected)
        told += sum(j % 3 > 0 for _, j, _ in expected)
        check(next(Matcher(method, 0.99, 0.9).match(candidate, [query])),
              slow_match(candidate, query, method, 0.99, 0.9))
    assert told > 20


def test_a_distance_of_the_limit_is_too_far():
    query, candidate = np.array([[1., 0, 0, 0]]), np.array([[.5, .5, .5, .5]])      # 1 apart
    for method in ("distance", "mutual"):
        assert len(next(Matcher(method, 1.0).match(query, [candidate])).pairs) == 0
        assert len(next(Matcher(method, 1.0 + 1e-9).match(query, [candidate])).pairs) == 1


def test_ratio_of_one_feature_and_of_equal_ones():
    query, lone = images(np.random.default_rng(3), 4, 1)
    assert next(Matcher("ratio").match(query, [lone])).pairs.tolist() == [[i, 0] for i in range(4)]
    assert len(next(Matcher("ratio").match(query, [np.repeat(lone, 2, axis=0)])).pairs) == 0
    # and of distance 0 each
    assert len(next(Matcher("ratio").match(lone, [np.repeat(lone, 3, axis=0)])).pairs) == 0


def test_lengths_do_not_count():
    """Stores round descriptors to float16, after which they are no unit vectors any more."""
    rng = np.random.default_rng(4)
    query, candidate = images(rng, 50, 60)
    for scale in (1e-3, 0.5):
        longer = [table * rng.uniform(1 - scale, 1 + scale, (len(table), 1)).astype(np.float32)
                  for table in (query, candidate)]
        for method in METHODS:
            check(next(Matcher(method, 0.5).match(longer[0], [longer[1]])),
                  slow_match(query, candidate, method, 0.5))
    half = query.astype(np.float16)
    check(next(Matcher("mutual").match(half, [half[::-1]])), [(i, 49 - i, 0.0) for i in range(50)], atol=0)


def exact_distance(first: np.ndarray, second: np.ndarray) -> float:
    """By integers: of the unit vectors' entries in steps of 2^-24."""
    steps = [[round(Fraction(float(x)) * 2 ** 24) for x in unit(np.float64(row)[None])[0]]
             for row in (first, second)]
    square = sum((a - b) ** 2 for a, b in zip(*steps))
    return np.sqrt(square / 2 ** 48)


def test_nothing_else_changes_a_distance(monkeypatch):
    """Neither the other images of a product, nor the size of the blocks, nor the number of threads."""
    rng = np.random.default_rng(5)
    query, *candidates = images(rng, 61, 33, 257, 64, 1, 100, dim=200)
    alone = [next(Matcher("distance", 2.0).match(query, [candidate])) for candidate in candidates]
    for candidate, mine in zip(candidates, alone):
        for (i, j), distance in list(zip(mine.pairs.tolist(), mine.distances))[::10]:
            assert distance == exact_distance(query[i], candidate[j])
    threads = torch.get_num_threads()
    for block, count in ((1, 1), (10_000, 2), (1 << 30, 3)):
        monkeypatch.setattr(matching, "_BLOCK", {"cpu": block})
        try:
            torch.set_num_threads(count)
            together = list(Matcher("distance", 2.0).match(query, candidates))
        finally:
            torch.set_num_threads(threads)
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one.pairs, other.pairs)
            np.testing.assert_array_equal(one.distances, other.distances)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("method", METHODS)
def test_features_without_direction_match_none(bad, method):
    query, candidate = images(np.random.default_rng(6), 20, 30)
    expected = slow_match(query[1:], candidate[1:], method)
    assert len(expected) > 5
    query[0, 3], candidate[0, 2] = bad, bad
    if bad == 0:
        query[0], candidate[0] = 0, 0
    found = next(Matcher(method).match(query, [candidate]))
    check(found, [(i + 1, j + 1, d) for i, j, d in expected])
    only = next(Matcher(method).match(query[:1], [candidate[:1]]))
    assert only.pairs.shape == (0, 2)


def test_candidates_are_taken_when_needed(monkeypatch):
    monkeypatch.setattr(matching, "_BLOCK", {"cpu": 100})
    query, *candidates = images(np.random.default_rng(7), 10, 5, 4, 5, 5, 5)
    taken = []

    def one_by_one():
        for number, candidate in enumerate(candidates):
            taken.append(number)
            yield candidate

    found = Matcher().match(query, one_by_one())
    assert taken == []
    next(found)
    assert taken == [0, 1, 2]       # ten features fit in; the third is looked at
    assert len(list(found)) == 4 and taken == [0, 1, 2, 3, 4]


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_the_gpu_gives_the_same(method):
    query, *candidates = images(np.random.default_rng(8), 300, 200, 0, 1, 400, dim=128)
    candidates.append(np.repeat(candidates[0], 2, axis=0))
    pairs = zip(Matcher(method).match(query, candidates),
                Matcher(method, device="cuda").match(query, candidates), strict=True)
    for cpu, gpu in pairs:
        np.testing.assert_array_equal(cpu.pairs, gpu.pairs)
        np.testing.assert_array_equal(cpu.distances, gpu.distances)


def test_users_mistakes_are_named():
    with pytest.raises(UserError, match="MATCHING is 'mutal'.*did you mean 'mutual'"):
        Matcher("mutal")
    for value in (0.0, -1.0, np.nan):
        with pytest.raises(UserError, match="MAX_DISTANCE is .*: it must be above 0"):
            Matcher(max_distance=value)
        with pytest.raises(UserError, match="RATIO is .*: it must be above 0"):
            Matcher("ratio", ratio=value)
