"""How results were made, as rows for reading."""
from dolg.report.record import Fact, differing, failures, sections
from dolg.report.results import Method


def method(name, protocol=None, **more):
    return Method(name, {"protocols": {}, **({"protocol": protocol} if protocol else {}), **more})


def test_records_stand_side_by_side():
    digest = "0123456789abcdef" * 4
    first = method("a", {"ground_truth_sha256": digest, "labels": {"easy": {"ok": ["easy"], "junk": []}},
                         "query": {"cropped": True, "image_variant": None, "scales": [0.5, 1.0]},
                         "distractors": [{"count": 3}, {"count": 4}]})
    second = method("b", {"ground_truth_sha256": digest, "query": {"cropped": False, "scales": [0.5, 1.0]},
                          "reranking": {"stages": [{"method": "rrt", "k": 100}]}})
    found = sections([first, second])
    assert [(part.title, part.differs) for part in found] == [
        ("Protocol", 2), ("Queries", 2), ("Distractors", 2), ("Reranking", 2)]
    assert found[0].facts == [
        Fact("ground truth (SHA-256)", ["0123456789ab"] * 2, False),
        Fact("labels easy ok", ["easy", "–"], True), Fact("labels easy junk", ["none", "–"], True)]
    assert found[1].facts == [
        Fact("cropped", ["yes", "no"], True), Fact("image variant", ["unknown", "–"], True),
        Fact("scales", ["0.5, 1", "0.5, 1"], False)]
    assert found[2].facts == [Fact("1 count", ["3", "–"], True), Fact("2 count", ["4", "–"], True)]
    assert found[3].facts[1] == Fact("stages k", ["–", "100"], True)
    lacking = "recorded facts that others lack"
    assert [(fact.name, fact.values) for fact in differing(found)] == [
        (f"Protocol: {lacking}", ["2", "0"]), ("Queries: cropped", ["yes", "no"]),
        (f"Queries: {lacking}", ["1", "0"]), (f"Distractors: {lacking}", ["2", "0"])]


def test_digests_that_only_begin_alike_differ():
    first, second = (method(name, {"query": {"weights": "ab" * 31 + end}}) for name, end in
                     (("a", "cd"), ("b", "ef")))
    fact = sections([first, second])[0].facts[0]
    assert fact.values == ["abababababab"] * 2 and fact.differs


def test_old_results_have_no_record():
    assert sections([method("a"), method("b")]) == []
    assert sections([method("a", {"query": 5})])[0].facts == [Fact("query", ["5"], False)]


def test_failures_are_listed_with_their_reasons():
    names = [f"image {number}" for number in range(250)]
    fine = method("fine", failed={"query": [], "database": [], "distractors": 0})
    bad = Method("bad", {"failed": {"query": ["q"], "database": names, "distractors": 7}},
                 reasons={"q": "cut off", "image 3": "absent"})
    found, = failures([fine, method("old"), bad])
    assert found.method == "bad"
    assert found.counts == {"query": 1, "database": 250, "distractors": 7}
    assert found.listed["query"] == [("q", "cut off")]
    assert found.listed["database"][3] == ("image 3", "absent") and len(found.listed["database"]) == 200
