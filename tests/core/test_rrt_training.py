"""Training of reranking transformers: it learns, goes on exactly, and is the same on several processes."""
import json
import os
import pickle
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.core.saving import newest_checkpoint
from dolg.core.trainer import Trainer, train
from dolg.errors import UserError
from dolg.features.store import FeatureStore, LocalTable, StoreWriter
from dolg.rerank.run import rerank
from dolg.search.collection import Collection
from dolg.search.neighbours import neighbours_of

ROOT = Path(__file__).resolve().parents[2]
CLASSES, EACH, GLOBAL, LOCAL = 4, 12, 8, 16
FAILED = (3, 40)
SCALES = np.array([0.5, 0.7071, 1.0], np.float32)


def _unit(table: np.ndarray) -> np.ndarray:
    return (table / np.linalg.norm(table, axis=-1, keepdims=True)).astype(np.float32)


def _locals(prototypes: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """An image of an object: its features, and clutter, in random order."""
    seen = prototypes
    clutter = rng.standard_normal((rng.integers(0, 3), LOCAL))
    table = np.concatenate([seen + 0.1 * rng.standard_normal(seen.shape), clutter])
    table = _unit(table[rng.permutation(len(table))])
    count = len(table)
    return table, rng.random((count, 2)) * 100, rng.choice(SCALES, count), np.sort(rng.random(count))[::-1]


@pytest.fixture(scope="module")
def landmarks(tmp_path_factory) -> Path:
    """A data root with `store`, `neighbours` and `list.txt`: images of an object share local features.
    Two objects each look alike as a whole: their images are neighbours, and descriptors tell nothing."""
    root, rng = tmp_path_factory.mktemp("landmarks"), np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), EACH))
    looks = _unit(rng.standard_normal((CLASSES // 2, GLOBAL)))
    prototypes = rng.standard_normal((CLASSES, 3, LOCAL))
    names = [f"photo {row}.jpg" for row in range(len(labels))]
    writer = StoreWriter(root / "store", names, GLOBAL, 10, {"model": "toy"}, local_dim=LOCAL)
    for number in range(writer.num_chunks):
        rows = writer.rows(number)
        whole = _unit(looks[labels[rows] // 2] + 0.02 * rng.standard_normal((len(rows), GLOBAL)))
        images = [_locals(prototypes[labels[row]], rng) for row in rows]
        failed = {row - rows.start: "no photo" for row in FAILED if row in rows}
        writer.write_chunk(number, whole, failed, LocalTable.joined(images))
    (root / "list.txt").write_text("".join(f"{name} {label + 7}\n" for name, label in zip(names, labels)))
    neighbours_of(Collection([FeatureStore(root / "store")]), 14, root / "neighbours")
    return root


def _options(root: Path, out_dir: Path, *options) -> list[str]:
    return [str(option) for option in (
        "DATA_DIR", root, "TRAIN.DATASET", ".", "TRAIN.SPLIT", "list.txt", "TRAIN.PAIRS.FEATURES",
        root / "store", "TRAIN.PAIRS.NEIGHBOURS", root / "neighbours", "TRAIN.PAIRS.DEPTH", 12,
        "TRAIN.PAIRS.MIN_POSITIVES", 2, "MODEL.ARCH", "rrt", "MODEL.RRT.LAYERS", 2, "MODEL.RRT.HEADS", 2,
        "MODEL.RRT.DIM", LOCAL, "MODEL.RRT.FEEDFORWARD", 64, "MODEL.RRT.GLOBAL_DIM", GLOBAL,
        "MODEL.RRT.LOCALS", 4, "MODEL.RRT.SCALES", "[0.5, 0.7071, 1.0]", "OPTIM.NAME", "adamw",
        "OPTIM.BASE_LR", 0.006, "OPTIM.MAX_EPOCH", 3, "OPTIM.WARMUP_EPOCHS", 0, "TRAIN.BATCH_SIZE", 12,
        "DATA_LOADER.NUM_WORKERS", 0, "LOG_PERIOD", 1, "OUT_DIR", out_dir, *options)]


def _train(root: Path, out_dir: Path, *options) -> dict:
    """Train in this process; the last checkpoint."""
    train(load_cfg(None, _options(root, out_dir, *options)))
    return torch.load(newest_checkpoint(out_dir), weights_only=True)


def _log(out_dir: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (out_dir / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _assert_same_run(out_dir: Path, undisturbed: Path) -> None:
    """Bit for bit the same weights, average and memory of the optimizer, and the same losses."""
    final, expected = (torch.load(newest_checkpoint(folder), weights_only=True)
                       for folder in (out_dir, undisturbed))
    assert (final["epoch"], final["step"]) == (expected["epoch"], expected["step"]) == (3, 0)
    for part in ("model", "average"):
        assert _same(final[part], expected[part]) and final[part]
    mine, theirs = final["optimizer"]["state"], expected["optimizer"]["state"]
    assert mine.keys() == theirs.keys() and all(_same(mine[key], theirs[key]) for key in mine)
    for name in ("loss", "pair_acc"):
        curves = [{line["epoch"]: line[name] for line in _log(folder, "train_epoch")}
                  for folder in (out_dir, undisturbed)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-6) and set(curves[0]) == {1, 2, 3}


def test_it_is_judged_by_what_it_reranks(landmarks, tmp_path):
    """Each epoch's mAP is what tools/rerank.py finds with its weights."""
    store = FeatureStore(landmarks / "store")
    labels = np.array([int(line.split()[-1]) for line in (landmarks / "list.txt").read_text().splitlines()])
    for part in ("query", "database"):
        shutil.copytree(store.path, tmp_path / "features" / "toy" / part)
    (tmp_path / "data" / "toy").mkdir(parents=True)
    entries = [{"bbx": [0, 0, 9, 9], "junk": [row], "hard": [],
                "easy": np.setdiff1d(np.flatnonzero(labels == labels[row]), row).tolist()}
               for row in range(store.count)]
    (tmp_path / "data" / "toy" / "gnd_toy.pkl").write_bytes(pickle.dumps(
        {"imlist": list(store.names), "qimlist": list(store.names), "gnd": entries}))
    keys = ["INFER.OUT_DIR", tmp_path / "features", "INFER.DATA_DIR", tmp_path / "data", "RERANK.TOP_K", [30]]
    _train(landmarks, tmp_path / "run", "TEST.RETRIEVAL", "toy", *keys)
    logged = _log(tmp_path / "run", "test_epoch")
    assert len(logged) == 3 and "mAP Hard" not in logged[0], "no query has a hard image"
    for number, figures in enumerate(logged, 1):
        weights = tmp_path / "run" / "checkpoints" / f"model_epoch_{number:04d}.pyth"
        cfg = load_cfg(None, _options(landmarks, tmp_path / "run", *keys, "INFER.DATASET", "toy",
                                      "RERANK.METHOD", "rrt", "RERANK.RRT.WEIGHTS", weights))
        found = rerank(cfg)["rrt_top30"]["protocols"]
        assert figures["mAP Medium"] == pytest.approx(100 * found["medium"]["mAP"], abs=1e-5)
    best = json.loads((tmp_path / "run" / "checkpoints" / "best.json").read_text())
    assert best["value"] == pytest.approx(max(figures["mAP Medium"] for figures in logged), abs=1e-5)


def test_it_learns_which_images_share_features(landmarks, tmp_path):
    _train(landmarks, tmp_path, "OPTIM.MAX_EPOCH", 18, "LOG_PERIOD", 50)
    epochs = _log(tmp_path, "train_epoch")
    assert epochs[0]["pair_acc"] < 70 and epochs[-1]["pair_acc"] > 95
    assert epochs[-1]["loss"] < 0.2 * epochs[0]["loss"]


# Dropout and the average make everything that a checkpoint holds count
HARD = ["MODEL.RRT.DROPOUT", 0.1, "TRAIN.EMA", 0.9, "OPTIM.CLIP_NORM", 0.5]


@pytest.fixture(scope="module")
def undisturbed(landmarks, tmp_path_factory) -> Path:
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    _train(landmarks, folder, *HARD)
    return folder


def test_stopped_within_an_epoch_it_ends_the_same(landmarks, undisturbed, tmp_path, monkeypatch, capsys):
    step, steps = Trainer.step, []

    def stopped(self, batch):
        steps.append(batch.indexes.tolist())
        if len(steps) == 16:        # the fifth of the second epoch's eleven
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", stopped)
    _train(landmarks, tmp_path, *HARD, "TRAIN.CHECKPOINT_MINUTES", 0)
    assert "SIGTERM asked to stop: epoch 1 and 5 steps done" in capsys.readouterr().out
    assert newest_checkpoint(tmp_path).name == "model_epoch_0001_step_000005.pyth"
    _train(landmarks, tmp_path, *HARD, "DATA_LOADER.NUM_WORKERS", 2)
    assert len(steps) == 33
    _assert_same_run(tmp_path, undisturbed)


@pytest.fixture
def run_script(start_command, tmp_path):
    """`run_script(processes, *runs)` starts TRAIN_ALL."""
    (tmp_path / "train_all.py").write_text(TRAIN_ALL)
    return lambda *arguments: start_command(
        [tmp_path / "train_all.py", *arguments], together=True, session=True, fork=True,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})


TRAIN_ALL = """
import sys
from dolg.config import load_cfg
from dolg.core.cli import run
from dolg.core.distributed import launch
from dolg.core.trainer import train

def job(configs):
    for cfg in configs:
        train(cfg)

if __name__ == "__main__":
    processes, *runs = sys.argv[1:]
    configs = [load_cfg(None, options.split("|")) for options in runs]
    run(lambda: launch(job, int(processes), configs, device_name="cpu"))
"""


def test_killed_at_any_moment_it_ends_the_same(landmarks, undisturbed, run_script, tmp_path):
    out_dir = tmp_path / "out"
    often = ["TRAIN.CHECKPOINT_MINUTES", 1e-9, "DATA_LOADER.NUM_WORKERS", 1]
    process = run_script(1, "|".join(_options(landmarks, out_dir, *HARD, *often)))
    log, deadline = out_dir / "log.jsonl", time.monotonic() + 60
    while (process.poll() is None and time.monotonic() < deadline
           and (not log.exists() or log.read_bytes().count(b"\n") < 14)):
        time.sleep(0.002)
    assert process.poll() is None, process.communicate(timeout=60)[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    assert "_step_" in newest_checkpoint(out_dir).name
    _train(landmarks, out_dir, *HARD)
    _assert_same_run(out_dir, undisturbed)


@pytest.fixture(scope="module")
def products(toy_images, tmp_path_factory) -> Path:
    """`store` and `neighbours` of the toy images, in another order than their list's; any image may be
    another's neighbour."""
    root, rng = tmp_path_factory.mktemp("products"), np.random.default_rng(0)
    lines = (toy_images / "toy" / "train_list.txt").read_text().splitlines()
    names = [str(name) for name in rng.permutation([line.rpartition(" ")[0] for line in lines])]
    writer = StoreWriter(root / "store", names, 4, 10, {"model": "toy"})
    for number in range(writer.num_chunks):
        rows = writer.rows(number)
        failed = {row - rows.start: "no photo" for row in FAILED if row in rows}
        writer.write_chunk(number, _unit(rng.standard_normal((len(rows), 4))), failed)
    neighbours_of(Collection([FeatureStore(root / "store")]), 12, root / "neighbours")
    return root


def _product_options(data: Path, root: Path, out_dir: Path, *options) -> list[str]:
    return _options(root, out_dir, "DATA_DIR", data, "TRAIN.DATASET", "toy", "TRAIN.SPLIT",
                    "train_list.txt", "MODEL.ARCH", "rrt_sop", "MODEL.DEPTH", 18, "RESNET.STEM_WIDTH", 8,
                    "MODEL.HEADS.REDUCTION_DIM", 8, "TRAIN.IM_SIZE", 48, "TRAIN.PAIRS.POSITIVES", "class",
                    "TRAIN.PAIRS.MIN_POSITIVES", 1, "BN.FREEZE", "True", "OPTIM.BASE_LR", 0.001,
                    "OPTIM.MAX_EPOCH", 2, *options)


def test_several_processes_train_as_one(landmarks, toy_images, products, run_script, tmp_path):
    """Stored features, in two parts a step, and images, with a layer that gets no gradient. (By SGD:
    Adam makes steps of rounding errors where a gradient is 0, as that of the keys' biases is.)"""
    sgd = ["OPTIM.NAME", "sgd", "OPTIM.BASE_LR", "0.05", "OPTIM.MAX_EPOCH", "1"]

    def runs(folder: str, parts: int) -> list[list[str]]:
        return [_options(landmarks, tmp_path / folder / "features", "OPTIM.CLIP_NORM", 0.5,
                         "TRAIN.ACCUMULATE", parts, *sgd),
                _product_options(toy_images, products, tmp_path / folder / "images", *sgd)]

    process = run_script(2, *map("|".join, runs("two", 2)))
    for options in runs("one", 1):
        train(load_cfg(None, options))
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 0 and "2 process(es)" in output, output
    for name, steps in (("features", 11), ("images", 5)):
        one, two = tmp_path / "one" / name, tmp_path / "two" / name
        for figure, tolerance in (("loss", 1e-4), ("pair_acc", 1e-9)):
            curves = [[line[figure] for line in _log(folder, "train")] for folder in (one, two)]
            assert len(curves[0]) == steps and curves[1] == pytest.approx(curves[0], rel=tolerance)
        single, double = (torch.load(newest_checkpoint(folder), weights_only=True)["model"]
                          for folder in (one, two))
        for key, value in single.items():
            distance = (double[key].double() - value.double()).norm()
            assert distance <= 1e-3 * value.double().norm() + 1e-6, key


def _slow_loss(logits: list[tuple[float, float]]) -> float:
    """Of (logit of the positive, of the negative) per triplet."""
    costs = [np.log1p(np.exp(-p)) + np.log1p(np.exp(n)) for p, n in logits]
    return float(np.sum(costs)) / (2 * len(costs))


def test_a_step_of_stored_features(landmarks, tmp_path):
    """Triplet by triplet, each image from the store, without padding."""
    trainer = Trainer(load_cfg(None, _options(landmarks, tmp_path)))
    batch = next(trainer.train_loader.epoch(0))
    assert len(batch.indexes) == 12 and not set(batch.indexes.tolist()) & set(FAILED)
    store, model, logits = FeatureStore(landmarks / "store"), trainer.module.model.eval(), []
    labels = dict(line.rsplit(" ", 1) for line in (landmarks / "list.txt").read_text().splitlines())

    def side(row: int) -> dict:
        table = store.local(row)
        scales = [int(np.abs(SCALES - scale).argmin()) for scale in table.scales[:4]]
        return {"global": torch.from_numpy(store.rows(np.array([row]))), "scales": torch.tensor([scales]),
                "local": torch.from_numpy(table.descriptors[None, :4]),
                "mask": torch.zeros(1, len(scales), dtype=torch.bool)}

    for rows in batch.indexes.view(-1, 3).tolist():
        anchor, positive, negative = (labels[store.names[row]] for row in rows)
        assert anchor == positive != negative and rows[0] != rows[1]
        sides = [side(row) for row in rows]
        with torch.no_grad():
            logits.append(tuple(model(sides[0], sides[i]).item() for i in (1, 2)))
        assert trainer.task.name(rows[1]) == store.names[rows[1]]
    with torch.no_grad():
        result = trainer.module.eval()(batch.side, batch.labels)
    assert result["total"].item() == pytest.approx(_slow_loss(logits), rel=1e-4)
    assert result["correct"].tolist() == [right for p, n in logits for right in (p > 0, n <= 0)]


def test_a_step_of_images(toy_images, products, tmp_path):
    """Each image through the backbone once; the list and the store are in different orders."""
    trainer = Trainer(load_cfg(None, _product_options(toy_images, products, tmp_path)))
    batch, store = next(trainer.train_loader.epoch(0)), FeatureStore(products / "store")
    model, logits = trainer.module.model.eval(), []
    near = np.load(products / "neighbours" / "indexes.npy")
    for place, rows in enumerate(batch.indexes.view(-1, 3).tolist()):
        anchor, positive, negative = (trainer.task.name(row) for row in rows)
        assert Path(anchor) == toy_images / "toy" / store.names[rows[0]]
        kinds = [Path(name).name[:7] for name in (anchor, positive, negative)]
        assert kinds[0] == kinds[1] != kinds[2] and anchor != positive and rows[2] in near[rows[0]]
        with torch.no_grad():
            maps = [model(batch.images[[3 * place + i]])["local"] for i in range(3)]
            logits.append(tuple(model.match(maps[0], maps[i]).item() for i in (1, 2)))
    everything = [batch.indexes for epoch in range(4) for batch in trainer.train_loader.epoch(epoch)]
    assert set(torch.cat(everything).tolist()) == set(range(24)) - set(FAILED)
    with torch.no_grad():
        total = trainer.module.eval()(batch.images, batch.labels)["total"]
    assert total.item() == pytest.approx(_slow_loss(logits), rel=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_what_of_the_network_learns_from_images(toy_images, products, tmp_path, frozen):
    train(load_cfg(None, _product_options(toy_images, products, tmp_path, "MODEL.RRT.FREEZE_BACKBONE",
                                          frozen)))
    files = [tmp_path / "checkpoints" / f"model_epoch_{epoch:04d}.pyth" for epoch in (0, 2)]
    first, last = (torch.load(file, weights_only=True)["model"] for file in files)
    moved = {key for key in first if not torch.equal(first[key], last[key])}
    backbone = {key for key in first if key.startswith("backbone.")}
    learnt = {key for key in backbone if "running_" not in key and "num_batches" not in key}
    others = {key for key in first if not key.startswith(("backbone.", "fc."))}
    assert len(learnt) > 50 and len(others) > 20 and "fc.weight" in first
    assert moved == others | (set() if frozen else learnt)
    assert all(0 <= line["pair_acc"] <= 100 and line["loss"] > 0 for line in _log(tmp_path, "train"))


def test_a_batch_that_fails_is_named(landmarks, tmp_path, monkeypatch):
    step, rows = Trainer.step, []

    def poisoned(self, batch):
        rows.append(batch.indexes.tolist())
        if len(rows) == 3:
            batch.side["local"][4] = torch.nan
        return step(self, batch)

    monkeypatch.setattr(Trainer, "step", poisoned)
    with pytest.raises(UserError, match="the loss is nan at epoch 1, step 3, rank 0; the 12 images of the"):
        _train(landmarks, tmp_path)
    names = (tmp_path / "failed_batch_rank0.txt").read_text().splitlines()
    assert names == [f"photo {row}.jpg" for row in rows[2]]


@pytest.mark.parametrize("options, message", [
    (["TRAIN.PAIRS.FEATURES", ""], "TRAIN.PAIRS.FEATURES is empty: give the store"),
    (["TRAIN.PAIRS.NEIGHBOURS", ""],
     "NEIGHBOURS is empty: find them with python tools/search.py neighbours .*/store --top 12"),
    (["TRAIN.PAIRS.FEATURES", "none"], "none is not a feature store"),
    (["TRAIN.PAIRS.NEIGHBOURS", "none"], "none holds no neighbours that are whole"),
    (["TRAIN.PAIRS.DEPTH", 20], "holds 14 neighbours of each image, and 20 are asked for"),
    (["TRAIN.PAIRS.MIN_POSITIVES", 12], "no image has 12 others of its class among its 12 neighbours"),
    (["TRAIN.BATCH_SIZE", 10], "TRAIN.BATCH_SIZE is 10, .*: give a multiple of 3"),
    (["TRAIN.BATCH_SIZE", 12, "TRAIN.ACCUMULATE", 3], "give a multiple of 9"),
    (["TRAIN.BATCH_SIZE", 150], "46 images can be anchors, fewer than the 50 of a step"),
    (["TRAIN.SPLIT", "other.txt"], "no image list"),
    (["TRAIN.SPLIT", "train.tar"], "is of shards, and MODEL.ARCH rrt learns from an image list"),
    (["MODEL.RRT.GLOBAL_DIM", 9], "has descriptors of 8 dimensions .*set MODEL.RRT.GLOBAL_DIM"),
    (["MODEL.RRT.DIM", 8], "has local features of 16 dimensions .*set MODEL.RRT.DIM"),
    (["MODEL.RRT.SCALES", "[0.5, 1.0]"], "a local feature has the scale 0.7071"),
    (["LOSS.NAME", "arcface"], "MODEL.ARCH rrt does not give: it gives match"),
    (["TEST.DATASET", "toy"], "TEST.DATASET judges descriptors, and MODEL.ARCH rrt learns to rerank"),
    (["TEST.RETRIEVAL", "toy"], "TEST.RETRIEVAL toy: .*query is not a feature store"),
    (["OPTIM.LAYER_DECAY", 0.5], "MODEL.ARCH rrt has none: set it to 1"),
    (["MODEL.ARCH", "rrt_sop", "MODEL.RRT.FREEZE_BACKBONE", "True"], "BN.FREEZE False would change")])
def test_mistakes_are_explained(landmarks, tmp_path, options, message):
    with pytest.raises(UserError, match=message) as error:
        _train(landmarks, tmp_path, *options)
    assert "\n" not in str(error.value)


def test_stores_lists_and_neighbours_of_other_images(landmarks, products, toy_images, tmp_path):
    with pytest.raises(UserError, match="neighbours holds neighbours of other stores"):
        _train(landmarks, tmp_path, "TRAIN.PAIRS.NEIGHBOURS", products / "neighbours")
    lines = (landmarks / "list.txt").read_text().splitlines(keepends=True)
    (landmarks / "short.txt").write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match="short.txt lacks 1 images of"):
        _train(landmarks, tmp_path, "TRAIN.SPLIT", "short.txt")
    with pytest.raises(UserError, match="has local features of 0 dimensions"):
        _train(landmarks, tmp_path, "TRAIN.PAIRS.FEATURES", products / "store", "DATA_DIR", toy_images,
               "TRAIN.DATASET", "toy", "TRAIN.SPLIT", "train_list.txt", "MODEL.RRT.GLOBAL_DIM", 4)


CONFIGS = sorted((ROOT / "configs" / "rrt").glob("*.yaml"), key=str)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_trains_a_step(landmarks, products, toy_images, tmp_path, file):
    published = load_cfg(str(file))
    small = _options(landmarks, tmp_path, "MODEL.RRT.SCALES", str(published.MODEL.RRT.SCALES))
    if published.MODEL.ARCH == "rrt_sop":
        small = _product_options(toy_images, products, tmp_path, "MODEL.HEADS.IN_FEAT", 0,
                                 "MODEL.RRT.FREEZE_BACKBONE", published.MODEL.RRT.FREEZE_BACKBONE)
    kept = ("MODEL.ARCH", "OPTIM.NAME", "OPTIM.BASE_LR", "TRAIN.PAIRS.POSITIVES", "BN.FREEZE")
    small = [part for i in range(0, len(small), 2) for part in small[i:i + 2] if small[i] not in kept]
    cfg = load_cfg(str(file), [*small, "OPTIM.MAX_EPOCH", "1", "TRAIN.WEIGHTS", ""])
    train(cfg)
    first = torch.load(tmp_path / "checkpoints" / "model_epoch_0000.pyth", weights_only=True)["model"]
    last = torch.load(newest_checkpoint(tmp_path), weights_only=True)
    assert last["epoch"] == 1 and any(not torch.equal(first[key], last["model"][key]) for key in first)
    assert all(torch.isfinite(value).all() for value in last["model"].values() if value.is_floating_point())


@pytest.mark.gpu
@pytest.mark.parametrize("options, tolerance", [
    ([], 1e-2), (["PRECISION", "bf16", "DATA_LOADER.NUM_WORKERS", 2], 0.1), (["PRECISION", "fp16"], 0.1),
    (["TRAIN.COMPILE", "True"], 1e-2)])
def test_the_loss_curve_is_that_of_the_cpu(landmarks, toy_images, products, tmp_path, options, tolerance):
    for name, run in (("features", _options(landmarks, tmp_path)),
                      ("images", _product_options(toy_images, products, tmp_path))):
        curves = []
        for place in (["DEVICE", "cpu"], options):
            out_dir = tmp_path / name / str(len(curves))
            train(load_cfg(None, [*run, *map(str, (*place, "OUT_DIR", out_dir, "OPTIM.BASE_LR", 1e-4))]))
            curves.append([line["loss"] for line in _log(out_dir, "train")])
        assert curves[1] == pytest.approx(curves[0], rel=tolerance) and len(curves[0]) > 10
