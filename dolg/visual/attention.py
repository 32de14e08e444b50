"""Where a retrieval network looks: maps over an image, of the very pass that describes it.

Three kinds of maps, each (h,w) at every scale:

    attention     the network's own `attention` output: what DOLG and DELG learned, and of a GeM model the
                  lengths of the features of the map before the last. Local features are selected by it.
    orthogonal    DOLG: what is left of a local feature once its projection on the global descriptor is
                  taken away, as a share of the feature's length: 1 where it tells all that the global
                  descriptor does not, 0 where it tells nothing new. (The attention scales both alike.)
    share         of the pooled vector g: the share of |g|^2 that comes from a position. Pooling is
                  homogeneous, so by Euler's theorem |g|^2 is the sum over positions j and channels c of
                  x_jc d(|g|^2 / 2) / dx_jc, and a position's share is its part of this sum: for GeM
                  sum_c g_c^2 x_jc^p / sum_k x_kc^p over |g|^2, for average pooling the position's part
                  of the mean, for maximum pooling the channels that it wins. What a linear layer makes
                  of g afterwards is not looked at.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from dolg.errors import UserError
from dolg.features.extract import describe_all
from dolg.models.cgd import CGD
from dolg.models.dolg import DOLG, orthogonal_part

KINDS = ("attention", "orthogonal", "share")
# What `attention` is of a network that has learned none
_LENGTHS = "attention: lengths of the features of the map before the last"
_SHARE = "share in the pooled vector"


@dataclass(frozen=True)
class AttentionMap:
    """One map of one image at one scale.

    Attributes:
        kind: of KINDS.
        title: the same in words.
        scale: relative to the image.
        fed: (height, width) of what the network was fed, in pixels.
        values: (h,w) float32; the map's cells share the image evenly.
    """

    kind: str
    title: str
    scale: float
    fed: tuple[int, int]
    values: np.ndarray


@dataclass
class _Pass:
    """What one pass through the network (of one scale) left behind."""

    images: torch.Tensor
    outputs: dict[str, torch.Tensor]
    pooled: list[torch.Tensor]
    directions: list[torch.Tensor]


@dataclass
class _Watch:
    """Notes, while it is entered, what passes through a network; nothing of it is changed.

    pools: the pooling modules whose inputs are wanted; direction: the module whose output is.
    """

    network: nn.Module
    pools: Sequence[nn.Module]
    direction: nn.Module | None
    passes: list[_Pass] = field(default_factory=list)

    def __enter__(self) -> "_Watch":
        self._pooled, self._directions = [], []
        self._hooks = [pool.register_forward_pre_hook(lambda _, inputs: self._pooled.append(inputs[0]))
                       for pool in self.pools]
        if self.direction is not None:
            self._hooks.append(self.direction.register_forward_hook(
                lambda _, inputs, output: self._directions.append(output)))
        self._hooks.append(self.network.register_forward_hook(self._end))
        return self

    def __exit__(self, *error) -> None:
        for hook in self._hooks:
            hook.remove()

    def _end(self, network: nn.Module, inputs: tuple, outputs: dict[str, torch.Tensor]) -> None:
        self.passes.append(_Pass(inputs[0], outputs, self._pooled, self._directions))
        self._pooled, self._directions = [], []


def attention_maps(network: nn.Module, pixels: np.ndarray, scales: Sequence[float],
                   kinds: Sequence[str] = KINDS, precision: torch.dtype = torch.float32,
                   side: int = 0) -> list[AttentionMap]:
    """The maps of an image, kind after kind, each at every scale.

    Args:
        network: a retrieval network in eval mode.
        pixels: (H,W,3) uint8, RGB.
        kinds: those wanted; those that the network has not are left out.
        scales, precision, side: as `dolg.features.extract.describe_all`, which is what is watched,
            has them.

    Raises UserError where the network has none of these kinds.
    """
    scales = list(dict.fromkeys(scales))
    pools = _pools_of(network)
    direction = network.fc_global if isinstance(network, DOLG) else None
    batch = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
    batch = batch.to(next(network.parameters()).device)
    with _Watch(network, list(pools.values()), direction) as watch:
        describe_all(network, batch, scales, None, precision, side)
    found = [found for kind in kinds for found in _of_kind(network, kind, pools, scales, watch.passes)]
    if not found:
        raise UserError(f"a network of the kind {type(network).__name__} has no {' or '.join(kinds)} to "
                        "show: MODEL.ARCH dolg has all kinds, delg and gem attention and share, "
                        "superglobal and cgd share")
    return found


def _of_kind(network: nn.Module, kind: str, pools: dict[str, nn.Module], scales: Sequence[float],
             passes: Sequence[_Pass]) -> list[AttentionMap]:
    """The maps of one kind at all scales; none where the network has none."""
    def maps(title: str, values: Sequence[torch.Tensor]) -> list[AttentionMap]:
        return [AttentionMap(kind, title, scale, tuple(one.images.shape[2:]), value.float().cpu().numpy())
                for scale, one, value in zip(scales, passes, values)]

    if kind == "share":
        return [entry for number, (title, pool) in enumerate(pools.items())
                for entry in maps(title, [pooled_shares(pool, one.pooled[number])[0] for one in passes])]
    if "attention" not in passes[0].outputs:
        return []
    if kind == "attention":
        title = "attention" if hasattr(network, "attention") else _LENGTHS
        return maps(title, [one.outputs["attention"][0, 0] for one in passes])
    if not isinstance(network, DOLG):
        return []
    return maps("share of a local feature that is orthogonal to the global descriptor",
                [orthogonal_shares(one.outputs["local"], one.directions[0])[0] for one in passes])


def orthogonal_shares(local: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """(B,h,w) in 0..1: lengths of the parts of local features (B,C,h,w) at right angles to the vector
    (B,C) of their image, over their whole lengths; 0 where a feature has no length."""
    features = local.float().permute(0, 2, 3, 1)
    along = directions.float()[:, None, None].expand_as(features)
    rest = orthogonal_part(features.flatten(0, 2), along.flatten(0, 2)).view_as(features).norm(dim=3)
    whole = features.norm(dim=3)
    return torch.where(whole > 0, rest / whole.clamp(min=1e-30), 0.0)


def pooled_shares(pool: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    """(B,h,w): of the squared length of the vector that `pool` makes of maps (B,C,h,w), the share of
    each position, by Euler's theorem (see above); they sum up to 1."""
    with torch.inference_mode(False), torch.enable_grad():
        maps = maps.detach().clone().float().requires_grad_()
        energy = pool(maps).square().sum() / 2
        slope, = torch.autograd.grad(energy, maps)
    parts = (maps.detach() * slope).sum(dim=1)
    whole = parts.sum(dim=(1, 2), keepdim=True)
    return torch.where(whole > 0, parts / whole.clamp(min=1e-30), 0.0)


def _pools_of(network: nn.Module) -> dict[str, nn.Module]:
    """Title -> the module that makes one vector of the last map."""
    if isinstance(network, CGD):
        names = {"AveragePooling": "average", "MaximumPooling": "maximum", "GeM": "GeM"}
        return {f"{_SHARE} ({names[type(pool).__name__]})": pool for pool in network.pools}
    return {_SHARE: network.pool} if hasattr(network, "pool") else {}
