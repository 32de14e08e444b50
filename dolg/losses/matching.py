"""The loss of reranking transformers: do the two images of a pair show the same?"""
import torch
from torch.nn import functional as F

from dolg.losses.base import Loss


class PairCrossEntropy(Loss):
    """Binary cross entropy with logits, averaged over the pairs (Tan et al., ICCV 2021).

    `forward(outputs, labels)` takes `outputs["match"]`, logits (P,), and labels (P,), 1 for a pair that
    shows the same and 0 for one that does not; gives `total`, and `correct` (P,) bool: whose logit is on
    the right side of 0. Of no pair it is 0.
    """

    output = "match"

    def compute(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        cost = F.binary_cross_entropy_with_logits(x, labels.to(x.dtype), reduction="sum")
        return {"total": cost / max(1, len(x)), "correct": (x.detach() > 0) == (labels > 0)}
