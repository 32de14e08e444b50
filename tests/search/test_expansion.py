"""Query expansion and database-side augmentation against one image at a time."""
import json
import shutil

import numpy as np
import pytest

from dolg.errors import UserError
from dolg.features.store import FeatureStore, LocalTable, StoreWriter
from dolg.search import expansion, neighbours
from dolg.search.collection import Collection
from dolg.search.expansion import augment, augment_stores, expand_queries, expand_store
from dolg.search.neighbours import Neighbours
from revisitop.stores import StoreError


def slow_expand(descriptors, database, n, alpha, own=None):
    """Sort the whole database for each image."""
    out = []
    for place, x in enumerate(descriptors.astype(np.float64)):
        if np.isnan(x).any():
            out.append(np.full(len(x), np.nan))
            continue
        others = [j for j, row in enumerate(database)
                  if not np.isnan(row).any() and (own is None or j != own[place])]
        similarity = {j: float(np.float32(x @ database[j].astype(np.float64))) for j in others}
        best = sorted(others, key=lambda j: (-similarity[j], j))[:n]
        total = x + sum((max(similarity[j], 0.0) ** alpha * database[j].astype(np.float64)
                         for j in best), np.zeros_like(x))
        total = total if total.any() else x
        out.append(total / (np.linalg.norm(total) or 1.0))
    return np.array(out).reshape(descriptors.shape)


def unit(table):
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def tables():
    """Queries (9,6) and a database (57,6), with negative similarities, copies and failed images."""
    rng = np.random.default_rng(0)
    queries, database = unit(rng.normal(size=(9, 6))), unit(rng.normal(size=(57, 6)))
    database[[3, 20, 41]] = database[11]
    database[[0, 19, 56]], queries[4] = np.nan, np.nan
    return queries, database


def split(table, size):
    return [table[i:i + size] for i in range(0, len(table), size)]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 8)
    monkeypatch.setattr(expansion, "_BLOCK_VALUES", 100)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("n", [1, 5, 200])
@pytest.mark.parametrize("size", [1, 13, 100])
def test_queries_against_one_at_a_time(tables, small_blocks, n, alpha, size):
    queries, database = tables
    mine = expand_queries(queries, split(database, size), n, alpha)
    assert mine.dtype == np.float32
    np.testing.assert_allclose(mine, slow_expand(queries, database, n, alpha), atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 3.0])
@pytest.mark.parametrize("n", [1, 7, 200])
def test_augmentation_against_one_at_a_time(tables, small_blocks, n, alpha):
    database = tables[1]
    expected = slow_expand(database, database, n, alpha, np.arange(len(database)))
    np.testing.assert_allclose(augment(database, n, alpha), expected, atol=1e-6)


def test_ties_go_to_the_lower_index():
    rng = np.random.default_rng(1)
    queries, database = (rng.integers(-1, 2, (count, 3)).astype(np.float32) for count in (8, 60))
    for alpha in (0.0, 2.0):
        np.testing.assert_allclose(expand_queries(queries, database, 4, alpha),
                                   slow_expand(queries, database, 4, alpha), atol=1e-6)
        np.testing.assert_allclose(
            augment(database, 4, alpha), slow_expand(database, database, 4, alpha, np.arange(60)),
            atol=1e-6)


def test_by_hand():
    queries, database = np.array([[1, 0]], np.float32), np.array([[.6, .8], [.8, -.6], [-1, 0]])
    # (1, 0) + .8^2 (.8, -.6) + .6^2 (.6, .8); the image opposite weighs nothing
    total = np.array([1 + .512 + .216, -.384 + .288])
    for n in (2, 3):
        np.testing.assert_allclose(expand_queries(queries, database, n, 2.0)[0],
                                   total / np.linalg.norm(total), atol=1e-6)
    # and in the plain mean as much as any: (1, 0) - (1, 0) leaves the query as it was
    np.testing.assert_array_equal(expand_queries(queries, database[2:], 1), queries)
    np.testing.assert_array_equal(expand_queries(queries, np.empty((0, 2)), 3), queries)


def test_users_mistakes_are_named(tables, make_store, tmp_path):
    queries, database = tables
    with pytest.raises(UserError, match="n is 0"):
        expand_queries(queries, database, 0)
    for alpha in (-1.0, np.nan, np.inf):
        with pytest.raises(UserError, match="alpha is"):
            augment(database, 3, alpha)
    with pytest.raises(TypeError, match="not a generator"):
        expand_queries(queries, (part for part in [database]), 3)
    store = make_store("other", np.ones((4, 3), np.float32))
    with pytest.raises(UserError, match="2 new stores"):
        augment_stores(Collection([store]), [tmp_path / "new", tmp_path / "more"], 2)
    with pytest.raises(UserError, match="cannot be one database"):
        Collection([make_store("database 2", database), store])
    with pytest.raises(UserError, match="at least one"):
        Collection([])


@pytest.mark.parametrize("message, width, more", [
    ("of 6 dimensions", 7, {}), ("different weights", 6, {"weights_digest": "xyz"}),
    ("different whitening", 6, {"whitening": {"digest": "xyz"}})])
def test_stores_of_other_models_are_refused(make_store, tmp_path, message, width, more):
    query = make_store("query", np.ones((4, width), np.float32), provenance=more)
    database = make_store("database", np.ones((9, 6), np.float32))
    with pytest.raises(StoreError, match=message):
        expand_store(query, Collection([database]), tmp_path / "new", 2)
    if width == 6:
        with pytest.raises(StoreError, match=message):
            augment_stores(Collection([database, query]), [tmp_path / "new"], 2, folder=tmp_path / "l")
    assert not (tmp_path / "new").exists() and not (tmp_path / "l").exists()


def test_a_damaged_row_is_no_neighbour_that_failed(make_store, change_row, tmp_path):
    query = make_store("query", np.ones((4, 3), np.float32))
    database = change_row(make_store("database", np.ones((9, 3), np.float32)), 5, np.nan)
    with pytest.raises(StoreError, match="'database 5'"):
        expand_store(query, Collection([database]), tmp_path / "new", 2)


def test_new_stores_are_checked_before_the_search(stores, tmp_path):
    """All of them: the last may hold another store, too."""
    database, paths = Collection(stores[1]), [tmp_path / "one", tmp_path / "two"]
    expand_store(stores[1][1], database, paths[1], 3, 1.0, 33)
    with pytest.raises(UserError, match="two was made by other settings: expansion.* another --output"):
        augment_stores(database, paths, 4, 1.0, tmp_path / "lists")
    assert not (tmp_path / "lists").exists() and not paths[0].exists()


@pytest.fixture
def stores(tables, make_store):
    """A query store, a database and distractors, in chunks of different sizes."""
    queries, database = tables
    return (make_store("query", queries, 4, provenance={"cropped": True, "scales": [0.5, 1]}),
            [make_store("database", database[:33], 5), make_store("distractors", database[33:], 7)])


def test_query_stores(tables, stores, small_blocks, tmp_path):
    query, parts = stores
    expand_store(query, Collection(parts), tmp_path / "new", 5, 3.0)
    new = FeatureStore(tmp_path / "new")
    new.verify()
    np.testing.assert_allclose(np.asarray(new.global_descriptors()), slow_expand(*tables, 5, 3.0),
                               atol=1e-6)
    assert new.names == query.names and new.errors() == query.errors() == [("query 4", "no photo 0")]
    done = new.manifest.pop("expansion")
    assert new.manifest == query.manifest       # provenance stays, as does the shape
    assert (done["method"], done["n"], done["alpha"]) == ("query expansion", 5, 3.0)
    assert len(set([done["source"], *done["database"]])) == 3


@pytest.mark.parametrize("given", [False, True])
def test_database_stores(tables, stores, small_blocks, tmp_path, given):
    database = Collection(stores[1])
    paths = [tmp_path / "new database", tmp_path / "new distractors"]
    augment_stores(database, paths, 4, 3.0, tmp_path / "lists" if given else None)
    expected = slow_expand(tables[1], tables[1], 4, 3.0, np.arange(57))
    new = Collection([FeatureStore(path) for path in paths])
    np.testing.assert_allclose(np.concatenate(list(new)), expected, atol=1e-6)
    for store, old in zip(new.stores, database.stores):
        assert store.names == old.names and store.errors() == old.errors()
        assert store.manifest["expansion"]["method"] == "database-side augmentation"
    again = [tmp_path / "twice"]
    augment_stores(new, again, 1)
    assert FeatureStore(again[0]).manifest["expansion"]["after"] == new.stores[0].manifest["expansion"]


def test_lists_from_an_approximate_index(tables, stores, tmp_path):
    """Failed images and the image itself are passed over, and the next ones taken."""
    rng, table = np.random.default_rng(2), tables[1]
    indexes = np.stack([rng.permutation(57)[:20] for _ in range(57)]).astype(np.int32)
    indexes[:, 0], indexes[:, 1], indexes[:, 2] = np.arange(57), 19, -1
    similarities = rng.uniform(0.1, 1, indexes.shape).astype(np.float32)
    augmented = tmp_path / "new"
    first, store = 33, stores[1][1]
    expand_store(store, Collection(stores[1]), augmented, 3, 2.0, first,
                 Neighbours(indexes, similarities))
    for row, mine in enumerate(np.asarray(FeatureStore(augmented).global_descriptors())):
        image = first + row
        taken = [(j, s) for j, s in zip(indexes[image], similarities[image])
                 if j >= 0 and j != image and not np.isnan(table[j]).any()][:3]
        total = table[image] + sum(float(s) ** 2 * table[j] for j, s in taken)
        np.testing.assert_allclose(mine, total / np.linalg.norm(total), atol=1e-6)


def test_lists_that_do_not_fit(stores, tmp_path):
    query, database = stores[0], Collection(stores[1])

    def refused(message, source, first, indexes, n=2):
        with pytest.raises(UserError, match=message):
            expand_store(source, database, tmp_path / message, n, 1.0, first,
                         Neighbours(indexes, np.ones(indexes.shape, np.float32)))

    good = np.zeros((57, 3), np.int32)
    refused("are queries", query, None, good)
    refused("a row for each of the 57", database.stores[0], 0, good[:33])
    refused("4 neighbours are asked", database.stores[0], 0, good, 4)
    refused("not among", database.stores[0], 0, good + 57)


def test_a_killed_augmentation_goes_on(tables, stores, small_blocks, tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "BLOCK_ROWS", 10)       # two chunks are searched together
    store, database = stores[1][0], Collection(stores[1])
    expand_store(store, database, tmp_path / "whole", 4, 3.0, 0)
    part, write = tmp_path / "part", StoreWriter.write_chunk
    written = []

    def killed(self, index, *args):
        if len(written) == 3:
            raise KeyboardInterrupt
        write(self, index, *args)
        written.append(index)

    monkeypatch.setattr(StoreWriter, "write_chunk", killed)
    with pytest.raises(KeyboardInterrupt):
        expand_store(store, database, part, 4, 3.0, 0)
    assert len(list(part.glob("chunk-*"))) == 3
    (part / "chunk-000001.safetensors").unlink()
    (part / ".chunk-000004.safetensors.host.1.tmp").write_text("left by a worker that was killed")
    kept = (part / "chunk-000000.safetensors").stat().st_mtime_ns
    monkeypatch.setattr(StoreWriter, "write_chunk", write)
    expand_store(store, database, part, 4, 3.0, 0)
    assert (part / "chunk-000000.safetensors").stat().st_mtime_ns == kept
    files = sorted(file.name for file in part.iterdir())
    assert files == sorted(file.name for file in (tmp_path / "whole").iterdir())
    for name in files:
        assert (part / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    with pytest.raises(UserError, match="other settings: expansion"):
        expand_store(store, database, part, 5, 3.0, 0)


def test_local_features_are_copied(tmp_path):
    rng = np.random.default_rng(3)
    for dtype in ("float16", "int8"):
        path = tmp_path / dtype
        writer = StoreWriter(path, list("abcde"), 4, 2, {}, 8, dtype)
        for chunk in range(3):
            count = len(writer.rows(chunk))
            local = LocalTable.joined([
                (unit(rng.normal(size=(m, 8))), rng.normal(size=(m, 2)), np.ones(m), np.ones(m))
                for m in rng.integers(0, 4, count)])
            local.descriptors = local.descriptors.reshape(-1, 8)
            writer.write_chunk(chunk, unit(rng.normal(size=(count, 4))), {}, local)
        store = FeatureStore(path)
        expand_store(store, Collection([store]), tmp_path / f"new {dtype}", 2, 1.0, 0)
        new = FeatureStore(tmp_path / f"new {dtype}")
        assert new.manifest["local_dtype"] == dtype
        for row in range(5):
            for name, table in vars(store.local(row)).items():
                np.testing.assert_array_equal(vars(new.local(row))[name], table)


def test_the_commands(tables, stores, run_tool, tmp_path):
    query, parts = stores
    database = ["--database", *(part.path for part in parts)]

    def run(*args):
        return run_tool("tools/expand.py", *args, "--device", "cpu")

    for command, alpha in (("aqe", 0.0), ("alpha", 2.0)):
        out = tmp_path / command
        done = run(command, "--query", query.path, *database, "--output", out, "--n", 4,
                   *(["--alpha", alpha] if alpha else []))
        assert done.returncode == 0, done.stderr
        np.testing.assert_allclose(np.asarray(FeatureStore(out).global_descriptors()),
                                   slow_expand(*tables, 4, alpha), atol=1e-6)
    outs = [tmp_path / "d", tmp_path / "x"]
    done = run("dba", *database, "--output", *outs, "--n", 6)
    assert done.returncode == 0, done.stderr
    expected = slow_expand(tables[1], tables[1], 6, 3.0, np.arange(57))
    np.testing.assert_allclose(np.concatenate(list(Collection(list(map(FeatureStore, outs))))),
                               expected, atol=1e-6)
    shutil.rmtree(outs[1])
    for arguments, message in (
            (["dba", *database, "--output", tmp_path / "d", "--n", 5], "Give another --output, or"),
            (["aqe", "--query", tmp_path / "no", *database, "--output", outs[1]],
             "not a feature store")):
        done = run(*arguments)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and not outs[1].exists()
    assert json.loads((tmp_path / "d" / "manifest.json").read_text())["expansion"]["n"] == 6
