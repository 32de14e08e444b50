"""Local features: which positions of an image's attended maps are kept, and where they are.

The selection of DELG (Cao et al., ECCV 2020) as feymanpriv/DELG has it (extraction/delg_utils.py),
without its faults. There, at every scale, positions pass whose attention is above a threshold, which
is halved from 260 until 1000 pass or it would be below 0.1: the last one used is 260 / 2^11. Then the
1000 best of all scales remain, less those that non-maximum suppression removes. A position that a
higher threshold keeps out has 1000 better ones at its own scale, so it is never among the 1000 best
of all: the last threshold alone gives the same, in one step.
"""
from dataclasses import dataclass

import torch
from torch.nn import functional as F

# The lowest threshold of attention that the original's halving comes to
LOWEST_THRESHOLD = 260 / 2 ** 11
# Side, in pixels, of what a position of a ResNet-50's stage 3 sees; the original has it for all depths
RECEPTIVE_FIELD = 291


@dataclass(frozen=True)
class LocalSettings:
    """How local features are selected.

    Attributes:
        scales: of the image, relative to its size.
        topk: the most features of an image.
        threshold: of attention; features are above it.
        overlap: of two features whose receptive fields overlap by more than this (intersection over
            union) the one with less attention goes.
        stride: pixels between positions, of the backbone's stage 3.
    """

    scales: tuple[float, ...]
    topk: int = 1000
    threshold: float = LOWEST_THRESHOLD
    overlap: float = 0.98
    stride: int = 16


@dataclass
class LocalFeatures:
    """Features of a batch of images, image after image, the highest attention first.

    Attributes:
        descriptors: (N,C) float32, of unit length.
        xy: (N,2) float32, columns and rows in pixels of the images.
        scales: (N,) float32, at which each was found.
        scores: (N,) float32, their attention.
        counts: (B,) int64, features of each image; they sum up to N.
    """

    descriptors: torch.Tensor
    xy: torch.Tensor
    scales: torch.Tensor
    scores: torch.Tensor
    counts: torch.Tensor

    def cpu(self) -> "LocalFeatures":
        return LocalFeatures(*(part.cpu() for part in vars(self).values()))


def select_local(maps: list[tuple[float, torch.Tensor, torch.Tensor]],
                 settings: LocalSettings) -> LocalFeatures:
    """The features to keep of a batch of images.

    Args:
        maps: for each scale the scale, `local` (B,C,h,w) and `attention` (B,1,h,w) at it.
    """
    from torchvision.ops import batched_nms     # takes two seconds to import

    parts = [_best_of_scale(*entry, settings) for entry in maps]
    descriptors, centres, scales, scores = (torch.cat(part, dim=1) for part in zip(*parts))
    # Equal scores keep their order: by scale, then by position
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :settings.topk], order[:, :settings.topk]
    images, ranks = (scores > settings.threshold).nonzero(as_tuple=True)
    places = order[images, ranks]
    scores, centres, scales = scores[images, ranks], centres[images, places], scales[images, places]
    kept = batched_nms(_boxes(centres, scales), scores.double(), images, settings.overlap)
    kept = kept.sort().values       # image after image, the highest score first
    images = images[kept]
    return LocalFeatures(F.normalize(descriptors[images, places[kept]].float(), dim=1),
                         centres[kept].float(), scales[kept].float(), scores[kept],
                         torch.bincount(images, minlength=len(descriptors)))


def _best_of_scale(scale: float, local: torch.Tensor, attention: torch.Tensor,
                   settings: LocalSettings) -> tuple[torch.Tensor, ...]:
    """The at most `topk` positions of highest attention: descriptors (B,n,C), centres (B,n,2) as
    columns and rows in pixels of the image, scales and scores (B,n)."""
    width = local.shape[3]
    # Half precision may overflow; what is not finite is no feature
    finite = attention.isfinite() & local.isfinite().all(dim=1, keepdim=True)
    attention = attention.where(finite, 0.0)
    scores, order = attention.float().flatten(1).sort(dim=1, descending=True, stable=True)
    scores, order = scores[:, :settings.topk], order[:, :settings.topk]
    positions = torch.stack([order % width, order // width], dim=2)
    batch = torch.arange(len(local), device=local.device)[:, None]
    descriptors = local.permute(0, 2, 3, 1).flatten(1, 2)[batch, order]
    centres = positions.double() * settings.stride / scale
    return descriptors, centres, torch.full_like(scores, scale, dtype=torch.float64), scores


def _boxes(centres: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Receptive fields (N,4) in pixels of the image; float64, since at an overlap of 0.98 the
    rounding of large coordinates would count."""
    reach = (RECEPTIVE_FIELD - 1) / 2 / scales[:, None]
    return torch.cat([centres - reach, centres + reach], dim=1)
