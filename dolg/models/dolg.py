"""DOLG: deep orthogonal fusion of local and global features (Yang et al., ICCV 2021)."""
import torch
from torch import nn
from torch.nn import functional as F

from dolg.models.layers import GeM, SpatialAttention, init_convolutions, no_autocast


class DOLG(nn.Module):
    """A global vector, and what attended local features add at right angles to it.

    The global branch pools the last stage (GeM) and maps it to the width C of stage 3. The
    local branch weighs stage 3 by spatial attention; its part orthogonal to the global vector
    is averaged over positions. Both, concatenated, pass a linear layer to `dim`.

    Args:
        backbone: gives "stage3" and "stage4"; all widths follow from `backbone.channels`.
        dim: dimensions of the descriptor.
        multi_atrous: put the paper's multi-atrous block before the attention.

    `forward(images (B,3,H,W))` gives `global` (B,dim), raw; `local` (B,C,h,w), the attended
    unit features of stage 3; `attention` (B,1,h,w), positive.
    """

    def __init__(self, backbone: nn.Module, dim: int = 512, multi_atrous: bool = False,
                 gem_p: float = 3.0, gem_eps: float = 1e-6, bn_eps: float = 1e-5,
                 bn_momentum: float = 0.1):
        super().__init__()
        c3, c4 = backbone.channels["stage3"], backbone.channels["stage4"]
        self.backbone = backbone
        self.pool = GeM(gem_p, gem_eps)
        self.fc_global = nn.Linear(c4, c3)
        self.multi_atrous = MultiAtrous(c3) if multi_atrous else nn.Identity()
        self.attention = SpatialAttention(c3, c3, bn_eps, bn_momentum)
        self.fc = nn.Linear(2 * c3, dim)
        self.dim, self.dims = dim, {"global": dim}
        self.local_dim, self.input_spec = c3, backbone.input_spec

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.backbone(images)
        outputs = self._attend(maps)
        global_ = self.fc_global(self.pool(maps["stage4"]))
        # Projecting is linear, so the mean over positions may be taken before it: one vector
        # instead of a map, with the same result
        local = outputs["local"].mean(dim=(2, 3))
        fused = torch.cat([global_, orthogonal_part(local, global_)], dim=1)
        return {"global": self.fc(fused), **outputs}

    def forward_local(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """`local` and `attention` alone, without the backbone's last stage."""
        return self._attend(self.backbone(images, last="stage3"))

    def _attend(self, maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        local, attention = self.attention(self.multi_atrous(maps["stage3"]))
        return {"local": local, "attention": attention}


def orthogonal_part(vectors: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """`vectors` (B,C) less their projections on `directions` (B,C), in float32.

    Nothing is removed along a direction of length zero. Projecting a second time takes out
    what rounding left of the first, which counts where the two are nearly parallel.
    """
    with no_autocast(vectors):
        rest, unit = vectors.float(), F.normalize(directions.float(), dim=1)
        for _ in range(2):
            rest = rest - (rest * unit).sum(dim=1, keepdim=True) * unit
        return rest


class MultiAtrous(nn.Module):
    """Context at several reaches: 1x1, three dilated 3x3 and a pooled branch, joined by a 1x1.

    Maps (B,C,h,w) to (B,C,h,w). As in the original code there are no norms, and ReLUs only
    on the pooled branch and the output.
    """

    def __init__(self, channels: int, dilations: tuple[int, ...] = (6, 12, 18)):
        super().__init__()
        width = channels // 2
        self.branches = nn.ModuleList([nn.Conv2d(channels, width, 1)])
        for dilation in dilations:
            self.branches.append(
                nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation))
        self.pooled = nn.Conv2d(channels, width, 1)
        self.join = nn.Conv2d(width * (len(dilations) + 2), channels, 1)
        init_convolutions(self)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        pooled = F.relu(self.pooled(maps.mean(dim=(2, 3), keepdim=True)))
        parts = [pooled.expand(-1, -1, *maps.shape[2:])]
        parts += [branch(maps) for branch in self.branches]
        return F.relu(self.join(torch.cat(parts, dim=1)))
