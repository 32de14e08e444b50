"""Ground truth: the published files, and files that must be refused."""
import json
import pickle
from collections import OrderedDict, defaultdict, deque
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch

from revisitop import GroundTruthError, Store, evaluate_stores, load_ground_truth


@pytest.mark.parametrize("name, images, no_easy, no_junk", [
    ("roxford5k", 4993, 2, None), ("rparis6k", 6322, None, 5)])
def test_the_published_files(shared, name, images, no_easy, no_junk):
    truth = load_ground_truth(shared / "data" / f"gnd_{name}.pkl")
    assert truth.name == name and len(truth.images) == images and len(truth.queries) == 70
    assert all(len(box) == 4 for box in truth.boxes) and not truth.is_plain
    if no_easy is not None:
        assert sum(len(easy) == 0 for easy in truth.easy) == no_easy
    if no_junk is not None:
        assert sum(len(junk) == 0 for junk in truth.junk) == no_junk
    # Against the pickle as Python reads it
    with open(shared / "data" / f"gnd_{name}.pkl", "rb") as file:
        raw = pickle.load(file)
    assert truth.images == raw["imlist"] and truth.queries == raw["qimlist"]
    for labels, box, entry in zip(truth.labels, truth.boxes, raw["gnd"], strict=True):
        np.testing.assert_allclose(box, entry["bbx"], rtol=0)
        for kind in ("easy", "hard", "junk"):
            np.testing.assert_array_equal(labels[kind], np.asarray(entry[kind], int))


GOOD = {"bbx": None, "easy": [0], "hard": [], "junk": [1]}


@pytest.mark.parametrize("entry, message", [
    ({**GOOD, "easy": [2]}, "image 2 as easy; the 2 images of imlist are 0 to 1"),
    ({**GOOD, "easy": [-1]}, "image -1 as easy"),
    ({**GOOD, "easy": [0.5]}, "something else than a list of integers as easy"),
    ({**GOOD, "hard": [0]}, "labels image 0 more than once"),
    ({**GOOD, "bbx": [1, 2, 3]}, "not four finite numbers"),
    ({**GOOD, "bbx": [1, 2, 3, float("nan")]}, "not four finite numbers"),
    ({"easy": [0], "junk": []}, "has no hard (labels are easy and hard, or ok, and perhaps junk; found: 'easy', 'junk')"),
    ({"bbx": None}, "has no ok"),
    ([0], "a list as its entry"),
])
def test_a_bad_entry_names_its_query(make_ground_truth, tmp_path, entry, message):
    path = make_ground_truth(tmp_path / "gnd_bad.pkl", ["a", "b"], ["the query"], [entry])
    with pytest.raises(GroundTruthError) as caught:
        load_ground_truth(path)
    assert message in str(caught.value) and "'the query'" in str(caught.value)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("content, message", [
    ([1, 2], "it holds a list"), ({"imlist": []}, "no qimlist and no gnd"),
    ({"imlist": ["a", "a"], "qimlist": ["q"], "gnd": [GOOD]}, "imlist has 'a' more than once"),
    ({"imlist": ["a"], "qimlist": ["q"], "gnd": []}, "gnd has 0 entries for the 1 names"),
])
def test_a_bad_structure_is_described(tmp_path, content, message):
    path = tmp_path / "gnd_bad.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(GroundTruthError, match=message):
        load_ground_truth(path)


class _Calls:
    """Unpickling it calls `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_pickle_is_run(tmp_path, protocol):
    path, trace = tmp_path / "gnd_evil.pkl", tmp_path / "trace"
    for evil in (_Calls(Path.touch, trace), _Calls(eval, f"open({str(trace)!r}, 'w')"),
                 _Calls(np.load, str(trace)), _Calls(getattr, {}, "clear")):
        path.write_bytes(pickle.dumps({"imlist": ["a"], "gnd": evil}, protocol))
        with pytest.raises(GroundTruthError, match="nothing was executed"):
            load_ground_truth(path)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_every_pickle_protocol(tmp_path, protocol):
    entries = [{"bbx": np.array([1.5, 2, 3, 4]), "easy": np.array([0, 2]), "hard": (np.int64(1),),
                "junk": np.empty(0)}]
    path = tmp_path / "gnd_arrays.pkl"
    path.write_bytes(pickle.dumps({"imlist": np.array(["a", "b", "c"]), "qimlist": ["q"],
                                   "gnd": entries}, protocol))
    truth = load_ground_truth(path)
    assert truth.images == ["a", "b", "c"] and truth.boxes == [(1.5, 2.0, 3.0, 4.0)]
    assert {kind: v.tolist() for kind, v in truth.labels[0].items()} == {
        "easy": [0, 2], "hard": [1], "junk": []}


PLAIN = {"imlist": [f"image {i}" for i in range(40)], "qimlist": [f"query {i}" for i in range(5)]}


@pytest.mark.parametrize("change", [
    lambda entry: {kind: entry[kind] for kind in ("easy", "hard")},
    lambda entry: {"ok": entry["easy"]},
    lambda entry: {"bbx": None, b"easy": set(entry["easy"]), b"hard": frozenset(entry["hard"])},
    lambda entry: OrderedDict(easy=deque(entry["easy"]), hard=torch.tensor(entry["hard"], dtype=torch.int64)),
], ids=["no junk", "ok alone", "sets", "collections"])
@pytest.mark.parametrize("names", [list, lambda names: [name.encode() for name in names],
                                   lambda names: tuple(map(PurePosixPath, names))], ids=["text", "bytes", "paths"])
def test_what_people_pickle(toy, change, names):
    """The same metrics as of lists and text, with empty junk."""
    entries = pickle.loads(toy["gnd"].read_bytes())["gnd"]
    changed = [change(entry) for entry in entries]
    plain = [{"ok": entry["easy"], "junk": []} if "ok" in new else {**entry, "junk": []}
             for entry, new in zip(entries, changed)]
    for gnd, content in ((toy["gnd"], {**PLAIN, "gnd": plain}), (toy["gnd"].with_name("gnd_other.pkl"), {
            **{key: names(value) for key, value in PLAIN.items()}, "gnd": np.array(changed, object)})):
        gnd.write_bytes(pickle.dumps(content))
    results = [evaluate_stores(load_ground_truth(gnd), Store(toy["query"]), Store(toy["database"]), [])["protocols"]
               for gnd in (toy["gnd"], toy["gnd"].with_name("gnd_other.pkl"))]
    assert results[0] == results[1]


def test_no_junk_through_the_command_line(run_tool, make_store, toy, tmp_path):
    """Worked by hand: the two positives are 1st and 3rd of 40 images."""
    names = ["a", "b", "c"]
    axes = np.float32([[1, 0], [0.8, 0.6], [0.6, 0.8]])
    toy["gnd"].write_bytes(pickle.dumps(defaultdict(dict, {
        b"imlist": [b"a", Path("b"), "c"], "qimlist": ("q",), "gnd": [OrderedDict(ok={0, 2})]})))
    stores = [make_store(tmp_path / "q", ["q"], axes[:1]), make_store(tmp_path / "d", names, axes)]
    done = run_tool("revisitop/evaluate.py", "--gnd", toy["gnd"], "--query", stores[0], "--database", stores[1],
                    "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    # Trapezoids: (1 + 1) / 2 / 2, and (1/2 + 2/3) / 2 / 2
    assert json.loads((tmp_path / "out.json").read_text())["protocols"]["plain"]["mAP"] == pytest.approx(
        0.5 + 7 / 24)


def test_a_cut_file_is_refused_wherever_it_is_cut(tmp_path):
    whole = pickle.dumps({"imlist": ["a", "b"], "qimlist": ["q"], "gnd": [GOOD]})
    path = tmp_path / "gnd_cut.pkl"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(GroundTruthError):
            load_ground_truth(path)
