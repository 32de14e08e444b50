"""Reranking transformer of global and local descriptors (Tan et al., ICCV 2021).

github.com/uvavision/RerankingTransformer, RRT_GLD: the tokens, their order and their embeddings.
"""
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dolg.errors import UserError, choose
from dolg.models.encoder import Encoder, attend_to_alike, init_matrices

Side = Mapping[str, torch.Tensor]

# Rows of the segment embedding: of a side's mark, its global and its locals
_SEGMENTS = {"query": (2, 4, 0), "candidate": (3, 5, 1)}


class RerankingTransformer(nn.Module):
    """Tells from the descriptors of two images whether they show the same object.

    Args:
        global_dim: dimensions of the global descriptors.
        scales: at which local features are extracted, in rising order; each has an embedding.
        scale_index: how `scale_indexes` looks a feature's scale up, "nearest" or "original".
        layers, heads, dim, feedforward, dropout: see `Encoder`; local features have `dim` dimensions.

    Attributes:
        settings: all of these but the dropout, as JSON has them.

        init: how training starts: "xavier" as the original, or "matching", from which it learns from far
            fewer images: tokens attend to what is alike (`encoder.attend_to_alike`).

    Raises UserError for scales that do not rise, an unknown `scale_index`, and see `Encoder`.
    """

    def __init__(self, global_dim: int, scales: Sequence[float], scale_index: str = "nearest",
                 layers: int = 6, heads: int = 4, dim: int = 128, feedforward: int = 1024,
                 dropout: float = 0.0, init: str = "xavier"):
        super().__init__()
        scales = [float(scale) for scale in scales]
        if not scales or min(scales) <= 0 or sorted(set(scales)) != scales:
            raise UserError(f"MODEL.RRT.SCALES is {scales}: give positive scales in rising order")
        choose(SCALE_INDEXES, scale_index, "MODEL.RRT.SCALE_INDEX")
        self.global_dim, self.dim, self.scales, self.scale_index = global_dim, dim, scales, scale_index
        self.settings = {"global_dim": global_dim, "scales": scales, "scale_index": scale_index,
                         "layers": layers, "heads": heads, "dim": dim, "feedforward": feedforward}
        self.encoder = Encoder(layers, heads, dim, feedforward, dropout)
        self.remap = nn.Linear(global_dim, dim)
        self.scale_encoder = nn.Embedding(len(scales), dim)
        self.seg_encoder = nn.Embedding(6, dim)
        self.classifier = nn.Linear(dim, 1)
        init_matrices(self)
        if init == "matching":
            attend_to_alike(self.encoder)
            with torch.no_grad():       # marks and scales must not outweigh the features
                self.seg_encoder.weight.mul_(0.1)
                self.scale_encoder.weight.mul_(0.1)

    def forward(self, query: Side, candidate: Side) -> torch.Tensor:
        """Logits (B,) of B pairs, the higher the likelier the same; query and candidate exchanged give
        others.

        Each side has `global` (B,D), as stored; `local` (B,N,dim); `mask` (B,N) bool, True where
        padded; `scales` (B,N) int64, rows of the scale embedding. N may differ between the sides, and
        be 0. What padded slots hold does not matter. Raises UserError for other dimensions.
        """
        return self.classifier(self.encode(*self.tokens(query, candidate), rows=1)[:, 0])[:, 0]

    def tokens(self, query: Side, candidate: Side) -> tuple[torch.Tensor, torch.Tensor]:
        """What the encoder sees of B pairs, (B,T,dim), and which are padding, (B,T): a mark, the query's
        global and locals, a mark, the candidate's global and locals."""
        sides = self.side_tokens(query, "query"), self.side_tokens(candidate, "candidate")
        masks = [F.pad(side["mask"], (2, 0)) for side in (query, candidate)]
        return torch.cat(sides, dim=1), torch.cat(masks, dim=1)

    def side_tokens(self, side: Side, role: str) -> torch.Tensor:
        """The tokens (B,2+N,dim) of one side of the pairs, "query" or "candidate"."""
        self.check_dimensions(side["global"].shape[1], side["local"].shape[2])
        mark, whole, local = (self.seg_encoder.weight[row] for row in _SEGMENTS[role])
        globals_ = F.normalize(self.remap(side["global"]), dim=-1) + whole
        locals_ = F.normalize(side["local"], dim=-1) + self.scale_encoder(side["scales"]) + local
        return torch.cat([mark.expand(len(globals_), 1, -1), globals_[:, None], locals_], dim=1)

    def encode(self, tokens: torch.Tensor, mask: torch.Tensor | None = None,
               rows: int | None = None) -> torch.Tensor:
        """The encoder's output for what `tokens` gives, or for the first `rows` tokens of each pair."""
        if mask is not None:        # weights of 0 do not stop NaN
            tokens = tokens.masked_fill(mask[..., None], 0)
        return self.encoder(tokens, mask, rows)

    def scale_indexes(self, scales: np.ndarray) -> np.ndarray:
        """Rows of the scale embedding, see the function of that name."""
        return scale_indexes(scales, self.scales, self.scale_index)

    def check_dimensions(self, of_global: int, of_local: int, whose: str = "") -> None:
        """Raise UserError where features of `whose` images have others than this transformer takes."""
        for what, has, takes, key in (("descriptors", of_global, self.global_dim, "GLOBAL_DIM"),
                                      ("local features", of_local, self.dim, "DIM")):
            if has != takes:
                raise UserError(f"{whose}{what} have {has} dimensions, and this transformer takes {takes}: "
                                f"give other features, or set MODEL.RRT.{key}")


def scale_indexes(scales: np.ndarray, table: Sequence[float], how: str) -> np.ndarray:
    """The index (n,) int64 of each scale (n,) float32 in a table of rising scales.

    how: "nearest" is the nearest by ratio. "original" is the last entry that is no larger than the
    scale, as float64: the original's way, whose table had 0.70710677, ..., which as float32 is a little
    less, so that every second of its scales is taken for the one before. Raises UserError for a scale
    that is nothing of the table's: more than 5 % from the nearest entry, or below the first one.
    """
    scales = np.asarray(scales, np.float32).astype(np.float64)
    look_up = choose(SCALE_INDEXES, how, "MODEL.RRT.SCALE_INDEX")
    indexes, wrong = look_up(scales, np.array(table, np.float64))
    if wrong.any():
        raise UserError(f"a local feature has the scale {scales[wrong][0]:.6g}, and MODEL.RRT.SCALES is "
                        f"{', '.join(f'{scale:.6g}' for scale in table)}: give the scales that the "
                        "features were extracted at")
    return indexes


def _nearest(scales: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indexes, and which are wrong."""
    with np.errstate(divide="ignore", invalid="ignore"):    # scales that are no scales are wrong
        distances = np.abs(np.log(scales)[:, None] - np.log(table))
    indexes = distances.argmin(axis=1)
    return indexes, ~(distances[np.arange(len(scales)), indexes] <= np.log(1.05))


def _original(scales: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indexes, and which are wrong."""
    indexes = np.searchsorted(table, scales, side="right") - 1
    return indexes, (indexes < 0) | ~np.isfinite(scales)


SCALE_INDEXES = {"nearest": _nearest, "original": _original}
