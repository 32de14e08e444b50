"""The lines of the original example_evaluate.py, against its own way: dot, argsort, compute_map."""
import json
import pickle

import numpy as np
import pytest
from scipy.io import savemat

from revisitop import compute_map, load_ground_truth, split
from revisitop.example_evaluate import rank_labelled

COMMAND = "revisitop/example_evaluate.py"


class _Evil:
    def __reduce__(self):
        return print, ("executed",)


@pytest.fixture
def files(toy, tmp_path):
    """Ground truth, features in both formats and distractors in three, and the tables in them."""
    truth = load_ground_truth(toy["gnd"])
    rng = np.random.default_rng(1)
    queries, images, others = (rng.standard_normal((count, 8)).astype(np.float32)
                               for count in (5, 40, 30))
    entries = {f"{name}.jpg": row[None] for name, row in
               zip([*truth.images, *truth.queries], np.concatenate([images, queries]))}
    paths = {name: tmp_path / name for name in
             ("fea.pickle", "fea.mat", "columns.mat", "1M.mat", "rows.mat")}
    paths["fea.pickle"].write_bytes(pickle.dumps(entries, protocol=2))
    savemat(paths["fea.mat"], {"Q": queries.T, "X": images.T})
    savemat(paths["columns.mat"], {"X": others.T})
    savemat(paths["1M.mat"], {"X": [row[None] for row in others]})
    savemat(paths["rows.mat"], {"X": others})
    return toy["gnd"], paths, (queries, images, others)


def original_lines(truth, queries, images, others=None) -> str:
    """What the original prints; its ranks have a column per query."""
    lines = [f">> {truth.name}: Evaluating test dataset..."]
    if others is not None:
        images = np.array(list(images) + list(others))
        lines.append(f"distactors: {others.shape}")
    lines.append(f"final db: {images.shape}")
    ranks = np.argsort(-np.dot(images, queries.T), axis=0)
    found = [compute_map(ranks.T, split(truth, protocol), [1, 5, 10])
             for protocol in ("easy", "medium", "hard")]
    maps, mprs = ([np.around(value * 100, decimals=2) for value in values]
                  for values in zip(*((one.map, one.mpr) for one in found)))
    lines += [">> {}: mAP E: {}, M: {}, H: {}".format(truth.name, *maps),
              ">> {}: mP@k{} E: {}, M: {}, H: {}".format(truth.name, np.array([1, 5, 10]), *mprs),
              "Done!"]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("features", ["fea.pickle", "fea.mat"])
@pytest.mark.parametrize("distractors", [None, "columns.mat", "1M.mat", "rows.mat"])
def test_the_original_lines(run_tool, files, features, distractors):
    gnd, paths, tables = files
    more = ["--distractors", paths[distractors]] if distractors else []
    done = run_tool(COMMAND, "--gnd", gnd, "--features", paths[features], *more)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout == original_lines(load_ground_truth(gnd), *tables[:3 if distractors else 2])


@pytest.mark.parametrize("case", ["without_distractors", "with_distractors"])
def test_the_figures_of_real_photographs(run_tool, shared, tmp_path, case):
    folder = shared / "data" / "minilandmarks"
    gnd = folder / "gnd_minilandmarks.pkl"
    truth, tables = load_ground_truth(gnd), np.load(folder / "expected.npz")
    savemat(tmp_path / "fea.mat", {"Q": tables["query_crop"].T, "X": tables["database"].T})
    savemat(tmp_path / "1M.mat", {"X": tables["distractor"].T})
    more = ["--distractors", tmp_path / "1M.mat"] if case == "with_distractors" else []
    done = run_tool(COMMAND, "--gnd", gnd, "--features", tmp_path / "fea.mat", *more)
    want = json.loads((folder / "expected.json").read_text())["results"][case]["crop"]
    maps = {letter: np.around(np.float64(want[protocol]["mAP"]) * 100, decimals=2)
            for letter, protocol in zip("EMH", ("easy", "medium", "hard"))}
    assert (f">> {truth.name}: mAP " + ", ".join(f"{k}: {v}" for k, v in maps.items())
            in done.stdout.splitlines())


def test_figures_by_hand(run_tool, make_ground_truth, tmp_path):
    """Of four images in the order d, a, c, b: a is easy, b hard, c junk."""
    gnd = make_ground_truth(tmp_path / "gnd_hand.pkl", list("abcd"), ["q"],
                            [{"easy": [0], "hard": [1], "junk": [2]}])
    entries = {"q.jpg": [1.0], "a.jpg": [3.0], "b.jpg": [1.0], "c.jpg": [2.0], "d": [4.0]}
    (tmp_path / "fea.pickle").write_bytes(pickle.dumps(
        {name: np.array([value], "f") for name, value in entries.items()}))
    done = run_tool(COMMAND, "--gnd", gnd, "--features", tmp_path / "fea.pickle")
    # Easy: at place 1, (0/1 + 1/2) / 2. Medium: places 1 and 2, (0 + 1/2 + 1/2 + 2/3) / 4. Hard: as
    # Easy. P@5 and P@10 end at the last positive
    assert done.stdout.splitlines() == [
        ">> hand: Evaluating test dataset...", "final db: (4, 1)",
        ">> hand: mAP E: 25.0, M: 41.67, H: 25.0",
        ">> hand: mP@k[ 1  5 10] E: [ 0. 50. 50.], M: [ 0.   66.67 66.67], H: [ 0. 50. 50.]",
        "Done!"]


def test_ranks_by_counting_are_those_of_sorting():
    """Small integers make many ties, which go to the lower index, and exact sums; two blocks."""
    rng = np.random.default_rng(0)
    queries, database, distractors = (rng.integers(-2, 3, (count, 3)).astype(np.float64)
                                      for count in (4, 50, 20_000))
    labelled = [rng.permutation(50)[:count] for count in (0, 1, 7, 50)]
    scores = queries @ np.concatenate([database, distractors]).T
    for q, got in enumerate(rank_labelled(queries, database, distractors, labelled)):
        order = sorted(range(20_050), key=lambda image: (-scores[q, image], image))
        place = {image: rank for rank, image in enumerate(order)}
        assert got.tolist() == [place[image] for image in labelled[q]]


def _changed(path, **changes):
    entries = {**pickle.loads(path.read_bytes()), **changes}
    path.write_bytes(pickle.dumps({key: row for key, row in entries.items() if row is not None}))


def _cut(path):
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize("features, spoil, message", [
    ("fea.pickle", lambda path: path.unlink(), "No such file"),
    ("fea.pickle", lambda path: path.write_bytes(pickle.dumps(_Evil())), "nothing was executed"),
    ("fea.pickle", _cut, "is not a whole pickle"),
    ("fea.pickle", lambda path: path.write_bytes(pickle.dumps([1])), "holds no dictionary"),
    ("fea.pickle", lambda path: _changed(path, **{"image 7.jpg": None, "image 9.jpg": None}),
     "lacks 2 of 40 images that the ground truth names: 'image 7', 'image 9'; it has 'image 0.jpg'"),
    ("fea.pickle", lambda path: _changed(path, **{"query 2.jpg": None}), "lacks 1 of 5 images"),
    ("fea.pickle", lambda path: _changed(path, **{"image 7.jpg": np.ones(9)}), "of one length"),
    ("fea.pickle", lambda path: _changed(path, **{"image 7.jpg": "x" * 8}), "something else"),
    ("fea.pickle", lambda path: _changed(path, **{"image 7.jpg": np.full(8, np.nan)}),
     "'image 7.jpg' has values that are not finite"),
    ("fea.mat", lambda path: path.unlink(), "No such file"),
    ("fea.mat", _cut, "no .mat file that SciPy can read"),
    ("fea.mat", lambda path: path.write_bytes(b""), "no .mat file that SciPy can read"),
    ("fea.mat", lambda path: savemat(path, {"X": np.ones((8, 40))}), "no table of numbers 'Q'"),
    ("fea.mat", lambda path: savemat(path, {"Q": ["text"], "X": np.ones((8, 40))}),
     "no table of numbers 'Q'"),
    ("fea.mat", lambda path: savemat(path, {"Q": np.ones((8, 5)), "X": np.ones((8, 39))}),
     "X in the shape (8, 39): the ground truth names 40 images"),
    ("fea.mat", lambda path: savemat(path, {"Q": np.ones((9, 5)), "X": np.ones((8, 40))}),
     "queries of 9 dimensions, a database of 8"),
    ("1M.mat", lambda path: savemat(path, {"Y": np.ones((8, 3))}), "no table of numbers 'X'"),
    ("1M.mat", lambda path: savemat(path, {"X": np.ones((9, 3))}), "X in the shape (9, 3)"),
    ("1M.mat", lambda path: savemat(path, {"X": np.ones((3, 2, 4))}), "X in the shape (3, 2, 4)"),
    ("1M.mat", lambda path: savemat(path, {"X": np.vstack([np.ones((2, 8)), np.full(8, np.nan)])}),
     "distractor 2 has values that are not finite"),
])
def test_bad_files_give_one_line(run_tool, files, features, spoil, message):
    gnd, paths, _ = files
    spoil(paths[features])
    pair = ((paths["fea.pickle"], "--distractors", paths["1M.mat"]) if features == "1M.mat"
            else (paths[features],))
    done = run_tool(COMMAND, "--gnd", gnd, "--features", *pair)
    assert done.returncode == 1 and "Done!" not in done.stdout and "executed" not in done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr


def test_other_mistakes(run_tool, files, make_ground_truth, tmp_path):
    gnd, paths, _ = files
    plain = make_ground_truth(tmp_path / "gnd_plain.pkl", ["a"], ["q"], [{"ok": [0], "junk": []}])
    for arguments, message in ((["--gnd", plain], "no easy and hard labels"),
                               (["--gnd", tmp_path / "none.pkl"], "cannot read the ground truth"),
                               (["--gnd", gnd, "--fast"], "unrecognized arguments")):
        done = run_tool(COMMAND, "--features", paths["fea.mat"], *arguments)
        assert done.returncode == 1 and done.stdout == "" and message in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
