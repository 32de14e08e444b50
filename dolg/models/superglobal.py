"""SuperGlobal: other poolings for a network trained with GeM (Shao et al., "Global Features are All
You Need for Image Retrieval and Reranking", ICCV 2023).

What the published code does on CVNet's network (github.com/ShihaoShao-GH/SuperGlobal), and its
numbers. Its scale GeM is a matter of extraction: INFER.SCALE_POOLING max.
"""
import torch
from torch import nn
from torch.nn import functional as F

from dolg.models.layers import GeM, no_autocast

# ReLU-P: where a ResNet's first three stages cut activations off, in place of 0
RELU_FLOOR = 0.014
# Regional GeM: side of the window, in positions of the map, and exponent
WINDOW, REGIONAL_P = 5, 2.5
# GeM+: exponent, fixed, where CVNet's is learned, and floor under the activations
GEM_P, GEM_EPS = 4.6, 1e-8


class SuperGlobal(nn.Module):
    """backbone -> regional GeM -> GeM+ -> unit length -> linear layer to `dim` (none where `dim` is 0).

    All exponents are fixed: the linear layer is all that there is to learn besides the backbone. ReLU-P
    is the backbone's own (`ResNet(floor=RELU_FLOOR)`); timm's networks have none.

    `forward(images (B,3,H,W))` gives {"global": (B, self.dim)}, raw.
    """

    def __init__(self, backbone: nn.Module, dim: int = 2048):
        super().__init__()
        channels = backbone.channels["stage4"]
        self.backbone = backbone
        self.pool = GeM(GEM_P, GEM_EPS, fixed=True)
        self.fc = nn.Linear(channels, dim) if dim else nn.Identity()
        self.dim = dim or channels
        self.dims = {"global": self.dim}
        self.input_spec = backbone.input_spec

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = regional_gem(self.backbone(images)["stage4"])
        return {"global": self.fc(F.normalize(self.pool(maps), dim=1))}


def regional_gem(maps: torch.Tensor, window: int = WINDOW, p: float = REGIONAL_P,
                 eps: float = GEM_EPS) -> torch.Tensor:
    """Maps (B,C,h,w), half each: themselves, and the generalised mean of the window around a position.

    Beyond its edges a map goes on as in a mirror. In float32 whatever the autocast. Activations below
    `eps` count as `eps` in the mean: the original makes NaN of negative ones, which a map after a ReLU
    does not have, and of the gradient at 0.
    """
    with no_autocast(maps):
        maps = maps.float()
        powers = _mirrored(maps.clamp(min=eps).pow(p), window // 2)
        return 0.5 * F.avg_pool2d(powers, window, stride=1).pow(1 / p) + 0.5 * maps


def _mirrored(maps: torch.Tensor, margin: int) -> torch.Tensor:
    """Maps (B,C,h,w) with a margin that reflects them, to and fro where they are smaller than it (there
    the original stops)."""
    if min(maps.shape[2:]) > margin:
        return F.pad(maps, (margin,) * 4, mode="reflect")
    for dim in (2, 3):
        last = maps.shape[dim] - 1
        period = max(1, 2 * last)
        places = torch.arange(-margin, last + margin + 1, device=maps.device) % period
        maps = maps.index_select(dim, torch.minimum(places, period - places))
    return maps
