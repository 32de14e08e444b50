"""Ranks by counting against a stable sort of all scores, with everything that makes it hard."""
import resource
import time

import numpy as np
import pytest

from revisitop import Store, StoreError, count_ranks
from revisitop import counting


def slow_ranks(queries, labelled, rows, failed, images, distractors, distractors_failed):
    """Sort everything: database in the order of its images, then distractors; failures last."""
    by_image = np.empty_like(rows)
    by_image[images] = rows
    gone = np.empty_like(failed)
    gone[images] = failed
    every = np.concatenate([by_image, *distractors]).astype(np.float64)
    lost = np.concatenate([gone, *distractors_failed])
    results = []
    for query, wanted in zip(queries.astype(np.float64), labelled):
        scores = np.where(lost, -np.inf, np.nan_to_num(every) @ query)
        rank = np.empty(len(every))
        rank[np.argsort(-scores, kind="stable")] = np.arange(len(every))
        rank[lost] = np.inf
        results.append(rank[wanted])
    return results


def _descriptors(rng, count, dim, ties):
    """With ties: few different integer vectors, whose products are exact in any order."""
    if ties:
        return rng.integers(-2, 3, (count, dim)).astype(np.float32)
    return rng.standard_normal((count, dim)).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Block borders inside the database."""
    monkeypatch.setattr(counting, "_BLOCK_ROWS", 64)


@pytest.mark.parametrize("how", [{}, {"double": True}, {"threads": 1}, {"threads": 5}])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_sorting(make_store, tmp_path, small_blocks, how, ties, chunk_size, seed):
    rng = np.random.default_rng(seed)
    dim = 3 if ties else 12
    queries = _descriptors(rng, 7, dim, ties)
    sizes = [150, 90, 1]
    tables = [_descriptors(rng, size, dim, ties) for size in sizes]
    errors = [{int(row): "cut off" for row in rng.choice(size, size // 10, replace=False)}
              for size in sizes]
    stores = [Store(make_store(tmp_path / str(number), [f"{number} {row}" for row in range(size)],
                                table, chunk_size, error))
              for number, (size, table, error) in enumerate(zip(sizes, tables, errors))]
    failed = [np.array([row in error for row in range(size)]) for size, error in zip(sizes, errors)]
    images = rng.permutation(sizes[0])
    labelled = [rng.permutation(sizes[0])[:count] for count in (0, 1, 5, 40, 150, 3, 2)]
    got = count_ranks(queries, labelled, stores[0], images, stores[1:], **how)
    want = slow_ranks(queries, labelled, tables[0], failed[0], images, tables[1:], failed[1:])
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("chunk_size", [5, 128, 1000])
def test_equal_descriptors_tie_wherever_they_lie(make_store, tmp_path, chunk_size):
    """Copies of one vector, spread over database and distractors: the lower index goes first."""
    rng = np.random.default_rng(1)
    table = rng.standard_normal((300, 96)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    copies = np.array([3, 64, 65, 130, 299])
    table[copies] = table[3]
    database = Store(make_store(tmp_path / "database", list(map(str, range(300))), table,
                                 chunk_size))
    extra = Store(make_store(tmp_path / "extra", list("abc"), table[[3, 3, 10]], chunk_size))
    query = table[[3]]
    ranks = count_ranks(query, [copies], database, np.arange(300), [extra])[0]
    np.testing.assert_array_equal(ranks, np.arange(5))


def test_half_precision_stores(make_store, tmp_path):
    rng = np.random.default_rng(2)
    table = rng.standard_normal((80, 16)).astype(np.float16)
    queries = rng.standard_normal((4, 16)).astype(np.float32)
    store = Store(make_store(tmp_path / "half", list(map(str, range(80))), table, 33))
    labelled = [np.arange(80)] * 4
    got = count_ranks(queries, labelled, store, np.arange(80))
    want = slow_ranks(queries, labelled, table, np.zeros(80, bool), np.arange(80), [], [])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_names_its_image(make_store, tmp_path, value):
    table = np.ones((20, 4), np.float32)
    table[17, 2] = value
    store = Store(make_store(tmp_path / "bad", [f"photo {i}" for i in range(20)], table, 8))
    with pytest.raises(StoreError, match="photo 17"):
        count_ranks(np.ones((1, 4), np.float32), [np.array([0])], store, np.arange(20))


@pytest.mark.parametrize("of", [2, 3, 7])
def test_shares_add_up(make_store, tmp_path, small_blocks, of):
    """What the parts of the work count is, summed, what one counts that does all of it."""
    rng = np.random.default_rng(3)
    tables = [_descriptors(rng, size, 8, ties=False) for size in (200, 130)]
    tables[1][40:60] = tables[0][17]
    stores = [Store(make_store(tmp_path / str(number), [f"{number} {row}" for row in range(len(table))],
                               table, 50)) for number, table in enumerate(tables)]
    queries, labelled = _descriptors(rng, 4, 8, ties=False), [np.array([17, 3, 150])] * 4
    arguments = (queries, labelled, stores[0], np.arange(200), stores[1:])
    parts = []
    for number in range(of):
        count_ranks(*arguments, share=(number, of),
                    together=lambda count: parts.append(count()) or parts[-1])
    assert len(parts) == of and all(part.any() for part in parts)
    together = count_ranks(*arguments, share=(0, of), together=lambda _: sum(parts))
    np.testing.assert_array_equal(together, count_ranks(*arguments))


def test_sums_in_float64(make_store, tmp_path):
    """Two images whose scores differ by less than float32 sums can tell."""
    rng = np.random.default_rng(4)
    query = np.abs(rng.standard_normal((1, 512))).astype(np.float32)
    table = np.repeat(np.abs(rng.standard_normal((1, 512))), 400, axis=0).astype(np.float32)
    table[np.arange(400), np.arange(400)] += (1e-6 * rng.integers(-9, 9, 400)).astype(np.float32)
    store = Store(make_store(tmp_path / "s", list(map(str, range(400))), table, 400))
    scores = (table.astype(np.float64) @ query[0].astype(np.float64)).astype(np.float32)
    rank = np.empty(400)
    rank[np.argsort(-scores, kind="stable")] = np.arange(400)
    got = count_ranks(query, [np.arange(400)], store, np.arange(400), double=True)[0]
    np.testing.assert_array_equal(got, rank)
    assert not np.array_equal(count_ranks(query, [np.arange(400)], store, np.arange(400))[0], rank)


def test_a_thread_that_fails_ends_all(make_store, tmp_path, small_blocks):
    """A chunk that was cut while the store was read."""
    table = np.ones((300, 4), np.float32)
    path = make_store(tmp_path / "s", list(map(str, range(300))), table, 64)
    store = Store(path)
    store.status    # what is needed of the chunks before they are counted
    file = path / "chunk-000003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(StoreError, match="is cut off"):
        count_ranks(np.ones((1, 4), np.float32), [np.array([0])], store, np.arange(300), threads=3)


def test_after_an_error_nothing_more_is_counted(make_store, tmp_path, small_blocks):
    """The first of a thousand blocks is damaged: the other thread does not go through them all."""
    table = np.ones((64_000, 2), np.float32)
    table[0] = np.nan
    store = Store(make_store(tmp_path / "s", list(map(str, range(64_000))), table, 1000))
    database = Store(make_store(tmp_path / "d", ["a"], table[1:2]))
    counted = []

    class Slow(counting.Counter):
        def add(self, block):
            counted.append(block.start)
            time.sleep(0.002)
            super().add(block)

    with pytest.raises(StoreError, match="not finite"):
        count_ranks(np.ones((1, 2), np.float32), [np.array([0])], database, np.arange(1), [store],
                    counter=Slow, threads=2)
    assert len(counted) < 100


def test_more_chunks_than_files_may_be_open(make_store, tmp_path):
    """A million images in chunks of 256 are four times as many as most systems let be open."""
    table = np.arange(300, dtype=np.float32)[:, None] @ np.ones((1, 4), np.float32)
    path = make_store(tmp_path / "s", list(map(str, range(300))), table, 1, {7: "broken"})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, hard))
    try:
        store = Store(path)
        assert np.flatnonzero(store.status).tolist() == [7] and store.names[299] == "299"
        assert len(store.errors()) == 1
        ranks = count_ranks(np.ones((1, 4), np.float32), [np.array([299, 0])], store, np.arange(300))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    np.testing.assert_array_equal(ranks, [[0, 298]])
