"""Which results, ground truths, stores and lists a report is made of, and which it refuses."""
import csv
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from dolg.errors import UserError
from dolg.features.store import FeatureStore, StoreWriter
from dolg.report.gathering import make_report
from dolg.report.results import Method, load_evaluation, load_evaluations, named_results
from dolg.report.sources import ImageFolders, open_ground_truth, open_stores
from tests.report.miniature import FAILED_IMAGE, FAILED_QUERY, NO_UTF8, QUERIES


def evaluation(easy, medium, hard):
    return {"dataset": "toy", "queries": len(medium), "database": 4, "distractors": 0,
            "protocols": {name: {"mAP": 0.5, "mP@1": 0.1, "mP@5": 0.2, "mP@10": 0.25, "ap": ap}
                          for name, ap in (("easy", easy), ("medium", medium), ("hard", hard))}}


def ranked(ranks):
    content = evaluation([1.0], [1.0], [None])
    content["protocols"]["medium"]["ranks"] = ranks
    return json.dumps(content)


@pytest.mark.parametrize("content, message", [
    ("{", "is not JSON"),
    ("[1]", 'no "protocols"'),
    ('{"protocols": {"easy": {"mAP": 0.5, "ap": [1]}}}', '"medium" has no list "ap"'),
    (json.dumps(evaluation([1.0], [87.0], [None])), "not in 0..1"),
    (json.dumps(evaluation([1.0], [float("nan")], [None])), "not in 0..1"),
    *((json.dumps({**evaluation([1.0], [1.0], [None]), **wrong}), message) for wrong, message in (
        ({"protocol": "text"}, '"protocol" is no table'), ({"protocol": [1]}, '"protocol" is no table'),
        ({"failed": None}, '"failed" is no'), ({"failed": []}, '"failed" is no'),
        ({"failed": {"query": None}}, '"failed" is no'),
        ({"failed": {"distractors": []}}, '"failed" is no'),
        ({"files": {"distractors": 5}}, '"files" is no'), ({"files": {"query": 5}}, '"files" is no'),
        ({"files": [1]}, '"files" is no'))),
    ('{"dataset": "gldv2", "task": "retrieval", "subsets": {}}', "GLDv2 have none, and are not shown"),
    *((ranked(ranks), '"ranks" of protocol "medium"') for ranks in (
        5, [], [[0], [1]], [[1, 1]], [[2, 1]], [[-1]], [[0.5]], [["0"]], [True])),
])
def test_files_that_are_no_evaluation_are_refused(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_evaluation(path, ("easy", "medium", "hard"))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_ranks_that_can_be_are_taken(tmp_path):
    for ranks in ([[0, 5]], [[]], [None], None):
        (tmp_path / "result.json").write_text(ranked(ranks))
        assert load_evaluation(tmp_path / "result.json")["protocols"]["medium"]["ranks"] == ranks


def test_results_are_named_by_their_files(tmp_path):
    (tmp_path / "a=b.json").touch()
    odd = str(tmp_path / "a=b.json")
    named = named_results(["x/one.json", "two=x/other.json", odd, "=x.json"], [("three", "y.json")])
    assert {name: str(path) for name, path in named.items()} == {
        "one": "x/one.json", "two": "x/other.json", "a=b": odd, "=x": "=x.json", "three": "y.json"}
    with pytest.raises(UserError, match="two results are called 'one' .*NAME=RESULT.json"):
        named_results(["a/one.json", "b/one.json"])
    with pytest.raises(UserError, match="no result to show"):
        named_results([])


def test_results_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_evaluation(tmp_path / "absent.json")
    first, other = evaluation([1.0], [1.0 + 2e-16], [None]), evaluation([1.0], [1.0], [None])
    other["dataset"] = "elsewhere"
    (tmp_path / "a.json").write_text(json.dumps(first))
    (tmp_path / "b.json").write_text(json.dumps(other))
    assert load_evaluations({"a": tmp_path / "a.json"}) == {"a": first}
    both = {"a": tmp_path / "a.json", "b": tmp_path / "b.json"}
    with pytest.raises(UserError, match="a is of toy, b is of elsewhere"):
        load_evaluations(both)
    assert load_evaluations(both, across=True)["b"] == other
    (tmp_path / "b.json").write_text('{"protocols": {"plain": {"mAP": 0.5, "ap": [0.5]}}}')
    with pytest.raises(UserError, match='"easy" has no list'):
        load_evaluations(both, across=True)


def recorded(cropped, distractors=0, **changes):
    """An evaluation that says by which protocol it was made."""
    record = {"ground_truth_sha256": "a" * 64, "query": {"cropped": cropped}, **changes}
    return {**evaluation([1.0], [0.5], [None]), "distractors": distractors, "protocol": record}


def write_pairs(folder, **evaluations):
    """Name -> file of each evaluation."""
    for name, content in evaluations.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return {name: folder / f"{name}.json" for name in evaluations}


@pytest.mark.parametrize("other, words", [
    (recorded(True, 30), "number of distractors: 0 and 30"),
    (recorded(False), "queries cropped: yes and no"),
    (recorded(True, ground_truth_sha256="b" * 64), "aaaaaaaaaaaa and bbbbbbbbbbbb"),
    (evaluation([1.0], [0.5], [None]), "queries cropped: yes and unknown")])
def test_results_of_different_protocols_are_refused(tmp_path, other, words):
    pairs = write_pairs(tmp_path, a=recorded(True), b=recorded(True), c=other)
    assert list(load_evaluations({name: pairs[name] for name in "ab"})) == ["a", "b"]
    with pytest.raises(UserError, match=f"a and c cannot be compared, they differ in .*{words}"):
        load_evaluations(pairs)
    assert load_evaluations(pairs, across=True)["c"] == other


def test_methods_say_what_is_unusual_in_their_protocol():
    assert Method("a", recorded(True)).detail() == "4 images"
    assert Method("a", recorded(False, 1234)).detail() == "4 images, 1,234 distractors, queries not cropped"
    assert Method("a", evaluation([1.0], [0.5], [None])).detail() == "4 images"


def test_command_shows_different_protocols_only_where_asked(run_tool, tmp_path):
    pairs = write_pairs(tmp_path, a=recorded(True), b=recorded(True, 30))
    page = tmp_path / "page.html"
    done = run_tool("tools/report.py", *pairs.values(), "-o", page)
    assert done.returncode == 1 and not page.exists()
    assert done.stderr == ("error: a and b cannot be compared, they differ in number of "
                           "distractors: 0 and 30 (--across compares them all the same)\n")
    done = run_tool("tools/report.py", *pairs.values(), "-o", page, "--across")
    assert done.returncode == 0, done.stderr
    html = page.read_text(encoding="utf-8")
    assert "4 images, 30 distractors, differs from the first in number of distractors: 0 and 30" in html


def shown(report, method, query):
    return [(hit.label, hit.image.name, hit.score) for hit in report.queries[query].hits[method]]


def test_all_is_found_through_the_results(results, miniature):
    names = ("before", "after", "far")
    report, evaluations = make_report({name: results[name] for name in names}, across=True, top=20)
    assert report.notes == [] and list(evaluations) == list(names)
    assert [method.name for method in report.methods] == list(names)
    for query in range(QUERIES):
        for name in names:
            slow = miniature.slow_list("before" if name == "before" else "after", query, 60)
            if name != "far":
                slow = [hit for hit in slow if not hit[1].startswith("stranger")]
            found = shown(report, name, query)
            if query == FAILED_QUERY:
                assert found == []
            else:
                assert [hit[:2] for hit in found] == [hit[:2] for hit in slow[:20]]
                assert [hit[2] for hit in found] == pytest.approx([hit[2] for hit in slow[:20]], abs=1e-6)
    first = report.queries[0]
    assert first.path == miniature.folder / "jpg" / "query 0.jpg" and first.box == (10, 8, 50.5, 40)
    assert first.counts == {"easy": 3, "hard": 2, "junk": 1}
    stranger = next(hit.image for query in report.queries for hit in query.hits["far"]
                    if hit.image.distractor)
    assert stranger.path == miniature.folder / "distractors" / stranger.name
    failed = miniature.names["database"][FAILED_IMAGE]
    assert report.methods[0].reasons == {failed: "the file is damaged",
                                         miniature.names["query"][FAILED_QUERY]: "the file is damaged"}
    assert report.methods[0].failed("database") == [failed]


def test_reranked_lists_are_those_of_the_file(results, miniature):
    report, _ = make_report({"global": results["global"], "aqe": results["aqe"]}, top=20)
    assert [method.reranked for method in report.methods] == [False, True]
    with open(results["aqe"].with_suffix(".csv"), encoding="utf-8", errors="surrogateescape",
              newline="") as file:
        rows = list(csv.DictReader(file))
    for query, name in enumerate(miniature.names["query"]):
        expected = [row for row in rows if row["query"] == name][:20]
        found = shown(report, "aqe", query)
        if query != FAILED_QUERY:
            assert [hit[1] for hit in found] == [row["image"] for row in expected] and found
            assert [hit[2] for hit in found] == pytest.approx([float(row["score"]) for row in expected])
        numbers = {image: number for number, image in enumerate(miniature.names["database"])}
        for label, image, _ in found:
            assert label == (miniature.label(query, numbers[image]) if image in numbers else "negative")
    assert shown(report, "aqe", 0) != shown(report, "global", 0)


def test_a_folder_that_moved_with_its_results_is_found(results, miniature, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(miniature.folder, moved)
    report, _ = make_report({"after": moved / "after.json"})
    assert report.queries[0].path == moved / "jpg" / "query 0.jpg"
    (moved / "rerank" / "aqe_top20.csv").unlink()
    report, _ = make_report({"aqe": moved / "rerank" / "aqe_top20.json"})
    assert "aqe: its lists are not shown: there is no" in report.notes[0]
    assert "aqe_top20.csv" in report.notes[0]
    shutil.rmtree(moved / "stores" / "after" / "database")
    report, _ = make_report({"after": moved / "after.json", "before": moved / "before.json"})
    assert len(report.notes) == 1 and "after: its lists are not shown" in report.notes[0]
    assert list(report.queries[0].hits) == ["before"]
    (moved / "gnd_toy.pkl").unlink()
    report, _ = make_report({"after": moved / "after.json"})
    assert report.queries == () and "Queries are not shown" in report.notes[0]


def test_reranked_results_without_lists_show_no_others(results, tmp_path, miniature):
    content = json.loads(results["aqe"].read_text())
    content["files"] = {key: str((results["aqe"].parent / value).resolve())
                        if isinstance(value, str) else [] for key, value in content["files"].items()
                        if key != "lists"}
    (tmp_path / "aqe.json").write_text(json.dumps(content))
    report, _ = make_report({"aqe": tmp_path / "aqe.json"})
    assert "names no file of the reranked lists" in report.notes[0]
    assert dict(report.queries[0].hits) == {}
    content.pop("files")
    (tmp_path / "aqe.json").write_text(json.dumps(content))
    report, _ = make_report({"aqe": tmp_path / "aqe.json"}, miniature.gnd)
    assert "does not say where its descriptors lie" in report.notes[0]


def test_stores_in_another_order_are_matched_by_name(results, miniature, tmp_path):
    names, array = miniature.names["database"], miniature.descriptors["after"]["database"]
    order = list(range(len(names)))[::-1]
    writer = StoreWriter(tmp_path / "database", [names[row] for row in order], array.shape[1], 64, {})
    writer.write_chunk(0, array[order], {order.index(FAILED_IMAGE): "damaged"})
    query = miniature.stores("after")[0]
    plain, _ = make_report({"after": results["after"]}, top=8)
    report, _ = make_report({"after": results["after"]}, None,
                            [["after", str(query), str(tmp_path / "database")]], top=8)
    for query in range(QUERIES):
        assert shown(report, "after", query) == shown(plain, "after", query)
    assert any(hit[1] == NO_UTF8 for query in range(QUERIES) for hit in shown(
        make_report({"after": results["after"]}, top=40)[0], "after", query))


def test_what_does_not_fit_is_refused(results, miniature, tmp_path):
    after = {"after": results["after"]}
    query, database, _ = map(str, miniature.stores("after"))
    for arguments, message in [
            ({"top": 0}, "give 1 or more"),
            ({"images": tmp_path / "absent"}, "absent is not a folder of images: give it by --images"),
            ({"distractor_images": tmp_path / "absent"}, "give it by --distractor-images"),
            ({"ground_truth": tmp_path / "absent.pkl"}, "absent.pkl"),
            ({"training": [tmp_path]}, "log.jsonl"),
            ({"groups": [["other", query, database]]}, "for 'other', which is no result; .*after"),
            ({"groups": [["after", query]]}, "need a QUERY and a DATABASE store"),
            ({"groups": [["after", query, database]] * 2}, "given twice for 'after'"),
            ({"groups": [["after", query, str(tmp_path)]]}, str(tmp_path)),
            ({"groups": [["after", database, database]]}, "lacks 6 of the 6 queries"),
            ({"groups": [["after", query, query]]}, "lacks 36 of the 36 database images")]:
        with pytest.raises(UserError, match=message) as caught:
            make_report(after, **arguments)
        assert "\n" not in str(caught.value)
    plain = {"a": tmp_path / "a.json"}
    plain["a"].write_text(json.dumps(evaluation([1.0], [0.5], [None])))
    with pytest.raises(UserError, match="need --gnd"):
        make_report(plain, groups=[["a", query, database]])
    with pytest.raises(UserError, match="^a has AP for 1 query, the ground truth of (gnd_toy|toy) has 6$"):
        make_report(plain, miniature.gnd)


def test_results_of_other_queries_are_refused(results, miniature, tmp_path):
    truth = {**miniature.truth, "qimlist": ["x", *miniature.truth["qimlist"][1:]]}
    (tmp_path / "gnd_toy.pkl").write_bytes(pickle.dumps(truth))
    with pytest.raises(UserError, match="after has 'query 0' as query 0, .* 'x' there"):
        make_report({"after": results["after"]}, tmp_path / "gnd_toy.pkl")
    truth = {**miniature.truth, "gnd": miniature.truth["gnd"][::-1]}
    (tmp_path / "gnd_toy.pkl").write_bytes(pickle.dumps(truth))
    report, _ = make_report({"after": results["after"]}, tmp_path / "gnd_toy.pkl", images=tmp_path)
    assert report.notes == [
        "after: it was scored by another ground truth than the one whose labels are shown"]
    with pytest.raises(UserError, match="absent.pkl"):
        open_ground_truth(tmp_path / "absent.pkl")
    assert open_stores([], ["a"]) == {}


def rewritten(result, folder, **changes):
    """A copy of a result in `folder`, its paths absolute, other keys changed."""
    content = json.loads(result.read_text())
    absolute = {kind: [str((result.parent / path).resolve()) for path in paths] if isinstance(paths, list)
                else str((result.parent / paths).resolve()) for kind, paths in content["files"].items()}
    content = {**content, "files": absolute, **changes}
    (folder / result.name).write_text(json.dumps(content))
    return folder / result.name


def other_store(store, folder, **changes):
    """A copy of a store that says something else of how it was made."""
    source = FeatureStore(store)
    own = {key: value for key, value in source.manifest.items() if key not in
           ("format", "version", "count", "dim", "chunk_size")}
    writer = StoreWriter(folder, source.names, source.dim, source.chunk_size, {**own, **changes})
    for chunk in range(writer.num_chunks):
        failed = np.flatnonzero(source.chunk(chunk).status).tolist()
        writer.write_chunk(chunk, source.chunk(chunk).descriptors, dict.fromkeys(failed, "no photo"))
    return folder


@pytest.mark.parametrize("part", ["query", "database", "distractors"])
@pytest.mark.parametrize("key, scored, now", [
    ("weights_digest", "a", "b"), ("config_digest", "a", "b"), ("scales", [1.0], [1.0, 2.0]),
    ("images_digest", "a", "b")])
def test_lists_of_stores_that_changed_are_not_shown(results, miniature, tmp_path, part, key, scored, now):
    stores = dict(zip(("query", "database", "distractors"), miniature.stores("after")))
    stores[part] = other_store(stores[part], tmp_path / part, **{key: now})
    protocol = json.loads(results["far"].read_text())["protocol"]
    record = protocol[part][0] if part == "distractors" else protocol[part]
    record[key] = scored
    files = {"ground_truth": str(miniature.gnd), "query": str(stores["query"]),
             "database": str(stores["database"]), "distractors": [str(stores["distractors"])]}
    far = rewritten(results["far"], tmp_path, protocol=protocol, files=files)
    report, _ = make_report({"far": far, "before": results["before"]}, across=True, top=3)
    note, = report.notes
    assert note.startswith(f"far: its lists are not shown: the store {tmp_path / part} is not the one")
    assert f"changed in {key}: evaluate again" in note
    assert list(report.queries[0].hits) == ["before"]
    with pytest.raises(UserError, match=f"^far: the store .*{part} is not .* in {key}: evaluate again"):
        make_report({"far": far}, groups=[["far", *map(str, stores.values())]])
    record[key] = now       # as it is; and where one side alone knows it, it may be so
    assert make_report({"far": rewritten(far, tmp_path, protocol=protocol)}, top=3)[0].notes == []
    del record[key]
    assert make_report({"far": rewritten(far, tmp_path, protocol=protocol)}, top=3)[0].notes == []


@pytest.mark.parametrize("weights, changed", [("w", True), (None, False)])
def test_a_store_that_was_whitened_since_has_changed(results, miniature, tmp_path, weights, changed):
    query, database, _ = miniature.stores("after")
    whitened = {"whitening": "pca", **({"weights_digest": weights} if weights else {})}
    files = {"ground_truth": str(miniature.gnd), "distractors": [],
             "query": str(other_store(query, tmp_path / "query", **whitened)),
             "database": str(other_store(database, tmp_path / "database", **whitened))}
    protocol = json.loads(results["after"].read_text())["protocol"]
    for part in ("query", "database"):
        protocol[part]["weights_digest"] = weights
    after = rewritten(results["after"], tmp_path, protocol=protocol, files=files)
    notes = make_report({"after": after}, top=3)[0].notes
    assert len(notes) == changed and all("changed in whitening" in note for note in notes)


def test_stores_given_for_a_reranked_result_leave_its_lists(results, miniature, tmp_path):
    group = [["aqe", *map(str, miniature.stores("after"))]]
    plain, _ = make_report({"aqe": results["aqe"]}, top=20)
    report, _ = make_report({"aqe": results["aqe"]}, groups=group, top=20)
    assert shown(report, "aqe", 0) == shown(plain, "aqe", 0) and report.methods[0].reranked
    without = rewritten(results["aqe"], tmp_path, files={})
    report, _ = make_report({"aqe": without}, miniature.gnd, groups=group)
    assert report.notes == ["aqe: its lists are not shown: it is reranked, and its result names no file "
                            "of the reranked lists"]
    assert dict(report.queries[0].hits) == {}


def test_one_list_that_does_not_fit_leaves_the_others(results, miniature, tmp_path):
    (tmp_path / "lists.csv").write_text("query,image,score\nquery 0,nobody,1\n")
    files = {**json.loads(rewritten(results["aqe"], tmp_path).read_text())["files"],
             "lists": str(tmp_path / "lists.csv")}
    aqe = rewritten(results["aqe"], tmp_path, files=files)
    query, database, _ = miniature.stores("after")
    swapped = rewritten(results["after"], tmp_path, files={
        "ground_truth": str(miniature.gnd), "query": str(query), "database": str(query)})
    report, _ = make_report({"aqe": aqe, "after": swapped, "before": results["before"]}, across=True)
    assert len(report.notes) == 2 and list(report.queries[0].hits) == ["before"]
    assert "aqe: its lists are not shown: " in report.notes[0] and "nobody" in report.notes[0]
    assert "after: its lists are not shown: " in report.notes[1] and "lacks 36" in report.notes[1]
    assert not report.methods[0].reranked


def test_names_of_queries_may_be_unknown(results, tmp_path):
    unnamed = rewritten(results["after"], tmp_path, query_names=None)
    report, _ = make_report({"after": unnamed}, top=3)
    assert report.notes == [] and len(report.queries) == QUERIES


def test_paths_too_long_for_any_file_are_of_none(results, miniature, tmp_path):
    long = "x" * 300
    files = json.loads(rewritten(results["aqe"], tmp_path).read_text())["files"]
    aqe = rewritten(results["aqe"], tmp_path, files={**files, "lists": long})
    report, _ = make_report({"aqe": aqe}, top=3)
    assert "there is no" in report.notes[0]
    report, _ = make_report({"aqe": rewritten(results["aqe"], tmp_path, files={"ground_truth": long})})
    assert report.queries == ()
    assert named_results([f"a={long}"]) == {"a": Path(long)}


def test_stores_of_distractors_may_share_names(miniature, results, tmp_path):
    query, database, first = miniature.stores("after")
    array = miniature.descriptors["after"]["distractors"]
    writer = StoreWriter(tmp_path / "more", miniature.names["distractors"], array.shape[1], 64, {})
    writer.write_chunk(0, -array, {})
    report, _ = make_report({"far": results["far"]}, groups=[
        ["far", *map(str, (query, database, first, tmp_path / "more"))]], top=100)
    images = [hit.image for hit in report.queries[0].hits["far"] if hit.image.distractor]
    assert sorted((image.name, image.part) for image in images) == sorted(
        (name, part) for name in miniature.names["distractors"] for part in (1, 2))
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("name", ["../secret.jpg", "a/../../secret.jpg", "/etc/secret.jpg"])
def test_names_that_lead_out_of_the_folder_are_of_no_file(tmp_path, name):
    folders = ImageFolders(tmp_path)
    assert folders.find(name) is None
    assert folders.find("a/..b.jpg") == tmp_path / "a" / "..b.jpg"
