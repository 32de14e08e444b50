"""Linear classifiers trained with cross entropy."""
import torch
from torch import nn
from torch.nn import functional as F

from dolg.losses.base import Loss
from dolg.losses.gathering import gather_batch


class LinearSoftmax(Loss):
    """Cross entropy of a linear classifier, with label smoothing and a temperature.

    Args:
        dim: channels of the output that it judges.
        num_classes: labels are 0 .. num_classes - 1.
        output: which one: "global" (B,dim), "auxiliary" (B,dim), or "local" (B,dim,h,w), whose
            mean over positions is taken, as DELG trains its attention.
        batch_norm: normalise before classifying (`norm`), as CGD's auxiliary classifier does.
        smoothing: share of the target probability that all classes divide evenly.
        temperature: the logits are divided by it in the loss.

    `forward(outputs, labels)` gives `total`, and `logits` (B,num_classes) as they are before the
    temperature.
    """

    def __init__(self, dim: int, num_classes: int, output: str = "global", batch_norm: bool = False,
                 smoothing: float = 0.0, temperature: float = 1.0):
        super().__init__()
        self.output, self.smoothing, self.temperature = output, smoothing, temperature
        self.norm = nn.BatchNorm1d(dim) if batch_norm else None
        self.fc = nn.Linear(dim, num_classes)

    def compute(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if x.ndim == 4:
            x = x.mean(dim=(2, 3))
        if self.norm is not None:
            x = self._normalise(x)
        logits = self.fc(x)
        total = mean_cross_entropy(logits / self.temperature, labels, self.smoothing)
        return {"total": total, "logits": logits.detach()}

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        if not norm.training:
            return norm(x)
        # Statistics of the images of all processes, as one process would have them
        x, _, own = gather_batch(x, x.new_zeros(len(x)))
        if len(x) < 2:
            # One vector has no variance: the running statistics stand in, and rest
            return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias,
                                training=False, eps=norm.eps)[own]
        return norm(x)[own]


def mean_cross_entropy(logits: torch.Tensor, labels: torch.Tensor,
                       smoothing: float = 0.0) -> torch.Tensor:
    """Cross entropy of logits (B,C) and labels (B,), averaged over the batch; 0 where B is 0."""
    total = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
    return total / max(1, len(labels))
