"""Softmax losses with an angular margin: ArcFace and CurricularFace."""
import math

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

# Floor under sin^2: the root's slope at 0 is infinite, and 0 * infinity is NaN
_MIN_SIN2 = 1e-12


class MarginSoftmax(nn.Module):
    """Cross entropy over `scale` * cosines, the target's angle widened by `margin` radians.

    cos(theta + m) replaces the target's cosine; past theta = pi - m, where it would rise
    again, cos(theta) - m sin(m) does (Deng et al., CVPR 2019, in their code). `forward(outputs,
    labels)` takes `outputs["global"]` (B,dim) and labels (B,) of 0 .. num_classes - 1, and
    gives `total`, a scalar, and `logits` (B,num_classes), all in float32 whatever the autocast.
    Subclasses say what becomes of the other classes.
    """

    def __init__(self, dim: int, num_classes: int, margin: float, scale: float):
        super().__init__()
        self.margin, self.scale = margin, scale
        self.weight = nn.Parameter(torch.empty(num_classes, dim))
        # Only directions matter to the cosine; lengths near 1 keep the gradient's size sane
        nn.init.normal_(self.weight, std=dim ** -0.5)

    def forward(self, outputs: dict[str, torch.Tensor], labels: torch.Tensor):
        descriptors = outputs["global"]
        with torch.autocast(descriptors.device.type, enabled=False):
            cosine = F.linear(F.normalize(descriptors.float()), F.normalize(self.weight.float()))
            cosine = cosine.clamp(-1, 1)
            target = cosine.gather(1, labels[:, None])
            is_target = F.one_hot(labels, cosine.shape[1]).bool()
            others = self.adjust_others(cosine, target)
            logits = self.scale * torch.where(is_target, self.widen(target), others)
            return {"total": F.cross_entropy(logits, labels), "logits": logits.detach()}

    def widen(self, target: torch.Tensor) -> torch.Tensor:
        """The target's cosine (B,1) at its angle plus the margin."""
        widened = self._cos_of_sum(target)
        past_pi = target <= math.cos(math.pi - self.margin)
        return torch.where(past_pi, target - self.margin * math.sin(self.margin), widened)

    def adjust_others(self, cosine: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """What the cosines (B,num_classes) of the other classes become."""
        raise NotImplementedError(f"{type(self).__name__} must say what the other classes become")

    def _cos_of_sum(self, target: torch.Tensor) -> torch.Tensor:
        sine = (1 - target * target).clamp(min=_MIN_SIN2).sqrt()
        return target * math.cos(self.margin) - sine * math.sin(self.margin)


class ArcFace(MarginSoftmax):
    """Additive angular margin (Deng et al., CVPR 2019): other classes stay as they are."""

    def adjust_others(self, cosine: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return cosine


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

    def adjust_others(self, cosine: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._update_t(target.detach())
        hard = cosine > self._cos_of_sum(target)
        return torch.where(hard, cosine * (self.t + cosine), cosine)

    def _update_t(self, target: torch.Tensor) -> None:
        mean = target.mean()
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        # A new tensor: the backward pass of an earlier call may still need the old one
        self.t = 0.01 * mean + 0.99 * self.t
