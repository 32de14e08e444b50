"""Softmax losses with a margin: ArcFace and its kin."""
import math

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from dolg.losses.base import Loss, at_least_float32
from dolg.losses.softmax import mean_cross_entropy


class MarginSoftmax(Loss):
    """Cross entropy over `scale` * cosines, the target's made smaller by a margin.

    By default the target's angle grows by `margin` radians: cos(theta + m) replaces its cosine;
    past theta = pi - m, where that would rise again, cos(theta) - m sin(m) does (Deng et al.,
    CVPR 2019, in their code). `forward(outputs, labels)` takes `outputs["global"]` (B,dim) and
    labels (B,) of 0 .. num_classes - 1, and gives `total` and `logits` (B,num_classes).
    Subclasses change `margins`, `widen`, `adjust_others`, or the centres of a class: `weight` has
    `centres` rows for each.
    """

    def __init__(self, dim: int, num_classes: int, margin: float, scale: float, centres: int = 1):
        super().__init__()
        self.margin, self.scale, self.centres = margin, scale, centres
        self.weight = nn.Parameter(torch.empty(num_classes * centres, dim))
        # Only directions matter to the cosine; lengths near 1 keep the gradient's size sane
        nn.init.normal_(self.weight, std=dim ** -0.5)

    def compute(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        x, weight = F.normalize(x), F.normalize(at_least_float32(self.weight))
        cosine, own = self._nearest_centres(x, weight, labels)
        target = cosine.gather(1, labels[:, None])
        # From chords, not 1 - cos^2: near cosines of 1 and -1 that loses all its digits, and the
        # root's infinite slope multiplies the error
        sine = _length(x - own) * _length(x + own) / 2
        others = self.adjust_others(cosine, target, sine)
        logits = self.scale * others.scatter(1, labels[:, None], self.widen(target, sine, labels))
        return {"total": mean_cross_entropy(logits, labels), "logits": logits.detach()}

    def margins(self, labels: torch.Tensor) -> torch.Tensor:
        """The margins (B,1) of the labels."""
        return torch.full((len(labels), 1), self.margin, device=labels.device)

    def widen(self, target: torch.Tensor, sine: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """What the target's cosine (B,1) becomes; `sine` (B,1) is of the same angle."""
        margin = self.margins(labels).to(target)
        past = target <= torch.cos(math.pi - margin)
        return torch.where(past, target - margin * torch.sin(margin),
                           _cos_of_sum(target, sine, margin))

    def adjust_others(self, cosine: torch.Tensor, target: torch.Tensor,
                      sine: torch.Tensor) -> torch.Tensor:
        """What the cosines (B,num_classes) become; the target's column is not used."""
        return cosine

    def _nearest_centres(self, x: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor):
        """Cosines (B,num_classes) with each class's nearest centre, and the label's (B,dim)."""
        cosine = F.linear(x, weight).clamp(-1, 1)
        if self.centres == 1:
            return cosine, weight[labels]
        nearest = cosine.unflatten(1, (-1, self.centres)).max(2)
        own = labels * self.centres + nearest.indices.gather(1, labels[:, None])[:, 0]
        return nearest.values, weight[own]


class ArcFace(MarginSoftmax):
    """Additive angular margin (Deng et al., CVPR 2019): other classes stay as they are."""


class CosFace(MarginSoftmax):
    """The margin is taken from the cosine itself: cos(theta) - m (Wang et al., CVPR 2018)."""

    def widen(self, target: torch.Tensor, sine: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return target - self.margin


class AdaptiveArcFace(MarginSoftmax):
    """ArcFace with larger margins for rarer classes (Ha et al., arXiv 2010.05350).

    The margin of a class with n training images is a * n ** -power + b, with a and b such that the
    most frequent class gets `low` and the rarest `high` (all `low` where all are equally frequent).

    Args:
        class_counts: (num_classes,) images of each class; 0 counts as 1.
    """

    def __init__(self, dim: int, class_counts: np.ndarray, scale: float, low: float = 0.05,
                 high: float = 0.5, power: float = 0.25):
        super().__init__(dim, len(class_counts), low, scale)
        rarity = np.maximum(np.asarray(class_counts, dtype=np.float64), 1) ** -power
        spread = rarity.max() - rarity.min()
        share = (rarity - rarity.min()) / (spread if spread > 0 else 1.0)
        margins = torch.from_numpy(low + (high - low) * share).float()
        # Follows from the training set: no part of the state
        self.register_buffer("class_margins", margins, persistent=False)

    def margins(self, labels: torch.Tensor) -> torch.Tensor:
        return self.class_margins[labels][:, None]


class CurricularFace(MarginSoftmax):
    """Hard negatives weigh more as training goes on (Huang et al., CVPR 2020).

    A class whose cosine exceeds cos(theta_target + m) becomes cos * (t + cos), where `t` is
    the running mean of the targets' cosines (momentum 0.99, from 0; over all processes' images).
    This is what the code of DOLG and DELG computes under the name ArcFace; unlike there, `t`
    rests in eval mode.
    """

    def __init__(self, dim: int, num_classes: int, margin: float, scale: float):
        super().__init__(dim, num_classes, margin, scale)
        self.register_buffer("t", torch.zeros(1))

    def adjust_others(self, cosine: torch.Tensor, target: torch.Tensor,
                      sine: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._update_t(target.detach())
        hard = cosine > _cos_of_sum(target, sine, target.new_full((), self.margin))
        return torch.where(hard, cosine * (self.t + cosine), cosine)

    def _update_t(self, target: torch.Tensor) -> None:
        total = torch.stack([target.sum(), target.new_tensor(float(len(target)))])
        if dist.is_initialized():
            dist.all_reduce(total)
        moved = 0.01 * total[0] / total[1].clamp(min=1) + 0.99 * self.t
        # A new tensor: the backward pass of an earlier call may still need the old one
        self.t = torch.where(total[1] > 0, moved, self.t)


def _cos_of_sum(cosine: torch.Tensor, sine: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    return cosine * torch.cos(margin) - sine * torch.sin(margin)


def _length(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)
