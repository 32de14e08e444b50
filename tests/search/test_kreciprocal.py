"""k-reciprocal re-ranking against a dense version in the words of the paper."""
import numpy as np
import pytest

from dolg.errors import UserError
from dolg.search import kreciprocal
from dolg.search.kreciprocal import k_reciprocal
from dolg.search.neighbours import nearest


def slow(queries, database, k, k1, k2, share):
    """Sets of Python, one image after another; an image that failed is in none."""
    fine = [j for j in range(len(database)) if not np.isnan(database[j]).any()]

    def similarity(x, y):
        return float(x.astype(np.float64) @ y.astype(np.float64))

    def ranked(x, others):
        return sorted(others, key=lambda j: (-np.float32(similarity(x, database[j])), j))

    order = {i: ranked(database[i], [j for j in fine if j != i]) for i in fine}

    def reciprocal(i, k):
        return {i} | {j for j in order[i][:k] if i in order[j][:k]}

    def expanded(members):
        wider = set(members)
        for j in members:
            other = reciprocal(j, round(k1 / 2))
            if len(other & members) > 2 / 3 * len(other):
                wider |= other
        return wider

    def encoding(x, members):
        weights = np.zeros(len(database))
        for j in members:
            weights[j] = np.exp(-(1 - similarity(x, database[j])))
        return weights / (weights.sum() or 1)

    encodings = {i: encoding(database[i], expanded(reciprocal(i, k1))) for i in fine}
    averaged = {i: np.mean([encodings[j] for j in [i, *order[i][:k2 - 1]]], axis=0) for i in fine}
    results = []
    for query in queries:
        if np.isnan(query).any():
            results.append([])
            continue
        first = ranked(query, fine)
        # Put the query into the database, behind all others: whom has it among the first k1?
        members = set()
        for j in first[:k1]:
            ahead = sum(np.float32(similarity(database[i], database[j]))
                        >= np.float32(similarity(query, database[j])) for i in fine if i != j)
            members |= {j} if ahead < k1 else set()
        mine = np.mean([encoding(query, expanded(members)), *(encodings[j] for j in first[:k2 - 1])],
                       axis=0)
        scored = []
        for j in first[:k]:
            overlap = np.minimum(mine, averaged[j]).sum()
            distance = ((1 - share) * (1 - overlap / (2 - overlap))
                        + share * (1 - similarity(query, database[j])))
            scored.append((1 - distance, j))
        results.append(sorted(scored, key=lambda pair: (-pair[0], pair[1])))
    return results


def tables(seed, images, dim=6):
    """Images in clusters; some failed."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, dim))
    table = centres[rng.integers(0, 6, images + 7)] + 0.5 * rng.normal(size=(images + 7, dim))
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    table[[2, 9, images + 6]] = np.nan
    return table[7:], table[:7]


def compare(queries, database, k, k1, k2, share, chunks=None):
    lists = nearest(database, database, max(k1, k2), np.arange(len(database)))
    indexes, scores = k_reciprocal(queries, database if chunks is None else chunks, lists, k, k1, k2,
                                   share)
    assert indexes.shape == scores.shape == (len(queries), k)
    changed = 0
    for q, expected in enumerate(slow(queries, database, k, k1, k2, share)):
        count = len(expected)
        np.testing.assert_allclose(scores[q, :count], [score for score, _ in expected], atol=1e-6)
        assert sorted(indexes[q, :count]) == sorted(j for _, j in expected)
        of = dict((j, score) for score, j in expected)
        np.testing.assert_allclose(scores[q, :count], [of[j] for j in indexes[q, :count]], atol=1e-6)
        ties = np.diff(scores[q, :count]) == 0
        assert (np.diff(indexes[q, :count])[ties] > 0).all()
        assert (indexes[q, count:] == -1).all() and (scores[q, count:] == -np.inf).all()
        if count:
            near = nearest(queries[[q]], database, count).indexes[0]
            changed += not np.array_equal(near, indexes[q, :count])
    return changed


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("k, k1, k2, share", [(15, 7, 3, 0.3), (40, 20, 6, 0.0), (10, 1, 1, 0.5),
                                              (5, 6, 1, 0.3), (3, 4, 9, 0.1)])
def test_against_the_dense_version(seed, k, k1, k2, share, monkeypatch):
    monkeypatch.setattr(kreciprocal, "_BLOCK_VALUES", 200)
    monkeypatch.setattr(kreciprocal, "_BLOCK_ENTRIES", 60)
    database, queries = tables(seed, 60)
    chunks = [database[i:i + 7] for i in range(0, len(database), 7)]
    assert compare(queries, database, k, k1, k2, share, chunks) > 0


def test_lists_longer_than_the_database():
    database, queries = tables(5, 12)
    compare(queries, database, 30, 20, 6, 0.3)


def test_ties_and_copies():
    """The steps are those of the dense version though most similarities are equal to others."""
    rng = np.random.default_rng(3)
    database, queries = (rng.integers(-1, 2, (count, 3)).astype(np.float32) for count in (40, 6))
    compare(queries, database, 12, 6, 3, 0.3)


def test_of_the_original_distance_alone_nothing_changes():
    database, queries = tables(1, 50)
    lists = nearest(database, database, 20, np.arange(50))
    indexes, scores = k_reciprocal(queries, database, lists, 10, lambda_value=1.0)
    near = nearest(queries, database, 10)
    np.testing.assert_array_equal(indexes, near.indexes)
    np.testing.assert_allclose(scores, near.similarities, atol=1e-6)


def test_a_false_match_is_put_behind():
    """Two nearest neighbours of the query: one of its own crowd, one amid another crowd."""
    angles = np.deg2rad([10, 12, 14, 16, -9, -10, -11, -12, -13, -14])
    database = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query = np.array([[1, 0]], np.float32)
    lists = nearest(database, database, 4, np.arange(10))
    indexes, _ = k_reciprocal(query, database, lists, 10, 4, 1, 0.1)
    assert nearest(query, database, 1).indexes[0, 0] == 4 and indexes[0, 0] == 0


def test_users_mistakes_are_named():
    database, queries = tables(0, 30)
    lists = nearest(database, database, 8, np.arange(30))
    for arguments, message in (((5, 0, 1, .3), "at least 1"), ((0, 5, 1, .3), "at least 1"),
                               ((5, 5, 2, 1.5), "lambda is 1.5"), ((5, 9, 2, .3), "need 9"),
                               ((5, 5, 10, .3), "need 9")):
        with pytest.raises(UserError, match=message):
            k_reciprocal(queries, database, lists, *arguments)
    with pytest.raises(UserError, match="neighbours of 30 images, but the database has 29"):
        k_reciprocal(queries, database[1:], lists, 5, 5, 2)
