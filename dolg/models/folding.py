"""Batch norms folded into the convolutions before them, for extraction."""
import copy
from collections import Counter

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

# What asks a tensor for its shape or device, and not for its values
_LOOKS = {"__get__", "dim", "size", "numel", "stride", "is_contiguous", "is_floating_point"}
# How far descriptors of the folded network may be from the others, of their largest entry
_TOLERANCE = 1e-4


def fold_norms(model: nn.Module, probe: torch.Tensor) -> nn.Module:
    """A copy of a retrieval model in eval mode, in which convolutions do the work of the batch norms
    that follow them.

    Which follow which is seen while `probe` (B,3,H,W), float32 on the model's device, passes. Norms
    whose input is used elsewhere as well, or comes from something else, stay. If the copy's
    descriptor of `probe` is another (a network may look at its weights in other ways), `model`
    itself is returned.
    """
    folded = copy.deepcopy(model).eval()
    with torch.no_grad(), _Watch() as watch:
        before = folded(probe)["global"]
    convolutions = {id(module.weight): module for module in folded.modules()
                    if isinstance(module, nn.Conv2d)}
    norms = {id(module.running_mean): (name, module) for name, module in folded.named_modules()
             if isinstance(module, nn.BatchNorm2d)}
    for weight, mean in watch.pairs():
        if weight in convolutions and mean in norms:
            name, norm = norms[mean]
            _fold(convolutions[weight], norm)
            folded.set_submodule(name, _rest_of(norm))
    with torch.no_grad():
        after = folded(probe)["global"]
    same = (after - before).abs().max() <= _TOLERANCE * before.abs().max()
    return folded if same else model


class _Watch(TorchFunctionMode):
    """Notes which convolution's output goes to which batch norm and nowhere else."""

    def __init__(self):
        super().__init__()
        self._outputs: dict[int, int] = {}      # a convolution's output -> its weight, by their ids
        self._norms: dict[int, int] = {}        # such an output -> the running mean of its norm
        self._uses = Counter()                  # of outputs, weights and running means
        self._alive = []                        # or an output's id would be given to another

    def pairs(self) -> list[tuple[int, int]]:
        """Ids of weights and running means whose convolution and norm can be one."""
        pairs = ((output, self._outputs[output], mean) for output, mean in self._norms.items())
        return [(weight, mean) for output, weight, mean in pairs
                if self._uses[output] == self._uses[weight] == self._uses[mean] == 1]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in _LOOKS:
            return result
        for value in (*args, *(kwargs or {}).values()):
            for tensor in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(tensor, torch.Tensor):
                    self._uses[id(tensor)] += 1
        if function in (torch.conv2d, F.conv2d):
            self._outputs[id(result)] = id(args[1])
            self._uses[id(result)] = 0      # another tensor, gone now, may have had this id
            self._alive.append(result)
        elif function is F.batch_norm and id(args[0]) in self._outputs:
            self._norms[id(args[0])] = id(args[1])
        return result


def _fold(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps,
        norm.weight, norm.bias)


def _rest_of(norm: nn.BatchNorm2d) -> nn.Module:
    """What a norm does besides: timm has some with an activation."""
    activation = getattr(norm, "act", None)
    return nn.Identity() if activation is None else activation
