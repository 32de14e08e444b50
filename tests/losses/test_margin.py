"""Margin softmax: the originals' figures, the formulas, and the edges."""
import math

import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.core.checkpoint import load_weights
from dolg.losses import build_loss
from dolg.losses.builders import LOSSES
from dolg.losses.margin import ArcFace, CurricularFace


def test_curricularface_over_three_training_calls(conformance, shared, tmp_path):
    golden = conformance.load(shared / "conformance" / "losses")
    state = {key: torch.from_numpy(value) for key, value in conformance.weights(golden).items()}
    # A whole file of the original has a network beside the head
    state["globalmodel.stem.conv.weight"] = torch.zeros(1)
    torch.save({"model_state": state}, tmp_path / "head.pyth")
    loss = build_loss(load_cfg(None, ["MODEL.NUM_CLASSES", "100"])).train()
    load_weights(loss, tmp_path / "head.pyth")
    for call in range(3):
        make = lambda name: torch.from_numpy(
            conformance.make(golden["inputs"][f"curricular{call}/{name}"]))
        features = make("features").requires_grad_()
        loss.weight.grad = None
        result = loss({"global": features}, make("targets"))
        result["total"].backward()
        for name, value in {"logits": result["logits"], "loss": result["total"].detach(),
                            "t": loss.t, "grad": features.grad,
                            "grad_weight": loss.weight.grad}.items():
            conformance.close(golden, f"curricular{call}/{name}", value)


def _slow_logits(features, weight, labels, margin, scale, t=None):
    """The definition, one number at a time, in Python floats; with `t`, CurricularFace's."""
    rows = []
    for feature, label in zip(features, labels):
        cosines = [float(np.dot(feature, w) / np.linalg.norm(feature) / np.linalg.norm(w))
                   for w in weight]
        theta = math.acos(cosines[label])
        widened = math.cos(theta + margin)
        row = []
        for index, cosine in enumerate(cosines):
            if index == label:
                past = theta + margin >= math.pi
                row.append(cosine - margin * math.sin(margin) if past else widened)
            else:
                row.append(cosine * (t + cosine) if t is not None and cosine > widened else cosine)
        rows.append([scale * value for value in row])
    return np.array(rows)


@pytest.mark.parametrize("name", ["arcface", "curricularface"])
def test_logits_against_the_definition(name):
    rng = np.random.default_rng(1)
    features, weight = rng.normal(size=(20, 6)), rng.normal(size=(9, 6))
    labels = rng.integers(0, 9, 20)
    features[3] = -2 * weight[labels[3]] + 0.01     # an angle past pi - margin
    loss = LOSSES[name](6, 9, margin=0.3, scale=20).eval()
    loss.weight.data = torch.from_numpy(weight).float()
    if name == "curricularface":
        loss.t.fill_(0.4)
    got = loss({"global": torch.from_numpy(features).float()}, torch.from_numpy(labels))
    expected = _slow_logits(features, weight, labels, 0.3, 20,
                            t=0.4 if name == "curricularface" else None)
    np.testing.assert_allclose(got["logits"], expected, atol=2e-4)
    picked = expected[np.arange(20), labels]
    entropy = np.log(np.exp(expected).sum(1)) - picked
    assert abs(got["total"].item() - entropy.mean()) < 1e-4


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sign", [1, -1])
def test_finite_where_the_cosine_is_one(name, sign):
    loss = LOSSES[name](4, 3, margin=0.15, scale=30).train()
    loss.weight.data = torch.eye(4)[:3].clone()
    features = (sign * torch.eye(4)[:3]).clone().requires_grad_()
    total = loss({"global": features}, torch.arange(3))["total"]
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(features.grad).all() and torch.isfinite(loss.weight.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_against_differences(name):
    torch.manual_seed(0)
    loss = LOSSES[name](5, 4, margin=0.15, scale=8).double().eval()
    features = torch.randn(6, 5, dtype=torch.double, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    # The losses compute in float32, so the differences are coarse
    analytic = torch.autograd.grad(loss({"global": features}, labels)["total"], features)[0]
    for row, column in [(0, 0), (2, 3), (5, 4)]:
        shift = torch.zeros_like(features)
        shift[row, column] = 1e-2
        with torch.no_grad():
            above = loss({"global": features + shift}, labels)["total"]
            below = loss({"global": features - shift}, labels)["total"]
        assert abs((above - below) / 2e-2 - analytic[row, column]) < 2e-3


def test_eval_changes_no_buffer():
    loss = CurricularFace(8, 5, margin=0.15, scale=30)
    batch = {"global": torch.randn(4, 8)}, torch.tensor([0, 1, 2, 3])
    loss.eval()(*batch)
    assert loss.t.item() == 0
    loss.train()(*batch)
    assert loss.t.item() != 0


def test_float32_under_autocast():
    loss = ArcFace(8, 5, margin=0.15, scale=30)
    features, labels = torch.randn(4, 8), torch.tensor([0, 1, 2, 3])
    plain = loss({"global": features}, labels)["total"]
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss({"global": features}, labels)["total"]
    assert cast.dtype == torch.float32 and torch.equal(plain, cast)


def test_class_weights_start_as_unit_vectors_in_all_directions():
    torch.manual_seed(0)
    weight = ArcFace(256, 1000, margin=0.15, scale=30).weight.detach()
    assert abs(weight.norm(dim=1).mean() - 1) < 0.01
    assert weight.mean(dim=0).norm() < 0.05
