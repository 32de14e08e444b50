"""One query and many candidates through the reranking transformer: its logits, sooner.

Padding is left out. On a GPU, candidates of about the same length go in batches. On a CPU in float32
each pair goes alone, in blocks that stay in the processor's cache: the query's tokens are made and
projected once, attention is two products and a power of two per block, and of the last layer the one
token that is judged is computed.
"""
import math

import torch
from torch.nn import functional as F

from dolg.models.encoder import EncoderLayer
from dolg.models.rrt import RerankingTransformer, Side

# Numbers in a block of attention weights, or of hidden activations: 2 MB
_BLOCK = 2 ** 19
# Powers of two of up to this, thousands of them, neither overflow nor vanish
_SAFE = 64.0
_PAIRS = {"cuda": 128, "cpu": 4}


class PairScorer:
    """Scores candidates for a query.

    Args:
        model: in evaluation mode, on its device; made anew when its weights change.
        precision: float32 gives the logits of `model(query, candidate)` up to rounding; bfloat16 and
            float16 are for devices that compute in them.
        batch: pairs at once; 0: what suits the device. In float32 a CPU takes them one by one.
    """

    def __init__(self, model: RerankingTransformer, precision: torch.dtype = torch.float32, batch: int = 0):
        assert not model.training
        self.model, self.precision = model, precision
        self.device = model.classifier.weight.device
        self.batch = batch or _PAIRS[self.device.type]
        self._layers = []
        if self.device.type == "cpu" and precision == torch.float32:
            self._layers = [_Layer(layer) for layer in model.encoder.layers]

    @torch.inference_mode()
    def score(self, query: Side, candidates: Side) -> torch.Tensor:
        """Logits (B,) float32, on the model's device, of a query, a side of one image, and B candidates."""
        query = _without_padding(query, 0)
        if not len(candidates["mask"]):
            return torch.empty(0, device=self.device)
        return self._one_by_one(query, candidates) if self._layers else self._in_batches(query, candidates)

    def _in_batches(self, query: Side, candidates: Side) -> torch.Tensor:
        model, lengths = self.model, (~candidates["mask"]).sum(1)
        logits = torch.empty(len(lengths), device=self.device)
        lead = model.side_tokens(query, "query")
        for rows in lengths.argsort().split(self.batch):
            side = _to_the_longest(candidates, rows)
            tail = model.side_tokens(side, "candidate")
            tokens = torch.cat([lead.expand(len(rows), -1, -1), tail], dim=1)
            mask = F.pad(side["mask"], (lead.shape[1] + 2, 0)) if side["mask"].any() else None
            # Not the classifier: logits of half precision would tie
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                states = model.encode(tokens, mask, rows=1)[:, 0]
            logits[rows] = model.classifier(states.float())[:, 0]
        return logits

    def _one_by_one(self, query: Side, candidates: Side) -> torch.Tensor:
        model = self.model
        lead = model.side_tokens(query, "query")[0]
        projected = self._layers[0].project(lead)
        longest = len(lead) + 2 + candidates["mask"].shape[1]
        space = torch.empty(max(_BLOCK, *(layer.row(longest) for layer in self._layers)))
        states = torch.empty(len(candidates["mask"]), model.dim)
        for row in range(len(states)):
            tail = model.side_tokens(_without_padding(candidates, row), "candidate")[0]
            x = torch.cat([lead, tail])
            parts = torch.cat([projected, self._layers[0].project(tail)])
            for number, layer in enumerate(self._layers[:-1]):
                x = layer(x, layer.project(x) if number else parts, space)
            states[row] = self._layers[-1].first_token(x)
        return model.classifier(states)[:, 0]


def _without_padding(side: Side, row: int) -> Side:
    """One image of a side."""
    there = ~side["mask"][row]
    part = {name: side[name][row][there][None] for name in ("local", "scales", "mask")}
    return {"global": side["global"][row:row + 1], **part}


def _to_the_longest(side: Side, rows: torch.Tensor) -> Side:
    """Some images of a side, padded at the end, to the length of the longest."""
    mask, places = side["mask"][rows].sort(dim=1, stable=True)
    longest = int((~mask).sum(1).max())
    mask, places = mask[:, :longest], places[:, :longest]
    return {"global": side["global"][rows], "local": side["local"][rows[:, None], places], "mask": mask,
            "scales": side["scales"][rows[:, None], places]}


class _Layer:
    """An `EncoderLayer` on the tokens (T,dim) of one pair, with weights turned and scaled for that."""

    def __init__(self, layer: EncoderLayer):
        attention = layer.self_attn
        self.heads, dim = attention.heads, attention.out_proj.in_features
        # Scores are divided by the root of a head's dimensions, and weights are powers of 2, not e
        factor = torch.ones(3 * dim)
        factor[:dim] = math.log2(math.e) / math.sqrt(dim // self.heads)
        self.weight = (attention.in_proj_weight.detach() * factor[:, None]).T.contiguous()
        self.bias = attention.in_proj_bias.detach() * factor
        self.out, self.linear1, self.linear2 = (
            (linear.bias.detach(), linear.weight.detach().T.contiguous())
            for linear in (attention.out_proj, layer.linear1, layer.linear2))
        self.norm1, self.norm2 = layer.norm1, layer.norm2

    def row(self, count: int) -> int:
        """Numbers in a token's scores of `count` tokens, or in its hidden activations."""
        return max(self.heads * count, len(self.linear1[0]))

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values (T,3*dim)."""
        return torch.addmm(self.bias, x, self.weight)

    def __call__(self, x: torch.Tensor, projected: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
        """The tokens after this layer. projected: what `project` gives; x and the space are overwritten."""
        bias, weight = self.out
        x = self.norm1(x.add_(bias).addmm_(self._gather(projected, space), weight))
        return self.norm2(self._add_hidden(x, space))

    def _gather(self, projected: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
        """What all tokens gather of all, (T,dim)."""
        count = len(projected)
        parts = projected.view(count, 3, self.heads, -1)
        longest = parts[:, :2].norm(dim=3).amax(dim=0)      # (2,heads): no score is above their product
        safe = bool(longest.prod(dim=0).max() < _SAFE)
        query, key, value = parts.permute(1, 2, 0, 3)       # (heads,T,dim/heads) each
        gathered = torch.empty(parts[:, 0].shape)
        rows = max(1, _BLOCK // (self.heads * count))
        for start in range(0, count, rows):
            block = query[:, start:start + rows]
            scores = space[:self.heads * block.shape[1] * count].view(self.heads, -1, count)
            torch.bmm(block, key.transpose(1, 2), out=scores)
            if not safe:
                scores -= scores.amax(dim=2, keepdim=True)
            weights = scores.exp2_()
            found = torch.bmm(weights, value).div_(weights.sum(dim=2, keepdim=True))
            gathered[start:start + rows] = found.transpose(0, 1)
        return gathered.flatten(1)

    def _add_hidden(self, x: torch.Tensor, space: torch.Tensor) -> torch.Tensor:
        (bias1, weight1), (bias2, weight2) = self.linear1, self.linear2
        width, total = len(bias1), x + bias2
        rows = max(1, _BLOCK // width)
        for part, sum_ in zip(x.split(rows), total.split(rows)):
            hidden = space[:len(part) * width].view(-1, width)
            torch.addmm(bias1, part, weight1, out=hidden)
            sum_.addmm_(hidden.relu_(), weight2)
        return total

    def first_token(self, x: torch.Tensor) -> torch.Tensor:
        """The first token (dim,) after this layer.

        Its scores are products of all tokens with one vector per head, its query times the weights of
        the keys (their biases change nothing); the weighted mean of values is that of tokens, projected.
        """
        heads, dim = self.heads, x.shape[1]
        query = torch.addmv(self.bias[:dim], self.weight[:, :dim].T, x[0]).view(heads, 1, -1)
        key, value = self.weight[:, dim:].T.view(2, heads, -1, dim)
        scores = (query @ key)[:, 0] @ x.T
        weights = torch.softmax(scores * math.log(2), dim=1)
        mean = (weights @ x)[:, :, None]
        gathered = (value @ mean).view(1, dim) + self.bias[2 * dim:]
        x = self.norm1(torch.addmm(self.out[0], gathered, self.out[1]) + x[:1])
        hidden = torch.addmm(self.linear1[0], x, self.linear1[1]).relu_()
        return self.norm2(torch.addmm(self.linear2[0], hidden, self.linear2[1]) + x)[0]
