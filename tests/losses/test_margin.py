"""Margin softmax: the originals' figures, the formulas, and the edges."""
import math

import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.core.checkpoint import load_weights
from dolg.losses import build_loss
from dolg.losses.margin import AdaptiveArcFace, ArcFace, CosFace, CurricularFace


def test_curricularface_over_three_training_calls(conformance, shared, tmp_path):
    golden = conformance.load(shared / "conformance" / "losses")
    state = {key: torch.from_numpy(value) for key, value in conformance.weights(golden).items()}
    # A whole file of the original has a network beside the head
    state |= {key: torch.zeros(1) for key in ("globalmodel.stem.conv.weight", "fc_t.weight")}
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


COUNTS = np.array([500, 3, 40, 40, 1, 7, 90, 2, 11])
CENTRES = 3


def _make(name, dim, classes, margin, scale):
    """A loss of the family; adaptive_arcface takes its margins from COUNTS."""
    if name == "adaptive_arcface":
        return AdaptiveArcFace(dim, COUNTS[:classes], scale, low=0.1, high=0.6, power=0.5)
    if name == "subcenter_arcface":
        return ArcFace(dim, classes, margin, scale, centres=CENTRES)
    kinds = {"arcface": ArcFace, "cosface": CosFace, "curricularface": CurricularFace}
    return kinds[name](dim, classes, margin, scale)


FAMILY = ["arcface", "cosface", "curricularface", "subcenter_arcface", "adaptive_arcface"]


def _slow_margin(label):
    """From n ** -0.5, mapped linearly so that 500 images give 0.1 and 1 image 0.6."""
    return 0.1 + 0.5 * (COUNTS[label] ** -0.5 - 500 ** -0.5) / (1 - 500 ** -0.5)


def _slow_logits(name, features, weight, labels, margin, scale, t):
    """The definitions, one number at a time, in Python floats."""
    centres = CENTRES if name == "subcenter_arcface" else 1
    rows = []
    for feature, label in zip(features, labels):
        all_cosines = [float(np.dot(feature, w) / np.linalg.norm(feature) / np.linalg.norm(w))
                       for w in weight]
        cosines = [max(all_cosines[i:i + centres]) for i in range(0, len(weight), centres)]
        if name == "adaptive_arcface":
            margin = _slow_margin(label)
        theta = math.acos(cosines[label])
        widened = math.cos(theta + margin)
        row = []
        for index, cosine in enumerate(cosines):
            if index != label:
                hard = name == "curricularface" and cosine > widened
                row.append(cosine * (t + cosine) if hard else cosine)
            elif name == "cosface":
                row.append(cosine - margin)
            elif theta + margin >= math.pi:
                row.append(cosine - margin * math.sin(margin))
            else:
                row.append(widened)
        rows.append([scale * value for value in row])
    return np.array(rows)


def _slow_entropy(logits, labels):
    picked = logits[np.arange(len(labels)), labels]
    top = logits.max(1)
    return np.mean(np.log(np.exp(logits - top[:, None]).sum(1)) + top - picked)


@pytest.mark.parametrize("name", FAMILY)
def test_logits_against_the_definition(name):
    rng = np.random.default_rng(1)
    loss = _make(name, 6, 9, margin=0.3, scale=20).eval()
    features, weight = rng.normal(size=(20, 6)), rng.normal(size=tuple(loss.weight.shape))
    labels = rng.integers(0, 9, 20)
    features[3] = -2 * weight[labels[3]] + 0.01     # an angle past pi - margin
    loss.weight.data = torch.from_numpy(weight).float()
    if name == "curricularface":
        loss.t.fill_(0.4)
    got = loss({"global": torch.from_numpy(features).float()}, torch.from_numpy(labels))
    expected = _slow_logits(name, features, weight, labels, 0.3, 20, t=0.4)
    np.testing.assert_allclose(got["logits"], expected, atol=2e-4)
    assert abs(got["total"].item() - _slow_entropy(expected, labels)) < 1e-4


def test_margins_by_frequency():
    margins = AdaptiveArcFace(4, COUNTS, 20, low=0.1, high=0.6, power=0.5).class_margins
    np.testing.assert_allclose(margins, [_slow_margin(label) for label in range(9)], atol=1e-6)
    assert margins[0] == pytest.approx(0.1) and margins[4] == pytest.approx(0.6)
    # Nothing to tell classes apart; a class without images is as rare as one with a single
    np.testing.assert_allclose(AdaptiveArcFace(4, [7, 7], 20).class_margins, [0.05, 0.05])
    np.testing.assert_allclose(AdaptiveArcFace(4, [0, 1, 9], 20).class_margins, [0.5, 0.5, 0.05])


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("sign", [1, -1])
def test_finite_where_the_cosine_is_one(name, sign):
    loss = _make(name, 4, 3, margin=0.15, scale=30).train()
    loss.weight.data = torch.eye(4)[:3].repeat_interleave(loss.centres, dim=0)
    features = (sign * torch.eye(4)[:3]).clone().requires_grad_()
    total = loss({"global": features}, torch.arange(3))["total"]
    total.backward()
    assert torch.isfinite(total)
    # The slope along the angle is at most scale * 1, over three rows, at either end
    for grad in (features.grad, loss.weight.grad):
        assert torch.isfinite(grad).all() and grad.abs().max() < 30


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("end", [0, math.pi])
@pytest.mark.parametrize("gap", [0.15, 1e-2, 1e-3, 1e-4])
def test_float32_gradients_near_cosines_of_one(name, end, gap):
    """Against differences of the definition in float64."""
    loss = _make(name, 3, 2, margin=0.2, scale=4).eval()
    angle = abs(end - gap)
    sine = math.sin(angle)
    feature = np.array([[math.cos(angle), sine * 0.6, sine * 0.8]], np.float32)
    weight = np.repeat(np.eye(3, dtype=np.float32)[:2], loss.centres, axis=0)
    loss.weight.data = torch.from_numpy(weight)
    x = torch.from_numpy(feature).requires_grad_()
    loss({"global": x}, torch.tensor([0]))["total"].backward()
    for column in range(3):
        step = np.zeros((1, 3))
        step[0, column] = gap * 1e-3
        above, below = (_slow_entropy(_slow_logits(name, moved, weight, [0], 0.2, 4, t=0.0), [0])
                        for moved in (feature.astype(float) + step, feature.astype(float) - step))
        slope = (above - below) / (2 * step[0, column])
        assert abs(x.grad[0, column] - slope) < 5e-3


@pytest.mark.parametrize("name", FAMILY)
def test_gradcheck(name):
    torch.manual_seed(0)
    loss = _make(name, 5, 4, margin=0.15, scale=8).double().eval()
    features = torch.randn(6, 5, dtype=torch.double, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    run = lambda features, weight: torch.func.functional_call(
        loss, {"weight": weight}, ({"global": features}, labels))["total"]
    assert torch.autograd.gradcheck(run, (features, loss.weight))


def test_running_mean_is_over_the_images_of_all_processes(monkeypatch):
    torch.manual_seed(0)
    x, labels = torch.randn(6, 8), torch.arange(6) % 3
    loss = CurricularFace(8, 3, margin=0.15, scale=30)
    cosines = torch.cosine_similarity(x, loss.weight.detach()[labels])
    # The other process has images 2 .. 5; its sum and count come with the reduction
    others = torch.stack([cosines[2:].sum(), torch.tensor(4.0)])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda value: value.add_(others))
    loss({"global": x[:2]}, labels[:2])
    assert loss.t.item() == pytest.approx(0.01 * cosines.mean().item(), rel=1e-5)
    # A process without images follows the others
    loss({"global": x[:0]}, labels[:0])
    expected = 0.99 * 0.01 * cosines.mean() + 0.01 * cosines[2:].mean()
    assert loss.t.item() == pytest.approx(expected.item(), rel=1e-5)


def test_running_mean_rests_in_eval_mode_and_without_images():
    loss = CurricularFace(8, 5, margin=0.15, scale=30)
    batch = {"global": torch.randn(4, 8)}, torch.tensor([0, 1, 2, 3])
    loss.train()(*batch)
    before = loss.t.item()
    assert before != 0
    loss({"global": torch.zeros(0, 8)}, torch.zeros(0, dtype=torch.long))
    loss.eval()(*batch)
    assert loss.t.item() == before


def test_class_weights_start_as_unit_vectors_in_all_directions():
    torch.manual_seed(0)
    weight = ArcFace(256, 1000, margin=0.15, scale=30).weight.detach()
    assert abs(weight.norm(dim=1).mean() - 1) < 0.01
    assert weight.mean(dim=0).norm() < 0.05
