"""tools/rerank.py as a user runs it."""
import csv
import json
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dolg.config import load_cfg
from dolg.errors import UserError
from dolg.features.store import LocalTable
from dolg.rerank.builders import RERANKERS, parse_method
from dolg.rerank.run import rerank
from dolg.rerank.table import format_table
from revisitop import compute_map, load_ground_truth, split

ROOT = Path(__file__).resolve().parents[2]
IMAGES, QUERIES, OTHERS = 24, 3, 10


@pytest.fixture
def toy(tmp_path, write_store, make_local):
    """Options for a set of three queries; each has two images of the same object, with its local features
    moved aside, of which the descriptors know little."""
    rng = np.random.default_rng(3)
    descriptors = rng.standard_normal((QUERIES + IMAGES + OTHERS, 6))
    descriptors = (descriptors / np.linalg.norm(descriptors, axis=1)[:, None]).astype(np.float32)
    local = [make_local(rng, 30) for _ in descriptors]
    labels = []
    for query in range(QUERIES):
        same = [4 * query, 4 * query + 1]
        for image in same:
            table = local[query]
            local[QUERIES + image] = LocalTable(table.offsets, table.descriptors, table.xy + [20, 10],
                                                table.scales, table.scores)
        labels.append({"easy": same[:1], "hard": same[1:], "junk": [4 * query + 2], "bbx": [0, 0, 9, 9]})
    parts = np.split(np.arange(len(local)), [QUERIES, QUERIES + IMAGES])
    for name, rows in zip(("toy/query", "toy/database", "others"), parts):
        write_store(name, descriptors[rows], [local[row] for row in rows],
                    names=[f"{name[4]}{row}" for row in range(len(rows))])
    (tmp_path / "toy" / "gnd_toy.pkl").write_bytes(pickle.dumps({
        "imlist": [f"d{n}" for n in range(IMAGES)], "qimlist": [f"q{n}" for n in range(QUERIES)],
        "gnd": labels}))
    options = ["DATA_DIR", tmp_path, "INFER.DATASET", "toy", "INFER.OUT_DIR", tmp_path,
               "RERANK.OUT_DIR", tmp_path / "out", "RERANK.DISTRACTORS", f"[{tmp_path / 'others'}]"]
    return [str(option) for option in options]


CFG = "configs/delg/r50_gldv2_8gpu.yaml"


def test_a_table_of_methods(toy, tmp_path, run_tool):
    done = run_tool("tools/rerank.py", "--methods", "aqe,spatial,superglobal+spatial@0.5", "--cfg", CFG, *toy,
                    "RERANK.TOP_K", "[3, 40]", "RERANK.SPATIAL.MATCHING", "mutual")
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("|")]
    assert rows[2:] == ["global", "aqe_top3", "aqe_top40", "spatial_top3", "spatial_top40",
                        "superglobal+spatial@0.5_top3", "superglobal+spatial@0.5_top40"]
    results = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out").glob("*.json")}
    assert set(results) == set(rows[2:])
    spatial = results["spatial_top40"]
    assert spatial["protocols"]["medium"]["mAP"] == 1.0 > results["global"]["protocols"]["medium"]["mAP"]
    assert spatial["reranking"]["seconds_per_query"] > 0
    # 30 features of 8 numbers in float16, with two coordinates in float32
    assert spatial["reranking"]["bytes_per_image"] == 30 * (2 * 8 + 2 * 4)
    compared = run_tool("revisitop/compare.py", tmp_path / "out" / "global.json",
                        tmp_path / "out" / "spatial_top40.json")
    assert compared.returncode == 0, compared.stderr


def test_lists_without_a_ground_truth_and_of_somebody_else(toy, tmp_path, run_tool):
    theirs = tmp_path / "theirs.csv"
    theirs.write_text("query,image,score\n" + "".join(
        f"q{query},{name},{1 - place / 10}\n" for query in range(QUERIES)
        for place, name in enumerate(("d20", "r3", f"d{4 * query}", f"d{4 * query}", "d21"))))
    done = run_tool("tools/rerank.py", "--cfg", CFG, "RERANK.QUERY", tmp_path / "toy/query",
                    "RERANK.DATABASE", tmp_path / "toy/database", *toy[6:], "RERANK.RANKING", theirs,
                    "RERANK.SPATIAL.MATCHING", "mutual", "RERANK.TOP_K", "[4]")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "out" / "spatial_top4.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    for query in range(QUERIES):
        images = [line["image"] for line in lines if line["query"] == f"q{query}"]
        assert images == [f"d{4 * query}"] * 2 + ["d20", "r3", "d21"]
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.mark.parametrize("options, message", [
    (["RERANK.METHOD", "spatail"], "RERANK.METHOD is 'spatail': .*did you mean 'spatial'"),
    (["RERANK.METHOD", "rrt@2"], "weight behind @ is a share from 0 to 1"),
    (["RERANK.METHOD", "[]"], "RERANK.METHOD is empty"),
    (["RERANK.METHOD", "rrt", "OUT_DIR", "nowhere"], "RERANK.RRT.WEIGHTS is empty"),
    (["RERANK.QUERY", "a"], "RERANK.QUERY and RERANK.DATABASE go together"),
    (["INFER.DATASET", ""], "nothing to rerank"),
    (["RERANK.TOP_K", "[0]"], "RERANK.TOP_K is .0."),
])
def test_mistakes_are_said_in_a_line(toy, options, message):
    with pytest.raises(UserError, match=message):
        rerank(load_cfg(CFG, [*toy, *options]))


def test_methods_and_weights():
    cfg = load_cfg(None, ["RERANK.WEIGHT", "0.7"])
    assert parse_method(cfg, "rrt@0.25") == ("rrt", 0.25)
    assert parse_method(cfg, "asmk") == ("asmk", 0.7)
    assert set(RERANKERS) >= {"rrt", "spatial", "asmk", "superglobal", "aqe", "alpha", "kreciprocal",
                              "diffusion"}


def test_the_figures_are_those_of_the_lists(toy, tmp_path):
    """The tables' figures, computed anew from the reranked lists of a search that knows no junk."""
    cfg = load_cfg(CFG, [*toy, "RERANK.METHOD", "[superglobal]", "RERANK.REMOVE_JUNK", "False",
                         "RERANK.TOP_K", "[15]"])
    results = rerank(cfg)
    truth = load_ground_truth(tmp_path / "toy" / "gnd_toy.pkl")
    files = json.loads((tmp_path / "out" / "superglobal_top15.json").read_text())["files"]
    assert files["lists"] == "superglobal_top15.csv"
    assert (tmp_path / "out" / files["ground_truth"]).samefile(tmp_path / "toy" / "gnd_toy.pkl")
    with open(tmp_path / "out" / files["lists"], newline="") as file:
        lines = list(csv.DictReader(file))
    row = {**{f"d{n}": n for n in range(IMAGES)}, **{f"r{n}": IMAGES + n for n in range(OTHERS)}}
    ranks = [np.array([row[line["image"]] for line in lines if line["query"] == f"q{n}"])
             for n in range(QUERIES)]
    figures = results["superglobal_top15"]["protocols"]
    for protocol in ("easy", "medium", "hard"):
        # Images beyond the fifteen are in no list, but keep their places in the figures
        found = [ap for ap, q in zip(figures[protocol]["ap"], range(QUERIES))
                 if np.isin(split(truth, protocol)[q]["ok"], ranks[q]).all()]
        expected = [ap for ap, q in zip(compute_map(ranks, split(truth, protocol)).aps, range(QUERIES))
                    if np.isin(split(truth, protocol)[q]["ok"], ranks[q]).all()]
        assert found == pytest.approx(expected, abs=1e-12)


def test_a_killed_run_goes_on(toy, tmp_path, run_tool):
    """Pairs that were scored before SIGKILL are not scored again, and the figures are the same."""
    slow = tmp_path / "slow.py"
    slow.write_text(f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from dolg.config import load_cfg
from dolg.rerank.run import rerank
from dolg.rerank.spatial import SpatialReranker
score = SpatialReranker.score_pairs
def slowly(self, query, candidates):
    print("scoring", query, len(candidates), flush=True)
    time.sleep(0.5 if sys.argv[1] == "slow" else 0)
    return score(self, query, candidates)
SpatialReranker.score_pairs = slowly
rerank(load_cfg({CFG!r}, sys.argv[2:]))
""")
    arguments = [*toy, "RERANK.SPATIAL.MATCHING", "mutual"]
    process = subprocess.Popen([sys.executable, str(slow), "slow", *arguments], cwd=ROOT,
                               stdout=subprocess.PIPE, text=True)
    for _ in range(3):
        assert process.stdout.readline().startswith("scoring")
    process.send_signal(signal.SIGKILL)
    process.wait()
    files = list((tmp_path / "out" / "pairs").rglob("query-*.npz"))
    assert files
    known = sum(len(np.load(file)["rows"]) for file in files)
    again = subprocess.run([sys.executable, str(slow), "fast", *arguments], cwd=ROOT, text=True,
                           capture_output=True)
    assert again.returncode == 0, again.stderr
    scored = [int(line.split()[2]) for line in again.stdout.splitlines() if line.startswith("scoring")]
    killed = json.loads((tmp_path / "out" / "spatial_top100.json").read_text())
    clean = [*arguments, "RERANK.OUT_DIR", tmp_path / "clean"]
    undisturbed = rerank(load_cfg(CFG, list(map(str, clean))))["spatial_top100"]
    assert killed["protocols"] == undisturbed["protocols"]
    assert sum(scored) + known == QUERIES * (IMAGES + OTHERS), "each pair once"


def test_each_file_of_results_has_a_row():
    figures = {protocol: {"mAP": value, "ap": [value]} for protocol, value in
               (("easy", 0.5), ("medium", None), ("hard", 0.123456))}
    record = {"query": {"cropped": True}}
    table = format_table({
        "global": {"protocols": figures, "protocol": record},
        "rrt_top9": {"protocols": figures, "protocol": record,
                     "reranking": {"seconds_per_query": 0.0123, "bytes_per_image": 1500.0}},
        "known": {"protocols": figures, "protocol": record,
                  "reranking": {"seconds_per_query": None, "bytes_per_image": None}}}).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert cells[0] == ["mAP", "Easy", "Medium", "Hard", "ms per query", "KB per image"]
    assert cells[2] == ["global", "50.00", "-", "12.35", "0.0", "0.00"]
    assert cells[3] == ["rrt_top9", "50.00", "-", "12.35", "12.3", "1.50"]
    assert cells[4][4:] == ["known", "known"]
    assert len(set(map(len, table))) == 1


def test_two_processes_do_what_one_does(toy, torchrun, tmp_path):
    done = torchrun(2, "tools/rerank.py", "--cfg", CFG, *toy, "RERANK.SPATIAL.MATCHING", "mutual",
                    env={"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"})
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "out" / "spatial_top100.json").read_text())
    one = rerank(load_cfg(CFG, [*toy, "RERANK.SPATIAL.MATCHING", "mutual", "RERANK.OUT_DIR",
                                str(tmp_path / "one")]))["spatial_top100"]
    assert two["protocols"] == one["protocols"] and two["protocol"] == one["protocol"]
    lists = [(tmp_path / folder / "spatial_top100.csv").read_text() for folder in ("out", "one")]
    assert lists[0] == lists[1] and lists[0].count("\n") > QUERIES
