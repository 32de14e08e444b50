"""ResNet and ResNeXt (He et al., CVPR 2016; Xie et al., CVPR 2017).

Modules bear pycls's names (stem, s1..s4, b1.., f.a, f.a_bn, ..), so that pycls and DOLG
weights need no renaming.
"""
import math

import torch
from torch import nn
from torch.nn import functional as F

from dolg.errors import UserError
from dolg.models.backbones.input_spec import PYCLS
from dolg.models.layers import init_convolutions, recomputed

# Blocks per stage
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
          152: (3, 8, 36, 3)}


def _relu(x: torch.Tensor, floor: float) -> torch.Tensor:
    """max(x, floor), in place."""
    return x.clamp_(min=floor) if floor else F.relu(x, inplace=True)


class BasicTransform(nn.Module):
    """3x3, norm, ReLU, 3x3, norm."""

    def __init__(self, w_in: int, w_out: int, stride: int, norm):
        super().__init__()
        self.a = nn.Conv2d(w_in, w_out, 3, stride, padding=1, bias=False)
        self.a_bn = norm(w_out)
        self.b = nn.Conv2d(w_out, w_out, 3, padding=1, bias=False)
        self.b_bn = norm(w_out)
        self.last_norm = "b_bn"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.a_bn(self.a(x)), inplace=True)
        return self.b_bn(self.b(x))


class BottleneckTransform(nn.Module):
    """1x1, norm, ReLU, 3x3 (in groups), norm, ReLU, 1x1, norm; its ReLUs cut off at `floor`."""

    def __init__(self, w_in: int, w_out: int, stride: int, norm, width: int, groups: int,
                 stride_1x1: bool, floor: float):
        super().__init__()
        stride_a, stride_b = (stride, 1) if stride_1x1 else (1, stride)
        self.a = nn.Conv2d(w_in, width, 1, stride_a, bias=False)
        self.a_bn = norm(width)
        self.b = nn.Conv2d(width, width, 3, stride_b, padding=1, groups=groups, bias=False)
        self.b_bn = norm(width)
        self.c = nn.Conv2d(width, w_out, 1, bias=False)
        self.c_bn = norm(w_out)
        self.last_norm = "c_bn"
        self.floor = floor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = _relu(self.a_bn(self.a(x)), self.floor)
        x = _relu(self.b_bn(self.b(x)), self.floor)
        return self.c_bn(self.c(x))


class ResBlock(nn.Module):
    """ReLU(shortcut + transform), cut off at `floor`, with a projected shortcut where the shape
    changes."""

    def __init__(self, w_in: int, w_out: int, stride: int, norm, transform: nn.Module, floor: float):
        super().__init__()
        self.projects = w_in != w_out or stride != 1
        if self.projects:
            self.proj = nn.Conv2d(w_in, w_out, 1, stride, bias=False)
            self.bn = norm(w_out)
        self.f = transform
        self.floor = floor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = self.bn(self.proj(x)) if self.projects else x
        return _relu(shortcut + self.f(x), self.floor)


class Stem(nn.Module):
    """7x7 of stride 2, norm, ReLU, 3x3 max pooling of stride 2."""

    def __init__(self, width: int, norm):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 7, 2, padding=3, bias=False)
        self.bn = norm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(F.relu(self.bn(self.conv(x)), inplace=True), 3, 2, padding=1)


class ResNet(nn.Module):
    """The four stages of a ResNet, without its classifier.

    Args:
        depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        block: "basic_transform", "bottleneck_transform", or "" for what the depth has.
        groups, width_per_group: of the bottleneck's 3x3 convolution.
        stride_1x1: stride on the bottleneck's 1x1 (MSRA) instead of its 3x3 convolution.
        stem_width: channels after the stem; 64 in the papers.
        stage_strides: of the four stages, after the stem's 4.
        zero_init_final_gamma: start every residual branch at zero.
        recompute: do not keep the blocks' activations for the backward pass.
        floor: where activations are cut off in place of 0 (SuperGlobal's ReLU-P; Shao et al., ICCV
            2023): at the end of each block of the first three stages, and within the bottlenecks of
            the first, as in its published code.

    `forward(images (B,3,H,W))` gives the maps "stage3" and "stage4", by default of
    (B,C3,H/16,W/16) and (B,C4,H/32,W/32); with `last` "stage3" the first alone. Raises UserError for an unknown depth or block.
    """

    input_spec = PYCLS

    def __init__(self, depth: int, block: str = "", groups: int = 1, width_per_group: int = 64,
                 stride_1x1: bool = False, stem_width: int = 64,
                 stage_strides: tuple[int, ...] = (1, 2, 2, 2), bn_eps: float = 1e-5,
                 bn_momentum: float = 0.1, zero_init_final_gamma: bool = False,
                 recompute: bool = False, floor: float = 0.0):
        super().__init__()
        basic = self._is_basic(depth, block)
        if basic and groups != 1:
            raise UserError(f"RESNET.NUM_GROUPS is {groups}, but MODEL.DEPTH {depth} has basic "
                            "blocks, which have no groups: give 1, or a depth of 50 or more")

        def norm(width):
            return nn.BatchNorm2d(width, eps=bn_eps, momentum=bn_momentum)

        def transform(w_in, w_out, stride, stage):
            if basic:
                return BasicTransform(w_in, w_out, stride, norm)
            width = groups * width_per_group * stem_width // 64 * 2 ** stage
            return BottleneckTransform(w_in, w_out, stride, norm, width, groups, stride_1x1,
                                       floor if stage == 0 else 0.0)

        self.recompute = recompute
        self.stem = Stem(stem_width, norm)
        w_in, w_out = stem_width, stem_width * (1 if basic else 4)
        for stage, blocks in enumerate(DEPTHS[depth]):
            layers = nn.Sequential()
            for i in range(blocks):
                stride = stage_strides[stage] if i == 0 else 1
                block_ = ResBlock(w_in, w_out, stride, norm, transform(w_in, w_out, stride, stage),
                                  floor if stage < 3 else 0.0)
                layers.add_module(f"b{i + 1}", block_)
                w_in = w_out
            self.add_module(f"s{stage + 1}", layers)
            w_out *= 2
        self.channels = {"stage3": w_in // 2, "stage4": w_in}
        self.strides = {"stage3": 4 * math.prod(stage_strides[:3]),
                        "stage4": 4 * math.prod(stage_strides)}
        init_convolutions(self)
        if zero_init_final_gamma:
            self._start_branches_at_zero()

    @staticmethod
    def _is_basic(depth: int, block: str) -> bool:
        if depth not in DEPTHS:
            raise UserError(f"MODEL.DEPTH is {depth}: choose one of {', '.join(map(str, DEPTHS))}")
        natural = "basic_transform" if depth < 50 else "bottleneck_transform"
        if block not in ("", natural):
            raise UserError(f"RESNET.TRANS_FUN is '{block}', but a ResNet of MODEL.DEPTH {depth} "
                            f"has {natural}: give that, or leave it empty")
        return natural == "basic_transform"

    def _start_branches_at_zero(self) -> None:
        for module in self.modules():
            if hasattr(module, "last_norm"):
                nn.init.zeros_(getattr(module, module.last_norm).weight)

    def forward(self, images: torch.Tensor, last: str = "stage4") -> dict[str, torch.Tensor]:
        x = self._stage(self.s2, self._stage(self.s1, self.stem(images)))
        maps = {"stage3": self._stage(self.s3, x)}
        if last == "stage4":
            maps["stage4"] = self._stage(self.s4, maps["stage3"])
        return maps

    def _stage(self, blocks: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return blocks(x)
        for block in blocks:
            x = recomputed(block, x)
        return x
