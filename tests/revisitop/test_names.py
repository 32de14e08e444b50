"""Names with and without endings, through every command that matches them."""
import json
import pickle

import numpy as np
import pytest

from revisitop import Store
from revisitop.names import find_names, without_ending

# Two queries of two positives each: 0 and 1 lie near the first, 2 and 3 near the second; 4 before all
TABLE = np.array([[.9, .1], [.8, .2], [.1, .9], [.2, .8], [.95, .95], [-1, -1]], np.float32)
QUERIES = np.array([[1, 0], [0, 1]], np.float32)
# Places 1 and 2 of both: trapezoids (0 + 1/2) / 2 and (1/2 + 2/3) / 2, each for one of two positives
MAP = ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2


@pytest.mark.parametrize("wanted, names, found", [
    (["x", "y.jpg", "z.png"], ["z.png", "x.jpg", "y"], [1, 2, 0]),
    (["x.jpg", "y.JPG"], ["x.png", "y.webp"], [0, 1]),              # another ending
    (["x"], ["x.jpg", "x.png"], [-1]), (["x.jpg", "x.png"], ["x"], [-1, -1]),   # which one?
    (["x", "x.jpg"], ["x.jpg"], [-1, 0]), (["x.jpg"], ["x.png", "x.jpg"], [1]),
    (["x", "x"], ["x.jpg", "x.jpg"], [0, 0]),                       # the first of equal ones
    (["a/x"], ["x", "b/x", "a/x.jpg"], [2]), (["x"], ["a/x"], [-1]),    # folders count
    (["v1.2"], ["v1.2.final"], [-1]), (["v1.2"], ["v1.2.jpg"], [0]), ([".jpg"], [""], [-1]), ([], ["x"], [])])
def test_names_by_hand(wanted, names, found):
    assert find_names(wanted, names).tolist() == found


def test_endings():
    for name, stem in (("a.jpg", "a"), ("a.b.JPEG", "a.b"), ("a.jpg.jpg", "a.jpg"), ("a.b", "a.b"),
                       (".png", ".png"), ("d.jpg/a", "d.jpg/a")):
        assert without_ending(name) == stem


@pytest.fixture
def named(make_store, make_ground_truth, tmp_path):
    """Ground truth and stores whose names have such endings."""
    def make(truth: str, store: str) -> dict:
        entries = [{"easy": [0, 1], "hard": [], "junk": []}, {"easy": [2, 3], "hard": [], "junk": []}]
        return {"gnd": make_ground_truth(tmp_path / "gnd_toy.pkl", [f"im{i}{truth}" for i in range(6)],
                                         [f"q{i}{truth}" for i in range(2)], entries),
                "query": make_store(tmp_path / "query", [f"q{i}{store}" for i in range(2)], QUERIES),
                "database": make_store(tmp_path / "database", [f"im{i}{store}" for i in range(6)], TABLE)}

    return make


@pytest.mark.parametrize("truth, store", [(".jpg", ""), ("", ".jpg"), (".jpg", ".png"), (".PPM", ".JPEG")])
def test_evaluation_finds_names_with_or_without_endings(run_tool, named, tmp_path, truth, store):
    made, out = named(truth, store), tmp_path / "out.json"
    stores = ["--query", made["query"], "--database", made["database"]]
    done = run_tool("revisitop/evaluate.py", "--gnd", made["gnd"], *stores, "--json", out)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["protocols"]["easy"]["mAP"] == pytest.approx(MAP)
    table = tmp_path / "truth.csv"
    table.write_text(f"query,positives\nq0{truth},im0{truth}|im1{truth}\nq1{truth},im2{truth}|im3{truth}\n")
    done = run_tool("revisitop/lists.py", "--csv", table, *stores, "--json", out)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["protocols"]["plain"]["mAP"] == pytest.approx(MAP)


def test_names_that_differ_in_their_endings_alone(run_tool, named, make_store, tmp_path):
    """Both may be meant: nothing is guessed, and the message shows them."""
    made = named("", ".jpg")
    names = ["im0.jpg", "im0.png", "im2.jpg", "im3.jpg", "im4.jpg", "im5.jpg"]
    twice = make_store(tmp_path / "twice", names, TABLE)
    done = run_tool("revisitop/evaluate.py", "--gnd", made["gnd"], "--query", made["query"], "--database",
                    twice)
    assert done.returncode == 1
    assert done.stderr == (f"error: store {twice} lacks 2 of the 6 database images that the ground truth "
                           "names: 'im0', 'im1'; it has 'im0.jpg', 'im0.png'\n")


def test_subsets_by_bare_names(run_tool, named, tmp_path):
    store = named("", ".jpg")["database"]
    (tmp_path / "names.txt").write_text("im3\nim1.jpg\nim4.png\n")
    done = run_tool("tools/store.py", "subset", store, tmp_path / "names.txt", tmp_path / "part")
    assert done.returncode == 0, done.stderr
    part = Store(tmp_path / "part")
    assert part.names == ["im3.jpg", "im1.jpg", "im4.jpg"]
    np.testing.assert_array_equal(part.rows(np.arange(3)), TABLE[[3, 1, 4]])
    (tmp_path / "names.txt").write_text("photo 3\nim1\n")
    done = run_tool("tools/store.py", "subset", store, tmp_path / "names.txt", tmp_path / "none")
    assert done.returncode == 1 and done.stderr == (
        f"error: the store {store} lacks 1 of 2 images, such as 'photo 3'; it has 'im0.jpg', 'im1.jpg', "
        "'im2.jpg', ...\n")


def test_rankings_and_their_comparison(run_tool, named, tmp_path):
    """tools/expand.py evaluates what it makes; a result may have other endings than the next."""
    made = named(".jpg", "")
    stores = ["--query", made["query"], "--database", made["database"]]
    done = run_tool("tools/expand.py", "kreciprocal", *stores, "--gnd", made["gnd"],
                    "--json", tmp_path / "k.json", "--output", tmp_path / "k.npz")
    assert done.returncode == 0, done.stderr
    done = run_tool("revisitop/evaluate.py", "--gnd", made["gnd"], *stores, "--json", tmp_path / "plain.json")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "plain.json").read_text())
    result["query_names"] = ["q1", "q0"]
    for figures in result["protocols"].values():
        figures["ap"], figures["ranks"] = figures["ap"][::-1], figures["ranks"][::-1]
    (tmp_path / "turned.json").write_text(json.dumps(result))
    done = run_tool("revisitop/compare.py", tmp_path / "plain.json", tmp_path / "turned.json",
                    "--protocol", "easy", "--across")
    assert done.returncode == 0, done.stderr
    assert "0 wins, 0 losses, 2 ties" in done.stdout


def test_pickled_features(run_tool, named, tmp_path):
    made = named(".jpg", "")
    features = {f"{kind}{i}": row for kind, table in (("q", QUERIES), ("im", TABLE))
                for i, row in enumerate(table)}
    file = tmp_path / "fea.pickle"
    file.write_bytes(pickle.dumps(features))
    done = run_tool("revisitop/example_evaluate.py", "--gnd", made["gnd"], "--features", file)
    assert done.returncode == 0, done.stderr
    assert f"mAP E: {round(100 * MAP, 2)}" in done.stdout


@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_predictions_of_landmarks_with_endings(run_tool, tmp_path, ending):
    solution, predictions, out = (tmp_path / name for name in ("s.csv", "p.csv", "out.json"))
    solution.write_text("id,images,Usage\nt1,a b,Public\nt2,a,Private\nt3,None,Ignored\n")
    predictions.write_text(f"id,images\nt1{ending},b{ending} x{ending} a{ending}\n"
                           f"t2{ending},x{ending} a{ending}\nt3{ending},a{ending}\n")
    command = ["revisitop/gldv2.py", "retrieval", "--solution", solution, "--predictions", predictions]
    done = run_tool(*command, "--json", out)
    assert done.returncode == 0, done.stderr
    # (1/1 + 2/3) / 2, and (1/2) / 1
    assert [json.loads(out.read_text())["subsets"][name]["mAP@100"] for name in ("Public", "Private")] == \
        pytest.approx([5 / 6, 1 / 2])
    assert done.stdout.splitlines()[-1] == (
        "note: 2 index images were taken for the solution's without the endings of their files, such as "
        f"'a{ending}' for 'a'")
    predictions.write_text("id,images\nt1,index/0/b.jpg index/0/x.jpg\n")
    done = run_tool(*command)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"error: none of the 2 index images that {predictions} lists, such as "
                           "'index/0/b.jpg', is among the 2 correct ones of the solution, such as 'a': list "
                           "them by the solution's ids\n")
    predictions.write_text("id,images\ntest 1,a\n")
    done = run_tool(*command)
    assert done.returncode == 1
    assert "line 2: 'test 1' is not a test image of the solution, which has 't" in done.stderr
