"""The encoder of the reranking transformers: self-attention and a small network, layer after layer.

Its parameters bear the names of torch.nn.MultiheadAttention and of the original code
(github.com/uvavision/RerankingTransformer), so that the original's weights need no renaming.
"""
import torch
from torch import nn
from torch.nn import functional as F

from dolg.errors import UserError

# Of `attend_to_alike`, by experiment on synthetic landmarks, where half the sharpness did about as well
_SHARPNESS, _NOISE = 2.0, 0.2


class SelfAttention(nn.Module):
    """Attention of several heads among tokens (B,T,dim)."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, rows: int) -> torch.Tensor:
        """What the first `rows` tokens (B,rows,dim) gather of all; mask (B,T) is True where there is
        nothing to gather."""
        dim = x.shape[2]
        if rows == x.shape[1]:
            parts = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=2)
        else:
            query = F.linear(x[:, :rows], self.in_proj_weight[:dim], self.in_proj_bias[:dim])
            parts = query, *F.linear(x, self.in_proj_weight[dim:], self.in_proj_bias[dim:]).chunk(2, dim=2)
        # (B,T,dim) -> (B,heads,T,dim/heads)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = None if mask is None else ~mask[:, None, None]
        gathered = F.scaled_dot_product_attention(query, key, value, attn_mask=seen,
                                                  dropout_p=self.dropout if self.training else 0.0)
        return self.out_proj(gathered.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """x + attention, normalised; then x + a network of one hidden layer, normalised."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float):
        super().__init__()
        self.self_attn = SelfAttention(dim, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(dim, feedforward), nn.Linear(feedforward, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, rows: int) -> torch.Tensor:
        """The first `rows` tokens (B,rows,dim) after this layer; see `SelfAttention`."""
        x = self.norm1(x[:, :rows] + self.dropout(self.self_attn(x, mask, rows)))
        hidden = self.dropout(F.relu(self.linear1(x)))
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class Encoder(nn.Module):
    """Encoder layers; Vaswani et al., NeurIPS 2017, with ReLU and the norms after the sums.

    Args:
        layers, heads: how many layers, and attention heads in each; `heads` divides `dim`.
        dim, feedforward: of the tokens, and of the hidden layers.
        dropout: share of attention weights and of activations that training leaves out.
    """

    def __init__(self, layers: int = 6, heads: int = 4, dim: int = 128, feedforward: int = 1024,
                 dropout: float = 0.0):
        super().__init__()
        if layers < 1 or heads < 1 or dim < 1 or dim % heads:
            raise UserError(f"MODEL.RRT.LAYERS is {layers}, HEADS {heads} and DIM {dim}: give at least one "
                            "layer, and dimensions that split evenly among the heads")
        self.layers = nn.ModuleList(EncoderLayer(dim, heads, feedforward, dropout) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None,
                rows: int | None = None) -> torch.Tensor:
        """Tokens (B,T,dim) after all layers; only the first `rows` of them, if given, which spares most
        of the last layer. mask: (B,T), True for tokens that none may see."""
        for layer in self.layers[:-1]:
            x = layer(x, mask, x.shape[1])
        return self.layers[-1](x, mask, x.shape[1] if rows is None else rows)


def init_matrices(module: nn.Module) -> None:
    """Xavier's uniform start for every matrix, embeddings too, as the original's; biases stay."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


@torch.no_grad()
def attend_to_alike(encoder: Encoder) -> None:
    """Let attention start among tokens that are alike: the query and key projections become multiples of
    the identity with a little of their Xavier start, so that equal tokens have logits of about
    4 sqrt(dim / heads) in every layer.

    The tokens that enter are of about unit length, later ones of sqrt(dim), by their norms.
    """
    for number, layer in enumerate(encoder.layers):
        dim = layer.self_attn.out_proj.in_features
        scale = _SHARPNESS * (dim ** 0.5 if number == 0 else 1)
        for part in layer.self_attn.in_proj_weight[:2 * dim].split(dim):
            part.mul_(_NOISE).add_(torch.eye(dim), alpha=scale)
