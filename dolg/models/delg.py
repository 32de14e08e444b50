"""DELG: deep local and global features (Cao et al., ECCV 2020)."""
import torch
from torch import nn

from dolg.models.layers import GeM, SpatialAttention


class DELG(nn.Module):
    """A global vector from the last stage, and attended local features from the one before.

    The local branch sees detached maps: its loss trains the attention and never reaches the
    backbone, so that one backward pass does for both branches.

    Args:
        backbone: gives "stage3" and "stage4".
        dim: dimensions of the global descriptor.
        local_dim: channels of the local features.

    `forward(images (B,3,H,W))` gives `global` (B,dim), raw; `local` (B,local_dim,h,w), unit
    features times their attention; `attention` (B,1,h,w), positive.
    """

    def __init__(self, backbone: nn.Module, dim: int = 512, local_dim: int = 512,
                 gem_p: float = 3.0, gem_eps: float = 1e-6, bn_eps: float = 1e-5,
                 bn_momentum: float = 0.1):
        super().__init__()
        self.backbone = backbone
        self.pool = GeM(gem_p, gem_eps)
        self.fc = nn.Linear(backbone.channels["stage4"], dim)
        self.attention = SpatialAttention(backbone.channels["stage3"], local_dim, bn_eps,
                                          bn_momentum)
        self.dim, self.dims = dim, {"global": dim, "local": local_dim}
        self.local_dim, self.input_spec = local_dim, backbone.input_spec

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.backbone(images)
        return {"global": self.fc(self.pool(maps["stage4"])), **self._attend(maps)}

    def forward_local(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """`local` and `attention` alone, without the backbone's last stage."""
        return self._attend(self.backbone(images, last="stage3"))

    def _attend(self, maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        local, attention = self.attention(maps["stage3"].detach())
        return {"local": local, "attention": attention}
