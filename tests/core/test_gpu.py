"""Training on a GPU: precisions, decoding on the device, compiled models, several processes."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dolg.config import load_cfg
from dolg.core.saving import newest_checkpoint
from dolg.core.trainer import train

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.gpu


def _losses(out_dir: Path) -> list[float]:
    lines = map(json.loads, (out_dir / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if line["kind"] == "train"]


def _train(tiny, out_dir, *options) -> list[float]:
    train(load_cfg(str(ROOT / tiny[1]),
                   [str(o) for o in (*tiny[2:], "OUT_DIR", out_dir, "BN.FREEZE", "True", *options)]))
    return _losses(out_dir)


@pytest.fixture(scope="module")
def on_cpu(tiny, tmp_path_factory) -> list[float]:
    """The loss curve of the CPU."""
    return _train(tiny, tmp_path_factory.mktemp("cpu"), "DEVICE", "cpu")


@pytest.mark.parametrize("options, tolerance", [
    ([], 1e-2), (["PRECISION", "bf16"], 0.1), (["PRECISION", "fp16"], 0.1),
    (["DATA_LOADER.ON_DEVICE", "augment"], 1e-2), (["DATA_LOADER.ON_DEVICE", "decode"], 5e-2),
    (["TRAIN.COMPILE", "True"], 1e-2), (["OPTIM.CLIP_NORM", 1e6, "TRAIN.ACCUMULATE", 2], 1e-2),
    (["PRECISION", "fp16", "LOSS.SHARD_CLASSES", "True", "TRAIN.EMA", 0.9], 1.0)])
def test_the_loss_curve_is_that_of_the_cpu(on_cpu, tiny, tmp_path, options, tolerance):
    assert _train(tiny, tmp_path, *options) == pytest.approx(on_cpu, rel=tolerance)
    state = torch.load(newest_checkpoint(tmp_path), weights_only=True)
    assert all(value.device.type == "cpu" for value in state["model"].values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_gpus_with_synchronised_norms_train_as_one(tiny, tmp_path, precision):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    curves = []
    for gpus in (1, 2):
        out_dir = tmp_path / str(gpus)
        command = [sys.executable, "tools/train.py", *tiny, "OUT_DIR", out_dir, "NUM_GPUS", gpus,
                   "BN.SYNC", "True", "PRECISION", precision, "LOSS.SHARD_CLASSES", "True"]
        done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True,
                              text=True, timeout=300, env=dict(os.environ))
        assert done.returncode == 0, done.stderr
        curves.append(_losses(out_dir))
    assert curves[0] == pytest.approx(curves[1], rel=1e-2 if precision == "fp32" else 0.1)
