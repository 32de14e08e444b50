"""Binary cross entropy of pairs, against its definition."""
import math

import pytest
import torch

from dolg.config import get_cfg
from dolg.core.meters import figures_of
from dolg.errors import UserError
from dolg.losses import build_loss
from dolg.losses.matching import PairCrossEntropy


def _slow(logits, labels):
    costs = []
    for logit, label in zip(logits, labels):
        share = 1 / (1 + math.exp(-logit))
        costs.append(-math.log(share if label else 1 - share))
    return sum(costs) / len(costs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_against_the_definition(dtype):
    torch.manual_seed(0)
    logits = (3 * torch.randn(50)).to(dtype).requires_grad_()
    labels = torch.randint(0, 2, (50,))
    result = PairCrossEntropy()({"match": logits}, labels)
    values = logits.detach().double().tolist()
    assert result["total"].item() == pytest.approx(_slow(values, labels.tolist()), rel=1e-5)
    assert result["total"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert result["correct"].tolist() == [(value > 0) == bool(label)
                                          for value, label in zip(values, labels.tolist())]
    result["total"].backward()
    expected = (logits.detach().double().sigmoid() - labels) / 50
    torch.testing.assert_close(logits.grad.double(), expected, rtol=1e-2, atol=1e-3)


def test_a_logit_of_0_says_no_and_large_ones_stay_finite():
    logits = torch.tensor([0.0, 0.0, 200.0, -200.0])
    result = PairCrossEntropy()({"match": logits}, torch.tensor([1, 0, 0, 1]))
    assert result["correct"].tolist() == [False, True, False, False]
    assert result["total"].item() == pytest.approx((2 * math.log(2) + 400) / 4)


def test_no_pair():
    logits = torch.empty(0, requires_grad=True)
    result = PairCrossEntropy()({"match": logits}, torch.empty(0, dtype=torch.int64))
    result["total"].backward()
    assert result["total"].item() == 0 and logits.grad.shape == (0,)
    assert figures_of(result, torch.empty(0))["correct"].item() == 0


def test_the_meters_get_the_share_of_correct_pairs():
    result = PairCrossEntropy()({"match": torch.tensor([2.0, -1.0, 3.0, -4.0])}, torch.tensor([1, 1, 1, 0]))
    figures = figures_of(result, torch.zeros(6))
    assert figures.keys() == {"total", "correct"} and figures["correct"].item() == 0.75


def _cfg(arch: str, name: str = ""):
    cfg = get_cfg()
    cfg.MODEL.ARCH, cfg.LOSS.NAME = arch, name
    return cfg


@pytest.mark.parametrize("arch", ["rrt", "rrt_sop"])
def test_the_reranking_transformers_have_no_other(arch):
    for name in ("", "pair_bce"):
        assert isinstance(build_loss(_cfg(arch, name)), PairCrossEntropy)
    for name in ("arcface", "triplet", "pair_bce + softmax"):
        with pytest.raises(UserError, match=f"which MODEL.ARCH {arch} does not give: it gives match"):
            build_loss(_cfg(arch, name))


def test_retrieval_models_do_not_take_it():
    with pytest.raises(UserError, match="pair_bce judges the output 'match', which MODEL.ARCH dolg does not"):
        build_loss(_cfg("dolg", "pair_bce"))
    with pytest.raises(UserError, match="choose one of .*pair_bce.*did you mean 'pair_bce'"):
        build_loss(_cfg("rrt", "pair_bca"))
