"""Several stores as one database."""
import json

import numpy as np
from safetensors.numpy import load_file, save_file

from dolg.features.store import FeatureStore
from dolg.search.collection import Collection, store_digest


def test_rows_count_on(make_store):
    table = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
    collection = Collection([make_store("a", table[:11], 4), make_store("b", table[11:], 5)])
    assert len(collection) == 23 and collection.dim == 3 and collection.starts == [0, 11, 23]
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(collection)), table)


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
