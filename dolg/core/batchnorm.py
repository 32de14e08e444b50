"""Precise statistics of batch normalisation."""
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import nn


@torch.no_grad()
def precise_statistics(model: nn.Module, batches: Iterable[torch.Tensor],
                       autocast: Callable[[], AbstractContextManager]) -> None:
    """Compute every batch norm's running mean and variance anew, of all `batches` (B,3,H,W).

    The weights stay as they are, and each batch passes the norms by its own statistics, as in
    training; of those mu and sigma^2 the population has the mean E[mu] and the variance
    E[sigma^2 + mu^2] - E[mu]^2 (Wu and Johnson, arXiv 2105.07576, section 3.1). Here E weighs by
    the number of values, over the batches of all processes (each must call this). All other
    layers work as in evaluation, so that no random number is drawn.

    `model` comes in training mode: norms that are in eval mode are frozen and stay as they are, as
    does a norm that no batch reaches. Nothing else of the model changes. `autocast` gives the
    context of a forward pass.
    """
    norms = [module for module in model.modules()
             if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
             and module.running_mean is not None]
    sums = {norm: norm.running_mean.new_zeros((3, norm.num_features), dtype=torch.float64)
            for norm in norms}
    with _only_norms_train(model, norms), ExitStack() as hooks:
        for norm in norms:
            hooks.enter_context(norm.register_forward_pre_hook(_adding_to(sums[norm])))
        for images in batches if norms else ():
            with autocast():
                model.forward(images)       # a model compiled in place would not notice the hooks
    _add_processes(list(sums.values()))
    for norm, (count, mean, square) in sums.items():
        seen = count > 0
        mean, square = mean / count, square / count
        norm.running_mean.copy_(torch.where(seen, mean, norm.running_mean))
        norm.running_var.copy_(torch.where(seen, square - mean.square(), norm.running_var))


def _adding_to(sums: torch.Tensor):
    """A hook that adds to (3,C), for each channel: values, their sum, the sum of their squares."""

    def add(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        count = x.numel() // x.shape[1]
        if count:
            variance, mean = torch.var_mean(
                x.float(), dim=[0, *range(2, x.ndim)], correction=0)
            variance, mean = variance.double(), mean.double()
            sums.add_(count * torch.stack([torch.ones_like(mean), mean,
                                           variance + mean.square()]))

    return add


def _add_processes(sums: list[torch.Tensor]) -> None:
    """Make each of `sums` the total of all processes, in one exchange."""
    if dist.is_initialized() and sums:
        total = torch.cat([one.flatten() for one in sums])
        dist.all_reduce(total)
        for one, part in zip(sums, total.split([one.numel() for one in sums])):
            one.copy_(part.view_as(one))


@contextmanager
def _only_norms_train(model: nn.Module, norms: list[nn.Module]):
    """`norms` use their batch's statistics and track none; all else is in eval mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm in norms:
            norm.track_running_stats = True
