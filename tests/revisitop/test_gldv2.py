"""Google Landmarks v2: worked examples, slow code on random cases, the command, and its errors."""
import hashlib
import json

import numpy as np
import pytest

from revisitop.gldv2 import (
    Landmark, load_predictions, load_solution, recognition_metrics, retrieval_metrics)
from revisitop.tables import TableError

TRUTH = {"t1": ["a", "b"], "t2": ["a"], "t3": ["c", "d", "e"], "t4": ["c"]}
FOUND = {"t2": ["x", "a"], "t3": ["d"], "t4": ["c", "d"]}


def test_retrieval_by_hand():
    got = retrieval_metrics(FOUND, TRUTH, kappas=(1, 2, 100))
    # t1 has no prediction: 0. t2: (1/2)/1. t3: (1/1)/3. t4: (1/1)/1
    assert got["ap"] == pytest.approx({"t1": 0, "t2": 1 / 2, "t3": 1 / 3, "t4": 1})
    assert got["mAP@100"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1) / 4)
    # t3 and t4 are right at once; among two places t2, t3 and t4 have one each
    assert got["mP@1"] == pytest.approx(2 / 4)
    assert got["mP@2"] == pytest.approx(3 / (2 * 4))
    assert got["mP@100"] == pytest.approx(3 / (100 * 4))
    # Places 101 (none), 2, 1, 1
    assert got["mean_position"] == (101 + 2 + 1 + 1) / 4
    assert got["median_position"] == 1.5
    assert (got["test_images"], got["predicted"]) == (4, 3)


def test_what_is_cut_off_neither_counts_nor_is_expected():
    got = retrieval_metrics(FOUND, TRUTH, depth=1)
    # t2 has its image at place 2. t3 has one of the min(3, 1) that fit
    assert got["ap"] == {"t1": 0, "t2": 0, "t3": 1, "t4": 1}
    assert got["mAP@1"] == 2 / 4
    assert (got["mean_position"], got["median_position"]) == ((2 + 2 + 1 + 1) / 4, 1.5)


def test_a_repeated_image_counts_once_and_keeps_its_place():
    got = retrieval_metrics({"t": ["a", "a", "x", "b"]}, {"t": ["a", "b"]}, kappas=(2, 4))
    assert got["ap"]["t"] == pytest.approx((1 / 1 + 2 / 4) / 2)
    assert (got["mP@2"], got["mP@4"]) == (1 / 2, 2 / 4)


def test_recognition_by_hand():
    truth = {"t1": [0, 12], "t2": [100, 200, 300], "t3": [1], "t4": [], "t5": []}
    found = {"t2": Landmark(0, 0.01), "t3": Landmark(1, 10.0), "t4": Landmark(150, 15.0)}
    # By score: t4 (it has no landmark: wrong), t3 (right, precision 1/2), t2 (wrong); three of
    # the test images have a landmark
    assert recognition_metrics(found, truth) == {
        "test_images": 5, "with_landmark": 3, "predicted": 3,
        "GAP": pytest.approx((1 / 2) / 3), "top1": pytest.approx(1 / 3)}


def test_equal_scores_are_ordered_by_id():
    truth = {"b": [1], "a": [2], "c": [3]}
    found = {"c": Landmark(3, 0.5), "b": Landmark(1, 0.5), "a": Landmark(7, 0.5)}
    # a is wrong, b right at place 2, c right at place 3
    assert recognition_metrics(found, truth)["GAP"] == pytest.approx((1 / 2 + 2 / 3) / 3)


def test_no_test_images_have_no_figures():
    got = retrieval_metrics({}, {})
    assert got["mAP@100"] is got["mP@1"] is got["mean_position"] is got["median_position"] is None
    got = recognition_metrics({"t": Landmark(1, 1.0)}, {"t": []})
    assert got["GAP"] is got["top1"] is None


def _slow_retrieval(predictions, truth, depth, k):
    """Means of AP, P@k and first correct place, place by place."""
    aps, precisions, firsts = [], [], []
    for test_image, wanted in truth.items():
        ranking = list(predictions.get(test_image, []))
        ranking += [None] * (max(depth, k) - len(ranking))
        correct = [image in wanted and image not in ranking[:i] for i, image in enumerate(ranking)]
        total = 0.0
        for i in range(depth):
            if correct[i]:
                total += sum(correct[:i + 1]) / (i + 1)
        aps.append(total / min(len(wanted), depth))
        precisions.append(sum(correct[:k]) / k)
        firsts.append(min([i + 1 for i in range(depth) if correct[i]], default=depth + 1))
    return np.mean(aps), np.mean(precisions), np.mean(firsts), np.median(firsts)


@pytest.mark.parametrize("seed", range(20))
def test_retrieval_against_slow_code(seed):
    rng = np.random.default_rng(seed)
    images = [f"i{n}" for n in range(30)]
    truth = {f"t{n}": rng.choice(images, rng.integers(1, 12), replace=False).tolist()
             for n in range(9)}
    found = {test_image: rng.choice(images, rng.integers(0, 20)).tolist()    # with repetitions
             for test_image in truth if rng.random() < 0.8}
    got = retrieval_metrics(found, truth, depth=8, kappas=(3, 8))
    for k in (3, 8):
        want = _slow_retrieval(found, truth, 8, k)
        assert [got["mAP@8"], got[f"mP@{k}"], got["mean_position"],
                got["median_position"]] == pytest.approx(want)


def _slow_recognition(predictions, truth):
    """For each correct prediction, count those that are before it in the ranking."""
    with_landmark = [t for t in truth if truth[t]]
    total = hits = 0
    for test_image, (landmark, score) in predictions.items():
        if landmark in truth[test_image]:
            before = [t for t, found in predictions.items()
                      if found.score > score or found.score == score and t <= test_image]
            right = [t for t in before if predictions[t].landmark in truth[t]]
            total, hits = total + len(right) / len(before), hits + 1
    return total / len(with_landmark), hits / len(with_landmark)


@pytest.mark.parametrize("seed", range(20))
def test_recognition_against_slow_code(seed):
    rng = np.random.default_rng(seed)
    ids = [f"t{n}" for n in rng.permutation(30)]
    truth = {t: rng.choice(5, rng.integers(0, 3), replace=False).tolist() for t in ids}
    found = {t: Landmark(int(rng.integers(5)), int(rng.integers(-4, 5)) / 4)     # with ties
             for t in rng.permutation(ids).tolist() if rng.random() < 0.8}
    got = recognition_metrics(found, truth)
    assert (got["GAP"], got["top1"]) == pytest.approx(_slow_recognition(found, truth))


RETRIEVAL = ["id,images,Usage", "t1,a b,Public", "t2,a,Private", "t3,None,Ignored", "t4,c,Private"]
RECOGNITION = ["id,landmarks,Usage", "t1,0 12,Public", "t2,,Public", "t3,7,Ignored",
               "t4,1,Private"]


def _write(path, lines):
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def read(tmp_path):
    """A function from a task and the lines of both files to the solution and the predictions."""

    def call(task, solution, predictions):
        truth = load_solution(_write(tmp_path / "s.csv", solution), task)
        return truth, load_predictions(_write(tmp_path / "p.csv", predictions), truth, task)

    return call


def test_the_files_of_retrieval(read):
    truth, found = read("retrieval", RETRIEVAL, ["id,images", "t3,", "t1,x y z  ", "", "t2,"])
    assert truth.subsets == {"Public": {"t1": ("a", "b")}, "Private": {"t2": ("a",), "t4": ("c",)}}
    assert truth.ignored == {"t3"}
    assert found == {"Public": {"t1": ["x", "y", "z"]}, "Private": {}}


def test_the_files_of_recognition(read):
    truth, found = read("recognition", RECOGNITION,
                        ["id,landmarks", "t4,0 19.0 ", "t1,", "t3,no matter what", "t2,12 -1e-3"])
    assert truth.subsets == {"Public": {"t1": (0, 12), "t2": ()}, "Private": {"t4": (1,)}}
    assert found == {"Public": {"t2": Landmark(12, -0.001)}, "Private": {"t4": Landmark(0, 19.0)}}


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path):
    file = tmp_path / "s.csv"
    file.write_bytes(b"\xef\xbb\xbfid,images,Usage\r\nt1,a b,Public\r\n")
    assert load_solution(file, "retrieval").subsets["Public"] == {"t1": ("a", "b")}


@pytest.mark.parametrize("task, solution, predictions, message", [
    ("retrieval", RETRIEVAL[1:], [], "s.csv, line 1: it must name the columns id,images,Usage; it "
                                     "has t1,a b,Public"),
    ("recognition", RETRIEVAL, [], "s.csv, line 1: it must name the columns id,landmarks,Usage"),
    ("retrieval", [*RETRIEVAL, "t5,a,public"], [], "s.csv, line 6: Usage is 'public'; it must be"),
    ("retrieval", [*RETRIEVAL, "t2,a,Public"], [], "s.csv, line 6: 't2' is there for the second"),
    ("retrieval", [*RETRIEVAL, "t5, ,Public"], [], "s.csv, line 6: it has no images"),
    ("retrieval", [*RETRIEVAL, "t5,a"], [], "s.csv, line 6: it has 2 fields, and the header 3"),
    ("retrieval", [*RETRIEVAL, 't5,"a'], [], "s.csv, line 6: unexpected end of data"),
    ("recognition", [*RECOGNITION, "t5,1 x,Public"], [], "s.csv, line 6: the landmark 'x' is not"),
    ("retrieval", RETRIEVAL, ["id,landmarks", "t1,a"], "p.csv, line 1: it must name the columns "
                                                       "id,images; it has id,landmarks"),
    ("retrieval", RETRIEVAL, ["t1,a"], "p.csv, line 1: it must name the columns id,images"),
    ("retrieval", RETRIEVAL, ["id,images", "t1,a", "", "t1,"], "p.csv, line 4: 't1' is there for"),
    ("retrieval", RETRIEVAL, ["id,images", "t9,a"], "p.csv, line 2: 't9' is not a test image of"),
    ("retrieval", RETRIEVAL, ["id,images", "t1,a  b"], "p.csv, line 2: place 2 of the images is "
                                                       "empty"),
    ("recognition", RECOGNITION, ["id,landmarks", "t1,5"], "p.csv, line 2: the prediction has 1 "
                                                           "parts"),
    ("recognition", RECOGNITION, ["id,landmarks", "t1,5 0.1 6"], "the prediction has 3 parts"),
    ("recognition", RECOGNITION, ["id,landmarks", "t1,-5 0.1"], "the landmark '-5' is not"),
    ("recognition", RECOGNITION, ["id,landmarks", "t1,5 high"], "line 2: the score is 'high'; it"),
    ("recognition", RECOGNITION, ["id,landmarks", "t1,5 nan"], "the score is 'nan'; it must be"),
])
def test_malformed_files(read, task, solution, predictions, message):
    with pytest.raises(TableError) as error:
        read(task, solution, predictions)
    assert message in str(error.value) and "\n" not in str(error.value)


def _command(tmp_path, task, solution, predictions, *more):
    return ("revisitop/gldv2.py", task, "--solution", _write(tmp_path / "s.csv", solution),
            "--predictions", _write(tmp_path / "p.csv", predictions), *more)


def test_the_command_for_retrieval(run_tool, tmp_path):
    out = tmp_path / "new folder" / "out.json"
    done = run_tool(*_command(tmp_path, "retrieval", RETRIEVAL,
                              ["id,images", "t1,b x a", "t2,x a", "t3,a"], "--json", out))
    assert done.returncode == 0, done.stderr
    rows = {line[:20].strip(): line[20:].split() for line in done.stdout.splitlines()}
    assert rows["gldv2 retrieval"] == ["Public", "Private"]
    # Public: (1/1 + 2/3) / 2. Private: (1/2 + 0) / 2; first places 2 and none
    assert rows["mAP@100"] == ["83.33", "25.00"] and rows["mP@5"] == ["40.00", "10.00"]
    assert rows["mean position"] == ["1.00", "51.50"] and rows["test images"] == ["1", "2"]
    got = json.loads(out.read_text())
    assert (got["dataset"], got["task"]) == ("gldv2", "retrieval")
    assert got["subsets"]["Private"]["ap"] == {"t2": 0.5, "t4": 0.0}
    assert got["protocol"] == {
        f"{name}_sha256": hashlib.sha256((tmp_path / f"{name[0]}.csv").read_bytes()).hexdigest()
        for name in ("solution", "predictions")}


def test_the_command_for_recognition(run_tool, tmp_path):
    done = run_tool(*_command(tmp_path, "recognition", RECOGNITION,
                              ["id,landmarks", "t1,12 0.3", "t2,12 0.9"]))
    assert done.returncode == 0, done.stderr
    rows = {line[:20].strip(): line[20:].split() for line in done.stdout.splitlines()}
    # Public: t2, wrong, then t1, right at place 2 of 2; one image has a landmark
    assert rows["GAP"] == ["50.00", "0.00"] and rows["top1"] == ["100.00", "0.00"]
    assert rows["with landmark"] == ["1", "1"]


def test_a_subset_without_test_images(run_tool, tmp_path):
    done = run_tool(*_command(tmp_path, "retrieval", RETRIEVAL[:2], ["id,images"], "--json",
                              tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["subsets"]["Private"]["mAP@100"] is None
    assert "mAP@100                   0.00         -" in done.stdout


def test_mistakes_give_one_line_and_leave_the_result(run_tool, tmp_path):
    (tmp_path / "out.json").write_text("earlier")
    (tmp_path / "latin.csv").write_bytes(b"id,images\nt1,\xe9\n")
    good = _command(tmp_path, "retrieval", RETRIEVAL, ["id,images"], "--json",
                    tmp_path / "out.json")
    for more, message in ((("--predictions", tmp_path / "none.csv"), "No such file"),
                          (("--solution", tmp_path), "Is a directory"),
                          (("--predictions", tmp_path / "latin.csv"), "is not text in UTF-8"),
                          (("--predictions", tmp_path / "s.csv"), "it has id,images,Usage"),
                          (("--json", tmp_path), "it is a folder"),
                          (("--jsn", "x"), "unrecognized arguments")):
        done = run_tool(*good, *more)
        assert done.returncode == 1 and done.stdout == "" and message in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert (tmp_path / "out.json").read_text() == "earlier"
