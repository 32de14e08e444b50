"""Rankings kept in files and evaluated, and the commands that make them."""
import json
import pickle

import numpy as np
import pytest
from scipy import sparse

from dolg.errors import UserError
from dolg.search.collection import Collection, store_digest
from dolg.search.diffusion import diffusion, normalised_affinity
from dolg.search.kreciprocal import k_reciprocal
from dolg.search.methods import make_ranking
from dolg.search.neighbours import nearest
from dolg.search.rankings import Ranking, best_of, evaluate_ranking
from revisitop import evaluate_stores, load_ground_truth
from revisitop.stores import StoreError


@pytest.mark.parametrize("k", [1, 3, 9, 30])
def test_the_best_of_sparse_rows(k):
    rng = np.random.default_rng(k)
    dense = rng.integers(-2, 4, (12, 20)) * (rng.random((12, 20)) < 0.4)
    dense[5] = 0
    indexes, scores = best_of(sparse.csr_matrix(dense.astype(np.float32)), k)
    for row, values in enumerate(dense):
        expected = sorted((j for j in range(20) if values[j]), key=lambda j: (-values[j], j))[:k]
        assert indexes[row].tolist() == expected + [-1] * (k - len(expected))
        assert scores[row].tolist() == [values[j] for j in expected] + [-np.inf] * (k - len(expected))


@pytest.fixture
def world(make_store, tmp_path):
    """Stores whose rows are in another order than the ground truth's, some images failed."""
    rng = np.random.default_rng(0)
    images, queries = [f"image {i}" for i in range(40)], [f"query {i}" for i in range(6)]
    entries = []
    for _ in queries:
        parts = np.split(rng.permutation(40)[:24], [8, 16])
        entries.append({**{kind: part.tolist() for kind, part in zip(("easy", "hard", "junk"), parts)},
                        "bbx": [0, 0, 9, 9]})
    gnd = tmp_path / "gnd_toy.pkl"
    gnd.write_bytes(pickle.dumps({"imlist": images, "qimlist": queries, "gnd": entries}))
    tables = [rng.normal(size=(count, 5)).astype(np.float32) for count in (6, 40, 25)]
    tables = [table / np.linalg.norm(table, axis=1, keepdims=True) for table in tables]
    tables[0][2], tables[1][[7, 30]], tables[2][4] = np.nan, np.nan, np.nan
    orders = [np.array([3, 0, 4, 1, 5, 2]), rng.permutation(40)]
    stores = [
        make_store("query", tables[0][orders[0]], 4, [queries[i] for i in orders[0]]),
        make_store("database", tables[1][orders[1]], 7, [images[i] for i in orders[1]]),
        make_store("distractors", tables[2], 9)]
    return {"gnd": gnd, "entries": entries, "stores": stores, "orders": orders}


def by_inner_product(world, k):
    """The ranking by similarity, of the stores' rows, by sorting."""
    query, database, distractors = world["stores"]
    collection = Collection([database, distractors])
    found = nearest(np.asarray(query.global_descriptors()), collection, k)
    return Ranking(found.indexes.astype(np.int64), found.similarities.astype(np.float64),
                   {"method": "none", "k": k}, store_digest(query), collection.digests)


def test_a_whole_ranking_has_the_figures_of_the_stores(world):
    truth = load_ground_truth(world["gnd"])
    query, database, distractors = world["stores"]
    mine = evaluate_ranking(truth, by_inner_product(world, 65), query, database, [distractors])
    expected = evaluate_stores(truth, query, database, [distractors], double=True)
    assert mine["protocol"].pop("reranking") == {"method": "none", "k": 65}
    assert mine == expected
    assert mine["protocols"]["medium"]["mAP"] > 0 and mine["failed"]["query"] == ["query 2"]


def slow_ap(row, ok, junk):
    """The original's trapezoids, over all positives; row: ground-truth indexes, best first."""
    row = [image for image in row if image not in junk]
    places = [place for place, image in enumerate(row) if image in ok]
    total = 0.0
    for found, place in enumerate(places):
        before = found / place if place else 1.0
        total += (before + (found + 1) / (place + 1)) / 2 / len(ok)
    return total


def test_a_cut_ranking_divides_by_all_positives(world):
    truth = load_ground_truth(world["gnd"])
    query, database, distractors = world["stores"]
    ranking = by_inner_product(world, 12)
    mine = evaluate_ranking(truth, ranking, query, database, [distractors])
    row_of_query = np.argsort(world["orders"][0])
    for q, entry in enumerate(world["entries"]):
        row = [world["orders"][1][i] if i < 40 else 1000 + i
               for i in ranking.indexes[row_of_query[q]] if i >= 0]
        for protocol, ok, junk in (("easy", ("easy",), ("hard", "junk")),
                                   ("medium", ("easy", "hard"), ("junk",)),
                                   ("hard", ("hard",), ("easy", "junk"))):
            positive, ignored = ({i for kind in kinds for i in entry[kind]} for kinds in (ok, junk))
            assert mine["protocols"][protocol]["ap"][q] == pytest.approx(
                slow_ap(row, positive, ignored), abs=1e-12)


def test_files(world, tmp_path):
    ranking = by_inner_product(world, 5)
    ranking.save(tmp_path / "new" / "r.npz")
    again = Ranking.load(tmp_path / "new" / "r.npz")
    for name, value in vars(ranking).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    (tmp_path / "text.npz").write_text("no")
    np.savez(tmp_path / "evil.npz", indexes=np.array([{}], object), scores=np.zeros(1),
             about=np.array("{}"))
    np.savez(tmp_path / "other.npz", indexes=np.zeros((2, 3)), scores=np.zeros((2, 3)), about=np.array(
        json.dumps({"settings": {}, "query": "", "database": []})))
    np.savez(tmp_path / "less.npz", indexes=np.zeros((2, 3), int))
    np.save(tmp_path / "table.npy", np.zeros(3))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "new" / "r.npz").read_bytes()[:-30])
    for name in ("text.npz", "evil.npz", "other.npz", "less.npz", "table.npy", "cut.npz"):
        with pytest.raises(UserError, match=f"{name} is no ranking"):
            Ranking.load(tmp_path / name)
    with pytest.raises(UserError, match="No such file"):
        Ranking.load(tmp_path / "absent.npz")


def test_rankings_of_other_stores_are_refused(world, make_store):
    truth, ranking = load_ground_truth(world["gnd"]), by_inner_product(world, 5)
    query, database, distractors = world["stores"]

    def refused(message, changed, *stores, error=UserError):
        made = Ranking(**{**vars(ranking), **changed})
        with pytest.raises(error, match=message):
            evaluate_ranking(truth, made, *stores)

    table = np.asarray(database.global_descriptors())
    other = make_store("other", table + 1, 7, database.names)
    refused("another store than .*other", {}, query, other, [distractors])
    refused("made of 2 stores", {}, query, database)
    refused("made of another store", {}, database, database, [distractors])
    refused("damaged", {"indexes": ranking.indexes + 65}, query, database, [distractors])
    refused("damaged", {"indexes": ranking.indexes[1:]}, query, database, [distractors])
    refused("damaged", {"indexes": np.zeros_like(ranking.indexes)}, query, database, [distractors])
    refused("dimensions", {}, query, make_store("wide", np.ones((40, 6)), 7, database.names),
            error=StoreError)


@pytest.mark.parametrize("method, settings", [("kreciprocal", {"k": 30, "k1": 8, "k2": 3}),
                                              ("diffusion", {"k": 30, "k_graph": 8, "truncate": 20})])
def test_methods_on_stores(world, method, settings, tmp_path):
    query, *parts = world["stores"]
    collection = Collection(parts)
    ranking = make_ranking(method, query, collection, tmp_path / "lists", settings)
    queries = np.asarray(query.global_descriptors())
    database = np.concatenate([np.asarray(store.global_descriptors()) for store in parts])
    lists = nearest(database, database, 8, np.arange(65))
    if method == "kreciprocal":
        expected = k_reciprocal(queries, database, lists, 30, 8, 3, 0.3)
    else:
        expected = diffusion(queries, database, normalised_affinity(lists, 8, 3.0), 30, truncate=20)
    np.testing.assert_array_equal(ranking.indexes, expected[0])
    np.testing.assert_array_equal(ranking.scores, expected[1])
    assert ranking.settings["method"] == method and ranking.settings.items() > settings.items()
    with pytest.raises(UserError, match="did you mean"):
        make_ranking("kreciprocol", query, collection, tmp_path / "lists", {})


@pytest.mark.parametrize("method, settings, message", [
    ("kreciprocal", {"k": 0}, "at least 1"), ("kreciprocal", {"k1": 0}, "at least 1"),
    ("kreciprocal", {"k2": 0}, "at least 1"), ("kreciprocal", {"lambda_value": 1.1}, "lambda is 1.1"),
    ("diffusion", {"k": 0}, "at least 1"), ("diffusion", {"k_graph": 0}, "k_graph is 0"),
    ("diffusion", {"k_query": 0}, "at least 1"), ("diffusion", {"gamma": -1.0}, "gamma is -1"),
    ("diffusion", {"truncate": -1}, "least 1, 1 and 0"), ("diffusion", {"alpha": 1.0}, "alpha is 1"),
    ("diffusion", {"iterations": 0}, "iterations is 0"),
    ("diffusion", {"tolerance": -1.0}, "tolerance is -1")])
def test_settings_are_checked_before_the_search(world, method, settings, message, tmp_path):
    query, *parts = world["stores"]
    with pytest.raises(UserError, match=message):
        make_ranking(method, query, Collection(parts), tmp_path / "lists", settings)
    assert not (tmp_path / "lists").exists()


@pytest.mark.parametrize("message, width, more", [
    ("of 6 dimensions", 6, {}), ("different weights", 5, {"weights_digest": "xyz"}),
    ("different whitening", 5, {"whitening": {"digest": "xyz"}})])
def test_stores_of_other_models_are_refused(world, make_store, message, width, more, tmp_path):
    query, *parts = world["stores"]
    other = make_store("other", np.ones((4, width), np.float32), provenance=more)
    databases = [(other, parts)] if width != 5 else [(other, parts), (query, [*parts, other])]
    for queries, database in databases:
        with pytest.raises(StoreError, match=message.replace("6", "[56]")):
            make_ranking("kreciprocal", queries, Collection(database), tmp_path / "lists", {})
    assert not (tmp_path / "lists").exists()


@pytest.mark.parametrize("method, settings", [("kreciprocal", {"k1": 8, "k2": 3}),
                                              ("diffusion", {"k_graph": 8})])
def test_what_failed_is_not_ranked_whatever_its_row_holds(world, change_row, method, settings, tmp_path):
    query, *parts = world["stores"]
    expected = make_ranking(method, query, Collection(parts), tmp_path / "a", {"k": 65, **settings})
    stores = [change_row(store, int(np.flatnonzero(store.status)[0]), 0.5) for store in world["stores"]]
    found = make_ranking(method, stores[0], Collection(stores[1:]), tmp_path / "b", {"k": 65, **settings})
    np.testing.assert_array_equal(found.indexes, expected.indexes)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("command", ["kreciprocal", "diffusion"])
def test_the_commands(world, command, run_tool, tmp_path):
    query, database, distractors = world["stores"]
    out, figures = tmp_path / "ranking.npz", tmp_path / "figures.json"
    options = ["--query", query.path, "--database", database.path, distractors.path, "--output", out,
               "--gnd", world["gnd"], "--device", "cpu"]
    done = run_tool("tools/expand.py", command, *options, "--json", figures, "--k", 65)
    assert done.returncode == 0, done.stderr
    ranking, result = Ranking.load(out), json.loads(figures.read_text())
    truth = load_ground_truth(world["gnd"])
    files = {name: tmp_path / result["files"][name] for name in ("query", "database", "lists")}
    assert files["query"].samefile(query.path) and files["database"].samefile(database.path)
    assert files["lists"].samefile(out)
    del result["files"]
    assert result == json.loads(json.dumps(
        evaluate_ranking(truth, ranking, query, database, [distractors])))
    assert result["protocol"]["reranking"]["method"] == command == ranking.settings["method"]
    for protocol, values in result["protocols"].items():
        line = next(line for line in done.stdout.splitlines() if line.startswith(protocol.title()))
        assert f"{100 * values['mAP']:.2f}" == line.split()[1]
    again = tmp_path / "again.json"
    done = run_tool("tools/expand.py", "evaluate", out, *options[:5], "--gnd", world["gnd"],
                    "--json", again, fresh=command == "diffusion")
    assert done.returncode == 0 and done.stdout, done.stderr
    evaluated = json.loads(again.read_text())
    assert evaluated.pop("files") == json.loads(figures.read_text())["files"]
    assert evaluated == result


def test_the_commands_mistakes(world, make_store, run_tool, tmp_path):
    """Each is told before the neighbours are searched, which may take hours."""
    query, database, distractors = world["stores"]
    of, out = ["--query", query.path, "--database", database.path], tmp_path / "r.npz"
    make = [*of, distractors.path, "--output", out, "--device", "cpu"]
    gnd, ranking = ["--gnd", world["gnd"]], by_inner_product(world, 5)
    ranking.save(tmp_path / "saved.npz")
    less = make_store("less", np.ones((39, 5), np.float32), 7, database.names[1:])
    for arguments, message in (
            (["kreciprocal", *make, "--k", 0], "must be at least 1"),
            (["diffusion", *make, "--iterations", 0], "iterations is 0"),
            (["diffusion", *make, "--output", tmp_path], "it is a folder"),
            (["diffusion", *make, *gnd, "--json", tmp_path], "it is a folder"),
            (["diffusion", *make, "--json", tmp_path / "j"], "give --gnd, too"),
            (["diffusion", *make, "--database", less.path, *gnd], "lacks 1 of the 40 database images"),
            (["diffusion", *make, "--query", database.path, *gnd], "lacks 6 of the 6 queries"),
            (["kreciprocal", *make, "--database", database.path, database.path, *gnd], "each store"),
            (["evaluate", tmp_path / "no.npz", *of, *gnd], "No such file"),
            (["evaluate", tmp_path / "saved.npz", *of, *gnd], "made of 2 stores"),
            (["evaluate", tmp_path / "saved.npz", *of, *gnd, "--json", tmp_path], "it is a folder")):
        done = run_tool("tools/expand.py", *arguments)
        assert done.returncode == 1 and message in done.stderr, (arguments, done.stderr)
        assert done.stderr.count("\n") == 1 and done.stdout == ""
    assert not list(tmp_path.glob("*.neighbours")) and not out.exists()
