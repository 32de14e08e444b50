"""Reranking transformer on a network's last map (Tan et al., ICCV 2021, section on product images).

github.com/uvavision/RerankingTransformer, RRT_SOP: the tokens, their order and their embeddings.
"""
import torch
from torch import nn

from dolg.errors import UserError
from dolg.models.encoder import Encoder, init_matrices

# Rows of the segment embedding
_CLS, _SEP, _QUERY, _CANDIDATE = range(4)


class RerankingTransformerOnMaps(nn.Module):
    """backbone -> average pooling -> linear layer (none where `dim` is 0) for retrieval; and the last
    map, reduced, for a transformer that tells whether two images show the same object.

    Args:
        backbone: gives "stage4".
        dim: dimensions of the descriptor.
        local_dim: channels of the map that the transformer sees, a multiple of 4.
        layers, heads, feedforward, dropout: see `Encoder`.
        freeze_backbone: the backbone and the descriptor's layer take no gradients.

    `forward(images (B,3,H,W))` gives `global` (B,dim) and `local` (B,local_dim,h,w), both raw.
    """

    def __init__(self, backbone: nn.Module, dim: int = 128, local_dim: int = 128, layers: int = 6,
                 heads: int = 4, feedforward: int = 1024, dropout: float = 0.0,
                 freeze_backbone: bool = False):
        super().__init__()
        channels = backbone.channels["stage4"]
        self.backbone = backbone
        self.fc = nn.Linear(channels, dim) if dim else nn.Identity()
        self.fc_local = nn.Conv2d(channels, local_dim, 1)
        self.matcher = MapMatcher(layers, heads, local_dim, feedforward, dropout)
        self.dim = dim or channels
        self.dims = {"global": self.dim, "local": local_dim}
        self.local_dim, self.input_spec = local_dim, backbone.input_spec
        if freeze_backbone:
            self.backbone.requires_grad_(False)
            self.fc.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.backbone(images)["stage4"]
        return {"global": self.fc(maps.mean(dim=(2, 3))), "local": self.fc_local(maps)}

    def match(self, query_maps: torch.Tensor, candidate_maps: torch.Tensor) -> torch.Tensor:
        """Logits (B,) of the `local` maps (B,local_dim,h,w) of B pairs; see `MapMatcher`."""
        return self.matcher(query_maps, candidate_maps)


class MapMatcher(nn.Module):
    """The transformer. Query and candidate exchanged give other logits; their maps may differ in size.

    Args: see `Encoder`; `dim` is a multiple of 4 as well.
    """

    def __init__(self, layers: int = 6, heads: int = 4, dim: int = 128, feedforward: int = 1024,
                 dropout: float = 0.0):
        super().__init__()
        if dim % 4:
            raise UserError(f"MODEL.RRT.DIM is {dim}: positions need a multiple of 4")
        self.encoder = Encoder(layers, heads, dim, feedforward, dropout)
        self.seg_encoder = nn.Embedding(4, dim)
        self.classifier = nn.Linear(dim, 1)
        init_matrices(self)

    def forward(self, query_maps: torch.Tensor, candidate_maps: torch.Tensor) -> torch.Tensor:
        tokens = self.tokens(query_maps, candidate_maps)
        return self.classifier(self.encoder(tokens, rows=1)[:, 0])[:, 0]

    def tokens(self, query_maps: torch.Tensor, candidate_maps: torch.Tensor) -> torch.Tensor:
        """What the encoder sees of B pairs of maps (B,dim,h,w), (B,T,dim): a mark, the query's positions
        row by row, a mark, the candidate's."""
        segments, parts = self.seg_encoder.weight, []
        for maps, mark, segment in ((query_maps, _CLS, _QUERY), (candidate_maps, _SEP, _CANDIDATE)):
            places = sine_positions(*maps.shape[1:]).to(maps)
            parts += [segments[mark].expand(len(maps), 1, -1),
                      maps.flatten(2).transpose(1, 2) + segments[segment] + places]
        return torch.cat(parts, dim=1)


def sine_positions(dim: int, height: int, width: int) -> torch.Tensor:
    """Embeddings (height * width, dim) float32 of a map's positions, row by row.

    DETR's (Carion et al., ECCV 2020), as the original calls it: half of the channels tell the row, half
    the column, counted from 1 and divided so that the last is 2; sines and cosines in turn, whose
    wavelengths grow from pair to pair, towards 10000 times the first.
    """
    half = dim // 2
    periods = 10000 ** (2 * (torch.arange(half, dtype=torch.float32) // 2) / half)

    def waves(count: int) -> torch.Tensor:
        places = torch.arange(1, count + 1, dtype=torch.float32)
        angles = (places / (count + 1e-6) * 2.0)[:, None] / periods
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)

    rows = waves(height)[:, None].expand(height, width, half)
    columns = waves(width)[None].expand(height, width, half)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)
