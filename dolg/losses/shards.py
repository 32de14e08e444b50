"""The weights of the classes spread over processes: who holds which, and the exact softmax.

Communication is over the default process group. Counts of images and whole matrices travel as CPU
tensors, so on GPUs the group needs both backends: "cpu:gloo,cuda:nccl".
"""
import torch
import torch.distributed as dist
from torch import nn

from dolg.errors import UserError
from dolg.losses.gathering import gather_batch, gather_rows
from dolg.losses.softmax import mean_cross_entropy

# Classes whose first weights are drawn from one seed
_BLOCK = 4096


class ClassShard:
    """The classes whose weights this process holds: part `index` of `parts`.

    The whole matrix has `centres` rows for each class; the parts are successive and as equal as
    can be. One part is the whole, and nothing is communicated for it. Where there are several,
    `index` is the process's rank, `parts` the number of processes, and every process must call
    the methods that communicate: gather_batch, from_owners, cross_entropy, count_above, gather.

    Raises UserError where there are fewer classes than parts.
    """

    def __init__(self, num_classes: int, centres: int = 1, index: int = 0, parts: int = 1):
        if num_classes < parts:
            raise UserError(f"LOSS.SHARD_CLASSES divides MODEL.NUM_CLASSES {num_classes} among "
                            f"{parts} processes: give at least one class for each, or "
                            "LOSS.SHARD_CLASSES False")
        self.num_classes, self.centres, self.index, self.parts = num_classes, centres, index, parts
        self.start, self.stop = self._bounds(index)

    @classmethod
    def of_this_process(cls, num_classes: int, centres: int = 1) -> "ClassShard":
        """The part of this process among all; the whole where there is no process group."""
        if not dist.is_initialized():
            return cls(num_classes, centres)
        return cls(num_classes, centres, dist.get_rank(), dist.get_world_size())

    @property
    def classes(self) -> int:
        """The number of classes held."""
        return self.stop - self.start

    def _bounds(self, index: int) -> tuple[int, int]:
        return (index * self.num_classes // self.parts,
                (index + 1) * self.num_classes // self.parts)

    def _rows(self, index: int) -> slice:
        start, stop = self._bounds(index)
        return slice(start * self.centres, stop * self.centres)

    # ------------------------------------------------------------------ the whole matrix

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """This process's rows of `whole` (num_classes * centres,...), a view of it."""
        return whole[self._rows(self.index)]

    def gather(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """All processes' rows, in order, in a new CPU tensor on the first process; None on others.

        `tensor` (classes * centres,...) goes with the rows held: the weights, their momentum.
        """
        if self.parts == 1:
            return tensor.detach().to("cpu", copy=True)
        if self.index > 0:
            dist.send(tensor.detach().cpu().contiguous(), dst=0)
            return None
        whole = torch.empty(self.num_classes * self.centres, *tensor.shape[1:], dtype=tensor.dtype)
        self.part(whole).copy_(tensor.detach())
        for index in range(1, self.parts):
            dist.recv(whole[self._rows(index)], src=index)
        return whole

    def draw_normal(self, weight: torch.Tensor, std: float) -> None:
        """Fill the rows held with normal numbers, the same for any number of processes.

        One number of the default generator, which has to stand the same on all processes, and the
        number of a block of classes seed that block's; blocks held elsewhere are not drawn.
        """
        seed = int(torch.randint(2 ** 62, ()))
        for block in range(self.start // _BLOCK, (self.stop - 1) // _BLOCK + 1):
            first, last = block * _BLOCK, min((block + 1) * _BLOCK, self.num_classes)
            numbers = torch.randn((last - first) * self.centres, weight.shape[1], device="cpu",
                                  generator=torch.Generator().manual_seed(seed + block))
            start, stop = max(first, self.start), min(last, self.stop)
            held = slice((start - self.start) * self.centres, (stop - self.start) * self.centres)
            drawn = slice((start - first) * self.centres, (stop - first) * self.centres)
            with torch.no_grad():
                weight[held] = std * numbers[drawn].to(weight)

    # ------------------------------------------------------------------ the batch

    def gather_batch(self, x: torch.Tensor, labels: torch.Tensor, equal: bool):
        """Features (b,dim) and labels (b,) of all processes that share the classes, and which rows
        (slice) are our own; see `gathering.gather_batch`.

        The gradient of `x` is that of the whole batch times the number of processes, which
        DistributedDataParallel divides by: each process has the part of it of its own classes.
        """
        if self.parts == 1:
            return x, labels, slice(0, len(x))
        x, labels, own = gather_batch(x, labels, equal)
        return _Scaled.apply(x, float(self.parts)), labels, own

    def locate(self, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The labels (B,) counted from the first class held, and whether they are held, (B,).

        Those of other processes' classes get some class that is held. A label that no process
        holds makes the loss infinite.
        """
        column = labels - self.start
        held = (column >= 0) & (column < self.classes)
        return (column if self.parts == 1 else column.clamp(0, self.classes - 1)), held

    def from_owners(self, held: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`values` (B,1) of each image as they are where its class is `held` (B,).

        Only there do they have a gradient.
        """
        if self.parts == 1:
            return values
        ours = torch.cat(values, dim=1)
        known = torch.where(held[:, None], ours.detach(), -torch.inf)
        dist.all_reduce(known, dist.ReduceOp.MAX)
        return torch.where(held[:, None], ours, known).split(1, dim=1)

    # ------------------------------------------------------------------ the softmax

    def cross_entropy(self, logits: torch.Tensor, target: torch.Tensor, column: torch.Tensor,
                      held: torch.Tensor) -> torch.Tensor:
        """Mean cross entropy over the batch, of logits (B,C) that hold some classes each.

        `target` (B,1) are the labels' logits, which stand in `column` (B,) where they are `held`.
        """
        if self.parts == 1:
            return mean_cross_entropy(logits, column)
        return _CrossEntropy.apply(logits, target.detach(), column, held)

    def count_above(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """How many logits of all processes' (B,C) exceed `target` (B,1), int64 (B,)."""
        counts = (logits.detach() > target.detach()).sum(1)
        if self.parts > 1:
            dist.all_reduce(counts)
        return counts


def sharded_parameters(module: nn.Module) -> dict[str, ClassShard]:
    """Name in `module` of each parameter that is spread over several processes, and its shard.

    Empty where there is one process, whatever LOSS.SHARD_CLASSES says.
    """
    found = {}
    for path, child in module.named_modules():
        shard = getattr(child, "shard", None)
        if isinstance(shard, ClassShard) and shard.parts > 1:
            found[f"{path}.weight" if path else "weight"] = shard
    return found


class _Scaled(torch.autograd.Function):
    """The same numbers, their gradient times a factor."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return ctx.factor * grad, None


class _CrossEntropy(torch.autograd.Function):
    """Mean cross entropy of logits whose columns are spread over the processes.

    Backward gives the gradient of the one mean over the whole batch, to each process for its
    columns. Beside the logits it makes one matrix of their size.
    """

    @staticmethod
    def forward(ctx, logits: torch.Tensor, target: torch.Tensor, column: torch.Tensor,
                held: torch.Tensor) -> torch.Tensor:
        part = torch.logsumexp(logits, dim=1, keepdim=True)
        parts = gather_rows(part.T, [1] * dist.get_world_size())
        whole = torch.logsumexp(parts, dim=0)[:, None]
        ctx.save_for_backward(logits, whole, column, held)
        return (whole - target).sum() / max(1, len(logits))

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        logits, whole, column, held = ctx.saved_tensors
        shares = (logits - whole).exp_()
        rows = torch.arange(len(logits), device=logits.device)
        shares[rows, column] -= held.to(shares)
        return shares.mul_(grad / max(1, len(logits))), None, None, None
