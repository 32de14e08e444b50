"""Diffusion against dense linear algebra."""
import numpy as np
import pytest

from dolg.errors import UserError
from dolg.search import diffusion as module
from dolg.search.diffusion import diffused_vectors, diffusion, normalised_affinity
from dolg.search.neighbours import nearest


def tables(seed, images=50, dim=5):
    """Images in clusters, and queries; some failed."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(5, dim))
    table = centres[rng.integers(0, 5, images + 6)] + 0.5 * rng.normal(size=(images + 6, dim))
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    table[[1, 8, images + 5]] = np.nan
    return table[6:], table[:6]


def similarity(x, y):
    return float(np.float32(x.astype(np.float64) @ y.astype(np.float64)))


def ranked(x, database, left_out=()):
    """Every image that did not fail, the most similar first."""
    fine = [j for j in range(len(database)) if j not in left_out and not np.isnan(database[j]).any()]
    return sorted(fine, key=lambda j: (-similarity(x, database[j]), j))


def slow_affinity(database, k, gamma):
    """Dense S of the definition."""
    count = len(database)
    near = [[] if np.isnan(x).any() else ranked(x, database, [i])[:k] for i, x in enumerate(database)]
    graph = np.zeros((count, count))
    for i in range(count):
        for j in near[i]:
            if i in near[j]:
                graph[i, j] = max(similarity(database[i], database[j]), 0) ** gamma
    graph = np.minimum(graph, graph.T)
    degrees = graph.sum(axis=1)
    degrees[degrees == 0] = 1
    return graph / np.sqrt(np.outer(degrees, degrees))


def slow_diffusion(queries, database, k_graph, gamma, k_query, truncate, alpha):
    """Scores (Q,N): whole systems solved densely, or one per image among its nearest."""
    count = len(database)
    affinity, scores = slow_affinity(database, k_graph, gamma), np.zeros((len(queries), count))
    for q, query in enumerate(queries):
        if np.isnan(query).any():
            continue
        start = np.zeros(count)
        for i in ranked(query, database)[:k_query]:
            start[i] = max(similarity(query, database[i]), 0) ** gamma
        if not truncate:
            scores[q] = np.linalg.solve(np.eye(count) - alpha * affinity, start)
            continue
        for i in np.flatnonzero(start):
            ids = [i, *ranked(database[i], database, [i])[:truncate - 1]]
            system = np.eye(len(ids)) - alpha * affinity[np.ix_(ids, ids)]
            one = np.zeros(len(ids))
            one[0] = 1
            scores[q, ids] += start[i] * np.linalg.solve(system, one)
    return scores


def affinity_of(database, k, gamma):
    return normalised_affinity(nearest(database, database, k, np.arange(len(database))), k, gamma)


@pytest.mark.parametrize("gamma", [1.0, 3.0])
@pytest.mark.parametrize("k", [2, 8, 70])
def test_the_affinity(k, gamma):
    database, _ = tables(k)
    expected = slow_affinity(database, k, gamma)
    assert expected.any() and not expected.all()
    np.testing.assert_allclose(affinity_of(database, k, gamma).toarray(), expected, atol=1e-6)


@pytest.mark.parametrize("truncate", [0, 1, 2, 10, 200])
@pytest.mark.parametrize("alpha", [0.0, 0.9, 0.99])
@pytest.mark.parametrize("chunk", [7, 100])
def test_against_dense_solutions(truncate, alpha, chunk, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_UNKNOWNS", 35)
    database, queries = tables(truncate)
    chunks = [database[i:i + chunk] for i in range(0, len(database), chunk)]
    indexes, scores = diffusion(queries, chunks, affinity_of(database, 6, 3.0), 50, 3.0, 4, truncate,
                                alpha, iterations=300, tolerance=1e-10)
    expected = slow_diffusion(queries, database, 6, 3.0, 4, truncate, alpha)
    for q, row in enumerate(expected):
        reached = np.flatnonzero(row > 1e-9)
        count = len(reached)
        assert sorted(indexes[q, :count]) == reached.tolist()
        np.testing.assert_allclose(scores[q, :count], row[indexes[q, :count]], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(scores[q, :count], np.sort(row[reached])[::-1], rtol=1e-5)
        assert (indexes[q, count:] == -1).all() and (scores[q, count:] == -np.inf).all()
    assert (expected[1] == 0).all() and (indexes[1] == -1).all()        # the query that failed


def test_the_first_k_are_the_best():
    database, queries = tables(3)
    affinity = affinity_of(database, 6, 3.0)
    for truncate in (0, 15):
        whole = diffusion(queries, database, affinity, 50, truncate=truncate)
        cut = diffusion(queries, database, affinity, 4, truncate=truncate)
        for mine, all_of_it in zip(cut, whole):
            np.testing.assert_array_equal(mine, all_of_it[:, :4])


def test_each_image_is_solved_for_alone(monkeypatch):
    """Whatever else is in a block, also where the iterations end before the solution."""
    database, _ = tables(4)
    affinity = affinity_of(database, 8, 2.0)
    others = nearest(database, database, 11, np.arange(len(database))).indexes
    lists = np.column_stack([np.arange(len(database)), others])[~np.isnan(database).any(axis=1)]
    together = diffused_vectors(affinity, lists, 0.99, 4, 1e-6)
    assert together.data.all() and together.nnz < lists.size       # what is not reached is not kept
    together = together.toarray()
    monkeypatch.setattr(module, "_BLOCK_UNKNOWNS", 1)
    alone = diffused_vectors(affinity, lists, 0.99, 4, 1e-6).toarray()
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-7)
    # Of an image by itself nothing is left to solve after one step, while the others go on
    lists[0, 1:] = -1
    with np.errstate(all="raise"):
        exact = diffused_vectors(affinity, lists, 0.99, 500, 1e-10).toarray()
    assert (exact[0] != 0).sum() == 1
    assert np.abs(exact[1:] - together[1:]).max() > 1e-3        # 4 iterations are too few


def test_the_tolerance_ends_the_iterations():
    database, _ = tables(6)
    affinity, lists = affinity_of(database, 8, 2.0), np.arange(50)[None, 10:40]
    system = np.eye(50)[10:40, 10:40] - 0.99 * affinity.toarray()[10:40, 10:40]
    one = np.eye(30)[0]
    residuals = [np.linalg.norm(system @ diffused_vectors(
        affinity, lists, 0.99, 1000, tolerance).toarray()[0, 10:40] - one) for tolerance in (0.3, 1e-3)]
    assert residuals[1] < 1e-3 < residuals[0] < 0.3


@pytest.mark.parametrize("truncate", [0, 1, 12])
def test_no_tolerance(truncate):
    """The iterations go on though nothing is left to solve for."""
    database, queries = tables(6)
    affinity = affinity_of(database, 2, 2.0)
    with np.errstate(all="raise", under="ignore"):
        indexes, scores = diffusion(queries, database, affinity, 50, 2.0, 4, truncate, 0.9, 3000, 0.0)
    expected = slow_diffusion(queries, database, 2, 2.0, 4, truncate, 0.9)
    for row, found, values in zip(expected, indexes, scores):
        there = found >= 0
        np.testing.assert_allclose(values[there], row[found[there]], rtol=1e-5, atol=1e-12)
        assert np.isin(np.flatnonzero(row > 1e-9), found).all()


def test_a_chain_is_followed():
    """Images of one street, each like the next: the far end comes before what is nearer by chance."""
    angles = np.deg2rad([0, 8, 16, 24, 32, 40, -30, -80])
    database = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query = np.array([[1, 0]], np.float32)
    assert nearest(query, database, 8).indexes[0].tolist() == [0, 1, 2, 3, 6, 4, 5, 7]
    affinity = affinity_of(database, 2, 3.0)
    for truncate in (0, 8):
        indexes, _ = diffusion(query, database, affinity, 8, k_query=2, truncate=truncate,
                               iterations=100)
        assert sorted(indexes[0, :6]) == [0, 1, 2, 3, 4, 5] and 7 not in indexes


def test_nothing_to_start_from():
    """A query that failed, and one that is opposite to all images."""
    database = np.abs(tables(0)[0])
    queries = np.array([[np.nan] * 5, [-1] * 5], np.float32)
    for truncate in (0, 10):
        indexes, scores = diffusion(queries, database, affinity_of(database, 5, 3.0), 3,
                                    truncate=truncate)
        assert (indexes == -1).all() and (scores == -np.inf).all()
        assert indexes.shape == scores.shape == (2, 3)


def test_users_mistakes_are_named():
    database, queries = tables(0)
    affinity = affinity_of(database, 5, 3.0)
    for more, message in (({"k": 0}, "k_query and truncate are 0, 10"), ({"alpha": 1.0}, "alpha is 1"),
                          ({"truncate": -1}, "-1"), ({"k_query": 0}, "at least"),
                          ({"iterations": 0}, "iterations is 0"),
                          ({"tolerance": -1e-9}, "tolerance is -1e"),
                          ({"tolerance": np.nan}, "tolerance is nan"), ({"tolerance": 1.0}, "less than 1"),
                          ({"gamma": np.nan}, "gamma is nan"), ({"alpha": np.nan}, "alpha is nan")):
        with pytest.raises(UserError, match=message):
            diffusion(queries, database, affinity, **{"k": 5, **more})
    with pytest.raises(UserError, match="of 50 images, but the database has 49"):
        diffusion(queries, database[1:], affinity, 5)
    with pytest.raises(UserError, match="gamma is 0"):
        affinity_of(database, 5, 0.0)
