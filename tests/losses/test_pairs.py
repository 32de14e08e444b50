"""Pair losses: the originals' figures, loops over pairs and triplets, and the other library's."""
import math

import numpy as np
import pytest
import torch

from dolg.losses.pairs import Contrastive, MultiSimilarity, Triplet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("case", ["triplet16", "triplet64", "triplet_lonely"])
def test_batch_hard_triplets_of_cgd(conformance, shared, case):
    golden = conformance.load(shared / "conformance" / "losses")
    recipe = golden["inputs"][f"{case}/x"]
    x = torch.from_numpy(conformance.make(recipe)).requires_grad_()
    labels = torch.from_numpy(conformance.make(recipe["labels"]))
    total = Triplet(margin=0.1)({"global": x}, labels)["total"]
    total.backward()
    conformance.close(golden, f"{case}/loss", total.detach())
    conformance.close(golden, f"{case}/grad", x.grad)


def _unit(x):
    return [row / np.linalg.norm(row) for row in x.astype(np.float64)]


def _distance(a, b):
    return math.sqrt(((a - b) ** 2).sum())


def _split(labels, anchor):
    """Indexes of the anchor's positives and negatives."""
    positives = [i for i, label in enumerate(labels) if label == labels[anchor] and i != anchor]
    return positives, [i for i, label in enumerate(labels) if label != labels[anchor]]


def _slow_hard(x, labels, margin=0.4):
    x, costs = _unit(x), []
    for a in range(len(x)):
        positives, negatives = _split(labels, a)
        farthest = max([_distance(x[a], x[p]) for p in positives], default=0.0)
        nearest = min([_distance(x[a], x[n]) for n in negatives], default=farthest)
        costs.append(max(0.0, farthest - nearest + margin))
    return np.mean(costs)


def _slow_semihard(x, labels, margin=0.4):
    x, costs = _unit(x), []
    for a in range(len(x)):
        positives, negatives = _split(labels, a)
        for p in positives:
            d = _distance(x[a], x[p])
            others = [_distance(x[a], x[n]) for n in negatives]
            others = [other for other in others if d < other < d + margin]
            if others:
                costs.append(d - min(others) + margin)
    return np.mean(costs) if costs else 0.0


def _slow_contrastive(x, labels, positive_margin=0.2, negative_margin=1.2):
    x, pull, push = _unit(x), [], []
    for a in range(len(x)):
        positives, negatives = _split(labels, a)
        pull += [_distance(x[a], x[p]) - positive_margin for p in positives]
        push += [negative_margin - _distance(x[a], x[n]) for n in negatives]
    means = [np.mean([cost for cost in costs if cost > 0] or [0.0]) for costs in (pull, push)]
    return sum(means)


def _slow_multi_similarity(x, labels, alpha=2.0, beta=30.0, base=0.4, epsilon=0.15):
    x, total = _unit(x), 0.0
    for a in range(len(x)):
        positives, negatives = ([float(x[a] @ x[i]) for i in part] for part in _split(labels, a))
        if positives and negatives:
            hard_positives = [s for s in positives if s < max(negatives) + epsilon]
            hard_negatives = [s for s in negatives if s > min(positives) - epsilon]
            pull = sum(math.exp(-alpha * (s - base)) for s in hard_positives)
            push = sum(math.exp(beta * (s - base)) for s in hard_negatives)
            total += math.log(1 + pull) / alpha + math.log(1 + push) / beta
    return total / len(x)


CASES = {
    "hard": (Triplet(0.4), _slow_hard),
    "semihard": (Triplet(0.4, "semihard"), _slow_semihard),
    "contrastive": (Contrastive(0.2, 1.2), _slow_contrastive),
    "multi_similarity": (MultiSimilarity(2.0, 30.0, 0.4, 0.15), _slow_multi_similarity),
}


def _batch(seed, kinds=5, count=24, dim=6):
    """Raw descriptors around class centres; some classes come once, one image comes twice."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, kinds, count)
    labels[:2] = [90, 91]
    x = rng.normal(size=(100, dim))[labels] + 0.9 * rng.normal(size=(count, dim))
    x[5], labels[5] = x[4], labels[4]
    return x * rng.uniform(0.1, 9, size=(count, 1)), labels


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(5))
def test_against_loops(name, seed):
    loss, slow = CASES[name]
    x, labels = _batch(seed)
    expected = slow(x, labels)
    got = loss({"global": torch.from_numpy(x).float()}, torch.from_numpy(labels))
    assert expected > 0.01 and set(got) == {"total"}
    assert got["total"].item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck_on_raw_descriptors(name):
    loss, _ = CASES[name]
    x, labels = _batch(7, count=12)
    x = x[:, :3] + 0.01 * np.arange(12)[:, None]    # no two alike: a root has a kink at 0
    x, labels = torch.from_numpy(x).requires_grad_(), torch.from_numpy(labels)
    assert loss({"global": x}, labels)["total"] > 0.01
    assert torch.autograd.gradcheck(lambda x: loss({"global": x}, labels)["total"], x)


@pytest.mark.parametrize("name", CASES)
def test_the_length_of_a_raw_descriptor_has_no_slope(name):
    loss, _ = CASES[name]
    x, labels = _batch(3)
    x = torch.from_numpy(x).requires_grad_()
    loss({"global": x}, torch.from_numpy(labels))["total"].backward()
    assert (x.grad * x).sum(1).abs().max() < 1e-12 < x.grad.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_equal_descriptors_give_finite_gradients(name):
    loss, _ = CASES[name]
    x = torch.ones(40, 6, requires_grad=True)      # above 25 rows cdist would use products
    total = loss({"global": x}, torch.arange(40) % 4)["total"]
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(x.grad).all()


def test_anchors_without_positives_or_negatives():
    x = torch.randn(6, 4, requires_grad=True)
    alone = Triplet(0.3)({"global": x}, torch.zeros(6, dtype=torch.long))["total"]
    alone.backward()
    assert alone.item() == pytest.approx(0.3) and x.grad.abs().max() < 1e-6
    x = torch.tensor([[1.0, 0.0], [math.cos(0.1), math.sin(0.1)]])
    lonely = Triplet(0.3)({"global": x}, torch.arange(2))["total"]
    assert lonely.item() == pytest.approx(0.3 - 2 * math.sin(0.05), rel=1e-5)


def test_a_negative_as_far_as_the_positive_is_not_semi_hard():
    assert Triplet(0.3, "semihard")({"global": torch.eye(3)}, torch.tensor([0, 0, 1]))["total"] == 0


def test_small_distances_in_large_batches():
    x = torch.nn.functional.normalize(torch.randn(40, 16)).double()
    angle = 1e-4
    x[1] = math.cos(angle) * x[0] + math.sin(angle) * torch.nn.functional.normalize(
        x[2] - (x[2] @ x[0]) / (x[0] @ x[0]) * x[0], dim=0)
    labels = torch.tensor([0, 0, *range(1, 39)])
    total = Contrastive(0.0, 0.0)({"global": x.float()}, labels)["total"]
    assert total.item() == pytest.approx(angle, rel=0.01)


@pytest.mark.parametrize("name", ["semihard", "contrastive", "multi_similarity"])
@pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.long), torch.arange(6)])
def test_without_both_kinds_of_pairs(name, labels):
    loss, slow = CASES[name]
    x = torch.randn(6, 4, requires_grad=True)
    total = loss({"global": x}, labels)["total"]
    total.backward()
    assert total.item() == pytest.approx(slow(x.detach().numpy(), labels.tolist()), abs=1e-5)
    assert torch.isfinite(x.grad).all()


def test_against_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    from pytorch_metric_learning import miners
    theirs = {
        "hard": lambda x, y: losses.TripletMarginLoss(0.4, reducer=_mean_reducer())(
            x, y, miners.BatchHardMiner()(x, y)),
        "contrastive": losses.ContrastiveLoss(0.2, 1.2),
        "multi_similarity": lambda x, y: losses.MultiSimilarityLoss(2.0, 30.0, 0.4)(
            x, y, miners.MultiSimilarityMiner(0.15)(x, y)),
    }
    for name, their_loss in theirs.items():
        # Their batch-hard miner leaves lonely anchors out, so there are none
        labels = torch.arange(24) % 5
        x = torch.randn(24, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double)
        ours, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        total = CASES[name][0]({"global": ours}, labels)["total"]
        expected = their_loss(other, labels)
        total.backward()
        expected.backward()
        assert total.item() == pytest.approx(expected.item(), rel=1e-5), name
        torch.testing.assert_close(ours.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def _mean_reducer():
    from pytorch_metric_learning.reducers import MeanReducer
    return MeanReducer()
