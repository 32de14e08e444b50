"""Training, extraction and evaluation say which prepared data they were made from."""
import hashlib
import json

import cv2
import numpy as np
import pytest

from dolg.config import load_cfg
from dolg.core.provenance import data_used
from dolg.core.trainer import train
from dolg.errors import UserError
from dolg.features.run import infer
from dolg.features.store import FeatureStore
from dolg.prepare.catalogue import DataSet
from dolg.prepare.own import prepare_table
from dolg.prepare.record import write_manifests
from dolg.prepare.work import Work
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Root of a prepared set `mine`: a benchmark, distractors, and 12 training images of 4 classes."""
    root = tmp_path_factory.mktemp("mine")
    rng, lines = np.random.default_rng(0), ["path,role,label,x1,y1,x2,y2"]
    for role, count in (("query", 2), ("database", 4), ("distractor", 3), ("train", 12)):
        for i in range(count):
            (root / "from").mkdir(exist_ok=True)
            cv2.imwrite(str(root / "from" / f"{role}{i}.png"), rng.integers(0, 255, (60, 64, 3), np.uint8))
            lines.append(f"{role}{i}.png,{role},{i % 4},{'4,5,60,55' if role == 'query' else ',,,'}")
    (root / "from" / "images.csv").write_text("\n".join(lines) + "\n")
    work = Work(DataSet("mine", "mine", "", ""), root / "data", root / "from")
    prepared = prepare_table(work, 0.0, 0)
    prepared.variant = "scanned"
    write_manifests(work, prepared, {})
    return root / "data"


def _cfg(tiny, root, out, *options):
    arguments = [*tiny[2:], "DATA_DIR", root, "TRAIN.DATASET", "mine", "TRAIN.BATCH_SIZE", 4,
                 "OPTIM.MAX_EPOCH", 1, "TEST.RETRIEVAL", "mine", "OUT_DIR", out, *options]
    return load_cfg(str(ROOT / tiny[1]), [str(argument) for argument in arguments])


def _sha256(file) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_from_the_manifest_to_the_result(tiny, root, tmp_path, run_tool):
    folder = root / "mine"
    train(_cfg(tiny, root, tmp_path))
    used = json.loads((tmp_path / "data.json").read_text())
    record = {"name": "mine", "variant": "scanned", "manifest_sha256": _sha256(folder / "manifest.json"),
              "counts": {"training images": 12, "held-out images": 0, "classes": 4, "queries": 2,
                         "database images": 4, "distractors": 3}}
    assert used["TRAIN"] == {"folder": str(folder), "file": "train_list.txt", "boxes_sha256": None,
                             "sha256": _sha256(folder / "train_list.txt"), "prepared": record}
    assert used["TEST.RETRIEVAL"]["sha256"] == _sha256(folder / "gnd_mine.pkl") and "TEST" not in used
    infer(_cfg(tiny, root, tmp_path, "INFER.DATASET", "mine", "INFER.IMAGES", folder / "distractors.txt"))
    features = tmp_path / "features"
    for store in ("mine/query", "mine/database", "distractors"):
        manifest = FeatureStore(features / store).manifest
        assert manifest["data"] == record and manifest["image_variant"] == "scanned"
    done = run_tool("revisitop/evaluate.py", "--gnd", folder / "gnd_mine.pkl",
                    "--query", features / "mine" / "query", "--database", features / "mine" / "database",
                    "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    protocol = json.loads((tmp_path / "result.json").read_text())["protocol"]
    assert protocol["query"]["data"] == protocol["database"]["data"] == record
    assert protocol["query"]["image_variant"] == "scanned"
    # Prepared anew, it is the same store; called another variant, it is not
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "options": {"seed": 1}}))
    again = ("INFER.DATASET", "mine")
    infer(_cfg(tiny, root, tmp_path, *again))
    assert FeatureStore(features / "mine" / "query").manifest["data"] == record
    with pytest.raises(UserError, match="image_variant was .*scanned.*, is .*blurred"):
        infer(_cfg(tiny, root, tmp_path, *again, "INFER.IMAGE_VARIANT", "blurred"))


def test_a_run_does_not_go_on_with_other_images(tiny, root, tmp_path):
    listing = root / "mine" / "train_list.txt"
    before = listing.read_bytes()
    train(_cfg(tiny, root, tmp_path))
    further = _cfg(tiny, root, tmp_path, "OPTIM.MAX_EPOCH", 2)
    try:
        listing.write_bytes(b"".join(reversed(before.splitlines(keepends=True))))
        with pytest.raises(UserError, match="train_list.txt or its boxes were changed since the run in"):
            train(further)
    finally:
        listing.write_bytes(before)
    train(further)
    (tmp_path / "data.json").unlink()       # a run of an older version
    train(_cfg(tiny, root, tmp_path, "OPTIM.MAX_EPOCH", 3))
    assert (tmp_path / "checkpoints" / "model_epoch_0003.pyth").exists()


def test_boxes_and_shards_have_their_place(tiny, root, tmp_path):
    cfg = _cfg(tiny, tmp_path, tmp_path / "out", "TRAIN.SPLIT", "train-*.tar", "TEST.RETRIEVAL", "")
    (tmp_path / "mine").mkdir()
    assert data_used(cfg)["TRAIN"] == {"folder": str(tmp_path / "mine"), "file": "train-*.tar",
                                       "sha256": None, "boxes_sha256": None, "prepared": None}
    (tmp_path / "mine" / "boxes.csv").write_text("path,x1,y1,x2,y2\n")
    assert data_used(cfg)["TRAIN"]["boxes_sha256"] == _sha256(tmp_path / "mine" / "boxes.csv")
