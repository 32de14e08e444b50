"""Training: reproducible, resumable after SIGKILL, and the same on several processes."""
import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from dolg.config import load_cfg
from dolg.core.saving import newest_checkpoint
from dolg.core.trainer import Trainer, train
from dolg.data.augment import centre_view, render
from dolg.data.decode import read_image
from dolg.data.preprocess import preprocess
from dolg.models import build_model

ROOT = Path(__file__).resolve().parents[2]


def _train(tiny, out_dir, *options) -> dict:
    """Train in this process; the last checkpoint."""
    arguments = [str(argument) for argument in (*tiny[2:], "OUT_DIR", out_dir, *options)]
    train(load_cfg(str(ROOT / tiny[1]), arguments))
    return torch.load(newest_checkpoint(out_dir), weights_only=True)


def _losses(out_dir: Path) -> list[float]:
    lines = [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def _same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory):
    """(folder, last checkpoint) of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, _train(tiny, folder)


def test_it_learns_and_leaves_what_it_promises(undisturbed):
    folder, state = undisturbed
    names = sorted(path.name for path in (folder / "checkpoints").glob("*.pyth"))
    assert names == [f"model_epoch_{epoch:04d}.pyth" for epoch in range(4)]
    losses = _losses(folder)
    assert len(losses) == 9 and losses[-1] < losses[0]
    assert state["epoch"] == 3
    assert {"model", "average", "loss", "optimizer", "scaler", "epoch", "step", "sums", "rng",
            "cfg"} == set(state)
    assert list((folder / "tensorboard").iterdir())
    merged = load_cfg(str(folder / "config.yaml"))
    assert merged.RESNET.STEM_WIDTH == 8 and merged.OUT_DIR == str(folder)


def test_one_seed_one_result(undisturbed, tiny, tmp_path):
    folder, state = undisturbed
    again = _train(tiny, tmp_path / "again", "DATA_LOADER.NUM_WORKERS", 2)
    other = _train(tiny, tmp_path / "other", "RNG_SEED", 2)
    assert _losses(tmp_path / "again") == _losses(folder)
    assert _same(again["model"], state["model"]) and _same(again["loss"], state["loss"])
    assert not _same(other["model"], state["model"])


def test_killed_at_any_moment_it_ends_the_same(undisturbed, tiny, start_command, tmp_path):
    command = ["tools/train.py", *tiny, "OUT_DIR", tmp_path]
    log = tmp_path / "log.jsonl"
    # Kill once right after the first step, once around the first checkpoint, once later
    for lines_before_kill in (1, 4, 6):
        process = start_command(command, session=True)
        started, seen = time.monotonic(), _count_lines(log)
        while (process.poll() is None and _count_lines(log) < seen + lines_before_kill
               and time.monotonic() - started < 120):
            time.sleep(0.002)
        assert process.poll() is None, "the run ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    done = start_command(command)
    errors = done.communicate(timeout=300)[1]
    assert done.returncode == 0, errors
    _, state = undisturbed
    final = torch.load(newest_checkpoint(tmp_path), weights_only=True)
    assert final["epoch"] == 3
    assert _same(final["model"], state["model"]) and _same(final["loss"], state["loss"])
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))


def _count_lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.parametrize("optimizer, rate", [("sgd", 0.003), ("adamw", 0.001)])
def test_stopped_between_epochs_it_ends_the_same(tiny, tmp_path, capsys, optimizer, rate):
    options = ["OPTIM.NAME", optimizer, "OPTIM.BASE_LR", rate]
    undisturbed = _train(tiny, tmp_path, *options)
    (tmp_path / "checkpoints" / "model_epoch_0003.pyth").unlink()
    (tmp_path / "checkpoints" / "model_epoch_0002.pyth").unlink()
    final = _train(tiny, tmp_path, *options)
    assert "going on from" in capsys.readouterr().out
    assert _same(final["model"], undisturbed["model"])
    mine, theirs = final["optimizer"]["state"], undisturbed["optimizer"]["state"]
    assert mine.keys() == theirs.keys() and all(_same(mine[key], theirs[key]) for key in mine)
    _train(tiny, tmp_path, *options)
    assert "nothing left to train" in capsys.readouterr().out


def test_frozen_norms_keep_their_statistics(tiny, tmp_path):
    final = _train(tiny, tmp_path, "BN.FREEZE", "True", "OPTIM.MAX_EPOCH", 1)
    means = [v for k, v in final["model"].items() if k.endswith("running_mean")]
    assert means and all((mean == 0).all() for mean in means)


def test_the_norm_of_the_auxiliary_classifier_is_never_frozen(tiny, tmp_path):
    final = _train(tiny, tmp_path, "MODEL.ARCH", "cgd", "MODEL.CGD.FEATURE_DIM", 16, "LOSS.NAME", "",
                   "BN.FREEZE", "True", "OPTIM.MAX_EPOCH", 1)
    means = [v for k, v in final["model"].items() if k.endswith("running_mean")]
    assert means and all((mean == 0).all() for mean in means)
    assert (final["loss"]["terms.auxiliary.norm.running_mean"] != 0).any()


def test_balanced_batches(tiny, tmp_path):
    options = [*tiny[2:], "OUT_DIR", tmp_path, "TRAIN.IMAGES_PER_CLASS", 4]
    trainer = Trainer(load_cfg(str(ROOT / tiny[1]), [str(option) for option in options]))
    batches = list(trainer.train_loader.epoch(0))
    assert len(batches) >= 2
    for batch in batches:
        assert sorted(batch.labels.bincount(minlength=4).tolist()) == [0, 0, 4, 4]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_trains(tiny, tmp_path, precision):
    _train(tiny, tmp_path, "PRECISION", precision, "OPTIM.MAX_EPOCH", 1)
    losses = _losses(tmp_path)
    assert len(losses) == 3 and all(isinstance(loss, float) and loss > 0 for loss in losses)


def test_classification_error_on_a_held_out_list(tiny, tmp_path):
    _train(tiny, tmp_path, "TEST.DATASET", "toy", "TEST.IM_SIZE", 48, "TEST.BATCH_SIZE", 3,
           "OPTIM.MAX_EPOCH", 1)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    tested = [line for line in lines if line["kind"] == "test_epoch"]
    assert len(tested) == 1 and 0 <= tested[0]["top1_err"] <= 100 and tested[0]["top5_err"] == 0


def _slow_recall(checkpoint: dict, root: Path, cfg, k: int) -> float:
    """Recall@k in percent, image by image, of the checkpoint's model on the toy validation list."""
    model = build_model(cfg).eval()
    model.load_state_dict(checkpoint["model"])
    spec, vectors, labels = model.input_spec, [], []
    for line in (root / "toy" / "val_list.txt").read_text().splitlines():
        path, label = line.rsplit(" ", 1)
        image = read_image(root / "toy" / path)
        view = render(image, centre_view(*image.shape[1:], cfg.TEST.IM_SIZE, cfg.TRAIN.IM_SIZE))
        images = preprocess(view[None], tuple(view.shape[1:]), spec.colour, spec.mean, spec.sd)
        with torch.no_grad():
            vectors.append(torch.nn.functional.normalize(model(images)["global"])[0])
        labels.append(int(label))
    hits = 0
    for i, vector in enumerate(vectors):
        others = sorted((j for j in range(len(vectors)) if j != i),
                        key=lambda j: -float(vector @ vectors[j]))
        hits += any(labels[j] == labels[i] for j in others[:k])
    return 100 * hits / len(vectors)


def test_recall_on_held_out_classes(tiny, toy_images, tmp_path):
    """Balanced batches, a loss without logits, and a list whose labels training has not."""
    labels = [line.rsplit(" ", 1) for line in (toy_images / "toy" / "val_list.txt").open()]
    (tmp_path / "shifted.txt").write_text(
        "".join(f"{toy_images / 'toy' / path} {int(label) + 100}\n" for path, label in labels))
    options = ["LOSS.NAME", "triplet", "TRAIN.IMAGES_PER_CLASS", 2, "TEST.DATASET", "toy",
               "TEST.SPLIT", tmp_path / "shifted.txt", "TEST.METRIC", "recall", "TEST.RECALLS",
               "[1, 3]", "TEST.IM_SIZE", 48, "TEST.BATCH_SIZE", 3, "OPTIM.MAX_EPOCH", 1]
    out = tmp_path / "out"
    checkpoint = _train(tiny, out, *options)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    tested, = [line for line in lines if line["kind"] == "test_epoch"]
    assert not any("top1_err" in line for line in lines) and set(checkpoint["loss"]) == set()
    cfg = load_cfg(str(ROOT / tiny[1]), [str(o) for o in (*tiny[2:], *options)])
    for k in (1, 3):
        assert tested[f"R@{k}"] == pytest.approx(_slow_recall(checkpoint, toy_images, cfg, k))
    assert 0 < tested["MAP@R"] <= 100


def test_two_processes_evaluate_as_one(tiny, torchrun, tmp_path):
    options = ["TEST.DATASET", "toy", "TEST.METRIC", "recall", "TEST.IM_SIZE", "48",
               "TEST.BATCH_SIZE", "4", "OPTIM.MAX_EPOCH", "1", "BN.FREEZE", "True"]
    single, double = tmp_path / "single", tmp_path / "double"
    _train(tiny, single, *options)
    done = torchrun(2, "tools/train.py", *tiny, *options, "OUT_DIR", double)
    assert done.returncode == 0, done.stderr
    figures = []
    for out in (single, double):
        last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
        figures.append({key: value for key, value in last.items() if key.startswith("R@")})
    assert set(figures[0]) == {"R@1", "R@2", "R@4", "R@8"} and figures[0] == figures[1]
