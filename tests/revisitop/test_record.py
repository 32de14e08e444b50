"""What a result records of its protocol, and which results may be compared."""
import copy
import json

import numpy as np
import pytest

from revisitop import (
    ResultError, Store, differences, evaluate_stores, format_table, load_ground_truth, load_result,
)
from revisitop.record import check_comparable, map_heading, title

MADE_BY = {"model": "dolg on ResNet-50", "config_digest": "c" * 64, "weights_digest": "e" * 64,
           "whitening": "f" * 64, "scales": [0.5, 1.0], "precision": "fp32",
           "expansion": "alpha 3, 10 images", "local": {"threshold": -np.inf}}


def result(**changes):
    """A result of two queries; `changes` are of its protocol, None takes a key away."""
    protocol = {"ground_truth_sha256": "a" * 64, "junk": "removed from the ranking",
                "labels": {"medium": {"ok": ["easy", "hard"], "junk": ["junk"]}},
                "score_precision": "float32",
                "query": {"cropped": True, "image_variant": None, **MADE_BY},
                "database": {"image_variant": None, **MADE_BY},
                "distractors": [{"images_digest": "b" * 64, "image_variant": None}], **changes}
    return {"dataset": "toy", "queries": 2, "database": 40, "distractors": 30,
            "protocols": {"medium": {"mAP": 0.5, "ap": [0.25, 0.75]}},
            "protocol": {key: value for key, value in protocol.items() if value is not None}}


@pytest.mark.parametrize("double", [False, True])
def test_a_result_records_how_it_was_made(toy, make_store, tmp_path, double):
    names = {part: Store(toy[part]).names for part in ("query", "database", "distractors")}
    rng = np.random.default_rng(0)
    stores = {part: Store(make_store(
        tmp_path / "again" / part, names[part], rng.standard_normal((len(names[part]), 8)).astype("f"),
        7, **MADE_BY, images_digest=part[0] * 64, **more))
        for part, more in (("query", {"cropped": True, "image_variant": "small"}),
                           ("database", {"cropped": False}), ("distractors", {}))}
    truth = load_ground_truth(toy["gnd"])
    got = evaluate_stores(truth, stores["query"], stores["database"], [stores["distractors"]],
                          double=double)
    assert got["query_names"] == truth.queries
    record = json.loads(json.dumps(got["protocol"], allow_nan=False))
    made_by = {**MADE_BY, "local": {"threshold": "-Infinity"}, "dim": 8}
    assert record == {
        "ground_truth_sha256": truth.sha256,
        "labels": {"easy": {"ok": ["easy"], "junk": ["junk", "hard"]},
                   "medium": {"ok": ["easy", "hard"], "junk": ["junk"]},
                   "hard": {"ok": ["hard"], "junk": ["junk", "easy"]}},
        "junk": "removed from the ranking",
        "score_precision": "float64" if double else "float32",
        "query": {**made_by, "count": 5, "cropped": True, "image_variant": "small",
                  "images_digest": "q" * 64},
        "database": {**made_by, "count": 40, "cropped": False, "image_variant": None,
                     "images_digest": "d" * 64},
        "distractors": [{**made_by, "count": 30, "image_variant": None,
                         "images_digest": "d" * 64}]}


def test_what_stores_do_not_say_is_null(toy):
    got = evaluate_stores(load_ground_truth(toy["gnd"]), Store(toy["query"]), Store(toy["database"]))
    assert got["protocol"]["query"] == {"count": 5, "dim": 8, "cropped": None, "image_variant": None}
    assert got["protocol"]["distractors"] == []
    assert differences(got, got) == []


@pytest.mark.parametrize("cropped, heading", [
    (True, "mAP"), (False, "mAP (queries not cropped)"), (None, "mAP (cropping unknown)")])
def test_only_cropped_queries_give_plain_map(toy, make_store, tmp_path, cropped, heading):
    manifest = {} if cropped is None else {"cropped": cropped}
    query = Store(toy["query"])
    query = Store(make_store(tmp_path / "again", query.names, next(query.chunks()), **manifest))
    got = evaluate_stores(load_ground_truth(toy["gnd"]), query, Store(toy["database"]))
    lines = format_table(got).splitlines()
    assert lines[0] == "toy: 5 queries, 40 database images, 0 distractors"
    header, easy = lines[3], lines[4]
    assert header.strip() == f"{heading}    mP@1    mP@5   mP@10  queries scored"
    # Figures end below the ends of their headings
    end = header.index(heading) + len(heading)
    assert easy[:end].split() == ["Easy", f"{100 * got['protocols']['easy']['mAP']:.2f}"]


def test_methods_of_one_protocol_do_not_differ():
    other = result(score_precision="float64")
    for part in ("query", "database"):
        other["protocol"][part].update(weights_digest="0" * 64, scales=[1.0], whitening=None,
                                       precision="bf16", model="gem", expansion=None)
    other["protocols"]["medium"]["mAP"] = 0.75
    assert differences(result(), other) == []
    check_comparable({"a": result(), "b": other})


def test_every_difference_of_protocol_is_named():
    def differ(**changes):
        return differences(result(), result(**changes))

    assert differ(ground_truth_sha256="0" * 64) == [
        "ground truth (SHA-256): aaaaaaaaaaaa and 000000000000"]
    # Digests that begin alike are different still
    assert len(differ(ground_truth_sha256="a" * 63 + "b")) == 1
    assert differ(query={"cropped": False}) == ["queries cropped: yes and no"]
    assert differ(query={"cropped": True, "image_variant": "S"}) == [
        "image variant of the queries: unknown and S"]
    assert differ(database={"image_variant": "S"}) == [
        "image variant of the database: unknown and S"]
    assert differ(distractors=[{"images_digest": "d" * 64, "image_variant": "S"}]) == [
        "which distractors (digest of the images): bbbbbbbbbbbb and dddddddddddd",
        "image variant of the distractors: unknown and S"]
    assert differ(junk="kept") == ["junk images: removed from the ranking and kept"]
    assert differ(labels={"medium": {"ok": ["easy"], "junk": []}})[0].startswith(
        "labels of the protocols: ")


@pytest.mark.parametrize("key, value, words", [
    ("dataset", "elsewhere", "data set: toy and elsewhere"),
    ("queries", 3, "number of queries: 2 and 3"),
    ("database", 41, "number of database images: 40 and 41")])
def test_other_images_are_a_difference(key, value, words):
    assert differences(result(), {**result(), key: value}) == [words]


def test_another_number_of_distractors_is_one_difference():
    without = {**result(distractors=[]), "distractors": 0}
    assert differences(result(), without) == ["number of distractors: 30 and 0"]


def test_what_one_result_alone_records_is_unknown_in_the_other():
    assert differences(result(ground_truth_sha256=None), result()) == [
        "ground truth (SHA-256): unknown and aaaaaaaaaaaa"]
    assert differences(result(), result(query={})) == ["queries cropped: yes and unknown"]
    assert differences(result(), result(distractors=[{}])) == [
        "which distractors (digest of the images): bbbbbbbbbbbb and unknown"]
    older = {key: value for key, value in result().items() if key != "protocol"}
    assert differences(older, copy.deepcopy(older)) == []
    assert {words.split(": ")[0] for words in differences(older, result())} == {
        "ground truth (SHA-256)", "queries cropped", "labels of the protocols", "junk images",
        "which distractors (digest of the images)"}
    # What is no table at all is unknown as well
    assert differences({**older, "protocol": 3}, {**older, "protocol": {"query": []}}) == []


def test_results_that_differ_are_refused_in_one_line():
    with pytest.raises(ResultError) as caught:
        check_comparable({"a": result(), "b": result(), "c": {**result(query={"cropped": False}),
                                                              "database": 9}})
    assert str(caught.value) == (
        "a and c cannot be compared, they differ in number of database images: 40 and 9; queries "
        "cropped: yes and no (--across compares them all the same)")


def test_headings_and_titles():
    cropped, whole = result(), result(query={"cropped": False})
    assert map_heading([cropped, cropped]) == "mAP"
    assert map_heading([cropped, whole]) == "mAP (cropping differs)"
    assert map_heading([{}]) == "mAP (cropping unknown)"
    assert title(result()) == "toy: 2 queries, 40 database images, 30 distractors"
    assert title({"dataset": "toy"}) == "toy" and title({}) == "an unnamed data set"


@pytest.mark.parametrize("content, message", [
    ("{", "is not JSON"),
    ("[" * 100_000, "is not JSON"),
    ("[]", 'no "protocols"'),
    ('{"protocols": {}}', 'no "protocols"'),
    ('{"protocols": {"plain": {"mAP": 1}}}', '"plain" has no list "ap"'),
    ('{"protocols": {"plain": {"ap": []}}}', 'has no "mAP"'),
    ('{"protocols": {"plain": {"mAP": 50, "ap": []}}}', "not in 0..1"),
    ('{"protocols": {"plain": {"mAP": 1, "ap": [true]}}}', "not in 0..1"),
    ('{"protocols": {"plain": {"mAP": 1, "ap": [1]}}, "query_names": [1]}', "no.* list of names"),
    ('{"protocols": {"plain": {"mAP": 1, "ap": [1]}}, "query_names": []}', r"lengths \(0, 1\)"),
])
def test_files_that_are_no_result_are_refused(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ResultError, match=message) as caught:
        load_result(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_result_files(tmp_path):
    with pytest.raises(ResultError, match="absent.json: No such file"):
        load_result(tmp_path / "absent.json")
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result()))
    assert load_result(path, ["medium"], 2) == result()
    with pytest.raises(ResultError, match='protocol "hard" has no list "ap"'):
        load_result(path, ["medium", "hard"])
    with pytest.raises(ResultError, match="for this ground truth.*2 queries.* has 3"):
        load_result(path, queries=3)
