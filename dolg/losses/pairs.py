"""Losses over the pairs and triplets of a batch, on descriptors scaled to unit length.

In distributed training the pairs are those of each process's share of the batch, so the share is
what must hold several images of a class: see TRAIN.IMAGES_PER_CLASS.
"""
import torch
from torch.nn import functional as F

from dolg.losses.base import Loss


class PairLoss(Loss):
    """Takes `outputs["global"]` (B,dim), raw or of unit length, and labels (B,); gives `total`.

    Subclasses write `cost(x, positive, negative)`: x (B,dim) of unit length, and which pairs (B,B)
    are of one class (an image with itself is none) and which of two. Without any pair that counts
    the loss is 0 (see Triplet for its exception), with gradients of 0.
    """

    compares = needs_pairs = True

    def compute(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if not len(x):
            return {"total": x.sum()}
        same = labels[:, None] == labels
        positive = same & ~torch.eye(len(x), dtype=torch.bool, device=x.device)
        return {"total": self.cost(_unit(x), positive, ~same)}

    def cost(self, x: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} must say what its pairs cost")


class Triplet(PairLoss):
    """Triplet loss on Euclidean distances: max(0, d(a,p) - d(a,n) + margin).

    Args:
        margin: by how much farther than the positive the negative should be.
        mining: "hard": of each anchor the farthest positive and the nearest negative, averaged
            over all anchors (Hermans et al., arXiv 1703.07737; CGD). As CGD's code has it, an
            anchor without positives takes 0 for their distance, and one without negatives costs
            exactly `margin`, without a gradient. "semihard": of each anchor and positive the
            nearest negative that is farther than the positive, if it is within the margin,
            averaged over the pairs that have one (Schroff et al., CVPR 2015, there on squared
            distances).
    """

    def __init__(self, margin: float = 0.1, mining: str = "hard"):
        super().__init__()
        self.margin, self.mining = margin, MININGS[mining]

    def cost(self, x: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        return self.mining(_distances(x), positive, negative, self.margin)


class Contrastive(PairLoss):
    """Hinges on Euclidean distances of pairs (Hadsell et al., CVPR 2006, without their squares).

    A pair of one class costs what its distance exceeds `positive_margin` by, a pair of two what
    its distance lacks to `negative_margin`. Each kind is averaged over its pairs that cost
    anything, and the two are added, as pytorch-metric-learning does.
    """

    def __init__(self, positive_margin: float = 0.0, negative_margin: float = 0.5):
        super().__init__()
        self.positive_margin, self.negative_margin = positive_margin, negative_margin

    def cost(self, x: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        distance = _distances(x)
        pull = F.relu(distance - self.positive_margin) * positive
        push = F.relu(self.negative_margin - distance) * negative
        return sum(cost.sum() / (cost > 0).sum().clamp(min=1) for cost in (pull, push))


class MultiSimilarity(PairLoss):
    """Multi-similarity loss with its mining (Wang et al., CVPR 2019, equations 11 to 15).

    Args:
        alpha, beta: sharpness for positive and negative pairs.
        base: cosine that separates them (lambda in the paper).
        epsilon: positives count that are less than this above the anchor's nearest negative, and
            negatives that are less than this below its farthest positive.
    """

    def __init__(self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5,
                 epsilon: float = 0.1):
        super().__init__()
        self.alpha, self.beta, self.base, self.epsilon = alpha, beta, base, epsilon

    def cost(self, x: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        similarity = x @ x.T
        known = similarity.detach()
        nearest_negative = known.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        farthest_positive = known.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        positive = positive & (known - self.epsilon < nearest_negative)
        negative = negative & (known + self.epsilon > farthest_positive)
        excess = similarity - self.base
        return (_log_one_plus_sum(-self.alpha * excess, positive) / self.alpha
                + _log_one_plus_sum(self.beta * excess, negative) / self.beta).mean()


def _batch_hard(distance: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor,
                margin: float) -> torch.Tensor:
    farthest = (distance * positive).max(1).values
    nearest = distance.masked_fill(~negative, torch.inf).min(1).values
    nearest = torch.where(negative.any(1), nearest, farthest)
    return F.relu(farthest - nearest + margin).mean()


def _semi_hard(distance: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor,
               margin: float) -> torch.Tensor:
    # The anchor itself is no negative, so each row ends with an infinity that searches can find
    others = distance.masked_fill(~negative, torch.inf).sort(1).values
    beyond = torch.searchsorted(others.detach(), distance.detach(), right=True)
    hinge = distance - others.gather(1, beyond.clamp(max=len(distance) - 1)) + margin
    counts = positive & (hinge > 0)
    return torch.where(counts, hinge, 0.0).sum() / counts.sum().clamp(min=1)


MININGS = {"hard": _batch_hard, "semihard": _semi_hard}


def _unit(x: torch.Tensor) -> torch.Tensor:
    """Rows of unit length. A batch that has it already is taken as it is, so that its gradient
    is that of the distances alone, as in the code of CGD, whose model ends with the scaling."""
    length = torch.linalg.vector_norm(x.detach(), dim=1)
    return torch.where(((length - 1).abs() < 1e-5).all(), x, F.normalize(x))


def _distances(x: torch.Tensor) -> torch.Tensor:
    """Euclidean distances (B,B), from differences: matrix products would give an image up to 7e-4
    from itself. The gradient at distance 0 is 0."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def _log_one_plus_sum(exponents: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log(1 + sum of exp over the mask), for each row (B,)."""
    kept = exponents.masked_fill(~mask, -torch.inf)
    return torch.cat([torch.zeros_like(kept[:, :1]), kept], dim=1).logsumexp(1)
