"""What a reranking transformer looks at in a pair of images: the attention weights of its forward pass."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from dolg.core.distributed import device
from dolg.data.sides import side_of
from dolg.errors import UserError
from dolg.models.encoder import SelfAttention
from dolg.models.rrt import RerankingTransformer, Side
from dolg.rerank.builders import build_reranker
from dolg.rerank.images import Images


@dataclass(frozen=True)
class PairAttention:
    """Attention among the tokens of one pair.

    The tokens are a mark, the query's descriptor, its N local features; a mark, the candidate's
    descriptor, its M local features. The logit is read off the first, whose last layer is therefore all
    that is computed of it.

    Attributes:
        logit: of the pair: the transformer's score.
        layers: of each layer (heads,R,4+N+M) float32: how much each of the first R tokens takes of every
            token, summing up to 1; R is all of them, and in the last layer 1.
        query_xy, candidate_xy: (N,2), (M,2) float32, columns and rows of the local features, in pixels.
    """

    logit: float
    layers: Sequence[np.ndarray]
    query_xy: np.ndarray
    candidate_xy: np.ndarray

    def of_first(self, layer: int | None = None) -> np.ndarray:
        """(4+N+M,) how much the first token takes of each, mean over heads and over layers, or of one."""
        return np.mean([weights[:, 0].mean(axis=0) for weights in self._chosen(layer)], axis=0)

    def on_query(self, weights: np.ndarray) -> np.ndarray:
        """The part (..., N) of weights (..., 4+N+M) that is on the query's local features."""
        return weights[..., 2:2 + len(self.query_xy)]

    def on_candidate(self, weights: np.ndarray) -> np.ndarray:
        """The part (..., M) of weights (..., 4+N+M) that is on the candidate's local features."""
        return weights[..., 4 + len(self.query_xy):]

    def across(self, layer: int | None = None) -> np.ndarray:
        """(N,M) how much each of the query's local features takes of each of the candidate's, mean over
        heads and over the layers in which they take any: all but the last. Zeros where there is no such
        layer."""
        layers = [weights for weights in self._chosen(layer) if weights.shape[1] > 1]
        if not layers:
            return np.zeros((len(self.query_xy), len(self.candidate_xy)), np.float32)
        rows = slice(2, 2 + len(self.query_xy))
        return np.mean([self.on_candidate(weights[:, rows]).mean(axis=0) for weights in layers], axis=0)

    def _chosen(self, layer: int | None) -> Sequence[np.ndarray]:
        if layer is None:
            return self.layers
        if not 1 <= layer <= len(self.layers):
            raise UserError(f"--layer {layer}: the transformer has layers 1 to {len(self.layers)}")
        return self.layers[layer - 1:layer]


@torch.inference_mode()
def watched_forward(model: RerankingTransformer, query: Side,
                    candidate: Side) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits (B,) of B pairs, and of each layer the attention weights (B,heads,R,T).

    The model runs as it always does; the weights are computed of what each layer was given.
    """
    given = []

    def note(module: SelfAttention, inputs: tuple) -> None:
        given.append((module, inputs))

    hooks = [layer.self_attn.register_forward_pre_hook(note) for layer in model.encoder.layers]
    try:
        logits = model(query, candidate)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, [attention_weights(module, *inputs) for module, inputs in given]


def attention_weights(attention: SelfAttention, x: torch.Tensor, mask: torch.Tensor | None,
                      rows: int) -> torch.Tensor:
    """(B,heads,rows,T) float32: how much the first `rows` of tokens (B,T,dim) take of each, which the
    attention itself never writes down; 0 of those that `mask` (B,T) is True for."""
    dim = x.shape[2]
    weight, bias = attention.in_proj_weight.float(), attention.in_proj_bias.float()
    x = x.float()
    query = F.linear(x[:, :rows], weight[:dim], bias[:dim])
    key = F.linear(x, weight[dim:2 * dim], bias[dim:2 * dim])
    query, key = (part.unflatten(2, (attention.heads, -1)).transpose(1, 2) for part in (query, key))
    logits = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
    if mask is not None:
        logits = logits.masked_fill(mask[:, None, None], -torch.inf)
    return logits.softmax(dim=3)


def attend_pair(cfg, query: Images, query_row: int, database: Images, database_row: int) -> PairAttention:
    """What RERANK.METHOD rrt attends to in one query and one image, by the keys of MODEL.RRT and
    RERANK.RRT.

    Raises UserError as the reranker does, and where an image has no descriptor.
    """
    place = device(cfg.DEVICE)
    reranker = build_reranker(cfg, "rrt", query, database, Path(cfg.OUT_DIR), place)
    sides = [_side(reranker.model, reranker.locals_per_image, images, row, place)
             for images, row in ((query, query_row), (database, database_row))]
    logits, weights = watched_forward(reranker.model, *sides)
    return PairAttention(float(logits[0]), [layer[0].cpu().numpy() for layer in weights],
                         *(side["positions"][0].cpu().numpy() for side in sides))


def _side(model: RerankingTransformer, most: int, images: Images, row: int, place: torch.device) -> Side:
    descriptor = images.descriptors(np.array([row]))
    if not np.isfinite(descriptor).all():
        raise UserError("an image that failed in extraction has no features to attend to")
    side = side_of(descriptor, [images.local(row)], most, model.scale_indexes)
    return {name: tensor.to(place) for name, tensor in side.items()}
