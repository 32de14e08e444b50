"""Losses and miners of pytorch-metric-learning by name."""
import sys

import pytest
import torch

from dolg.config import get_cfg
from dolg.errors import UserError
from dolg.losses import build_loss

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def pml():
    return pytest.importorskip("pytorch_metric_learning")


def _build(name, args=None, miner="", miner_args=None):
    cfg = get_cfg()
    cfg.LOSS.NAME, cfg.LOSS.PML.MINER, cfg.MODEL.NUM_CLASSES = name, miner, 3
    cfg.LOSS.PML.ARGS.update(args or {})
    cfg.LOSS.PML.MINER_ARGS.update(miner_args or {})
    torch.manual_seed(0)
    return build_loss(cfg, 8)


def test_a_loss_with_arguments_and_a_miner(pml):
    from pytorch_metric_learning import losses, miners
    x = torch.randn(6, 8)
    got = _build("pml.TripletMarginLoss", {"margin": 0.7}, "TripletMarginMiner",
                 {"margin": 0.3, "type_of_triplets": "semihard"})({"global": x}, LABELS)
    mined = miners.TripletMarginMiner(margin=0.3, type_of_triplets="semihard")(x, LABELS)
    assert len(mined[0]) > 0
    assert got["total"] == losses.TripletMarginLoss(margin=0.7)(x, LABELS, mined)
    assert set(got) == {"total"}


@pytest.mark.parametrize("name", ["ArcFaceLoss", "CosFaceLoss", "SubCenterArcFaceLoss",
                                  "ProxyNCALoss", "SoftTripleLoss", "NormalizedSoftmaxLoss"])
def test_classifiers_learn_the_sizes_from_the_model(pml, name):
    loss = _build(f"pml.{name}")
    assert any(8 in p.shape for p in loss.parameters())
    assert torch.isfinite(loss({"global": torch.randn(6, 8)}, LABELS)["total"])
    wider = _build(f"pml.{name}", {"num_classes": 10})
    assert sum(p.numel() for p in wider.parameters()) > sum(p.numel() for p in loss.parameters())


@pytest.mark.parametrize("name", ["CircleLoss", "NTXentLoss", "SupConLoss", "FastAPLoss",
                                  "NPairsLoss", "LiftedStructureLoss", "MarginLoss", "NCALoss"])
@pytest.mark.parametrize("labels", [[], [0], [1, 1, 1], [0, 1, 2]])
def test_batches_that_lack_something(pml, name, labels):
    x = torch.randn(len(labels), 8, requires_grad=True)
    total = _build(f"pml.{name}")({"global": x}, torch.tensor(labels, dtype=torch.long))["total"]
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("kwargs, message", [
    ({"name": "pml.CircleLos"}, "LOSS.NAME is 'pml.CircleLos'.*did you mean 'CircleLoss'"),
    ({"name": "pml.losses"}, "LOSS.NAME is 'pml.losses'"),
    ({"name": "pml.BaseMetricLossFunction"}, "LOSS.NAME is"),
    ({"name": "pml.CircleLoss", "args": {"gama": 3}}, "LOSS.PML.ARGS: CircleLoss .*gama=3.*gama"),
    ({"name": "pml.CrossBatchMemory"}, "LOSS.PML.ARGS: CrossBatchMemory .*'loss'"),
    ({"name": "pml.CircleLoss", "miner": "HardMiner"},
     "LOSS.PML.MINER is 'HardMiner'.*did you mean"),
    ({"name": "pml.CircleLoss", "miner": "BatchHardMiner", "miner_args": {"x": 1}},
     "LOSS.PML.MINER_ARGS: BatchHardMiner"),
])
def test_mistakes(pml, kwargs, message):
    with pytest.raises(UserError, match=message) as error:
        _build(**kwargs)
    assert "\n" not in str(error.value)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(UserError, match="pip install pytorch-metric-learning"):
        _build("pml.CircleLoss")
