"""Query expansion, k-reciprocal re-ranking and diffusion among the candidates of a query."""
import numpy as np
import pytest

from dolg.errors import UserError
from dolg.rerank.images import ArrayImages
from dolg.rerank.neighbours import DiffusionReranker, ExpansionReranker, KReciprocalReranker


def unit(table):
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


def tables(seed, images=30, dim=5, spread=0.5):
    """Queries (3,D) and images (N,D) in clusters; queries are of the first."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((4, dim))
    labels = np.append(np.zeros(3, int), rng.integers(0, 4, images))
    table = unit(centres[labels] + spread * rng.standard_normal((images + 3, dim)))
    return table[:3], table[3:]


def found_by(reranker, rows, query=0):
    """Scores by row, all of them there."""
    rows = np.array(rows, np.int64)
    scores = reranker.rerank(query, rows, np.zeros(len(rows)))
    assert scores.dtype == np.float64 and not np.isnan(scores).any()
    return dict(zip(rows.tolist(), scores.tolist()))


# ------------------------------------------------------------------- query expansion

@pytest.mark.parametrize("alpha, name", [(0.0, "aqe"), (1.0, "alpha"), (2.5, "alpha")])
@pytest.mark.parametrize("n", [1, 4, 100])
def test_the_query_is_averaged_with_the_first_candidates(alpha, name, n):
    queries, table = tables(0)
    reranker = ExpansionReranker(ArrayImages(queries), ArrayImages(table), n, alpha)
    assert (reranker.name, reranker.settings) == (name, {"n": n, "alpha": alpha})
    rows = np.random.default_rng(n).permutation(30)[:12]
    for query, own in enumerate(queries.astype(np.float64)):
        total = own.copy()
        for row in rows[:n]:
            similarity = float(own @ table[row])
            weight = 1.0 if alpha == 0 else similarity ** alpha if similarity > 0 else 0.0
            total = total + weight * table[row]
        total /= np.sqrt((total ** 2).sum())
        expected = {int(row): float(total @ table[row]) for row in rows}
        assert found_by(reranker, rows, query) == pytest.approx(expected, abs=1e-6)


def test_images_that_failed_are_none_of_the_first():
    queries, table = tables(1)
    broken = table.copy()
    broken[[3, 8]] = np.nan
    rows, fine = np.array([3, 5, 8, 1, 0]), np.array([5, 1, 0])
    make = ExpansionReranker
    scores = make(ArrayImages(queries), ArrayImages(broken), 2, 1.0).rerank(0, rows, np.zeros(5))
    assert np.isnan(scores[[0, 2]]).all()
    expected = make(ArrayImages(queries), ArrayImages(table), 2, 1.0).rerank(0, fine, np.zeros(3))
    np.testing.assert_array_equal(scores[[1, 3, 4]], expected)


def test_the_order_decides_which_are_averaged():
    queries, table = tables(2)
    reranker = ExpansionReranker(ArrayImages(queries), ArrayImages(table), 2, 0.0)
    assert found_by(reranker, [0, 1, 2, 3]) != pytest.approx(found_by(reranker, [3, 2, 1, 0]), abs=1e-3)


# ------------------------------------------------------------------- k-reciprocal

def slow_k_reciprocal(query, table, k1, k2, share):
    """Sets and dictionaries; lists as long as they can be."""
    count = len(table)
    near = {i: sorted((j for j in range(count) if j != i), key=lambda j, i=i: (
        -float(np.float32(table[i] @ table[j])), j)) for i in range(count)}
    similarities = table @ query
    near["q"] = sorted(range(count), key=lambda j: (-similarities[j], j))

    def members(i, k):
        if i != "q":
            return {i} | {j for j in near[i][:k] if i in near[j][:k]}
        return {j for j in near["q"][:k] if len(near[j]) < k
                or similarities[j] > table[j] @ table[near[j][k - 1]]}

    def encoding(i):
        own = members(i, k1)
        whole = set(own)
        for j in own:
            half = members(j, round(k1 / 2))
            if 3 * len(half & own) > 2 * len(half):
                whole |= half
        x = query if i == "q" else table[i]
        weights = {j: np.exp(float(x @ table[j]) - 1) for j in whole}
        return {j: weight / sum(weights.values()) for j, weight in weights.items()}

    def averaged(i):
        group = [i, *near[i][:k2 - 1]]
        encodings = [encoding(j) for j in group]
        return {j: sum(e.get(j, 0) for e in encodings) / len(group) for e in encodings for j in e}

    own, scores = averaged("q"), {}
    for i in range(count):
        other = averaged(i)
        lesser = sum(min(own.get(j, 0), other.get(j, 0)) for j in range(count))
        greater = sum(max(own.get(j, 0), other.get(j, 0)) for j in range(count))
        jaccard = 1 - lesser / greater
        scores[i] = 1 - (1 - share) * jaccard - share * (1 - float(similarities[i]))
    return scores


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 30])
@pytest.mark.parametrize("k1, k2", [(20, 6), (5, 3), (6, 1), (3, 8)])
def test_k_reciprocal_on_long_and_short_lists(count, k1, k2):
    queries, table = tables(count)
    reranker = KReciprocalReranker(ArrayImages(queries), ArrayImages(table), k1, k2, 0.3)
    rows = np.random.default_rng(k1).permutation(30)[:count]
    ordered = np.sort(rows)
    by_place = slow_k_reciprocal(queries[1].astype(np.float64), table[ordered].astype(np.float64), k1, k2,
                                 0.3)
    expected = {int(ordered[i]): score for i, score in by_place.items()}
    assert found_by(reranker, rows, 1) == pytest.approx(expected, abs=1e-6)


# ------------------------------------------------------------------- diffusion

def slow_diffusion(query, table, k_graph, k_query, gamma, alpha):
    """Dense; scores of all, 0 where none leads."""
    count, similarity = len(table), table @ table.T
    near = [sorted((j for j in range(count) if j != i), key=lambda j, i=i: -similarity[i, j])[:k_graph]
            for i in range(count)]
    graph = np.zeros((count, count))
    for i in range(count):
        for j in near[i]:
            if i in near[j]:
                graph[i, j] = max(similarity[i, j], 0) ** gamma
    degrees = graph.sum(axis=1)
    degrees[degrees == 0] = 1
    start = np.zeros(count)
    for i in sorted(range(count), key=lambda j: -float(table[j] @ query))[:k_query]:
        start[i] = max(float(table[i] @ query), 0) ** gamma
    return np.linalg.solve(np.eye(count) - alpha * graph / np.sqrt(np.outer(degrees, degrees)), start)


@pytest.mark.parametrize("count", [1, 2, 4, 30])
@pytest.mark.parametrize("k_graph, k_query", [(50, 10), (4, 2), (1, 1)])
def test_diffusion_on_long_and_short_lists(count, k_graph, k_query):
    left_out = 0
    for seed in range(4):
        queries, table = tables(seed, spread=0.2)
        reranker = DiffusionReranker(ArrayImages(queries), ArrayImages(table), k_graph, k_query, 3.0, 0.9,
                                     300, 1e-10)
        rows = np.random.default_rng(seed).permutation(30)[:count]
        found = found_by(reranker, rows, 2)
        ordered = np.sort(rows)
        scores = slow_diffusion(queries[2].astype(np.float64), table[ordered].astype(np.float64), k_graph,
                                k_query, 3.0, 0.9)
        reached = {int(row): score for row, score in zip(ordered, scores) if score > 1e-9}
        assert {row: found[row] for row in reached} == pytest.approx(reached, rel=1e-5)
        others = sorted(set(found) - set(reached), key=lambda row: -float(table[row] @ queries[2]))
        below = [min(reached.values(), default=0.0), *(found[row] for row in others)]
        assert (np.diff(below) < 0).all() and all(-1e-5 < found[row] < 0 for row in others)
        left_out += len(others)
    assert left_out or count < 30


def test_candidates_that_nothing_reaches_come_last_by_similarity():
    """Two pairs and one alone; the query is like the first pair."""
    table = unit(np.array([[0, 0, 1], [1, 0.1, 0], [-1, 0.3, 0.1], [1, 0, 0], [-1, 0.5, 0]], float))
    query = unit(np.array([[1, 0.02, 0]], float))
    found = found_by(DiffusionReranker(ArrayImages(query), ArrayImages(table), 1, 2), range(5))
    assert sorted(found, key=found.get, reverse=True) == [3, 1, 0, 4, 2]
    assert found[1] > 0.5 > 1e-5 > -found[2] > -found[4] > -found[0] > 0


def test_a_query_that_reaches_nothing_is_ranked_by_similarity():
    table = unit(np.array([[-1, 0.5], [-1, 0], [-1, 0.2]], float))
    found = found_by(DiffusionReranker(ArrayImages(np.array([[1, 0]])), ArrayImages(table)), range(3))
    assert sorted(found, key=found.get, reverse=True) == [0, 2, 1]


def test_diffusion_follows_a_chain_that_similarity_does_not():
    """Images along an arc: the far end is nearer by the graph than an image off the arc that is as far."""
    angles = np.radians([0, 15, 30, 45, 60, 75])
    arc = np.stack([np.cos(angles), np.sin(angles), np.zeros(6)], axis=1)
    off = [[np.cos(angles[-1]) + 0.05, 0, np.sin(angles[-1])]]
    table = unit(np.append(arc[1:], off, axis=0))
    found = found_by(DiffusionReranker(ArrayImages(arc[:1]), ArrayImages(table), 2, 2), range(6))
    assert table[5] @ arc[0] > table[4] @ arc[0] and found[4] > found[5]


# ------------------------------------------------------------------- all

def test_users_mistakes_are_named():
    images = ArrayImages(np.ones((1, 2), np.float32))
    for make, arguments, message in (
            (ExpansionReranker, {"n": 0}, "n is 0"), (ExpansionReranker, {"alpha": -1.0}, "alpha is -1"),
            (KReciprocalReranker, {"k1": 0}, "k1 and k2 are 1, 0"),
            (KReciprocalReranker, {"lambda_value": 1.5}, "lambda is 1.5"),
            (DiffusionReranker, {"k_graph": 0}, "K_GRAPH is 0"),
            (DiffusionReranker, {"k_query": 0}, "k_query and truncate are 1, 0"),
            (DiffusionReranker, {"gamma": 0.0}, "gamma is 0"),
            (DiffusionReranker, {"alpha": 1.0}, "alpha is 1.0")):
        with pytest.raises(UserError, match=message):
            make(images, images, **arguments)
    assert KReciprocalReranker(images, images, 5).settings == {"k1": 5, "k2": 6, "lambda_value": 0.3}
    assert DiffusionReranker(images, images, 7).settings == {
        "k_graph": 7, "k_query": 10, "gamma": 3.0, "alpha": 0.99, "iterations": 20, "tolerance": 1e-6}
