"""Precise statistics of batch norms, against all values of the set put together."""
import copy
import multiprocessing
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dolg.core.batchnorm import precise_statistics
from dolg.models.backbones.timm import TimmBackbone


def _batches(sizes=(4, 7, 1, 5), seed=0) -> list[torch.Tensor]:
    """Batches that differ in size, mean and spread."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 3, 6, 5, generator=generator) * (i + 1) + 3 * i
            for i, size in enumerate(sizes)]


def _moments(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and population variance of each channel of (B,C,h,w)."""
    channels = values.double().transpose(0, 1).flatten(1)
    return channels.mean(1).float(), channels.var(1, correction=0).float()


def _check(norm: nn.Module, values: torch.Tensor) -> None:
    mean, variance = _moments(values)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-5, atol=1e-5)


def _two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.5),
                        nn.BatchNorm2d(4, momentum=None))
    for norm in (net[0], net[4]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    return net


def test_one_norm():
    net, batches = nn.Sequential(nn.BatchNorm2d(3)), _batches()
    precise_statistics(net, iter(batches), nullcontext)
    _check(net[0], torch.cat(batches))


def test_two_layers_each_batch_by_its_own_statistics():
    net, batches = _two_layers(), _batches()
    precise_statistics(net, batches, nullcontext)
    _check(net[0], torch.cat(batches))
    hidden = []
    for batch in batches:
        mean = batch.mean((0, 2, 3), keepdim=True)
        sd = (batch.var((0, 2, 3), correction=0, keepdim=True) + net[0].eps).sqrt()
        scaled = (batch - mean) / sd * net[0].weight[:, None, None] + net[0].bias[:, None, None]
        hidden.append(net[1](scaled).clamp(min=0).detach())
    _check(net[4], torch.cat(hidden))


def test_nothing_else_changes():
    net = _two_layers().train()
    net[3].eval()
    net(torch.randn(4, 3, 6, 5))
    before = copy.deepcopy(net.state_dict())
    modes = [module.training for module in net.modules()]
    random = torch.get_rng_state()
    precise_statistics(net, _batches(), nullcontext)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in net.modules()] == modes
    changed = {key for key, value in net.state_dict().items()
               if not torch.equal(value, before[key])}
    assert changed == {f"{i}.running_{what}" for i in (0, 4) for what in ("mean", "var")}
    assert net[0].momentum == 0.1 and net[4].momentum is None
    assert all(norm.track_running_stats for norm in (net[0], net[4]))
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    # The hooks are gone: from here the norms work as ever
    precise = net[0].running_mean.clone()
    batch = torch.randn(4, 3, 6, 5)
    net(batch)
    torch.testing.assert_close(net[0].running_mean, 0.9 * precise + 0.1 * batch.mean((0, 2, 3)))


def test_when_a_batch_fails_the_model_is_as_before():
    net = _two_layers()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError):
        precise_statistics(net, [*_batches(), torch.randn(2, 5, 6, 5)], nullcontext)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules()) and net[0].track_running_stats


def test_frozen_norms_rest():
    net, batches = _two_layers(), _batches()
    net[0].eval()
    precise_statistics(net, batches, nullcontext)
    assert (net[0].running_mean == 0).all() and (net[0].running_var == 1).all()
    assert not net[0].training
    frozen = copy.deepcopy(net).eval()
    _check(net[4], torch.cat([frozen[1](frozen[0](batch)).relu().detach() for batch in batches]))


class Twice(nn.Module):
    """One norm for two inputs, and one that is never reached."""

    def __init__(self):
        super().__init__()
        self.norm, self.idle = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x) + self.norm(2 * x[:, :, ::2] + 1)[:, :, :1]


def test_several_calls_of_a_norm_and_none():
    net, batches = Twice(), _batches()
    precise_statistics(net, batches, nullcontext)
    # As (values,3,1,1), whatever the shapes of the two inputs
    both = [x.transpose(0, 1).flatten(1).T[:, :, None, None]
            for b in batches for x in (b, 2 * b[:, :, ::2] + 1)]
    _check(net.norm, torch.cat(both))
    assert (net.idle.running_mean == 0).all() and (net.idle.running_var == 1).all()
    before = net.norm.running_var.clone()
    precise_statistics(net, [], nullcontext)
    assert torch.equal(net.norm.running_var, before)


def test_a_far_mean_costs_no_digits():
    net = nn.Sequential(nn.BatchNorm2d(3))
    batches = [1e4 + batch for batch in _batches((4, 4, 4))]
    precise_statistics(net, batches, nullcontext)
    torch.testing.assert_close(net[0].running_var, _moments(torch.cat(batches))[1],
                               rtol=1e-3, atol=1e-3)


def test_a_compiled_model_and_bf16():
    net, batches = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), _batches()
    net.compile(backend="eager")
    net(batches[0])
    precise_statistics(net, batches, partial(torch.autocast, "cpu", torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        maps = torch.cat([net[0](batch).detach() for batch in batches])
    assert maps.dtype == torch.bfloat16
    _check(net[1], maps)


def test_norms_of_timm():
    torch.manual_seed(0)
    backbone, batches = TimmBackbone("efficientnet_lite0"), [torch.randn(3, 3, 64, 64)] * 2
    with torch.no_grad():
        stem = backbone.body.conv_stem(torch.cat(batches))
    precise_statistics(backbone.train(), batches, nullcontext)
    _check(backbone.body.bn1, stem)


def _in_process(rank: int, meet: str, results) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    net, batches = _two_layers(), _batches()
    # Shares of different sizes
    precise_statistics(net, batches[:3] if rank == 0 else batches[3:], nullcontext)
    results.put({key: value.tolist() for key, value in net.state_dict().items()})
    dist.destroy_process_group()


def test_the_batches_of_all_processes_count(tmp_path):
    alone = _two_layers()
    precise_statistics(alone, _batches(), nullcontext)
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    processes = [spawn.Process(target=_in_process, args=(rank, str(tmp_path / "meet"), results))
                 for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    for _ in processes:
        for key, value in results.get().items():
            torch.testing.assert_close(torch.tensor(value), alone.state_dict()[key], msg=key)
