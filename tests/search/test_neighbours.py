"""Lists of neighbours and their graph, against sorting everything."""
import json
import os
import time

import numpy as np
import pytest

from dolg.errors import UserError
from dolg.search import neighbours
from dolg.search.collection import Collection, gather
from dolg.search.neighbours import (
    Neighbours, knn_matrix, mutual_graph, nearest, neighbours_of, write_neighbours)


def slow_nearest(queries, database, k, own=None):
    """Sort the whole database for each image."""
    indexes = np.full((len(queries), k), -1)
    similarities = np.full((len(queries), k), -np.inf)
    for place, x in enumerate(queries.astype(np.float64)):
        if np.isnan(x).any():
            continue
        found = sorted((-np.float32(x @ row.astype(np.float64)), j) for j, row in enumerate(database)
                       if not np.isnan(row).any() and (own is None or j != own[place]))[:k]
        for column, (negative, j) in enumerate(found):
            indexes[place, column], similarities[place, column] = j, -negative
    return indexes, similarities


def assert_same(mine, expected):
    assert mine.indexes.dtype == np.int32 and mine.similarities.dtype == np.float32
    np.testing.assert_array_equal(mine.indexes, expected[0])
    np.testing.assert_allclose(mine.similarities, expected[1], rtol=1e-6, atol=1e-7)


@pytest.fixture
def table():
    """(61,4) with few different similarities, so that there are many ties, and failed images."""
    table = np.random.default_rng(0).integers(-2, 3, (61, 4)).astype(np.float32)
    table[[0, 17, 44, 60]] = np.nan
    return table


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 8)


@pytest.mark.parametrize("size", [1, 9, 100])
@pytest.mark.parametrize("k", [1, 10, 56, 80])
def test_nearest(table, small_blocks, size, k):
    chunks = [table[i:i + size] for i in range(0, len(table), size)]
    assert_same(nearest(table, chunks, k), slow_nearest(table, table, k))
    rows = np.arange(5, 40)
    assert_same(nearest(table[5:40], chunks, k, rows), slow_nearest(table[5:40], table, k, rows))


def test_an_image_that_is_not_among_its_nearest():
    """Vectors of other lengths: a short one is nearest to long ones alone."""
    table = np.array([[.1, 0], [5, 0], [4, 0], [3, 0]], np.float32)
    np.testing.assert_array_equal(nearest(table, table, 2, np.arange(4)).indexes,
                                  [[1, 2], [2, 3], [1, 3], [1, 2]])


def test_gather(table):
    rows = np.array([1, 2, 2, 30, 59])
    for size in (1, 9, 100):
        chunks = [table[i:i + size].astype(np.float16) for i in range(0, len(table), size)]
        picked = gather(chunks, rows, 4)
        assert picked.dtype == np.float32
        np.testing.assert_array_equal(picked, table[rows])
    assert gather([], rows[:0], 4).shape == (0, 4)


@pytest.fixture
def database(table, make_store):
    return Collection([make_store("database", table[:28], 5), make_store("distractors", table[28:], 9)])


def test_a_folder(table, database, small_blocks, tmp_path):
    found = neighbours_of(database, 7, tmp_path / "lists")
    assert isinstance(found.indexes, np.memmap)
    assert_same(found, slow_nearest(table, table, 7, np.arange(61)))
    assert sorted(file.name for file in (tmp_path / "lists").iterdir()) == [
        "indexes.npy", "manifest.json", "similarities.npy"]
    queries = Collection(database.stores[:1])
    of_queries = write_neighbours(tmp_path / "queries", queries, database, 3)
    assert_same(of_queries, slow_nearest(table[:28], table, 3))


def test_a_killed_run_goes_on(database, small_blocks, tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    neighbours_of(database, 5, whole)
    search, calls = neighbours.nearest, []

    def killed(*args, **more):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return search(*args, **more)

    monkeypatch.setattr(neighbours, "nearest", killed)
    with pytest.raises(KeyboardInterrupt):
        neighbours_of(database, 5, part)
    assert sorted(file.name for file in part.glob("part-*")) == [
        f"part-{number:06d}.npz" for number in range(3)]
    left = part / ".part-000003.npz.host.1.tmp"
    left.write_text("left by a run that was killed")
    os.utime(left, (time.time() - 90_000,) * 2)
    calls.extend([None] * 10)
    neighbours_of(database, 5, part)
    assert len(calls) == 14 + 8 - 3         # of 8 parts, those that are missing
    for file in whole.iterdir():
        assert (part / file.name).read_bytes() == file.read_bytes(), file.name
    assert len(list(part.iterdir())) == 3
    neighbours_of(database, 5, part)
    assert len(calls) == 19


@pytest.mark.parametrize("at", [1, 4, 8])
def test_two_runs_share_a_folder(table, database, small_blocks, tmp_path, monkeypatch, at):
    """While one looks for the neighbours of part `at`, the other comes to the end, and tidies up."""
    folder, search, calls = tmp_path / "lists", neighbours.nearest, []

    def overtaken(*args, **more):
        calls.append(args)
        if len(calls) == at:
            (folder / ".part-000007.npz.host.1.tmp").write_text("a third one writes this")
            neighbours_of(database, 5, folder)
        return search(*args, **more)

    monkeypatch.setattr(neighbours, "nearest", overtaken)
    found = neighbours_of(database, 5, folder)
    assert len(calls) == 9          # the 8 parts, and the one that both were looking for
    assert_same(found, slow_nearest(table, table, 5, np.arange(61)))
    assert sorted(file.name for file in folder.iterdir()) == [
        ".part-000007.npz.host.1.tmp", "indexes.npy", "manifest.json", "similarities.npy"]


def test_parts_that_another_run_has_joined(table, database, small_blocks, tmp_path, monkeypatch):
    folder, join, runs = tmp_path / "lists", neighbours._write_joined, []

    def overtaken(*args):
        runs.append(args)
        if len(runs) == 1:
            neighbours_of(database, 5, folder)
        join(*args)

    monkeypatch.setattr(neighbours, "_write_joined", overtaken)
    assert_same(neighbours_of(database, 5, folder), slow_nearest(table, table, 5, np.arange(61)))
    assert len(runs) == 2 and len(list(folder.iterdir())) == 3


def test_parts_that_someone_deleted(database, small_blocks, tmp_path, monkeypatch):
    join = neighbours._write_joined
    monkeypatch.setattr(neighbours, "_write_joined",
                        lambda parts, *rest: parts[3].unlink() or join(parts, *rest))
    with pytest.raises(FileNotFoundError, match="part-000003"):
        neighbours_of(database, 5, tmp_path / "lists")


def test_folders_of_others_are_refused(database, tmp_path):
    folder = tmp_path / "lists"
    first = neighbours_of(database, 5, folder)
    assert neighbours_of(database, 3, folder).indexes.shape == first.indexes.shape == (61, 5)
    with pytest.raises(UserError, match=r"found otherwise \(k\)"):
        neighbours_of(database, 6, folder)
    with pytest.raises(UserError, match="count, queries, database"):
        neighbours_of(Collection(database.stores[:1]), 5, folder)
    with pytest.raises(UserError, match="exclude_self"):
        write_neighbours(folder, database, database, 5)
    for content, message in (("{", "cannot be read"), (json.dumps([1]), "no manifest")):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(UserError, match=message):
            neighbours_of(database, 5, folder)


@pytest.mark.parametrize("k", [0, 1, 4])
def test_the_mutual_graph(k):
    rng = np.random.default_rng(1)
    table = rng.normal(size=(50, 5)).astype(np.float32)
    table[[3, 30]] = np.nan
    lists, similarities = slow_nearest(table, table, 6, np.arange(50))
    expected = np.zeros((50, 50))
    for i in range(50):
        for j, similarity in zip(lists[i][:k or 6], similarities[i]):
            if j >= 0 and i in lists[j][:k or 6] and similarity > 0:
                expected[i, j] = similarity
    graph = mutual_graph(nearest(table, table, 6, np.arange(50)), k)
    np.testing.assert_allclose(graph.toarray(), expected, rtol=1e-6)
    assert graph.has_sorted_indices and (graph.data > 0).all()
    assert (graph != graph.T).nnz == 0


def test_no_edge_where_similarity_is_not_above_0():
    table = np.array([[1, 0], [-1, .1], [0, 1]], np.float32)
    found = nearest(table, table, 2, np.arange(3))
    np.testing.assert_allclose(mutual_graph(found).toarray(), [[0, 0, 0], [0, 0, .1], [0, .1, 0]])
    with pytest.raises(UserError, match="3 neighbours are asked for, but the lists have 2"):
        mutual_graph(found, 3)


def test_the_matrix_of_lists():
    lists = Neighbours(np.array([[2, 1], [-1, -1], [0, -1]]), np.array([[5., 4], [0, 0], [3, 0]]))
    np.testing.assert_array_equal(knn_matrix(*lists).toarray(), [[0, 4, 5], [0, 0, 0], [3, 0, 0]])
    np.testing.assert_array_equal(knn_matrix(lists.indexes, k=1).toarray(),
                                  [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
