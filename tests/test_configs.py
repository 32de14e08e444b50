"""Every configuration file: it trains a step and extracts, at a reduced size."""
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.core.saving import newest_checkpoint
from dolg.core.trainer import train
from dolg.features.run import infer
from dolg.features.store import FeatureStore

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))
# Reranking transformers learn from pairs, in tests/core/test_rrt_training.py
FROM_CLASSES = [config for config in CONFIGS if not config.startswith("configs/rrt/")]
SMALL = ["RESNET.STEM_WIDTH", 16, "MODEL.HEADS.REDUCTION_DIM", 16, "MODEL.HEADS.IN_FEAT", 0,
         "MODEL.CGD.FEATURE_DIM", 24, "MODEL.NUM_CLASSES", 4, "TRAIN.DATASET", "toy",
         "TRAIN.IM_SIZE", 64, "TRAIN.BATCH_SIZE", 8,
         "TRAIN.WEIGHTS", "", "TEST.BATCH_SIZE", 8, "TEST.IM_SIZE", 72,
         "OPTIM.MAX_EPOCH", 1, "NUM_GPUS", 1, "DATA_LOADER.NUM_WORKERS", 0, "LOG_PERIOD", 1,
         "INFER.DATASET", "", "INFER.SCALES", [1.0, 1.4142], "PRECISION", "fp32"]


@pytest.mark.parametrize("config", FROM_CLASSES)
def test_it_trains_a_step_and_extracts(config, toy_images, tmp_path):
    published = load_cfg(str(ROOT / config))
    lines = (toy_images / "toy" / "train_list.txt").read_text().splitlines(keepends=True)
    eight = tmp_path / "eight.txt"       # two images of each class
    eight.write_text("".join(f"{toy_images / 'toy'}/{line}" for line in lines
                             if "photo 0" in line or "photo 1" in line))
    options = [*SMALL, "DATA_DIR", toy_images, "OUT_DIR", tmp_path, "TRAIN.SPLIT", eight,
               "TEST.SPLIT", eight,
               "TEST.DATASET", "toy" if published.TEST.DATASET else "",
               "TRAIN.RESIZE", 72 if published.TRAIN.RESIZE else 0,
               "TRAIN.IMAGES_PER_CLASS", 2 if published.TRAIN.IMAGES_PER_CLASS else 0,
               "INFER.SIZE", 64 if published.INFER.SIZE else 0,
               "INFER.IMAGES", eight, "INFER.OUT_DIR", tmp_path / "features"]
    cfg = load_cfg(str(ROOT / config), [str(option) for option in options])
    train(cfg)
    first = torch.load(tmp_path / "checkpoints" / "model_epoch_0000.pyth")
    last = torch.load(newest_checkpoint(tmp_path))
    assert last["epoch"] == 1
    for part in ("model", "loss"):
        moved = [key for key, value in last[part].items()
                 if not torch.equal(value, first[part][key])]
        assert moved or not last[part]
        assert all(torch.isfinite(value).all() for value in last[part].values()
                   if value.is_floating_point())
    infer(cfg)
    store = FeatureStore(tmp_path / "features" / "eight")
    table = np.concatenate(list(store.global_descriptors()))
    assert len(table) == 8 and not store.errors()
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_documented_keys_are_the_right_kind(config):
    """No file leaves the classes, the data or the folder of results to chance."""
    text = (ROOT / config).read_text()
    assert re.search(r"^OUT_DIR: \./output/", text, re.M), "an OUT_DIR of its own"
    if "eval/" not in config:
        assert re.search(r"^TRAIN:$", text, re.M)
        assert "NUM_CLASSES:" in text or config not in FROM_CLASSES


# github.com/feymanpriv/DELG, configs/resnet_delg_8gpu.yaml; DOLG's file has the same keys, with
# DEPTH 101 and NUM_CLASSES 81313
ORIGINAL_DELG = """
MODEL: {TYPE: resnet, DEPTH: 50, NUM_CLASSES: 96264,
        HEADS: {IN_FEAT: 2048, REDUCTION_DIM: 512, MARGIN: 0.15, SCALE: 30}}
RESNET: {TRANS_FUN: bottleneck_transform, NUM_GROUPS: 1, WIDTH_PER_GROUP: 64, STRIDE_1X1: False}
BN: {ZERO_INIT_FINAL_GAMMA: True}
OPTIM: {BASE_LR: 0.01, LR_POLICY: cos, STEPS: [0, 30, 60, 90], LR_MULT: 0.1, MAX_EPOCH: 100,
        MOMENTUM: 0.9, NESTEROV: True, WEIGHT_DECAY: 0.0001, WARMUP_EPOCHS: 5}
TRAIN: {DATASET: landmark, SPLIT: train_list.txt, BATCH_SIZE: 64, IM_SIZE: 224, EVAL_PERIOD: 100}
TEST: {DATASET: landmark, SPLIT: val_list.txt, BATCH_SIZE: 64, IM_SIZE: 256}
NUM_GPUS: 8
DATA_LOADER: {NUM_WORKERS: 4}
CUDNN: {BENCHMARK: True}
OUT_DIR: ./output
"""


@pytest.mark.parametrize("arch", ["dolg", "delg"])
def test_the_original_files_train(run_tool, toy_images, tmp_path, arch):
    """With the data's keys alone changed, and the size of the run cut down for this test."""
    (tmp_path / "landmark").symlink_to(toy_images / "toy")
    (tmp_path / "original.yaml").write_text(ORIGINAL_DELG)
    done = run_tool("tools/train.py", "--cfg", tmp_path / "original.yaml", "MODEL.ARCH", arch,
                    "DATA_DIR", tmp_path, "OUT_DIR", tmp_path / "out", "MODEL.NUM_CLASSES", "4",
                    "TRAIN.BATCH_SIZE", "8", "TEST.BATCH_SIZE", "8", "TRAIN.IM_SIZE", "64",
                    "TEST.IM_SIZE", "72", "OPTIM.MAX_EPOCH", "1", "RESNET.STEM_WIDTH", "16",
                    "MODEL.HEADS.IN_FEAT", "512", "DATA_LOADER.NUM_WORKERS", "0")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"train_epoch", "test_epoch"}
    assert ("local_softmax" in lines[0]) == (arch == "delg")
