"""Evaluation from stores: the real photographs' figures, the command, and what it refuses."""
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from dolg.features.store import StoreWriter
from revisitop import Store, StoreError, compute_map, evaluate_stores, load_ground_truth, split
from revisitop.commands import write_json

KAPPAS = (1, 5, 10)


@pytest.mark.parametrize("crop", ["crop", "full"])
@pytest.mark.parametrize("chunk_size", [7, 1000])
def test_the_figures_of_real_photographs(shared, make_store, tmp_path, crop, chunk_size):
    folder = shared / "data" / "minilandmarks"
    truth = load_ground_truth(folder / "gnd_minilandmarks.pkl")
    expected = json.loads((folder / "expected.json").read_text())["results"]
    tables = np.load(folder / "expected.npz")
    names = {"query": truth.queries, "database": truth.images,
             "distractors": (folder / "distractors.txt").read_text().split()}
    stores = {part: Store(make_store(tmp_path / part, names[part], tables[key], chunk_size))
              for part, key in (("query", f"query_{crop}"), ("database", "database"),
                                ("distractors", "distractor"))}
    for case, distractors in (("without_distractors", []),
                              ("with_distractors", [stores["distractors"]])):
        got = evaluate_stores(truth, stores["query"], stores["database"], distractors)
        assert got["queries"] == 22 and got["database"] == 55
        assert got["distractors"] == 300 * len(distractors)
        for protocol, want in expected[case][crop].items():
            mine = got["protocols"][protocol]
            assert mine["mAP"] == pytest.approx(want["mAP"], abs=1e-9)
            for k in KAPPAS:
                assert mine[f"mP@{k}"] == pytest.approx(want["mP"][str(k)], abs=1e-9)
            assert mine["ap"] == [ap if ap is None else pytest.approx(ap, abs=1e-9)
                                  for ap in want["AP"]]


def _evaluate(toy, *more):
    return ("revisitop/evaluate.py", "--gnd", toy["gnd"], "--query", toy["query"],
            "--database", toy["database"], *more)


def _table(store: Store) -> np.ndarray:
    return np.concatenate(list(store.chunks()))


def test_the_command_gives_what_sorting_gives(run_tool, toy, tmp_path):
    out = tmp_path / "new folder" / "out.json"
    done = run_tool(*_evaluate(toy, "--distractors", toy["distractors"], "--json", out))
    assert done.returncode == 0, done.stderr
    got = json.loads(out.read_text())
    assert {key: got[key] for key in ("dataset", "queries", "database", "distractors")} == {
        "dataset": "toy", "queries": 5, "database": 40, "distractors": 30}
    truth = load_ground_truth(toy["gnd"])
    every = np.concatenate([_table(Store(toy[part])) for part in ("database", "distractors")])
    ranks = np.argsort(-(_table(Store(toy["query"])) @ every.T), axis=1, kind="stable")
    for protocol in ("easy", "medium", "hard"):
        want = compute_map(ranks, split(truth, protocol), KAPPAS)
        mine = got["protocols"][protocol]
        assert mine["mAP"] == pytest.approx(want.map, abs=1e-12)
        assert [mine[f"mP@{k}"] for k in KAPPAS] == pytest.approx(want.mpr.tolist())
        assert [np.nan if ap is None else ap for ap in mine["ap"]] == pytest.approx(
            want.aps.tolist(), nan_ok=True)
        assert mine["ranks"] == [_places(row, entry) for row, entry in
                                 zip(ranks, split(truth, protocol))]
        row = next(line for line in done.stdout.splitlines()
                   if line.startswith(protocol.capitalize()))
        assert f"{100 * want.map:.2f}" == row.split()[1]


def _places(ranking, entry):
    """Places of the positives among the images that are no junk; None: there is no positive."""
    kept = [image for image in ranking if image not in set(entry["junk"])]
    return [place for place, image in enumerate(kept) if image in set(entry["ok"])] or None


def test_a_result_names_its_files(run_tool, toy, tmp_path):
    """Relative to its folder: both may be moved together."""
    out = tmp_path / "results" / "out.json"
    done = run_tool(*_evaluate(toy, "--distractors", toy["distractors"], "--json", out))
    assert done.returncode == 0, done.stderr
    files = json.loads(out.read_text())["files"]
    assert not any(os.path.isabs(path) for path in [files["query"], *files["distractors"]])
    found = {name: out.parent / files[name] for name in ("ground_truth", "query", "database")}
    assert found["ground_truth"].samefile(toy["gnd"]) and found["query"].samefile(toy["query"])
    assert found["database"].samefile(toy["database"])
    assert [(out.parent / path).resolve() for path in files["distractors"]] == [
        Path(toy["distractors"]).resolve()]


def test_lists_of_numbers_stand_in_a_line(tmp_path):
    result = {"ap": [0.5, None, 1e-07, -2], "names": ["1", "[\n2\n]"], "none": [], "nested": [[1], []]}
    write_json(tmp_path / "x.json", result)
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == result
    assert "[0.5, null, 1e-07, -2]" in text


def test_the_order_of_a_store_does_not_matter(toy, make_store, tmp_path):
    database = Store(toy["database"])
    order = np.random.default_rng(0).permutation(40)
    shuffled = Store(make_store(tmp_path / "shuffled", [f"{database.names[i]}.JPG" for i in order],
                                _table(database)[order], 11))
    truth, query = load_ground_truth(toy["gnd"]), Store(toy["query"])
    assert (evaluate_stores(truth, query, shuffled)["protocols"]
            == evaluate_stores(truth, query, database)["protocols"])


def test_failed_images_are_never_found_and_failed_queries_score_0(run_tool, make_store, tmp_path,
                                                                  make_ground_truth):
    table = np.eye(4, dtype=np.float32)
    entry = {"easy": [0, 1], "hard": [], "junk": [], "bbx": None}
    gnd = make_ground_truth(tmp_path / "gnd_x.pkl", list("abcd"), ["p", "q"], [entry, entry])
    query = make_store(tmp_path / "q", ["p", "q"], table[:2], errors={0: "cut off"})
    database = make_store(tmp_path / "d", list("abcd"), table, errors={1: "no image"})
    done = run_tool("revisitop/evaluate.py", "--gnd", gnd, "--query", query, "--database", database,
                    "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    assert "1 queries (AP 0), 1 database (never found)" in done.stdout
    got = json.loads((tmp_path / "out.json").read_text())
    assert got["failed"] == {"query": ["p"], "database": ["b"], "distractors": 0}
    # Of two positives the first is found at once, the other never
    assert got["protocols"]["easy"]["ap"] == [0.0, 0.5]
    assert got["protocols"]["easy"]["ranks"] == [[], [0]]
    assert got["protocols"]["hard"] == {"mAP": None, "mP@1": None, "mP@5": None, "mP@10": None,
                                        "ap": [None, None], "ranks": [None, None]}


def test_plain_labels(run_tool, make_store, make_ground_truth, tmp_path):
    table = np.eye(3, dtype=np.float32)
    gnd = make_ground_truth(tmp_path / "gnd_old.pkl", list("abc"), ["q"], [{"ok": [0], "junk": []}])
    done = run_tool("revisitop/evaluate.py", "--gnd", gnd,
                    "--query", make_store(tmp_path / "q", ["q"], table[:1]),
                    "--database", make_store(tmp_path / "d", list("abc"), table))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[:2] == ["Plain", "100.00"]


def _cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def _edit_manifest(store, **changes):
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps({**manifest, **changes}))


class _Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize("spoil, message", [
    (lambda toy: toy["gnd"].write_bytes(pickle.dumps(_Evil())), "nothing was executed"),
    (lambda toy: _cut(toy["gnd"]), "is not a whole pickle"),
    (lambda toy: toy["gnd"].unlink(), "cannot read the ground truth"),
    (lambda toy: (toy["database"] / "chunk-000001.safetensors").unlink(), "lacks 1 of 3 chunks"),
    (lambda toy: _cut(toy["database"] / "chunk-000001.safetensors"), "is cut off"),
    (lambda toy: (toy["database"] / "chunk-000001.safetensors").write_bytes(b""),
     "cannot be read"),
    (lambda toy: (toy["database"] / "chunk-000001.safetensors").write_bytes(b"\xff" * 64),
     "not a safetensors file"),
    (lambda toy: (toy["query"] / "manifest.json").write_text("{"), "is not JSON"),
    (lambda toy: shutil.rmtree(toy["query"]), "is not a feature store"),
    (lambda toy: _edit_manifest(toy["query"], weights_digest="a") or _edit_manifest(
        toy["database"], weights_digest="b"), "were made with different weights"),
    (lambda toy: shutil.rmtree(toy["query"]) or shutil.copytree(toy["distractors"], toy["query"]),
     "lacks 5 of the 5 queries"),
])
def test_bad_input_gives_one_line_and_leaves_the_result(run_tool, toy, tmp_path, spoil, message):
    (tmp_path / "out.json").write_text("earlier")
    spoil(toy)
    done = run_tool(*_evaluate(toy, "--json", tmp_path / "out.json"))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert (tmp_path / "out.json").read_text() == "earlier"
    assert not list(tmp_path.glob(".*"))


def test_stores_of_other_images_or_sizes_are_refused(run_tool, toy, make_store, tmp_path):
    names = Store(toy["database"]).names
    table = np.ones((41, 8), np.float32)
    cases = {"wide": (names, np.ones((40, 9), np.float32), "of 9 dimensions"),
             "few": (names[:-1], table[:39], "lacks 1 of the 40 database images"),
             "more": ([*names, "stranger"], table, "'stranger'; pass them by --distractors"),
             "twice": ([*names, names[3]], table, "1 images more than once: 'image 3'")}
    for name, (store_names, descriptors, message) in cases.items():
        toy["database"] = make_store(tmp_path / name, store_names, descriptors)
        done = run_tool(*_evaluate(toy))
        assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1


def test_arguments(run_tool, toy, tmp_path):
    for more, message in ((["--jsn", "x"], "unrecognized arguments"),
                          (["--json", tmp_path], "it is a folder"),
                          (["--json", toy["gnd"] / "x.json"], "File exists")):
        done = run_tool(*_evaluate(toy, *more))
        assert done.returncode == 1 and done.stderr.startswith("error: ")
        assert message in done.stderr and done.stderr.count("\n") == 1


def test_models_are_compared_with_one_another(toy, make_store, tmp_path):
    """The query store, imported, does not name its weights; the others name different ones."""
    truth = load_ground_truth(toy["gnd"])
    database, far = (Store(make_store(tmp_path / name, Store(toy[part]).names, _table(Store(toy[part])),
                                      weights_digest=name))
                     for name, part in (("a", "database"), ("b", "distractors")))
    with pytest.raises(StoreError, match="/a and .*/b were made with different weights"):
        evaluate_stores(truth, Store(toy["query"]), database, [far])


def test_whitened_and_plain_are_not_compared(toy, make_store, tmp_path):
    truth, store = load_ground_truth(toy["gnd"]), Store(toy["database"])
    query = Store(toy["query"])
    white = Store(make_store(tmp_path / "w", store.names, _table(store), weights_digest="x",
                             whitening="pca"))
    plain = Store(make_store(tmp_path / "p", query.names, _table(query), weights_digest="x"))
    with pytest.raises(StoreError, match="different whitening: none and pca"):
        evaluate_stores(truth, plain, white)
    evaluate_stores(truth, query, white)        # this one names nothing: it is not known


def test_no_store_counts_twice(toy, tmp_path):
    truth = load_ground_truth(toy["gnd"])
    query, database, far = (Store(toy[part]) for part in ("query", "database", "distractors"))
    (tmp_path / "link").symlink_to(toy["distractors"])
    for distractors in ([database], [far, far], [far, Store(tmp_path / "link")]):
        with pytest.raises(StoreError, match="give each store of database images and distractors once"):
            evaluate_stores(truth, query, database, distractors)


def test_local_features_alone_have_no_scores(toy, make_store, tmp_path):
    truth = load_ground_truth(toy["gnd"])
    query, database = (Store(make_store(tmp_path / part, names, np.empty((len(names), 0), np.float32)))
                       for part, names in (("q", truth.queries), ("d", truth.images)))
    with pytest.raises(StoreError, match="/q has local features alone, and no descriptors"):
        evaluate_stores(truth, query, database)


def _faulty(tmp_path, make_store, failing=(), all_failed="", scale=1.0):
    """A set of which queries `failing` failed, images 0 and 1 are zero, and distractors are `scale` long."""
    rng = np.random.default_rng(3)
    names = {"query": [f"query {i}" for i in range(5)], "database": [f"image {i}" for i in range(40)],
             "far": [f"far {i}" for i in range(30)]}
    paths = {}
    for name, images in names.items():
        table = rng.standard_normal((len(images), 8)).astype(np.float32)
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        if name == "database":
            table[:2] = 0
        failed = range(len(images)) if name == all_failed else failing if name == "query" else ()
        paths[name] = make_store(tmp_path / name, images, table * (scale if name == "far" else 1), 16,
                                 dict.fromkeys(failed, "no photo"))
    return paths


def test_what_failed_or_is_not_of_unit_length_is_said(run_tool, make_store, make_ground_truth, tmp_path):
    entries = [{"easy": [3], "hard": [4], "junk": []} for _ in range(5)]
    gnd = make_ground_truth(tmp_path / "gnd_x.pkl", [f"image {i}" for i in range(40)],
                            [f"query {i}" for i in range(5)], entries)
    paths = _faulty(tmp_path, make_store, failing=(1, 2, 4), scale=2.5)
    done = run_tool("revisitop/evaluate.py", "--gnd", gnd, "--query", paths["query"], "--database",
                    paths["database"], "--distractors", paths["far"], "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stdout.splitlines() if line.startswith("NOTE: ")]
    assert notes == [
        "NOTE: 3 of 5 queries failed: their AP is 0, and is part of the means",
        "NOTE: 2 of 40 database images that were looked at have a descriptor of zeros: its every score is 0",
        "NOTE: 30 of 30 distractors that were looked at have a descriptor not of unit length (2.5 to 2.5): "
        "scores are inner products, not cosine similarities"]
    result = json.loads((tmp_path / "out.json").read_text())
    assert [result["protocols"]["medium"]["ap"][query] for query in (1, 2, 4)] == [0, 0, 0]
    assert result["warnings"] == {"query": 0, "database": 0, "distractors": 0}
    assert {name: [found[key] for key in ("checked", "zero", "other")]
            for name, found in result["lengths"].items()} == {
                "query": [2, 0, 0], "database": [40, 2, 0], "distractors": [30, 0, 30]}
    assert result["lengths"]["distractors"]["longest"] == pytest.approx(2.5)


@pytest.mark.parametrize("which, count", [("query", 5), ("database", 40), ("far", 30)])
def test_stores_of_failures_alone_are_an_error(run_tool, make_store, make_ground_truth, tmp_path, which, count):
    gnd = make_ground_truth(tmp_path / "gnd_x.pkl", [f"image {i}" for i in range(40)],
                            [f"query {i}" for i in range(5)], [{"easy": [3], "hard": [], "junk": []}] * 5)
    paths = _faulty(tmp_path, make_store, all_failed=which)
    done = run_tool("revisitop/evaluate.py", "--gnd", gnd, "--query", paths["query"], "--database",
                    paths["database"], "--distractors", paths["far"])
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: all {count} images of {paths[which]} failed, the first, ")


def test_images_described_with_a_warning_are_counted(run_tool, toy, tmp_path):
    """Such as those of files that are cut off."""
    names = Store(toy["distractors"]).names
    table = np.eye(8, dtype=np.float32)[np.arange(30) % 8]
    writer = StoreWriter(tmp_path / "cut", names, 8, 16, {})
    writer.write_chunk(0, table[:16], {0: "no photo"}, warnings={3: "the file is cut off"})
    writer.write_chunk(1, table[16:], {}, warnings={0: "the file is cut off", 13: "the file is cut off"})
    done = run_tool(*_evaluate(toy, "--distractors", tmp_path / "cut", "--json", tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    assert "NOTE: 1 of 30 distractors failed: they are ahead of no image\n" in done.stdout
    assert "NOTE: 3 of 30 distractors were described with a warning, such as those of files" in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["warnings"]["distractors"] == 3
    done = run_tool("tools/info.py", tmp_path / "cut")
    assert f"  warnings     3 images:\n    {names[3]}: the file is cut off\n" in done.stdout
