"""Poolings of the last map, by the name that MODEL.POOLING gives them: maps (B,C,h,w) to (B,C)."""
import torch
from torch import nn

from dolg.models.layers import GeM


class AveragePooling(nn.Module):
    """Mean over positions (SPoC; Babenko and Lempitsky, ICCV 2015)."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.mean(dim=(2, 3))


class MaximumPooling(nn.Module):
    """Maximum over positions (MAC; Tolias et al., ICLR 2016)."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.amax(dim=(2, 3))


# Each is made of the keys of MODEL.GEM, which GeM alone needs
POOLINGS = {
    "gem": GeM,
    "average": lambda p, eps: AveragePooling(),
    "maximum": lambda p, eps: MaximumPooling(),
}
