"""A pooling of the last map, GeM or another, with an optional linear reduction."""
import torch
from torch import nn

from dolg.models.layers import GeM


class GeMModel(nn.Module):
    """backbone -> pooling (GeM, unless another is given) -> linear layer to `dim` (none where that is 0).

    `forward(images (B,3,H,W))` gives {"global": (B, self.dim)}, raw; where the backbone has a map before
    the last, also that as `local` (B,C,h,w), with its lengths as `attention` (B,1,h,w): local features that
    nobody trained, strong where the activations are (as in Tolias et al., "Learning and aggregating deep
    local descriptors", ECCV 2020). No gradient flows through them.
    """

    def __init__(self, backbone: nn.Module, dim: int = 512, pool: nn.Module | None = None):
        super().__init__()
        channels = backbone.channels["stage4"]
        self.backbone = backbone
        self.pool = pool or GeM()
        self.fc = nn.Linear(channels, dim) if dim else nn.Identity()
        self.dim = dim or channels
        self.dims = {"global": self.dim}
        self.local_dim = backbone.channels.get("stage3", 0)
        self.input_spec = backbone.input_spec

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.backbone(images)
        return {"global": self.fc(self.pool(maps["stage4"])), **self._attend(maps)}

    def forward_local(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """`local` and `attention` alone, without the backbone's last stage."""
        return self._attend(self.backbone(images, last="stage3"))

    def _attend(self, maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.local_dim:
            return {}
        local = maps["stage3"].detach()
        return {"local": local, "attention": local.float().norm(dim=1, keepdim=True)}
