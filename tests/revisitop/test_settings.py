"""Stores that were made with unlike settings, in every command that compares stores."""
import json

import numpy as np
import pytest

from dolg.config import get_cfg
from dolg.features.builders import _settings
from dolg.features.store import StoreWriter
from revisitop.settings import config_digest, differing_settings

ALIKE = {"weights_digest": "a" * 64, "config_digest": "c" * 64, "scales": [0.5, 1.0], "precision": "fp32"}


def write(path, count, seed, **changes):
    """A store of random unit vectors named as their files."""
    table = np.random.default_rng(seed).standard_normal((count, 8))
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    settings = {key: value for key, value in {**ALIKE, **changes}.items() if value is not None}
    StoreWriter(path, [f"{path.name}_{row}.jpg" for row in range(count)], 8, 100, settings).write_chunk(0, table, {})
    return path


def _cfg(**changes):
    cfg = get_cfg()
    cfg.merge_from_list([part for key, value in changes.items() for part in (key.replace("__", "."), value)])
    return cfg


@pytest.mark.parametrize("key, value, was, now", [
    ("INFER__SCALES", [0.3535], "scales: [0.3535, 0.5, 0.7071, 1.0, 1.4142]", "[0.3535]"),
    ("INFER__SIZE", 64, "INFER.SIZE: 0", "64"), ("INPUT__MEAN", [0.5, 0.5, 0.5], "INPUT.MEAN: []", "[0.5, 0.5, 0.5]"),
    ("INPUT__COLOUR", "rgb", "INPUT.COLOUR: ", "rgb"), ("PRECISION", "bf16", "precision: fp32", "bf16"),
    ("INFER__SCALE_POOLING", "max", "scale_pooling: mean", "max"), ("MODEL__GEM__P", 4.0, "MODEL.GEM.P: 3.0", "4.0")])
def test_what_a_configuration_changes_is_named(key, value, was, now):
    first, second = _settings(_cfg(PRECISION="fp32")), _settings(_cfg(**{"PRECISION": "fp32", key: value}))
    assert differing_settings(first, second) == [f"{was} and {now}"]
    older = {key: value for key, value in first.items() if key != "config"}      # from before it was there
    expected = differing_settings(older, second)
    if first["config"] == second["config"]:
        assert expected == [f"{was} and {now}"]
    else:
        assert len(expected) == 1 and expected[0].startswith("configuration (MODEL, INPUT, ")
    assert differing_settings(older, first) == [] and config_digest(first["config"]) == first["config_digest"]


@pytest.mark.parametrize("first, second, expected", [
    ({"cropped": True, "count": 3, "images_digest": "x", "data": {"name": "x"}, "library": "dolg 1"},
     {"cropped": False, "count": 4, "images_digest": "y", "made_of": "z", "library": "dolg 2"}, []),
    ({"weights_digest": "w"}, {}, []), ({"weights_digest": "w"}, {"weights_digest": ""}, []),
    ({"weights_digest": "w"}, {"weights_digest": "w", "whitening": "p"}, ["whitening: none and p"]),
    ({"image_variant": "original"}, {"image_variant": "faces blurred"}, [
        "image_variant: original and faces blurred"]),
    ({"weights_digest": "1" * 64}, {"weights_digest": "2" * 64}, [f"weights: {'1' * 12} and {'2' * 12}"]),
    ({"a key of the future": [1]}, {"a key of the future": [2]}, ["a key of the future: [1] and [2]"]),
    ({"local": {"topk": 1}, "local_dtype": "int8"}, {"local": {"topk": 2}, "local_dtype": "float16"}, []),
    ({"scales": float("nan")}, {"scales": float("nan")}, []), ({"config": [1]}, {"config": {"A": 1}}, [])])
def test_what_differs(first, second, expected):
    assert differing_settings(first, second) == expected
    swapped = [text.split(": ")[0] for text in differing_settings(second, first)]
    assert swapped == [text.split(": ")[0] for text in expected]


def test_local_settings_decide_where_local_features_are_compared():
    first, second = {"local": {"topk": 1}}, {"local": {"topk": 2}}
    assert differing_settings(first, second, local=True) == ['local: {"topk": 1} and {"topk": 2}']


@pytest.fixture
def toy(tmp_path, make_ground_truth):
    """Stores of queries and of a database that are alike, and distractors of another scale."""
    images = [f"database_{row}" for row in range(6)]
    entries = [{"easy": [0, 1], "hard": [2], "junk": [3]}] * 3
    write(tmp_path / "query", 3, 0)
    write(tmp_path / "database", 6, 1)
    write(tmp_path / "far", 6, 2, scales=[0.3535])
    for name in ("query", "database", "far"):
        (tmp_path / f"{name}.txt").write_text("".join(
            f"{name}_{row}.jpg {row % 2}\n" for row in range(3 if name == "query" else 6)))
    make_ground_truth(tmp_path / "gnd_toy.pkl", images, [f"query_{row}" for row in range(3)], entries)
    return tmp_path


def test_every_command_refuses_unlike_stores(run_tool, toy):
    query, database, far, gnd = (toy / name for name in ("query", "database", "far", "gnd_toy.pkl"))
    (toy / "truth.csv").write_text("query,positives\n" + "".join(f"query_{row}.jpg,database_1.jpg\n" for row in range(3)))
    assert run_tool("tools/search.py", "build", toy / "index", database).returncode == 0
    assert run_tool("tools/search.py", "build", toy / "far index", far).returncode == 0
    evaluate = ["--gnd", gnd, "--query", query, "--database", database, "--distractors", far]
    commands = [
        ["revisitop/evaluate.py", *evaluate], ["tools/evaluate.py", *evaluate],
        ["revisitop/lists.py", "--csv", toy / "truth.csv", *evaluate[2:]],
        ["tools/search.py", "build", toy / "both", database, far],
        ["tools/search.py", "add", toy / "index", far],
        ["tools/search.py", "query", toy / "far index", "--query", query],
        ["tools/search.py", "measure", toy / "index", "--query", query, "--stores", database, far],
        ["tools/search.py", "neighbours", database, far, "-o", toy / "neighbours"],
        ["tools/expand.py", "aqe", "--query", query, "--database", database, far, "--output", toy / "aqe"],
        ["tools/expand.py", "dba", "--database", database, far, "--output", toy / "dba"],
        ["tools/expand.py", "kreciprocal", "--query", query, "--database", database, far, "--output", toy / "k.npz"],
        ["tools/recall.py", "--query", query, "--labels", toy / "query.txt", "--gallery", far, "--gallery-labels",
         toy / "far.txt"],
        ["tools/predict.py", "retrieval", "--query", query, "--database", database, far, "--output", toy / "p.csv"],
        ["tools/rerank.py", "--cfg", "configs/quickstart.yaml", "RERANK.QUERY", query, "RERANK.DATABASE", database,
         "RERANK.DISTRACTORS", f"['{far}']", "RERANK.METHOD", "['aqe']", "RERANK.OUT_DIR", toy / "rerank"],
        ["tools/visualize.py", "embedding", "--store", database, far, "-o", toy / "map.png"]]
    for command in commands:
        done = run_tool(*command)
        assert done.returncode == 1 and done.stderr.count("\n") == 1, (command, done.stderr)
        assert done.stderr.startswith("error: ") and "--across" in done.stderr
        assert ("scales: [0.5, 1.0] and [0.3535]" in done.stderr
                or "scales: [0.3535] and [0.5, 1.0]" in done.stderr), done.stderr
    left = {path.name for path in toy.iterdir()}
    assert not left & {"both", "neighbours", "aqe", "dba", "k.npz", "p.csv", "map.png"}
    for number in (3, 5, 8, 11, 13):
        done = run_tool(*commands[number], "--across")
        assert done.returncode == 0, done.stderr


def test_across_is_recorded_and_changes_no_metric(run_tool, toy):
    write(toy / "near", 6, 2)
    write(toy / "farther", 6, 3, precision="bf16", weights_digest=None, config_digest=None)
    results = []
    for distractors, more in ((["near"], []), (["far"], ["--across"])):
        done = run_tool("revisitop/evaluate.py", "--gnd", toy / "gnd_toy.pkl", "--query", toy / "query", "--database",
                        toy / "database", "--distractors", *(toy / name for name in distractors), "--json",
                        toy / "out.json", *more)
        assert done.returncode == 0 and done.stderr == ""
        results.append(json.loads((toy / "out.json").read_text()))
    assert results[0]["protocols"] == results[1]["protocols"] and "across" not in results[0]["protocol"]
    assert results[1]["protocol"]["across"] == [
        f"{toy / name} and {toy / 'far'} were made with different scales: [0.5, 1.0] and [0.3535]"
        for name in ("query", "database")]
    assert results[1]["protocol"]["distractors"][0]["scales"] == [0.3535]
    assert f"NOTE: {results[1]['protocol']['across'][0]}" in done.stdout


def test_stores_without_a_record_are_named(run_tool, toy):
    plain = dict.fromkeys(ALIKE)
    write(toy / "old", 6, 2, **plain)
    done = run_tool("revisitop/evaluate.py", "--gnd", toy / "gnd_toy.pkl", "--query", toy / "query", "--database",
                    toy / "database", "--distractors", toy / "old")
    assert done.returncode == 0
    assert done.stderr == (f"WARNING: {toy / 'old'} does not record what made its descriptors: whether they may be "
                           "compared with others is not checked\n")
