"""The images of all processes in one loss."""
import torch
import torch.distributed as dist

from dolg.errors import UserError


def gather_batch(x: torch.Tensor, labels: torch.Tensor, equal: bool = False):
    """Features (b,dim) and labels (b,) of all processes, and which rows (slice) are our own.

    A loss of the whole batch, which every process computes alike, or of the own rows given the
    others, may follow: the gradient of `x` adds up what all processes have of it, so that with
    DistributedDataParallel, which averages over them, the parameters get the gradient of the mean
    of the processes' losses. Raises UserError with `equal` where the processes have different
    numbers of images.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x, labels, slice(0, len(x))
    parts = dist.get_world_size()
    counts = gather_rows(torch.tensor([len(x)]), [1] * parts).tolist()
    if equal and len(set(counts)) > 1:
        raise UserError("LOSS.SHARD_CLASSES trains on equally many images on every process, but "
                        f"they have {counts}: give a TRAIN.BATCH_SIZE that the number of processes "
                        "divides")
    first = sum(counts[:dist.get_rank()])
    own = slice(first, first + len(x))
    return _GatherFeatures.apply(x, counts, own), gather_rows(labels, counts), own


class _GatherFeatures(torch.autograd.Function):
    """`gather_rows`, and back: every process has part of the gradient of all rows."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, counts: list[int], own: slice) -> torch.Tensor:
        ctx.own = own
        return gather_rows(x, counts)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)
        return grad[ctx.own], None, None


def gather_rows(x: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """The rows of all processes, in order; `counts` says how many each has."""
    most = max(counts)
    # Filled up to the same size, as nccl needs it
    padded = x if len(x) == most else torch.cat([x, x.new_zeros(most - len(x), *x.shape[1:])])
    everyones = x.new_empty(len(counts) * most, *x.shape[1:])
    if most:
        dist.all_gather_into_tensor(everyones, padded.contiguous())
    if min(counts) == most:
        return everyones
    parts = everyones.unflatten(0, (len(counts), most))
    return torch.cat([part[:count] for part, count in zip(parts, counts)])
