"""Indexes by faiss: against the exact search, in files, extended, spread, measured."""
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from dolg.errors import UserError
from dolg.features.store import FeatureStore, StoreWriter
from dolg.search.exact import top_k
from dolg.search.indexes import Index, add_to_index, best_first, build_index, merge_results
from dolg.search.measuring import measure, recall
from dolg.search.queries import search_indexes
from revisitop import StoreError, load_ground_truth

ROOT = Path(__file__).resolve().parents[2]
DIM = 16
EXACT = ("flat", "fp16", "sq8")


def _store(path: Path, table: np.ndarray, failed=(), **manifest) -> FeatureStore:
    writer = StoreWriter(path, [f"{path.name} {row}" for row in range(len(table))], table.shape[1],
                         100, manifest)
    for chunk in range(writer.num_chunks):
        rows = writer.rows(chunk)
        writer.write_chunk(chunk, table[rows.start:rows.stop],
                           {row - rows.start: "broken" for row in failed if row in rows})
    return FeatureStore(path)


def _unit(table: np.ndarray) -> np.ndarray:
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, FeatureStore]:
    """30 objects with 12 images each, some failed; other images; a query of each object."""
    folder, rng = tmp_path_factory.mktemp("stores"), np.random.default_rng(0)
    centres = rng.standard_normal((30, DIM))
    near = np.repeat(centres, 12, axis=0) + 0.4 * rng.standard_normal((360, DIM))
    return {"query": _store(folder / "query", _unit(centres + 0.2 * rng.standard_normal((30, DIM))), [4]),
            "database": _store(folder / "database", _unit(near), [7, 200]),
            "far": _store(folder / "far", _unit(rng.standard_normal((900, DIM))), [0]),
            "gnd": folder / "gnd_toy.pkl"}


@pytest.fixture(scope="module")
def truth(stores):
    gnd = [{"easy": list(range(12 * q, 12 * q + 5)), "hard": list(range(12 * q + 5, 12 * q + 10)),
            "junk": [12 * q + 10, 12 * q + 11]} for q in range(30)]
    stores["gnd"].write_bytes(pickle.dumps({"imlist": stores["database"].names,
                                            "qimlist": stores["query"].names, "gnd": gnd}))
    return load_ground_truth(stores["gnd"])


@pytest.fixture(scope="module")
def flat(stores, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("flat") / "index"
    build_index(path, [stores["database"], stores["far"]], "flat")
    return path


def _queries(stores) -> np.ndarray:
    return stores["query"].rows(np.flatnonzero(stores["query"].status == 0))


def test_flat_is_the_exact_search(stores, flat):
    chunks = [*stores["database"].chunks(), *stores["far"].chunks()]
    want_scores, want = top_k(_queries(stores), chunks, 50)
    scores, rows = Index(flat).search(_queries(stores), 50)
    np.testing.assert_array_equal(rows, want)
    np.testing.assert_allclose(scores, want_scores, atol=1e-6)


def test_all_images_but_the_failed_are_found(stores, flat):
    _, rows = Index(flat).search(_queries(stores), 2000)
    wanted = [row for row in range(1260) if row not in (7, 200, 360)]
    assert (np.sort(rows[:, :1257], axis=1) == wanted).all() and (rows[:, 1257:] == -1).all()
    index = Index(flat)
    assert index.names[359] == "database 359" and index.names[361] == "far 1"


@pytest.mark.parametrize("kind, least, size", [
    ("fp16", 0.99, 2 * DIM), ("sq8", 0.97, DIM), ("pq", 0.6, DIM // 4), ("opq", 0.6, DIM // 4),
    ("ivfpq", 0.5, DIM // 4 + 8), ("hnsw", 0.97, 4 * DIM + 264), ("PQ8np", 0.8, 8)])
def test_kinds(stores, tmp_path, kind, least, size):
    """Recall of the first ten, bytes per vector (less the tables that all share), and the same after
    it is opened again."""
    both = [stores["database"], stores["far"]]
    index = build_index(tmp_path / "index", both, kind, lists=16)
    _, exact = top_k(_queries(stores), [*both[0].chunks(), *both[1].chunks()], 10)
    scores, rows = index.search(_queries(stores), 10)
    assert least <= recall(exact, rows, 10) <= 1
    assert (np.diff(scores, axis=1) <= 0).all()
    tables = 256 * DIM * 4 + 16 * DIM * 4 + DIM * DIM * 4 + 4000
    assert size * 1257 <= index.file.stat().st_size <= size * 1257 + tables
    again_scores, again = Index(tmp_path / "index").search(_queries(stores), 10)
    np.testing.assert_array_equal(rows, again)
    np.testing.assert_array_equal(scores, again_scores)


@pytest.mark.parametrize("kind", ["flat", "fp16"])
def test_extended_is_built_together(stores, tmp_path, kind):
    build_index(tmp_path / "both", [stores["database"], stores["far"]], kind)
    build_index(tmp_path / "one", [stores["database"]], kind)
    add_to_index(tmp_path / "one", [stores["far"]])
    one, both = Index(tmp_path / "one"), Index(tmp_path / "both")
    for mine, theirs in zip(one.search(_queries(stores), 30), both.search(_queries(stores), 30)):
        np.testing.assert_array_equal(mine, theirs)
    assert list(one.names) == list(both.names) and one.settings["count"] == 1260
    with pytest.raises(UserError, match="has the images of .*far already"):
        add_to_index(tmp_path / "one", [stores["far"]])


def test_equal_scores_go_to_the_lower_row(tmp_path):
    table = _unit(np.ones((40, DIM)))
    build_index(tmp_path / "one", [_store(tmp_path / "a", table)], "flat")
    build_index(tmp_path / "two", [_store(tmp_path / "b", table[:5])], "flat")
    query = _store(tmp_path / "q", table[:1])
    assert Index(tmp_path / "one").search(table[:1], 40)[1].tolist() == [list(range(40))]
    results = search_indexes([tmp_path / "two", tmp_path / "one"], query, 7)
    assert results.images == [[f"b {i}" for i in range(5)] + ["a 0", "a 1"]]


def test_merged_results_are_those_of_all():
    rng = np.random.default_rng(1)
    rows = np.stack([rng.permutation(60) for _ in range(5)])
    scores = rng.integers(0, 9, (5, 60)).astype(np.float32)
    parts = [best_first(scores[:, part], rows[:, part]) for part in
             (slice(0, 25), slice(25, 26), slice(26, 60))]
    parts.append((np.full((5, 3), -np.inf, np.float32), np.full((5, 3), -1)))
    got_scores, got = merge_results(parts, 63)
    for q in range(5):
        order = sorted(range(60), key=lambda i: (-scores[q, i], rows[q, i]))
        assert got[q].tolist() == rows[q, order].tolist() + [-1] * 3
        assert got_scores[q, :60].tolist() == scores[q, order].tolist()


def test_several_processes_and_one_index(stores, flat, tmp_path, run_tool, torchrun):
    """Shards over two processes print what one index of all prints."""
    for name in ("database", "far"):
        build_index(tmp_path / name, [stores[name]], "flat")
    alone = run_tool("tools/search.py", "query", flat, "--query", stores["query"].path, "--top", 5)
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.splitlines()[0] == "query,place,image,score"
    assert len(alone.stdout.splitlines()) == 1 + 29 * 5
    done = torchrun(2, "tools/search.py", "query", tmp_path / "database", tmp_path / "far", "--query",
                    stores["query"].path, "--top", 5, "-o", tmp_path / "found.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "found.csv").read_text() == alone.stdout


def test_recall():
    assert recall(np.array([[1, 2, 3]]), np.array([[3, 9, 1]]), 1) == 0
    assert recall(np.array([[1, 2, 3], [4, 5, 6]]), np.array([[3, 9, 1], [4, 5, 6]]), 3) == pytest.approx(5 / 6)


def test_measured_by_command(stores, truth, flat, tmp_path, run_tool):
    build_index(tmp_path / "pq", [stores["database"], stores["far"]], "pq", size=2)
    done = run_tool("tools/search.py", "measure", flat, tmp_path / "pq", "--query", stores["query"].path,
                    "--stores", stores["database"].path, stores["far"].path, "--gnd", stores["gnd"],
                    "--json", tmp_path / "m.json")
    assert done.returncode == 0, done.stderr
    exact, same, worse = json.loads((tmp_path / "m.json").read_text())
    assert same["mAP"] == pytest.approx(exact["mAP"], abs=1e-9) and same["recall"]["10"] == 1
    assert 0.2 < worse["mAP"]["medium"] < exact["mAP"]["medium"] - 0.01 and worse["recall"]["1"] < 1
    assert exact["bytes"] == 64 and 2 < worse["bytes"] < 2 + (256 * DIM * 4 + 1000) / 1257
    lines = done.stdout.splitlines()
    assert lines[0].split()[:6] == ["mAP", "Easy", "mAP", "Medium", "mAP", "Hard"] and len(lines) == 4
    assert lines[1].split()[2] == f"{100 * exact['mAP']['medium']:.2f}"


def test_an_index_of_other_stores_is_not_measured(stores, flat):
    with pytest.raises(UserError, match="is of .*database, .*far: give these stores, in this order"):
        measure([Index(flat)], stores["query"], [stores["far"], stores["database"]], None)


@pytest.mark.parametrize("kind, message", [
    ("HNSW32_PQ4", "no 'HNSW32_PQ4' for inner products"),
    ("nonsense", "could not parse index string nonsense.*kinds are flat"),
    ("PQ7", "multiple of the number of subquantizers")])
def test_kinds_that_do_not_fit(stores, tmp_path, kind, message):
    with pytest.raises(UserError, match=message):
        build_index(tmp_path / "index", [stores["database"]], kind)
    assert not (tmp_path / "index").exists()


def test_mistakes(stores, flat, tmp_path):
    with pytest.raises(UserError, match="holds an index already"):
        build_index(flat, [stores["database"]], "flat")
    with pytest.raises(UserError, match="holds no index that is whole"):
        Index(tmp_path)
    with pytest.raises(UserError, match="have shape .*the index .* has 16 dimensions"):
        Index(flat).search(np.ones((1, 3), np.float32), 1)
    with pytest.raises(UserError, match="0 results are asked for"):
        Index(flat).search(np.ones((1, DIM), np.float32), 0)
    with pytest.raises(UserError, match="--probes is 0"):
        Index(flat, probes=0)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="faiss finds no GPU here: search without --gpu"):
            Index(flat, on_gpu=True)
    other = _store(tmp_path / "other", np.ones((3, DIM + 1), np.float32))
    with pytest.raises(StoreError, match="other has descriptors of 17 dimensions, .*database of 16"):
        add_to_index(flat, [other])


def test_models_are_not_mixed(tmp_path):
    ones = np.ones((3, DIM), np.float32)
    plain = _store(tmp_path / "plain", ones)
    a, b = (_store(tmp_path / name, ones * number, weights_digest=name)
            for number, name in ((2, "a"), (3, "b")))
    white = _store(tmp_path / "white", ones, weights_digest="a", whitening="w")
    with pytest.raises(StoreError, match="plain|/a and .*/b were made with different weights"):
        build_index(tmp_path / "ab", [plain, a, b], "flat")
    with pytest.raises(StoreError, match="different whitening: none and w"):
        build_index(tmp_path / "aw", [a, white], "flat")
    build_index(tmp_path / "index", [plain, a], "flat")
    with pytest.raises(StoreError, match="made with different weights"):
        add_to_index(tmp_path / "index", [b])
    for query, message in ((b, "made with different weights"), (white, "different whitening: w and none")):
        with pytest.raises(StoreError, match=message):
            search_indexes([tmp_path / "index"], query, 1)


def test_images_are_not_taken_twice(stores, flat, tmp_path):
    with pytest.raises(UserError, match="is given them twice"):
        build_index(tmp_path / "twice", [stores["far"], stores["far"]], "flat")
    assert not (tmp_path / "twice" / "index.json").exists()
    build_index(tmp_path / "far", [stores["far"]], "flat")
    with pytest.raises(UserError, match="has images that .* has as well"):
        search_indexes([flat, tmp_path / "far"], stores["query"], 3)


@pytest.mark.parametrize("name", ["index-1.faiss", "names-1.safetensors"])
def test_a_damaged_index(stores, tmp_path, name):
    build_index(tmp_path / "index", [stores["far"]], "flat")
    file = tmp_path / "index" / name
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="is damaged, build it again"):
        Index(tmp_path / "index")


def test_a_failed_addition_leaves_the_index(stores, tmp_path, monkeypatch):
    """The disk is full once faiss's file is written."""
    from dolg.search import indexes

    build_index(tmp_path / "index", [stores["database"]], "flat")
    before = Index(tmp_path / "index").search(_queries(stores), 20)

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(indexes, "write_atomically", full)
    with pytest.raises(OSError):
        add_to_index(tmp_path / "index", [stores["far"]])
    monkeypatch.undo()
    after = Index(tmp_path / "index").search(_queries(stores), 20)
    np.testing.assert_array_equal(before, after)
    add_to_index(tmp_path / "index", [stores["far"]])
    assert {file.name for file in (tmp_path / "index").iterdir()} == {
        "index.json", "index-2.faiss", "names-2.safetensors"}


def test_an_index_cut_in_the_making_is_none(stores, flat, tmp_path, monkeypatch):
    """index.json comes last; until then there is no index, and it can be built again."""
    from dolg.search import indexes

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(indexes, "write_atomically", full)
    with pytest.raises(OSError):
        build_index(tmp_path / "index", [stores["database"]], "flat")
    monkeypatch.undo()
    with pytest.raises(UserError, match="holds no index that is whole"):
        Index(tmp_path / "index")
    assert len(build_index(tmp_path / "index", [stores["database"]], "flat").rows) == 358


@pytest.mark.parametrize("kind, points", [("fp16", 0.1), ("sq8", 0.3)])
def test_real_photographs_compressed(shared, tmp_path, kind, points):
    """mAP of minilandmarks within so many points of float32, in every protocol."""
    folder = shared / "data" / "minilandmarks"
    ground_truth = load_ground_truth(folder / "gnd_minilandmarks.pkl")
    tables = np.load(folder / "expected.npz")
    names = {"query_crop": ground_truth.queries, "database": ground_truth.images,
             "distractor": [f"distractor {row}" for row in range(len(tables["distractor"]))]}
    parts = {}
    for name, listed in names.items():
        writer = StoreWriter(tmp_path / name, listed, tables[name].shape[1], 64, {})
        for chunk in range(writer.num_chunks):
            rows = writer.rows(chunk)
            writer.write_chunk(chunk, tables[name][rows.start:rows.stop], {})
        parts[name] = FeatureStore(tmp_path / name)
    both = [parts["database"], parts["distractor"]]
    index = build_index(tmp_path / "index", both, kind)
    exact, compressed = measure([index], parts["query_crop"], both, ground_truth)
    for protocol, value in exact["mAP"].items():
        assert compressed["mAP"][protocol] == pytest.approx(value, abs=points / 100)
    assert exact["mAP"]["medium"] > 0.5 and compressed["bytes"] < exact["bytes"] / 1.9


def test_a_faiss_that_maps_no_index(stores, flat, run_tool, tmp_path):
    """faiss before 1.11 has not the flag for it, and reads indexes whole."""
    (tmp_path / "faiss").mkdir()
    (tmp_path / "faiss" / "__init__.py").write_text(
        f"import sys\nsys.path.remove({str(tmp_path)!r})\ndel sys.modules['faiss']\nimport faiss\n"
        "del faiss.IO_FLAG_MMAP_IFC\n")
    command = ["tools/search.py", "query", flat, "--query", stores["query"].path, "--top", 5]
    older = run_tool(*command, env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "OMP_NUM_THREADS": "1"}, fresh=True)
    assert older.returncode == 0, older.stderr
    assert older.stdout == run_tool(*command, env={"OMP_NUM_THREADS": "1"}).stdout
    assert len(older.stdout.splitlines()) == 1 + 5 * 29
