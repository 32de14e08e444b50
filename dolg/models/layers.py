"""Layers shared by the retrieval models."""
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class GeM(nn.Module):
    """Generalised-mean pooling (Radenovic et al., TPAMI 2019): (mean max(x, eps)^p)^(1/p).

    p = 1 is average pooling, p -> infinity maximum pooling; `p` is learned unless `fixed`. Maps
    (B,C,h,w) to (B,C), in float32 whatever the autocast: cubes of activations overflow half
    precision.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6, fixed: bool = False):
        super().__init__()
        self.p = p if fixed else nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        with no_autocast(maps):
            powers = maps.float().clamp(min=self.eps).pow(self.p)
            return powers.mean(dim=(2, 3)).pow(1 / self.p)


class SpatialAttention(nn.Module):
    """Unit local features (B,`width`,h,w) of maps (B,`channels`,h,w), weighed by a softplus score
    per position (B,1,h,w); as in DELG (Cao et al., ECCV 2020) and DOLG."""

    def __init__(self, channels: int, width: int, bn_eps: float = 1e-5, bn_momentum: float = 0.1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1)
        self.bn = nn.BatchNorm2d(width, eps=bn_eps, momentum=bn_momentum)
        self.conv2 = nn.Conv2d(width, 1, 1)
        init_convolutions(self)
        # The rule above counts one output channel and makes scores of 10 and more out of noise;
        # from here training starts with even attention
        nn.init.normal_(self.conv2.weight, std=0.01)

    def forward(self, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.bn(self.conv1(maps))
        score = F.softplus(self.conv2(F.relu(x)))
        return score * F.normalize(x, dim=1), score


def no_autocast(x: torch.Tensor) -> torch.autocast:
    """A context in which `x` and what is computed of it keep their precision."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def init_convolutions(module: nn.Module) -> None:
    """Normal with variance 2 / fan-out (He et al., ICCV 2015), as pycls and DOLG start."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.kernel_size[0] * layer.kernel_size[1] * layer.out_channels
            nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))


def recomputed(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`module(x)`, whose activations are not kept but computed anew in the backward pass."""
    return checkpoint(module, x, use_reentrant=False,
                      context_fn=lambda: (nullcontext(), _norms_at_rest(module)))


@contextmanager
def _norms_at_rest(module: nn.Module) -> Iterator[None]:
    """The second pass must not count a batch into the running statistics once more."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
             and m.track_running_stats]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
