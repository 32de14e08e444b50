"""Linear classifiers: the originals' figures, and the definition in numpy."""
import numpy as np
import pytest
import torch

from dolg.losses.softmax import LinearSoftmax


def test_label_smoothing_and_temperature_of_cgd(conformance, shared):
    golden = conformance.load(shared / "conformance" / "losses")
    make = lambda name: torch.from_numpy(conformance.make(golden["inputs"][f"ce/{name}"]))
    x = make("x").requires_grad_()
    loss = LinearSoftmax(98, 98, smoothing=0.1, temperature=0.5)
    loss.fc.weight.data = torch.eye(98)     # so that the logits are x
    loss.fc.bias.data.zero_()
    total = loss({"global": x}, make("targets"))["total"]
    total.backward()
    conformance.close(golden, "ce/loss", total.detach())
    conformance.close(golden, "ce/grad", x.grad)


def _slow(x, weight, bias, labels, smoothing, temperature):
    costs = []
    for row, label in zip(x, labels):
        logits = np.array([row @ w + b for w, b in zip(weight, bias)]) / temperature
        log_shares = logits - np.log(np.exp(logits).sum())
        target = np.full(len(logits), smoothing / len(logits))
        target[label] += 1 - smoothing
        costs.append(-(target * log_shares).sum())
    return np.mean(costs)


@pytest.mark.parametrize("output, batch_norm", [("global", False), ("local", False),
                                                ("auxiliary", True)])
def test_against_the_definition(output, batch_norm):
    torch.manual_seed(0)
    loss = LinearSoftmax(5, 7, output, batch_norm, smoothing=0.2, temperature=0.7).train()
    shape = (6, 5, 3, 4) if output == "local" else (6, 5)
    value, labels = torch.randn(shape) * 3 + 1, torch.tensor([0, 6, 2, 2, 1, 3])
    got = loss({output: value}, labels)
    x = value.double().numpy()
    if output == "local":
        x = np.stack([[channel.mean() for channel in image] for image in x])
    if batch_norm:
        x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    weight, bias = loss.fc.weight.detach().numpy(), loss.fc.bias.detach().numpy()
    assert got["total"].item() == pytest.approx(_slow(x, weight, bias, labels, 0.2, 0.7), rel=1e-5)
    np.testing.assert_allclose(got["logits"], x @ weight.T + bias, atol=1e-5)


def test_names_of_the_state():
    assert set(LinearSoftmax(4, 3).state_dict()) == {"fc.weight", "fc.bias"}
    assert set(LinearSoftmax(4, 3, "auxiliary", batch_norm=True).state_dict()) == {
        "fc.weight", "fc.bias", "norm.weight", "norm.bias", "norm.running_mean",
        "norm.running_var", "norm.num_batches_tracked"}


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_images_for_a_variance(count):
    loss = LinearSoftmax(4, 3, "auxiliary", batch_norm=True).train()
    loss.norm.running_mean.fill_(2.0)
    x = torch.randn(count, 4, requires_grad=True)
    total = loss({"auxiliary": x}, torch.zeros(count, dtype=torch.long))["total"]
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(loss.norm.weight.grad).all()
    assert torch.equal(loss.norm.running_mean, torch.full((4,), 2.0))
