"""CGD: combination of multiple global descriptors (Jun et al., arXiv 1903.10663)."""
import torch
from torch import nn
from torch.nn import functional as F

from dolg.errors import UserError
from dolg.models.layers import GeM
from dolg.models.poolings import AveragePooling, MaximumPooling


class CGD(nn.Module):
    """Several poolings of one map, each reduced and normalised, side by side.

    Args:
        backbone: gives "stage4".
        config: the poolings in order: S (SPoC: average), M (MAC: maximum), G (GeM, p = 3).
        feature_dim: dimensions of the descriptor, split evenly among them.

    `forward(images (B,3,H,W))` gives `global` (B,feature_dim), of length 1; `auxiliary` (B,C), the
    first pooled map before its reduction, for the auxiliary classifier. Raises UserError for
    another letter or a dimension that does not split.
    """

    def __init__(self, backbone: nn.Module, config: str = "SG", feature_dim: int = 1536):
        super().__init__()
        if not config or set(config) - set(POOLINGS):
            raise UserError(f"MODEL.CGD.CONFIG is '{config}': give letters of "
                            f"{', '.join(POOLINGS)}, such as SG")
        if feature_dim % len(config):
            raise UserError(f"MODEL.CGD.FEATURE_DIM {feature_dim} does not split evenly among the "
                            f"{len(config)} descriptors of MODEL.CGD.CONFIG {config}")
        channels = backbone.channels["stage4"]
        self.backbone = backbone
        self.pools = nn.ModuleList(POOLINGS[letter]() for letter in config)
        self.branches = nn.ModuleList(
            nn.Linear(channels, feature_dim // len(config), bias=False) for _ in config)
        self.dim, self.dims = feature_dim, {"global": feature_dim, "auxiliary": channels}
        self.input_spec = backbone.input_spec

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.backbone(images)["stage4"]
        pooled = [pool(maps) for pool in self.pools]
        parts = [F.normalize(branch(x), dim=1) for branch, x in zip(self.branches, pooled)]
        return {"global": F.normalize(torch.cat(parts, dim=1), dim=1), "auxiliary": pooled[0]}


def _gem() -> nn.Module:
    return GeM(p=3.0, fixed=True)       # the original does not learn it


POOLINGS = {"S": AveragePooling, "M": MaximumPooling, "G": _gem}
