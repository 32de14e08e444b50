"""The trainer's options, one by one, in this process: what each changes, and what it must not."""
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dolg.config import load_cfg
from dolg.core.checkpoint import load_weights
from dolg.core.saving import best_checkpoint, checkpoints, newest_checkpoint
from dolg.core.trainer import Trainer, train
from dolg.features.run import infer
from dolg.models import build_model
from revisitop import Store, evaluate_stores, load_ground_truth

ROOT = Path(__file__).resolve().parents[2]
FROZEN = ["BN.FREEZE", "True", "OPTIM.MAX_EPOCH", 1]


def _cfg(tiny, out_dir, *options):
    return load_cfg(str(ROOT / tiny[1]), [str(o) for o in (*tiny[2:], "OUT_DIR", out_dir, *options)])


def _train(tiny, out_dir, *options) -> dict:
    train(_cfg(tiny, out_dir, *options))
    return torch.load(newest_checkpoint(out_dir), weights_only=True)


def _log(out_dir: Path, kind: str) -> list[dict]:
    lines = map(json.loads, (out_dir / "log.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == kind]


def _assert_close(a: dict, b: dict, **tolerance) -> None:
    for part in ("model", "loss"):
        assert a[part].keys() == b[part].keys()
        for key in a[part]:
            torch.testing.assert_close(a[part][key], b[part][key], **tolerance,
                                       msg=lambda text: f"{key}: {text}")


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    """(folder, last checkpoint) of an epoch with frozen norms and a loss without a state."""
    folder = tmp_path_factory.mktemp("plain")
    return folder, _train(tiny, folder, *FROZEN, "LOSS.NAME", "arcface")


def test_accumulation_changes_nothing_but_memory(plain, tiny, tmp_path):
    parts = _train(tiny, tmp_path, *FROZEN, "LOSS.NAME", "arcface", "TRAIN.ACCUMULATE", 4)
    _assert_close(parts, plain[1], rtol=1e-4, atol=1e-6)
    for kind in ("train", "train_epoch"):
        for ours, theirs in zip(_log(tmp_path, kind), _log(plain[0], kind), strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
            assert ours["top1_err"] == pytest.approx(theirs["top1_err"])


def test_the_epoch_mean_is_that_of_its_steps(plain):
    steps, (epoch,) = _log(plain[0], "train"), _log(plain[0], "train_epoch")
    assert len(steps) == 3
    for name in ("loss", "top1_err"):
        assert epoch[name] == pytest.approx(np.mean([step[name] for step in steps]))
    assert all(line["memory_gb"] > 0.1 and 0 <= line["data_wait"] <= 1 and line["lr"] > 0
               for line in [*steps, epoch])


def test_clipping_bounds_the_step(tiny, tmp_path):
    """Without momentum and decay, the weights move by rate x clipped length."""
    options = [*FROZEN, "OPTIM.MOMENTUM", 0, "OPTIM.NESTEROV", "False", "OPTIM.WEIGHT_DECAY", 0,
               "OPTIM.WARMUP_EPOCHS", 0, "OPTIM.BASE_LR", 0.5, "OPTIM.CLIP_NORM", 1e-3]
    trainer = Trainer(_cfg(tiny, tmp_path, *options))
    trainer.parallel.train()
    before = [p.detach().clone() for p in trainer.module.parameters()]
    batch = next(iter(trainer.train_loader.epoch(0)))
    trainer.step(batch)
    moved = sum((p.detach() - q).double().square().sum() for p, q in zip(trainer.module.parameters(), before))
    assert moved.sqrt().item() == pytest.approx(0.5e-3, rel=1e-3)


def test_averaged_weights_are_what_is_extracted_with(tiny, tmp_path):
    state = _train(tiny, tmp_path, "TRAIN.EMA", 0.9, "OPTIM.MAX_EPOCH", 2,
                   "TRAIN.CHECKPOINT_MINUTES", 1e-9, "TRAIN.KEEP_CHECKPOINTS", 0)
    # Slowly: a checkpoint after each step shows every model that the average has seen
    average = None
    for path in reversed(checkpoints(tmp_path)):
        if path.name.endswith(("_0001.pyth", "_0002.pyth")):
            continue        # the same weights as after the epoch's last step
        model = torch.load(path, weights_only=True)["model"]
        if average is None:
            average = {key: value.double() for key, value in model.items()}
        else:
            average = {key: 0.9 * average[key] + 0.1 * model[key].double() for key in model}
    for key, value in state["average"].items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), average[key], rtol=1e-4, atol=1e-6)
    model = build_model(_cfg(tiny, tmp_path))
    load_weights(model, newest_checkpoint(tmp_path))
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], state["average"][key]) for key in loaded)
    assert not torch.equal(loaded["fc.weight"], state["model"]["fc.weight"])


def test_precise_statistics_fit_the_last_weights(tiny, tmp_path):
    state = _train(tiny, tmp_path, "BN.USE_PRECISE_STATS", "True", "BN.NUM_SAMPLES_PRECISE", 16,
                   "OPTIM.MAX_EPOCH", 1)
    cfg = _cfg(tiny, tmp_path / "other")
    trainer = Trainer(cfg)
    trainer.module.model.load_state_dict(state["model"])
    batches = [batch.images for batch in trainer.train_loader.epoch(0)][:2]
    stem = trainer.module.model.backbone.stem.conv(torch.cat(batches)).detach()
    norm = "backbone.stem.bn.running_"
    torch.testing.assert_close(state["model"][f"{norm}mean"], stem.mean((0, 2, 3)), rtol=1e-4,
                               atol=1e-5)
    torch.testing.assert_close(state["model"][f"{norm}var"],
                               stem.var((0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


def test_layers_learn_at_their_rates(tiny, tmp_path):
    trainer = Trainer(_cfg(tiny, tmp_path, "OPTIM.LAYER_DECAY", 0.5, "OPTIM.HEAD_LR_MULT", 10,
                           "OPTIM.NO_DECAY_NORM_BIAS", "True"))
    rates = {id(p): (g["lr_scale"], g["weight_decay"]) for g in trainer.optimizer.param_groups
             for p in g["params"]}
    model = trainer.module.model
    assert rates[id(model.fc.weight)][0] == 10
    assert rates[id(model.backbone.s4.b1.f.a.weight)][0] == 0.5
    assert rates[id(model.backbone.s3.b1.f.a.weight)][0] == 0.25
    assert rates[id(model.backbone.s4.b1.f.a_bn.weight)] == (0.5, 0)


def _write_revisited(root: Path, toy: Path) -> None:
    """`root`/mini in the Revisited format: the toy images, a query per class."""
    (root / "mini" / "jpg").mkdir(parents=True)
    names = sorted(path.stem for path in (toy / "toy" / "jpg").iterdir())
    for name in names:
        (root / "mini" / "jpg" / f"{name}.jpg").symlink_to(toy / "toy" / "jpg" / f"{name}.jpg")
    queries = names[::6]
    gnd = []
    for query in queries:
        same = [i for i, name in enumerate(names) if name[:7] == query[:7] and name != query]
        gnd.append({"bbx": [4.0, 4.0, 60.0, 50.0], "easy": np.array(same[:2]),
                    "hard": np.array(same[2:]), "junk": np.array([names.index(query)])})
    with open(root / "mini" / "gnd_mini.pkl", "wb") as file:
        pickle.dump({"imlist": names, "qimlist": queries, "gnd": gnd}, file)


def test_map_while_training_is_that_of_the_evaluator(tiny, toy_images, tmp_path):
    _write_revisited(toy_images, toy_images)
    out_dir = tmp_path / "out"
    options = ["TEST.RETRIEVAL", "mini", "TEST.SCALES", "[0.7071, 1.0]", "OPTIM.MAX_EPOCH", 2,
               "INFER.DATASET", "mini", "INFER.SCALES", "[0.7071, 1.0]", "TEST.WEIGHTS", "best"]
    _train(tiny, out_dir, *options)
    logged = _log(out_dir, "test_epoch")
    assert len(logged) == 2
    best = json.loads((out_dir / "checkpoints" / "best.json").read_text())
    assert best["metric"] == "mAP Medium"
    assert best["value"] == pytest.approx(max(line["mAP Medium"] for line in logged))
    best_epoch = int(best_checkpoint(out_dir).stem[-4:])
    infer(_cfg(tiny, out_dir, *options))
    stores = [Store(out_dir / "features" / "mini" / part) for part in ("query", "database")]
    result = evaluate_stores(load_ground_truth(toy_images / "mini" / "gnd_mini.pkl"), *stores, [])
    for protocol in ("easy", "medium", "hard"):
        measured = logged[best_epoch - 1][f"mAP {protocol.capitalize()}"]
        assert measured == pytest.approx(100 * result["protocols"][protocol]["mAP"], abs=1e-4)


def test_the_compiled_model_trains_the_same(plain, tiny, tmp_path, monkeypatch):
    """Captured and differentiated ahead of time; the code generator would take most of a minute."""
    calls, compile_ = [], torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args: calls.append(args) or compile_(
        *args, backend="aot_eager"))
    compiled = _train(tiny, tmp_path, *FROZEN, "LOSS.NAME", "arcface", "TRAIN.COMPILE", "True")
    assert len(calls) == 1 and compiled["model"].keys() == plain[1]["model"].keys()
    assert [line["loss"] for line in _log(tmp_path, "train")] == pytest.approx(
        [line["loss"] for line in _log(plain[0], "train")], rel=1e-3)


def test_synchronised_norms_need_gpus(tiny, tmp_path):
    trainer = Trainer(_cfg(tiny, tmp_path, "BN.SYNC", "True"))      # one process has all images
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in trainer.module.modules())
