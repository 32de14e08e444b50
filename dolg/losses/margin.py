"""Softmax losses with a margin: ArcFace and its kin."""
import math

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from dolg.losses.base import Loss, at_least_float32
from dolg.losses.shards import ClassShard


class MarginSoftmax(Loss):
    """Cross entropy over `scale` * cosines, the target's made smaller by a margin.

    By default the target's angle grows by `margin` radians: cos(theta + m) replaces its cosine;
    past theta = pi - m, where that would rise again, cos(theta) - m sin(m) does (Deng et al.,
    CVPR 2019, in their code). `forward(outputs, labels)` takes `outputs["global"]` (B,dim) and
    labels (B,) of 0 .. num_classes - 1, and gives `total` and `logits` (B,num_classes).
    Subclasses change `margins`, `widen`, `adjust_others`, or the centres of a class: `weight` has
    `centres` rows for each.

    Args:
        sharded: every process holds the weights of its part of the classes alone (`shard`), and
            `total`, the same on all, is the mean over the images of all processes. `weight` is
            then no matter for DistributedDataParallel: its gradient is whole. `load_state_dict`
            takes the weights of all classes or of the part.
        sampled: share of the classes (of those held) that a training step compares with: those of
            the batch, and others drawn by the default generator (Partial FC, An et al., ICCV
            workshops 2021). A batch that has more classes takes them all.

    Where the logits of all classes are not at hand, because of either, `better` (B,) int64 stands
    instead: how many of the classes compared have a higher logit than the label.
    """

    def __init__(self, dim: int, num_classes: int, margin: float, scale: float, centres: int = 1,
                 sharded: bool = False, sampled: float = 1.0):
        super().__init__()
        self.margin, self.scale, self.centres, self.sampled = margin, scale, centres, sampled
        self.shard = (ClassShard.of_this_process if sharded else ClassShard)(num_classes, centres)
        self.weight = nn.Parameter(torch.empty(self.shard.classes * centres, dim))
        # Only directions matter to the cosine; lengths near 1 keep the gradient's size sane
        if sharded:
            self.shard.draw_normal(self.weight, std=dim ** -0.5)
        else:
            nn.init.normal_(self.weight, std=dim ** -0.5)

    def compute(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        shard = self.shard
        x, labels, own_images = shard.gather_batch(x, labels, equal=self.training)
        weight, column, held = self._compared(labels)
        x, rows = F.normalize(x), torch.arange(len(x), device=x.device)
        cosine, own = _Cosines.apply(x, at_least_float32(weight), column, self.centres)
        # From chords, not 1 - cos^2: near cosines of 1 and -1 that loses all its digits, and the
        # root's infinite slope multiplies the error
        sine = _length(x - own) * _length(x + own) / 2
        target, sine = shard.from_owners(held, cosine[rows, column][:, None], sine)
        others = self.adjust_others(cosine, target, sine)
        widened = self.widen(target, sine, labels)
        entry = torch.where(held[:, None], widened, others[rows, column][:, None])
        # In place: matrices of this size are what fills the memory
        logits = others.scatter_(1, column[:, None], entry).mul_(self.scale)
        goal = self.scale * widened
        result = {"total": shard.cross_entropy(logits, goal, column, held)}
        if shard.parts == 1 and not self._samples():
            return {**result, "logits": logits.detach()}
        return {**result, "better": shard.count_above(logits, goal)[own_images]}

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
        """What the cosines (B,C) become, in a tensor that may be written over; the target's column
        is not used."""
        return cosine

    def _samples(self) -> bool:
        return self.training and self.sampled < 1

    def _compared(self, labels: torch.Tensor):
        """Weights (C * centres,dim) of the classes to compare with, the labels' columns (B,) among
        these, and whether they are held here (B,)."""
        column, held = self.shard.locate(labels)
        if not self._samples():
            return self.weight, column, held
        classes = self._sample(column[held])
        weight = self.weight.unflatten(0, (-1, self.centres)).index_select(0, classes)
        column = torch.searchsorted(classes, column).clamp(max=len(classes) - 1)
        return weight.flatten(0, 1), column, held

    def _sample(self, columns: torch.Tensor) -> torch.Tensor:
        """Classes to compare with, in rising order: those of `columns`, and others at random."""
        positives = columns.unique()
        count = max(1, round(self.sampled * self.shard.classes), len(positives))
        order = torch.rand(self.shard.classes, device=columns.device)
        order[positives] = 2.0      # before all others
        return order.topk(count).indices.sort().values

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        whole = state_dict.get(f"{prefix}weight")
        if whole is not None and len(whole) == self.shard.num_classes * self.centres:
            state_dict[f"{prefix}weight"] = self.shard.part(whole)
        super()._load_from_state_dict(state_dict, prefix, *args)


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
                 high: float = 0.5, power: float = 0.25, sharded: bool = False,
                 sampled: float = 1.0):
        super().__init__(dim, len(class_counts), low, scale, sharded=sharded, sampled=sampled)
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

    def __init__(self, dim: int, num_classes: int, margin: float, scale: float,
                 sharded: bool = False, sampled: float = 1.0):
        super().__init__(dim, num_classes, margin, scale, sharded=sharded, sampled=sampled)
        self.register_buffer("t", torch.zeros(1))

    def adjust_others(self, cosine: torch.Tensor, target: torch.Tensor,
                      sine: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._update_t(target.detach())
        hard = cosine > _cos_of_sum(target, sine, target.new_full((), self.margin))
        return _Hardened.apply(cosine, hard, self.t)

    def _update_t(self, target: torch.Tensor) -> None:
        total = torch.stack([target.sum(), target.new_full((), len(target))])
        if dist.is_initialized() and self.shard.parts == 1:     # else it has seen all images
            dist.all_reduce(total)
        moved = 0.01 * total[0] / total[1].clamp(min=1) + 0.99 * self.t
        # A new tensor: the backward pass of an earlier call may still need the old one
        self.t = torch.where(total[1] > 0, moved, self.t)


class _Cosines(torch.autograd.Function):
    """Cosines (B,C) of unit vectors x (B,dim) with the nearest of each class's `centres`, and the
    unit vector (B,dim) of the one of `column`'s class.

    `weight` (C * centres,dim) may be of any length. With two million classes its normalised copy and
    that one's gradient would fill gigabytes, and passing over them takes longer than the products;
    here rows are divided by their lengths only after these.
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, column: torch.Tensor, centres: int):
        lengths = _length(weight).clamp_(min=1e-12)
        # Rounding alone exceeds 1: the gradient need not know
        cosine = F.linear(x, weight).div_(lengths.T).clamp_(-1, 1)
        nearest = None
        if centres > 1:
            cosine, nearest = cosine.unflatten(1, (-1, centres)).max(2)
            column = column * centres + nearest[torch.arange(len(x), device=x.device), column]
        own = weight[column] / lengths[column]
        ctx.save_for_backward(x, weight, lengths, column, nearest)
        ctx.centres = centres
        return cosine, own

    @staticmethod
    def backward(ctx, grad: torch.Tensor, grad_own: torch.Tensor):
        x, weight, lengths, column, nearest = ctx.saved_tensors
        if nearest is not None:
            every = grad.new_zeros(*grad.shape, ctx.centres)
            grad = every.scatter_(2, nearest[..., None], grad[..., None]).flatten(1)
        grad = grad / lengths.T
        # Of the directions, then what of it is at right angles to them
        grad_weight = grad.T @ x
        grad_weight.index_add_(0, column, grad_own / lengths[column])
        along = torch.einsum("cd,cd->c", grad_weight, weight)[:, None] / lengths.square()
        return grad @ weight, grad_weight.addcmul_(weight, along, value=-1), None, None


class _Hardened(torch.autograd.Function):
    """cos * (t + cos) where `hard`, else cos (B,C); autograd alone would keep a third matrix."""

    @staticmethod
    def forward(ctx, cosine: torch.Tensor, hard: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosine, hard, t)
        return torch.where(hard, (t + cosine).mul_(cosine), cosine)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        cosine, hard, t = ctx.saved_tensors
        return torch.where(hard, (t + cosine).mul_(grad).add_(cosine * grad), grad), None, None


def _cos_of_sum(cosine: torch.Tensor, sine: torch.Tensor, margin: torch.Tensor) -> torch.Tensor:
    return cosine * torch.cos(margin) - sine * torch.sin(margin)


def _length(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(x, dim=1, keepdim=True)
