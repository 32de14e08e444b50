"""Exact search against a slow, obvious ranking."""
import numpy as np
import pytest

from dolg.errors import UserError
from dolg.search import exact
from dolg.search.exact import top_k


def slow_top_k(queries, database, k):
    """One query at a time: a stable sort keeps the lower index first among equal scores."""
    valid = np.flatnonzero(~np.isnan(database).any(axis=1))
    all_scores, all_indexes = [], []
    for query in queries:
        scores = (database[valid].astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
        order = np.argsort(-scores, kind="stable")[:k]
        all_scores.append(scores[order])
        all_indexes.append(valid[order])
    return np.array(all_scores), np.array(all_indexes)


def split(array, size):
    return [array[i:i + size] for i in range(0, len(array), size)]


def assert_same(result, expected):
    scores, indexes = result
    assert scores.dtype == np.float32 and indexes.dtype == np.int64
    np.testing.assert_array_equal(indexes, expected[1])
    np.testing.assert_allclose(scores, expected[0], rtol=1e-6, atol=1e-7)


@pytest.fixture
def small_blocks(monkeypatch):
    """Make the block borders fall inside these small databases."""
    monkeypatch.setattr(exact, "BLOCK_QUERIES", 4)
    monkeypatch.setattr(exact, "BLOCK_ROWS", 50)


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 300, 1000])
@pytest.mark.parametrize("k", [1, 10, 299])
def test_agrees_with_sorting(chunk_size, k, small_blocks):
    random = np.random.default_rng(chunk_size + k)
    queries = random.standard_normal((9, 16)).astype(np.float32)
    database = random.standard_normal((300, 16)).astype(np.float32)
    assert_same(top_k(queries, split(database, chunk_size), k), slow_top_k(queries, database, k))


@pytest.mark.parametrize("chunk_size", [3, 50, 64, 400])
@pytest.mark.parametrize("k", [5, 120])
def test_many_ties_go_to_the_lower_index(chunk_size, k, small_blocks):
    """Small integers give a handful of different scores, zero and negative ones too."""
    random = np.random.default_rng(0)
    queries = random.integers(-1, 2, (6, 3)).astype(np.float32)
    queries[0] = 0  # every score equal, and some are -0.0
    database = random.integers(-1, 2, (400, 3)).astype(np.float32)
    scores, indexes = top_k(queries, split(database, chunk_size), k)
    assert_same((scores, indexes), slow_top_k(queries, database, k))
    np.testing.assert_array_equal(indexes[0], np.arange(k))


def test_minus_zero_equals_zero():
    tiny = np.array([[-1e-30], [1e-30], [-1e-30]], dtype=np.float32)  # products underflow
    scores, indexes = top_k(np.array([[1e-30]], dtype=np.float32), [tiny], 3)
    np.testing.assert_array_equal(indexes, [[0, 1, 2]])
    np.testing.assert_array_equal(scores, [[0, 0, 0]])


@pytest.mark.parametrize("chunk_size", [13, 128, 5000])
def test_equal_rows_tie_wherever_they_stand(chunk_size):
    """Copies of a row must get one score, though matrix products add in different orders."""
    random = np.random.default_rng(1)
    queries = random.standard_normal((5, 131)).astype(np.float32)
    rows = random.standard_normal((20, 131)).astype(np.float32)
    database = rows[random.integers(0, 20, 5000)]
    expected = slow_top_k(queries, database, 700)
    assert_same(top_k(queries, split(database, chunk_size), 700), expected)


@pytest.mark.parametrize("chunk_size", [4, 33, 200])
def test_failed_rows_are_never_returned(chunk_size, small_blocks):
    random = np.random.default_rng(2)
    queries = random.standard_normal((5, 8)).astype(np.float32)
    database = random.standard_normal((200, 8)).astype(np.float32)
    failed = random.permutation(200)[:80]
    database[failed[:40]] = np.nan
    database[failed[40:], 3] = np.nan
    database[:4] = np.nan
    scores, indexes = top_k(queries, split(database, chunk_size), 500)
    assert_same((scores, indexes), slow_top_k(queries, database, 500))
    assert indexes.shape[1] == np.isfinite(database).all(axis=1).sum()
    assert not np.isin(failed, indexes).any()


def test_k_beyond_the_database_gives_a_shorter_result():
    queries, database = np.eye(2, dtype=np.float32), np.array([[0, 1], [3, 2]], dtype=np.float32)
    scores, indexes = top_k(queries, [database], 10)
    np.testing.assert_array_equal(indexes, [[1, 0], [1, 0]])
    np.testing.assert_array_equal(scores, [[3, 0], [2, 1]])
    empty_scores, empty_indexes = top_k(queries, [], 10)
    assert empty_scores.shape == empty_indexes.shape == (2, 0)


def test_half_precision_read_only_chunks_and_generators(tmp_path):
    random = np.random.default_rng(3)
    database = random.standard_normal((90, 4)).astype(np.float16)
    np.save(tmp_path / "x.npy", database)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    queries = random.standard_normal((3, 4)).astype(np.float32)
    assert_same(top_k(queries, (part for part in split(mapped, 32)), 7),
                slow_top_k(queries, database, 7))


def test_users_mistakes_are_named():
    queries, database = np.eye(3, dtype=np.float32), np.ones((4, 3), dtype=np.float32)
    with pytest.raises(UserError, match="k is 0"):
        top_k(queries, [database], 0)
    with pytest.raises(UserError, match=r"3 dimensions.*\(4, 2\)"):
        top_k(queries, [database[:, :2]], 1)
    with pytest.raises(UserError, match="query 1 holds NaN"):
        top_k(np.array([[0, 0, 1], [0, np.nan, 0]], dtype=np.float32), [database], 1)
    database[2, 1] = np.inf
    with pytest.raises(UserError, match="database row 6"):
        top_k(queries, [np.ones((4, 3), dtype=np.float32), database], 1)
