"""Several stores as one database."""
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dolg.features.store import FeatureStore
from dolg.search import collection as module
from dolg.search.collection import Collection, gather, store_digest
from revisitop.stores import StoreError


def test_rows_count_on(make_store):
    table = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
    collection = Collection([make_store("a", table[:11], 4), make_store("b", table[11:], 5)])
    assert len(collection) == 23 and collection.dim == 3 and collection.starts == [0, 11, 23]
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(collection)), table)


@pytest.mark.parametrize("value", [0.5, np.inf])
def test_what_failed_is_nan_whatever_its_row_holds(make_store, change_row, value):
    table = np.random.default_rng(2).normal(size=(23, 3)).astype(np.float32)
    table[[4, 9, 17]] = np.nan
    stores = [make_store("a", table[:11], 4), make_store("b", table[11:], 5)]
    collection = Collection([change_row(stores[0], 9, value), change_row(stores[1], 6, value)])
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(collection)), table)
        np.testing.assert_array_equal(gather(collection, np.array([3, 9, 17]), 3), table[[3, 9, 17]])


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_row_that_is_damaged_is_named(make_store, change_row, value):
    table = np.ones((23, 3), np.float32)
    table[4] = np.nan
    stores = [make_store("a", table[:11], 4), change_row(make_store("b", table[11:], 5), 6, value)]
    for _ in range(2):
        with pytest.raises(StoreError, match=r"b: the descriptor of 'b 6' \(row 6\).* not finite"):
            list(Collection(stores))


def test_each_chunk_is_checked_once(make_store, monkeypatch):
    """Checking reads whole chunks, where `gather` reads few rows."""
    collection, check, calls = Collection([make_store("a", np.ones((11, 3)), 4)]), module._lacks_marks, []
    monkeypatch.setattr(module, "_lacks_marks", lambda *args: calls.append(args) or check(*args))
    for _ in range(3):
        assert isinstance(next(iter(collection)).base, np.ndarray) and len(list(collection)) == 3
    assert len(calls) == 3


def test_a_digest_is_of_all_that_is_in_a_store(make_store):
    table = np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32)
    names, other = list("abcdef"), table.copy()
    other[5, 2] += 1e-6
    same = [store_digest(make_store(name, table, 4, names)) for name in ("one", "two")]
    assert same[0] == same[1]
    others = [make_store("descriptors", other, 4, names), make_store("names", table, 4, list("abcdfe")),
              make_store("manifest", table, 4, names, provenance={"scales": [1]})]
    assert len({same[0], *map(store_digest, others)}) == 4


def test_stores_that_record_no_digest(make_store):
    """As of other programs: their files are read."""
    digests = set()
    for number in range(2):
        store = make_store(f"store {number}", np.full((3, 2), number + 1, np.float32), 4, list("abc"))
        file = store.path / "chunk-000000.safetensors"
        save_file(load_file(file), file, {"images": json.dumps({"names": list("abc"), "errors": {}})})
        digests.add(store_digest(FeatureStore(store.path)))
    assert len(digests) == 2
