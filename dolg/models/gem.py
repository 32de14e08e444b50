"""Generalised-mean pooling of the last map, with an optional linear reduction."""
import torch
from torch import nn

from dolg.models.layers import GeM


class GeMModel(nn.Module):
    """backbone -> GeM -> linear layer to `dim` (none where `dim` is 0).

    `forward(images (B,3,H,W))` gives {"global": (B, self.dim)}, raw.
    """

    def __init__(self, backbone: nn.Module, dim: int = 512, gem_p: float = 3.0,
                 gem_eps: float = 1e-6):
        super().__init__()
        channels = backbone.channels["stage4"]
        self.backbone = backbone
        self.pool = GeM(gem_p, gem_eps)
        self.fc = nn.Linear(channels, dim) if dim else nn.Identity()
        self.dim = dim or channels
        self.dims = {"global": self.dim}
        self.input_spec = backbone.input_spec

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"global": self.fc(self.pool(self.backbone(images)["stage4"]))}
