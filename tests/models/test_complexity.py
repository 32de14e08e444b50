"""Counts of parameters and multiply-adds against published figures, and by hand."""
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dolg.config import load_cfg
from dolg.losses import build_loss
from dolg.models import build_model
from dolg.models.backbones.resnet import ResNet
from dolg.models.complexity import complexity
from dolg.models.rrt import RerankingTransformer

ROOT = Path(__file__).resolve().parents[2]


# torchvision's parameters and multiply-adds of the classifiers (metadata of its IMAGENET1K_V1
# weights), pycls's activations (its MODEL_ZOO.md); the classifier has 2,048 x 1,000 weights
@pytest.mark.parametrize("options, parameters, giga, activations", [
    ({"depth": 50}, 25_557_032, 4.089, 11.1), ({"depth": 101}, 44_549_160, 7.801, 16.2),
    ({"depth": 50, "groups": 32, "width_per_group": 4}, 25_028_904, 4.230, 14.4)])
def test_published_counts_of_resnets(options, parameters, giga, activations):
    with torch.device("meta"):
        counts = complexity(ResNet(**options), 224, 224)[0]
    assert counts.parameters + 2048 * 1000 + 1000 == parameters
    assert (counts.multiply_adds + 2048 * 1000) / 1e9 == pytest.approx(giga, abs=5e-4)
    assert (counts.activations + 1000) / 1e6 == pytest.approx(activations, abs=0.05)


def test_counted_by_hand():
    with torch.device("meta"):
        layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1), nn.ReLU(),
                               nn.Conv2d(8, 4, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                               nn.ModuleList([nn.Linear(4, 5)])[0])
    whole, *parts = complexity(layers, 20, 30)
    assert whole.name == "total" and [part.name for part in parts] == ["0", "2", "5"]
    positions = 10 * 15
    assert [p.multiply_adds for p in parts] == [27 * 8 * positions, 32 * positions, 20]
    assert [p.parameters for p in parts] == [27 * 8 + 8, 32, 25]
    assert [p.activations for p in parts] == [8 * positions, 4 * positions, 5]
    assert whole.multiply_adds == sum(p.multiply_adds for p in parts)


# github.com/leftthomas/CGD, README at c9cd98f: millions of parameters in training; it counts
# multiply-adds with those of norms, 10.64 G, which we leave out
@pytest.mark.parametrize("config, millions", [
    ("r50_cars", 26.86), ("r50_cub", 26.86), ("r50_sop", 49.85), ("r50_inshop", 34.85),
    ("x50_cars", 26.33), ("x50_sop", 49.32)])
def test_the_published_size_of_cgd(config, millions):
    cfg = load_cfg(str(ROOT / "configs" / "cgd" / f"{config}.yaml"))
    with torch.device("meta"):
        model = build_model(cfg)
        modules = (model, build_loss(cfg, model.dims))
    total = sum(p.numel() for module in modules for p in module.parameters())
    assert total / 1e6 == pytest.approx(millions, abs=5e-3)


def test_the_command(run_tool, tmp_path):
    done = run_tool("tools/info.py", "--size", 224, 448, "--json", tmp_path / "info.json", "--cfg",
                    "configs/cgd/r50_cars.yaml")
    assert done.returncode == 0, done.stderr
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["parts"][0]["multiply_adds"] / 2e9 == pytest.approx(10.64, rel=5e-3)
    total = info["parts"][0]["parameters"] + info["loss_parameters"]
    assert done.stdout.splitlines()[-1].split()[2] == f"{total:,}"
    assert "an image of 224 x 448 pixels; descriptor of 1536 dimensions, rgb" in done.stdout


def test_a_transformer_of_stored_features_is_counted_by_the_pair():
    dim, hidden, layers, features = 16, 24, 2, 5
    with torch.device("meta"):
        model = RerankingTransformer(10, [1.0, 2.0], layers=layers, heads=2, dim=dim, feedforward=hidden)
    whole = complexity(model, 0, 0, pair_of=features)[0]
    layer = 4 * dim * (dim + 1) + dim * hidden + hidden + hidden * dim + dim + 4 * dim
    assert whole.parameters == layers * layer + dim * (10 + 1) + (2 + 6) * dim + dim + 1
    # Values that linear layers give: the descriptors' of both images, and the score
    tokens = 2 * (features + 2)
    assert whole.activations == 2 * dim + 1 + (tokens + 1) * (dim + hidden + dim)
