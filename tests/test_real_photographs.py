"""The whole way, by the commands, on real photographs with the weights of a real network."""
import json
import shutil

import numpy as np
import pytest

from dolg.features.store import FeatureStore


@pytest.fixture(scope="module")
def extracted(shared, run_tool, tmp_path_factory):
    """Folder of the stores of the set with cropped queries, of the distractors, and, under
    `full`, of the set with whole queries."""
    out, data = tmp_path_factory.mktemp("lite0"), shared / "data"
    command = ["tools/infer.py", "--cfg", "configs/eval/efficientnet_lite0_gem.yaml",
               "TEST.WEIGHTS", data / "weights" / "tf_efficientnet_lite0.safetensors",
               "INFER.DATASET", "minilandmarks", "INFER.DATA_DIR", data, "INFER.OUT_DIR"]
    distractors = ["INFER.IMAGES", data / "minilandmarks" / "distractors"]
    for options in ([out, *distractors], [out / "full", "INFER.CROP_QUERIES", "False"]):
        done = run_tool(*command, *options, "INFER.LOCAL", "True")
        assert done.returncode == 0, done.stderr
        if not (out / "full").exists():     # the database is the same: it is described once
            shutil.copytree(out / "minilandmarks" / "database", out / "full" / "minilandmarks" / "database")
    return out


@pytest.mark.parametrize("name, key", [
    ("minilandmarks/query", "query_crop"), ("full/minilandmarks/query", "query_full"),
    ("minilandmarks/database", "database"),
    ("distractors", "distractor")])
def test_descriptors(extracted, shared, name, key):
    folder = shared / "data" / "minilandmarks"
    store = FeatureStore(extracted / name)
    mine = np.concatenate(list(store.global_descriptors()))
    names = [image.removesuffix(".jpg") for image in store.names]
    images = json.loads((folder / "expected.json").read_text())["images"][key]
    wanted = [image.removesuffix(".jpg") for image in images]
    assert sorted(names) == sorted(wanted)
    theirs = np.load(folder / "expected.npz")[key][[wanted.index(image) for image in names]]
    assert (mine.astype(np.float64) * theirs).sum(axis=1).min() > 0.99999
    np.testing.assert_allclose(np.linalg.norm(mine, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("queries", ["crop", "full"])
@pytest.mark.parametrize("case", ["without_distractors", "with_distractors"])
def test_scores(extracted, shared, run_tool, tmp_path, queries, case):
    folder = shared / "data" / "minilandmarks"
    stores = extracted / ("full" if queries == "full" else "") / "minilandmarks"
    distractors = ["--distractors", extracted / "distractors"] if case == "with_distractors" else []
    done = run_tool(
        "revisitop/evaluate.py", "--gnd", folder / "gnd_minilandmarks.pkl",
        "--query", stores / "query", "--database", stores / "database", *distractors,
        "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    got = json.loads((tmp_path / "result.json").read_text())["protocols"]
    expected = json.loads((folder / "expected.json").read_text())["results"][case][queries]
    assert set(got) == set(expected) == {"easy", "medium", "hard"}
    for protocol, figures in expected.items():
        assert got[protocol]["mAP"] == pytest.approx(figures["mAP"], abs=1e-3)


def test_spatial_verification_finds_more(extracted, shared, run_tool, tmp_path):
    """Among distractors, matches that agree on a homography put the right photographs first."""
    done = run_tool(
        "tools/rerank.py", "--cfg", "configs/eval/efficientnet_lite0_gem.yaml", "INFER.DATA_DIR",
        shared / "data", "INFER.DATASET", "minilandmarks", "INFER.OUT_DIR", extracted, "RERANK.OUT_DIR",
        tmp_path, "RERANK.DISTRACTORS", f"[{extracted / 'distractors'}]", "RERANK.METHOD", "spatial@0.5")
    assert done.returncode == 0, done.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text())["protocols"]
             for name in ("global", "spatial@0.5_top100")}
    expected = json.loads((shared / "data" / "minilandmarks" / "expected.json").read_text())
    for protocol, figures in expected["results"]["with_distractors"]["crop"].items():
        assert found["global"][protocol]["mAP"] == pytest.approx(figures["mAP"], abs=1e-3)
        assert found["spatial@0.5_top100"][protocol]["mAP"] > figures["mAP"] + 0.03
