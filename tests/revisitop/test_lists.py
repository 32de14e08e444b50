"""Ground truths in lists and text files, metrics of cut rankings, and the command."""
import hashlib
import json

import numpy as np
import pytest

from revisitop import GroundTruthError, Store, compute_map, load_ground_truth, split
from revisitop.cutoff import cut_average_precision, cut_metrics, evaluate_lists
from revisitop.lists import load_classic, load_csv

IMAGES = ["a.jpg", "b.PNG", "old town.jpg", "c.jpg", "c.png", "d"]


def test_average_precision_by_hand():
    # Positives at places 1, 3 and 10
    assert cut_average_precision([0, 2, 9], 4, 3) == pytest.approx((1 + 2 / 3) / 3)
    assert cut_average_precision([0, 2, 9], 4, 10) == pytest.approx((1 + 2 / 3 + 3 / 10) / 4)
    assert cut_average_precision([], 4, 10) == 0 == cut_average_precision([3], 1, 3)


def test_metrics_by_hand():
    # Two of four positives among the first three; none of one; and a query without positives
    got = cut_metrics([np.array([0, 2, 9]), np.array([3]), np.array([], np.int64)], [4, 1, 0], [3])
    assert got["hit@3"] == 1 / 2
    assert got["found@3"] == (2 / 4 + 0 / 1) / 2
    assert got["mP@3"] == pytest.approx((2 / 3 + 0) / 2)
    assert got["ap@3"] == [pytest.approx((1 + 2 / 3) / 3), 0, None]
    assert got["mAP@3"] == pytest.approx((1 + 2 / 3) / 3 / 2)
    # The trapezoid: (1 + 1)/2, (1/2 + 2/3)/2 and (2/9 + 3/10)/2 of four; (0 + 1/4)/2 of one
    whole = (1 + 7 / 12 + 47 / 180) / 4
    assert got["ap"] == [pytest.approx(whole), 1 / 8, None]
    assert got["mAP"] == pytest.approx((whole + 1 / 8) / 2)


def test_metrics_of_no_query():
    assert cut_metrics([np.array([])], [0], [5]) == {
        "mAP": None, "mAP@5": None, "hit@5": None, "found@5": None, "mP@5": None, "ap": [None],
        "ap@5": [None]}


def _write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_csv(tmp_path):
    file = _write(tmp_path / "list.csv", "query,positives,junk,box", "q 1.jpg,d|a.jpg,c.jpg,",
                  "", "q2,old town,b | c.png|,10 20 300.5 400", "q3.png,,,")
    truth = load_csv(file, IMAGES)
    assert (truth.name, truth.images) == ("list", IMAGES)
    assert truth.queries == ["q 1.jpg", "q2", "q3.png"]
    assert truth.boxes == [None, (10, 20, 300.5, 400), None]
    assert [entry["ok"].tolist() for entry in truth.labels] == [[5, 0], [2], []]
    assert [entry["junk"].tolist() for entry in truth.labels] == [[3], [1, 4], []]
    assert truth.is_plain and all(entry["ok"].dtype == np.int64 for entry in truth.labels)
    assert truth.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_columns_in_another_order_and_without_the_optional_ones(tmp_path):
    truth = load_csv(_write(tmp_path / "x.csv", "positives,query", "d.jpg|b,q"), IMAGES)
    assert truth.queries == ["q"] and truth.boxes == [None]
    assert truth.labels[0]["ok"].tolist() == [5, 1] and truth.labels[0]["junk"].tolist() == []


@pytest.mark.parametrize("lines, message", [
    ([], "x.csv, line 1: it must name the columns query,positives and perhaps junk,box; it has "
         "nothing"),
    (["query,junk"], "line 1: it must name the columns"),
    (["query,positives,jnuk", "q,a,"], "it has query,positives,jnuk"),
    (["query,positives,positives", "q,a,b"], "line 1: it must name the columns"),
    (["query,positives"], "x.csv has no queries"),
    (["query,positives", "q,a", ",a"], "x.csv, line 3: it has no query"),
    (["query,positives", "q,a", "q,b"], "x.csv, line 3: the query 'q' is there for the second"),
    (["query,positives", "q,a,b"], "x.csv, line 2: it has 3 fields, and the header 2"),
    (["query,positives", "q,a|e"], "x.csv, line 2: 'e' is no database image (they are named like "
                                   "'a.jpg')"),
    (["query,positives", "q,a b"], "line 2: 'a b' is no database image (they are named like "
                                   "'a.jpg', and | separates them)"),
    (["query,positives", "q,c"], "line 2: 'c' may be 'c.jpg' or 'c.png': name it with its ending"),
    (["query,positives", "q,a|d|a.jpg"], "x.csv, line 2: 'a.jpg' is there twice"),
    (["query,positives,junk", "q,a,d|d"], "x.csv, line 2: 'd' is there twice"),
    (["query,positives,junk", "q,a,a"], "x.csv, line 2: 'a.jpg' is both a positive and junk"),
    (["query,positives,box", "q,a,1 2 3"], "x.csv, line 2: the box is '1 2 3'; it must be four"),
    (["query,positives,box", "q,a,1 2 3 x"], "the box is '1 2 3 x'"),
    (["query,positives,box", "q,a,1 2 inf 4"], "the box is '1 2 inf 4'"),
    (["query,positives,box", "q,a,10 20 5 30"], "x1 < x2 and y1 < y2"),
])
def test_a_malformed_csv(tmp_path, lines, message):
    with pytest.raises(GroundTruthError) as error:
        load_csv(_write(tmp_path / "x.csv", *lines), IMAGES)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_database_with_an_image_twice(tmp_path):
    with pytest.raises(GroundTruthError, match="the database has 'a' more than once"):
        load_csv(_write(tmp_path / "x.csv", "query,positives", "q,a"), ["a", "b", "a"])


def _classic(folder, prefix=""):
    folder.mkdir()
    for topic, query, box, good, ok, junk in (
            ("all_souls_1", "all_souls_000013", "136.5 34.1 648.5 955.7",
             ["all_souls_000013", "oxford_000001"], ["oxford_000002"], ["oxford_000003"]),
            ("ashmolean_1", "ashmolean_000058", "0 0 10 10", ["ashmolean_000058"], [], [])):
        _write(folder / f"{topic}_query.txt", f"{prefix}{query} {box}")
        for kind, names in (("good", good), ("ok", ok), ("junk", junk)):
            _write(folder / f"{topic}_{kind}.txt", *names)
    return folder


CLASSIC = ["oxford_000003", "all_souls_000013", "ashmolean_000058", "oxford_000001",
           "oxford_000002", "oxford_000004"]


@pytest.mark.parametrize("prefix", ["oxc1_", ""])
@pytest.mark.parametrize("ending", ["", ".jpg"])
def test_classic_files(tmp_path, prefix, ending):
    folder = _classic(tmp_path / "oxford5k", prefix)
    truth = load_classic(folder, [name + ending for name in CLASSIC])
    assert (truth.name, truth.queries) == ("oxford5k", ["all_souls_000013", "ashmolean_000058"])
    assert truth.boxes == [(136.5, 34.1, 648.5, 955.7), (0, 0, 10, 10)]
    # The query is a positive of its own
    assert [entry["ok"].tolist() for entry in truth.labels] == [[1, 3, 4], [2]]
    assert [entry["junk"].tolist() for entry in truth.labels] == [[0], []]
    everything = b"".join(file.name.encode() + file.read_bytes()
                          for file in sorted(folder.iterdir()))
    assert truth.sha256 == hashlib.sha256(everything).hexdigest()


@pytest.mark.parametrize("spoil, message", [
    (lambda folder: [file.unlink() for file in folder.glob("*_query.txt")],
     "has no file NAME_query.txt"),
    (lambda folder: (folder / "all_souls_1_ok.txt").unlink(), "all_souls_1_ok.txt: No such file"),
    (lambda folder: (folder / "all_souls_1_ok.txt").write_bytes(b"\xff"), "is not text in UTF-8"),
    (lambda folder: _write(folder / "all_souls_1_query.txt"), "1_query.txt: it has no query"),
    (lambda folder: _write(folder / "all_souls_1_query.txt", "oxc1_x"), "1_query.txt: the box is "
                                                                        "''; it must be four"),
    (lambda folder: _write(folder / "all_souls_1_query.txt", "ashmolean_000058 1 2 3 4"),
     "ashmolean_1_query.txt: the query 'ashmolean_000058' is there for the second time"),
    (lambda folder: _write(folder / "all_souls_1_good.txt", "oxford_000001", "oxford_9"),
     "all_souls_1_good.txt, line 2: 'oxford_9' is no database image"),
    (lambda folder: _write(folder / "all_souls_1_junk.txt", "oxford_000001"),
     "all_souls_1_junk.txt: 'oxford_000001' is both a positive and junk"),
])
def test_malformed_classic_files(tmp_path, spoil, message):
    folder = _classic(tmp_path / "oxford5k")
    spoil(folder)
    with pytest.raises(GroundTruthError) as error:
        load_classic(folder, CLASSIC)
    assert message in str(error.value) and "\n" not in str(error.value)


def _table(store: Store) -> np.ndarray:
    return np.concatenate(list(store.chunks()))


def _slow_metrics(ranking, positives, junk, k):
    """AP@k, hit, found and P@k of one query, image by image; `ranking` lists all images."""
    kept = [image for image in ranking if image not in junk][:k]
    total, correct = 0.0, 0
    for place, image in enumerate(kept, 1):
        if image in positives:
            correct += 1
            total += correct / place
    return (total / min(len(positives), k), float(correct > 0), correct / len(positives),
            correct / k)


def _slow_means(ranks, labels, k):
    every = [_slow_metrics(row.tolist(), entry["ok"].tolist(), entry["junk"].tolist(), k)
             for row, entry in zip(ranks, labels) if len(entry["ok"])]
    return np.mean(every, axis=0).tolist()


def _sorted(toy) -> np.ndarray:
    every = np.concatenate([_table(Store(toy[part])) for part in ("database", "distractors")])
    return np.argsort(-(_table(Store(toy["query"])) @ every.T), axis=1, kind="stable")


def _figures(protocol, k):
    return [protocol[f"{metric}@{k}"] for metric in ("mAP", "hit", "found", "mP")]


@pytest.fixture
def listed(toy, tmp_path):
    """A list for the toy set's stores; one query has no positive. Its path and the labels."""
    rng = np.random.default_rng(1)
    labels, lines = [], ["query,positives,junk"]
    for query in range(5):
        chosen = rng.permutation(40)
        ok, junk = chosen[:[9, 3, 0, 1, 14][query]], chosen[20:20 + rng.integers(0, 8)]
        labels.append({"ok": ok, "junk": junk})
        lines.append(",".join([f"query {query}", "|".join(f"image {i}" for i in ok),
                               "|".join(f"image {i}" for i in junk)]))
    return _write(tmp_path / "toy.csv", *lines), labels


def test_the_command_gives_what_sorting_gives(run_tool, toy, listed, make_store, tmp_path):
    file, labels = listed
    # The queries are stored in another order, and with endings
    query = Store(toy["query"])
    turned = make_store(tmp_path / "turned", [f"{name}.jpg" for name in query.names[::-1]],
                        _table(query)[::-1].copy())
    out = tmp_path / "out.json"
    done = run_tool("revisitop/lists.py", "--csv", file, "--query", turned, "--database",
                    toy["database"], "--distractors", toy["distractors"], "--cutoffs", 3, 10, 500,
                    "--json", out)
    assert done.returncode == 0, done.stderr
    got = json.loads(out.read_text())
    assert {key: got[key] for key in ("dataset", "queries", "database", "distractors", "cutoffs")
            } == {"dataset": "toy", "queries": 5, "database": 40, "distractors": 30,
                  "cutoffs": [3, 10, 500]}
    assert got["protocol"]["ground_truth_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    ranks, plain = _sorted(toy), got["protocols"]["plain"]
    for k in (3, 10, 500):
        want = _slow_means(ranks, labels, k)
        assert _figures(plain, k) == pytest.approx(want)
        assert plain[f"ap@{k}"][2] is None
    whole = compute_map(ranks, labels)
    assert plain["mAP"] == pytest.approx(whole.map)
    assert "4 queries scored" in done.stdout
    assert f"(trapezoid) {100 * whole.map:.2f}" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("hit"))
    assert row.split()[1:] == [f"{100 * _slow_means(ranks, labels, k)[1]:.2f}"
                               for k in (3, 10, 500)]


def test_the_medium_labels_of_real_photographs_as_a_list(shared, make_store, tmp_path):
    folder = shared / "data" / "minilandmarks"
    truth = load_ground_truth(folder / "gnd_minilandmarks.pkl")
    lines = [",".join([name, *("|".join(truth.images[i] for i in entry[role])
                               for role in ("ok", "junk"))])
             for name, entry in zip(truth.queries, split(truth, "medium"))]
    listed = load_csv(_write(tmp_path / "m.csv", "query,positives,junk", *lines), truth.images)
    tables = np.load(folder / "expected.npz")
    got = evaluate_lists(
        listed, Store(make_store(tmp_path / "q", truth.queries, tables["query_crop"])),
        Store(make_store(tmp_path / "d", truth.images, tables["database"])))
    expected = json.loads((folder / "expected.json").read_text())["results"]
    assert got["protocols"]["plain"]["mAP"] == pytest.approx(
        expected["without_distractors"]["crop"]["medium"]["mAP"], abs=1e-9)


def test_easy_and_hard_labels(toy):
    truth = load_ground_truth(toy["gnd"])
    got = evaluate_lists(truth, Store(toy["query"]), Store(toy["database"]),
                         [Store(toy["distractors"])], [4])
    assert list(got["protocols"]) == ["easy", "medium", "hard"]
    for protocol, figures in got["protocols"].items():
        assert _figures(figures, 4) == pytest.approx(
            _slow_means(_sorted(toy), split(truth, protocol), 4))


def test_the_command_on_classic_files(run_tool, make_store, tmp_path):
    folder = _classic(tmp_path / "oxford5k", "oxc1_")
    table = np.eye(6, dtype=np.float32)
    database = make_store(tmp_path / "d", [f"{name}.jpg" for name in CLASSIC], table)
    # The first query is nearest to itself, then to the junk image, a stranger, and two positives
    query = np.zeros((2, 6), np.float32)
    query[0, [1, 0, 5, 3, 4]] = [0.9, 0.8, 0.7, 0.6, 0.5]
    query[1, 2] = 1
    queries = make_store(tmp_path / "q", ["all_souls_000013", "ashmolean_000058"], query)
    out = tmp_path / "out.json"
    done = run_tool("revisitop/lists.py", "--classic", folder, "--query", queries, "--database",
                    database, "--json", out)
    assert done.returncode == 0, done.stderr
    plain = json.loads(out.read_text())["protocols"]["plain"]
    # Places 1, 3 and 4 without the junk image. Trapezoid: (1 + 1)/2, (1/2 + 2/3)/2, (2/3 + 3/4)/2
    assert plain["ap"] == [pytest.approx((1 + 7 / 12 + 17 / 24) / 3), 1]
    assert plain["ap@100"] == [pytest.approx((1 + 2 / 3 + 3 / 4) / 3), 1]
    assert "@100" in done.stdout and "@1000" in done.stdout


def test_failed_images(make_store, tmp_path):
    table = np.eye(4, dtype=np.float32)
    truth = load_csv(_write(tmp_path / "x.csv", "query,positives", "p,a|b", "q,a|b"), list("abcd"))
    query = Store(make_store(tmp_path / "q", ["p", "q"], table[:2], errors={0: "cut off"}))
    database = Store(make_store(tmp_path / "d", list("abcd"), table, errors={0: "no image"}))
    got = evaluate_lists(truth, query, database, cutoffs=[2])
    assert got["failed"] == {"query": ["p"], "database": ["a"], "distractors": 0}
    # The failed query has found nothing; the other one of two positives, at once
    plain = got["protocols"]["plain"]
    assert (plain["ap@2"], plain["hit@2"], plain["found@2"]) == ([0, 1 / 2], 1 / 2, 1 / 4)


@pytest.mark.parametrize("cutoffs", [[], [0], [10, 2.5]])
def test_cutoffs_are_whole_numbers(toy, cutoffs):
    with pytest.raises(ValueError, match="give whole numbers from 1"):
        evaluate_lists(load_ground_truth(toy["gnd"]), Store(toy["query"]), Store(toy["database"]),
                       cutoffs=cutoffs)


def test_mistakes_give_one_line_and_leave_the_result(run_tool, toy, listed, make_store, tmp_path):
    (tmp_path / "out.json").write_text("earlier")
    good = ("revisitop/lists.py", "--query", toy["query"], "--database", toy["database"], "--json",
            tmp_path / "out.json")
    wide = make_store(tmp_path / "wide", ["x"], np.ones((1, 9), np.float32))
    few = make_store(tmp_path / "few", ["query 0"], np.ones((1, 8), np.float32))
    other = _write(tmp_path / "other.csv", "query,positives", "query 0,nothing")
    truth = ("--csv", listed[0])
    for more, message in (((), "one of the arguments --csv --classic is required"),
                          ((*truth, "--classic", tmp_path), "not allowed with argument"),
                          (("--csv", tmp_path / "none.csv"), "No such file"),
                          (("--csv", other), "line 2: 'nothing' is no database image"),
                          (("--classic", tmp_path), "has no file NAME_query.txt"),
                          ((*truth, "--cutoffs", 5, 0), "--cutoffs has 0"),
                          ((*truth, "--distractors", wide), "of 9 dimensions"),
                          ((*truth, "--query", few), "lacks 4 of the 5 queries"),
                          ((*truth, "--query", tmp_path), "is not a feature store"),
                          ((*truth, "--json", tmp_path), "it is a folder")):
        done = run_tool(*good, *more)
        assert done.returncode == 1 and done.stdout == "" and message in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert (tmp_path / "out.json").read_text() == "earlier"
