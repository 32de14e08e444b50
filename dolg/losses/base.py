"""What all losses share: the output that they judge, and their precision."""
import torch
from torch import nn

from dolg.losses.gathering import gather_batch


class Loss(nn.Module):
    """`forward(outputs, labels)`: a model's outputs and labels (B,) int64, to a dict with `total`.

    Subclasses write `compute(x, labels)`, where x is `outputs[self.output]`, in float32 whatever
    the autocast (float64 stays). `total` is a scalar; losses that classify also give `logits`
    (B,num_classes), detached, or, where no process has them all, `better` (B,): the number of
    logits above the label's. An empty batch costs 0, and all parameters get a gradient of 0.
    In distributed training a loss is given its process's share of the batch; with `compares`, for
    losses over pairs of images, `compute` gets the images of all processes; with `needs_pairs` nothing is
    learned from a batch in which no class has two images.
    """

    output = "global"
    compares = False
    needs_pairs = False

    def forward(self, outputs: dict[str, torch.Tensor], labels: torch.Tensor):
        x = outputs[self.output]
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_float32(x)
            if self.compares:
                x, labels, _ = gather_batch(x, labels)
            return self.compute(x, labels)

    def compute(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must say what it computes")


class SumOfLosses(nn.Module):
    """Several losses added with weights.

    Args:
        terms: name of a loss to the loss, in order.
        weights: one number per term.

    `terms` holds them by the output that they judge: "global", "local", "auxiliary"; a second one
    of the same output is "global_2". `forward` gives `total`, each term's own value (unweighted,
    detached) under its name, and the `logits` or `better` of the first term that classifies.
    """

    def __init__(self, terms: dict[str, Loss], weights: list[float]):
        super().__init__()
        self.names, self.weights = list(terms), list(weights)
        self.terms = nn.ModuleDict()
        for loss in terms.values():
            place, number = loss.output, 1
            while place in self.terms:
                number += 1
                place = f"{loss.output}_{number}"
            self.terms[place] = loss

    def forward(self, outputs: dict[str, torch.Tensor], labels: torch.Tensor):
        results = [loss(outputs, labels) for loss in self.terms.values()]
        total = sum(weight * result["total"] for weight, result in zip(self.weights, results))
        values = {name: result["total"].detach() for name, result in zip(self.names, results)}
        verdicts = [{key: result[key] for key in ("logits", "better") if key in result}
                    for result in results]
        return {"total": total, **values, **next(filter(None, verdicts), {})}


def at_least_float32(x: torch.Tensor) -> torch.Tensor:
    """`x` in float32; float64 as it is."""
    return x if x.dtype == torch.float64 else x.float()
