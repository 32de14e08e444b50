"""Layers shared by the retrieval models."""
import torch
from torch import nn


class GeM(nn.Module):
    """Generalised-mean pooling (Radenovic et al., TPAMI 2019): (mean max(x, eps)^p)^(1/p).

    p = 1 is average pooling, p -> infinity maximum pooling; `p` is learned. Maps (B,C,h,w)
    to (B,C), in float32 whatever the autocast: cubes of activations overflow half precision.
    """

    def __init__(self, p: float = 3.0, eps: float = 1e-6):
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), p))
        self.eps = eps

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            powers = maps.float().clamp(min=self.eps).pow(self.p)
            return powers.mean(dim=(2, 3)).pow(1 / self.p)
