"""Model and loss as one module: of images with classes, of pairs of stored features, of pairs of images."""
from collections.abc import Callable

import torch
from torch import nn

from dolg.data.pairs import pair_rows
from dolg.data.sides import take


class TrainingModule(nn.Module):
    """Model and loss as one module, so that distributed training wraps them once.

    With `freeze_norms` the model's batch norms keep their running statistics as they are; with
    `compiled` the model is compiled for training (not for evaluation, whose sizes vary).
    """

    def __init__(self, model: nn.Module, loss: nn.Module, freeze_norms: bool,
                 compiled: bool = False):
        super().__init__()
        self.model, self.loss, self.freeze_norms = model, loss, freeze_norms
        self._compiled = torch.compile(model.forward) if compiled else None

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the loss says of images (B,3,H,W) and their classes (B,)."""
        return self.loss(self.run(images), labels)

    @property
    def run(self) -> Callable:
        """The model, as it is to be called now."""
        return self._compiled if self._compiled and self.training else self.model

    def train(self, mode: bool = True) -> "TrainingModule":
        super().train(mode)
        if self.freeze_norms:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase):
                    module.eval()
        return self


class PairModule(TrainingModule):
    """Of a model that tells whether pairs match. Images come triplet after triplet, see
    `dolg.data.pairs.pair_rows`; subclasses say what the logits of their pairs are."""

    def forward(self, inputs, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the loss says of all pairs, `inputs` being B images or their features, and labels (B,)
        their classes."""
        query, candidate = pair_rows(len(labels), labels.device)
        logits = self.logits(inputs, query, candidate)
        return self.loss({"match": logits}, (labels[query] == labels[candidate]).long())

    def logits(self, inputs, query: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        """(P,) of the pairs of images query (P,) and candidate (P,)."""
        raise NotImplementedError(f"{type(self).__name__} must say what its pairs' logits are")


class FeaturePairModule(PairModule):
    """Inputs are stored features, a side of B images (`dolg.data.sides.side_of`)."""

    def logits(self, inputs: dict[str, torch.Tensor], query: torch.Tensor,
               candidate: torch.Tensor) -> torch.Tensor:
        return self.run(take(inputs, query), take(inputs, candidate))


class ImagePairModule(PairModule):
    """Inputs are images (B,3,H,W), each of which passes the backbone once."""

    def logits(self, inputs: torch.Tensor, query: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
        maps = self.run(inputs)["local"]
        return self.model.match(maps[query], maps[candidate])
