"""Parameters, multiply-adds and activations of a model."""
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Complexity:
    """Counts for one image, or one pair: of the whole model, or of the part `name` of it.

    `multiply_adds` of convolutions and matrix products (what pycls calls flops); `activations`,
    output values of convolutions and linear layers (Radosavovic et al., CVPR 2020).
    """

    name: str
    parameters: int
    multiply_adds: int
    activations: int


@torch.no_grad()
def complexity(model: nn.Module, height: int, width: int, depth: int = 2,
               pair_of: int = 0) -> list[Complexity]:
    """Counts of `model` for an image of that size, or, of a transformer of stored features, for a pair of
    images of `pair_of` local features: the whole first, then parts to `depth` dots.

    The model must lie on the "meta" device: nothing is computed, no memory taken. Works in
    eval mode, and leaves the model in it.
    """
    model.eval()
    outputs: dict[str, int] = {}
    handles = [module.register_forward_hook(_count_outputs(outputs, name))
               for name, module in model.named_modules()
               if isinstance(module, (nn.Conv2d, nn.Linear))]
    try:
        with FlopCounterMode(display=False, depth=None) as counter:
            if pair_of:
                model(*[_side(model, pair_of)] * 2)
            else:
                model(torch.zeros(1, 3, height, width, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    flops = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}
    return [Complexity(name or "total", sum(p.numel() for p in part.parameters()),
                       _flops(part, f"{type(model).__name__}.{name}".rstrip("."), flops) // 2,
                       sum(n for key, n in outputs.items()
                           if not name or key == name or key.startswith(name + ".")))
            for name, part in _parts(model, depth)]


def _side(model: nn.Module, count: int) -> dict[str, torch.Tensor]:
    """What a reranking transformer sees of an image of so many local features."""
    side = {"global": torch.zeros(1, model.global_dim), "local": torch.zeros(1, count, model.dim),
            "mask": torch.zeros(1, count, dtype=torch.bool),
            "scales": torch.zeros(1, count, dtype=torch.int64)}
    return {name: value.to("meta") for name, value in side.items()}


def _flops(part: nn.Module, name: str, counted: dict[str, int]) -> int:
    """What was counted under `name`; a mere list of layers is never called, its layers are."""
    if name in counted:
        return counted[name]
    return sum(_flops(child, f"{name}.{key}", counted) for key, child in part.named_children())


def _count_outputs(outputs: dict[str, int], name: str):
    def count(module, inputs, output):
        outputs[name] = outputs.get(name, 0) + output.numel()
    return count


def _parts(model: nn.Module, depth: int) -> Iterator[tuple[str, nn.Module]]:
    """The model, and its parts that have parameters, to `depth` dots in their names."""
    for name, module in model.named_modules():
        if name.count(".") < depth and any(True for _ in module.parameters()):
            yield name, module
