"""A model whose weights are the moving average of another's over the steps of its training."""
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel


def build_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """A copy of `model` to evaluate and extract with, None where `decay` (TRAIN.EMA) is 0.

    Every `update_parameters(model)` makes each weight average * decay + model's * (1 - decay),
    starting from the model's weights as they are now. Running means and variances of batch norms
    are averaged likewise, since they must fit the averaged weights (Tan and Le, ICML 2019, in
    their code, and timm do so too); counters are copied. The copy is in eval mode, learns nothing,
    and is not compiled where the model is. `average.module` is the copy proper: its state dict has
    the model's own keys, and is all there is to save.
    """
    if not decay:
        return None
    average = AveragedModel(model, multi_avg_fn=_mixing(decay), use_buffers=True)
    average.requires_grad_(False).eval()
    # From 0 on, the first update would copy the model: then a run that goes on from a checkpoint
    # would have to know how many updates there were
    average.n_averaged.fill_(1)
    return average


def _mixing(decay: float):
    """The update of tensors that share a device and a type."""

    @torch.no_grad()
    def mix(averaged: list[torch.Tensor], current: list[torch.Tensor], _: torch.Tensor) -> None:
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - decay)
        else:
            torch._foreach_copy_(averaged, current)

    return mix
