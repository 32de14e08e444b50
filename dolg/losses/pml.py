"""Losses and miners of pytorch-metric-learning, an optional package, by their names."""
import inspect

import torch
from torch import nn

from dolg.errors import UserError, closest
from dolg.losses.base import Loss

PREFIX = "pml."


class PMLLoss(Loss):
    """A loss of pytorch-metric-learning, on `outputs["global"]` (B,dim), with or without a miner.

    Gives `total` alone. Those with parameters, which stand for classes, need no pairs.
    """

    compares = True

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None):
        super().__init__()
        self.loss, self.miner = loss, miner
        self.needs_pairs = not any(True for _ in self.parameters())

    def compute(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if not len(x):
            return {"total": self._nothing(x)}
        pairs = None if self.miner is None else self.miner(x, labels)
        total = self.loss(x, labels, pairs)
        if not total.isfinite() and len(labels.unique()) == len(labels):
            # Some (NCALoss) divide by the number of positives; bad descriptors stay visible
            total = self._nothing(x)
        return {"total": total}

    def _nothing(self, x: torch.Tensor) -> torch.Tensor:
        """0, with a gradient of 0 for `x` and all parameters."""
        return 0 * x.sum() + sum(0 * p.sum() for p in self.parameters())


def build_pml(name: str, args: dict, miner: str, miner_args: dict, dim: int,
              num_classes: int) -> PMLLoss:
    """The loss `name` (without "pml."), with the miner of that name unless it is empty.

    A loss whose constructor takes `embedding_size` or `num_classes` gets them unless `args` has
    them. Raises UserError for names and arguments that the library does not know.
    """
    try:
        from pytorch_metric_learning import losses, miners
    except ImportError:
        raise UserError(f"LOSS.NAME {PREFIX}{name} needs the package pytorch-metric-learning: "
                        "pip install pytorch-metric-learning") from None
    kind = _find(losses, name, "LOSS.NAME", PREFIX)
    known = {"embedding_size": dim, "num_classes": num_classes}
    takes = _parameters(kind)
    args = {**{key: value for key, value in known.items() if key in takes}, **args}
    loss = _construct(kind, args, "LOSS.PML.ARGS")
    if not miner:
        return PMLLoss(loss)
    kind = _find(miners, miner, "LOSS.PML.MINER", "")
    return PMLLoss(loss, _construct(kind, miner_args, "LOSS.PML.MINER_ARGS"))


def _find(module, name: str, key: str, prefix: str) -> type:
    kinds = {n: kind for n, kind in vars(module).items()
             if inspect.isclass(kind) and issubclass(kind, nn.Module) and not n.startswith("Base")}
    if name not in kinds:
        raise UserError(f"{key} is '{prefix}{name}', but {module.__name__} has no {name}"
                        f"{closest(name, kinds)}")
    return kinds[name]


def _parameters(kind: type) -> set[str]:
    """Names of the constructor's parameters; its parents' too, whom it may pass them on to."""
    parents = [parent for parent in kind.__mro__ if "__init__" in vars(parent)]
    return {name for parent in parents for name in inspect.signature(parent.__init__).parameters}


def _construct(kind: type, args: dict, key: str) -> nn.Module:
    try:
        return kind(**args)
    except (TypeError, ValueError, AssertionError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in args.items()) or "no arguments"
        raise UserError(f"{key}: {kind.__name__} does not take {given}: {error}") from None
