"""tools/search.py neighbours, and what it is made of, against sorting everything."""
import json

import numpy as np
import pytest

from dolg.errors import UserError
from dolg.search import listing, neighbours
from dolg.search.collection import Collection, store_digest
from dolg.search.indexes import Index, build_index
from dolg.search.listing import IndexSearch, list_neighbours
from dolg.search.neighbours import read_neighbours
from revisitop import StoreError

FAILED = [0, 17, 60]


def slow_lists(table, k):
    """The k nearest others of each row, sorted; -1 where there are none."""
    lists = np.full((len(table), k), -1)
    for place, x in enumerate(table.astype(np.float64)):
        others = [] if np.isnan(x).any() else sorted(
            (-np.float32(x @ row.astype(np.float64)), j) for j, row in enumerate(table)
            if j != place and not np.isnan(row).any())[:k]
        lists[place, :len(others)] = [j for _, j in others]
    return lists


@pytest.fixture
def table():
    table = np.random.default_rng(0).standard_normal((61, 8)).astype(np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    table[FAILED] = np.nan
    return table


@pytest.fixture
def stores(table, make_store):
    return [make_store("first", table[:28], 5), make_store("second", table[28:], 9)]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 8)


def test_by_command(run_tool, table, stores, tmp_path):
    done = run_tool("tools/search.py", "neighbours", *(store.path for store in stores), "--device", "cpu",
                    "--top", 7, "--output", tmp_path / "lists")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/lists: 7 neighbours of each of 61 images\n"
    found = read_neighbours(tmp_path / "lists", [store_digest(store) for store in stores], 7)
    np.testing.assert_array_equal(found.indexes, slow_lists(table, 7))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("k", [1, 10, 80])
def test_flat_indexes_find_the_same(table, stores, small_blocks, tmp_path, split, k):
    parts = [[store] for store in stores] if split else [stores]
    indexes = [build_index(tmp_path / f"index {i}", part, "flat") for i, part in enumerate(parts)]
    list_neighbours(stores, tmp_path / "lists", k, indexes)
    found = read_neighbours(tmp_path / "lists", Collection(stores).digests, k)
    expected = slow_lists(table, k)
    np.testing.assert_array_equal(found.indexes, expected)
    for row, (images, similarities) in enumerate(zip(expected, found.similarities)):
        wanted = [table[row] @ table[j] if j >= 0 else -np.inf for j in images]
        np.testing.assert_allclose(similarities, wanted, rtol=1e-5, atol=1e-6)


def test_an_index_that_misses_an_image_itself(table, stores):
    """Then the last of those found is left out; and of fewer than asked for, none."""

    class Lossy:
        path, settings = "index", {"factory": "?", "count": 61, "stores": [
            {"digest": digest} for digest in Collection(stores).digests]}

        def search(self, queries, k):
            rows = np.tile(np.array([5, 9, 3, -1])[:k], (len(queries), 1))
            return np.where(rows < 0, -np.inf, -np.arange(k)).astype(np.float32), rows.astype(np.int64)

    search = IndexSearch([Lossy()], Collection(stores), 4)
    rows = np.array([9, 0, 20])
    assert search.nearest(table[rows], 2, rows).indexes.tolist() == [[5, 3], [-1, -1], [5, 9]]
    assert search.nearest(table[rows], 3, rows).indexes.tolist() == [[5, 3, -1], [-1, -1, -1], [5, 9, 3]]
    assert search.nearest(table[rows], 3, None).indexes.tolist() == [[5, 9, 3], [-1, -1, -1], [5, 9, 3]]


def test_a_killed_run_goes_on(table, stores, small_blocks, tmp_path, monkeypatch):
    index = build_index(tmp_path / "index", stores, "flat")
    search, calls = Index.search, []

    def killed(self, queries, k):
        calls.append(k)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return search(self, queries, k)

    monkeypatch.setattr(Index, "search", killed)
    with pytest.raises(KeyboardInterrupt):
        list_neighbours(stores, tmp_path / "lists", 5, [index])
    with pytest.raises(UserError, match="no neighbours that are whole: .*--top 5 --output"):
        read_neighbours(tmp_path / "lists", Collection(stores).digests, 5)
    list_neighbours(stores, tmp_path / "lists", 5, [index])
    assert len(calls) == 4 + 8 - 3 and set(calls) == {6}
    found = read_neighbours(tmp_path / "lists", Collection(stores).digests, 5)
    np.testing.assert_array_equal(found.indexes, slow_lists(table, 5))


def test_folders_say_how_they_were_found(stores, tmp_path):
    folder, index = tmp_path / "lists", build_index(tmp_path / "index", stores, "flat")
    list_neighbours(stores, folder, 5, [index], probes=3)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["search"] == {"indexes": [["Flat", 61]], "probes": 3}
    list_neighbours(stores, folder, 4, [index], probes=3)
    for indexes, probes in (([], 3), ([index], 4)):
        with pytest.raises(UserError, match=r"found otherwise \(search\)"):
            list_neighbours(stores, folder, 5, indexes, probes)
    list_neighbours(stores, tmp_path / "exact", 5)
    with pytest.raises(UserError, match=r"found otherwise \(search\)"):
        list_neighbours(stores, tmp_path / "exact", 5, [index])


def test_stores_and_indexes_that_do_not_fit(table, stores, make_store, tmp_path):
    other = make_store("other", table[:28] * -1, 5)
    both = build_index(tmp_path / "both", stores, "flat")
    for wrong in (stores[::-1], stores[:1], [stores[0], other], [*stores, other]):
        with pytest.raises(UserError, match="both must hold the stores .*, in this order and as they"):
            list_neighbours(wrong, tmp_path / "lists", 5, [both])
    with pytest.raises(StoreError, match="has the images of"):
        list_neighbours([stores[0], stores[0]], tmp_path / "lists", 5)
    foreign = make_store("foreign", table[:28], 5, provenance={"weights_digest": "another"})
    with pytest.raises(StoreError, match="different weights"):
        list_neighbours([stores[0], foreign], tmp_path / "lists", 5)
    with pytest.raises(UserError, match="--top is 0: give at least 1"):
        list_neighbours(stores, tmp_path / "lists", 0)
    assert not (tmp_path / "lists").exists()


def test_reading_refuses_what_does_not_fit(stores, tmp_path):
    digests, folder = Collection(stores).digests, tmp_path / "lists"
    with pytest.raises(UserError, match="no neighbours that are whole: find them with python tools"):
        read_neighbours(folder, digests, 5)
    listing.list_neighbours(stores, folder, 5)
    assert read_neighbours(folder, digests, 3).indexes.shape == (61, 5)
    with pytest.raises(UserError, match="holds 5 neighbours of each image, and 6 are asked for"):
        read_neighbours(folder, digests, 6)
    for wrong in (digests[:1], digests[::-1]):
        with pytest.raises(UserError, match="holds neighbours of other stores"):
            read_neighbours(folder, wrong, 5)
    (folder / "manifest.json").write_text(json.dumps({"format": "dolg-neighbours", "version": 2, "k": 9}))
    with pytest.raises(UserError, match="is no manifest of neighbours"):
        read_neighbours(folder, digests, 5)
