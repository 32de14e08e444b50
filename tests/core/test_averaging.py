"""The moving average of a model's weights, against the formula written out."""
import copy

import pytest
import torch
from torch import nn

from dolg.core.averaging import build_average
from dolg.models.backbones.timm import TimmBackbone


def _net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def _shake(model: nn.Module) -> None:
    """Something like a step: all weights and statistics move, counters count."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor += torch.randn_like(tensor).abs()
            else:
                tensor += 1


def test_it_is_the_moving_average():
    model, decay = _net(), 0.75
    expected = copy.deepcopy(model.state_dict())
    average = build_average(model, decay)
    for _ in range(4):
        _shake(model)
        average.update_parameters(model)
        for key, now in model.state_dict().items():
            expected[key] = (expected[key] * decay + now * (1 - decay)
                             if now.is_floating_point() else now.clone())
    state = average.module.state_dict()
    assert list(state) == list(model.state_dict())
    assert state["1.num_batches_tracked"] == 4
    for key, value in state.items():
        torch.testing.assert_close(value, expected[key], msg=key)
    assert not torch.equal(state["0.weight"], model.state_dict()["0.weight"])


def test_no_average():
    assert build_average(_net(), 0.0) is None


def test_it_neither_learns_nor_trains_nor_follows_by_itself():
    model = _net().train()
    average = build_average(model, 0.5)
    before = copy.deepcopy(average.module.state_dict())
    assert not any(p.requires_grad for p in average.parameters()) and not average.module.training
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    _shake(model)
    assert model.training and all(p.requires_grad for p in model.parameters())
    for key, value in average.module.state_dict().items():
        assert torch.equal(value, before[key])


def test_interrupted_it_goes_on_the_same():
    torch.manual_seed(1)
    model = _net()
    one = build_average(model, 0.9)
    for _ in range(2):
        _shake(model)
        one.update_parameters(model)
    other = build_average(copy.deepcopy(model), 0.9)
    other.module.load_state_dict(copy.deepcopy(one.module.state_dict()))
    for _ in range(2):
        _shake(model)
        for average in (one, other):
            average.update_parameters(model)
    for a, b in zip(one.module.state_dict().values(), other.module.state_dict().values()):
        assert torch.equal(a, b)


def test_a_model_compiled_in_place_and_in_channels_last():
    model = _net().to(memory_format=torch.channels_last)
    model.compile(backend="eager")
    images = torch.randn(2, 3, 8, 8)
    model(images)
    average = build_average(model, 0.5)
    assert average.module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert average.module._compiled_call_impl is None
    start = model[0].weight.detach().clone()
    _shake(model)
    average.update_parameters(model)
    torch.testing.assert_close(average.module[0].weight, (start + model[0].weight.detach()) / 2)
    assert average.module[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert average.module(images).shape == (2, 2, 6, 6)
    assert set(average.module.state_dict()) == set(_net().state_dict())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "vit_tiny_patch16_224", "convnext_atto"])
def test_timm_networks(name):
    torch.manual_seed(0)
    backbone = TimmBackbone(name)
    average = build_average(backbone, 0.5)
    start = copy.deepcopy(backbone.state_dict())
    _shake(backbone)
    average.update_parameters(backbone)
    for key, value in average.module.state_dict().items():
        now = backbone.state_dict()[key]
        torch.testing.assert_close(
            value, (start[key] + now) / 2 if now.is_floating_point() else now, msg=key)
    with torch.no_grad():
        maps = average.module(torch.randn(1, 3, 64, 64))
    assert maps["stage4"].shape[1] == backbone.channels["stage4"]
