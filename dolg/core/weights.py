"""The key layouts of weights files, ours and other codes', and their mapping onto ours.

One table: each layout names a prefix that only its files have, and pairs of prefixes, theirs and
ours. `sort_keys` turns any file into parts with our names, {"model": ..., "loss": ...}; a part
"backbone" holds weights of a backbone alone. `unsort_keys` goes the other way.
"""
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from dolg.errors import UserError, choose

Rule = tuple[str, str, str]     # their prefix, part, our prefix; part "" drops the key

# torchvision's names inside a residual block, and pycls's, which are ours
_BLOCK_LAYERS = {"conv1.": "f.a.", "bn1.": "f.a_bn.", "conv2.": "f.b.", "bn2.": "f.b_bn.",
                 "conv3.": "f.c.", "bn3.": "f.c_bn.", "downsample.0.": "proj.",
                 "downsample.1.": "bn."}
_MOST_BLOCKS = 36       # in a stage, of a ResNet-152


def _torchvision_blocks(stages: str, first: int, part: str, ours: str) -> Iterator[Rule]:
    """Rules for the four stages, which the other code calls `stages` + number, from `first`."""
    for stage in range(4):
        for block in range(_MOST_BLOCKS):
            for their_layer, our_layer in _BLOCK_LAYERS.items():
                yield (f"{stages}{stage + first}.{block}.{their_layer}", part,
                       f"{ours}s{stage + 1}.b{block + 1}.{our_layer}")


@dataclass(frozen=True)
class Layout:
    """How to recognise a file's keys, and the rules that map them; the first match wins.

    `mark` is what one of the keys begins with, or the several things that one may.
    `colour` is the order that a network of such files is fed, "" for ours, whose configuration
    says it. `defaults` are values that the other code kept as constants, not parameters.
    """

    mark: str | tuple[str, ...]
    rules: tuple[Rule, ...]
    colour: str = ""
    defaults: dict[str, float] = field(default_factory=dict)


# Losses go by the output that they judge, as in a sum of losses
LAYOUTS = {
    "dolg checkpoint": Layout(("model.backbone.", "model.scale_encoder."), (
        ("model.", "model", ""), ("loss.", "loss", ""))),
    "dolg model": Layout("backbone.", (("", "model", ""),)),
    # github.com/feymanpriv/DOLG; before its pooling was learned it had no pool_g.p
    "DOLG": Layout("fc_t.", (
        ("globalmodel.head.", "", ""),
        ("globalmodel.", "model", "backbone."),
        ("localmodel.aspp.aspp.", "model", "multi_atrous.branches."),
        ("localmodel.aspp.im_pool.1.", "model", "multi_atrous.pooled."),
        ("localmodel.aspp.conv_after.0.", "model", "multi_atrous.join."),
        ("localmodel.", "model", "attention."),
        ("pool_g.", "model", "pool."),
        ("fc_t.", "model", "fc_global."),
        ("fc.", "model", "fc."),
        ("desc_cls.", "loss", "terms.global."),
    ), "bgr", {"pool.p": 3.0}),
    # github.com/feymanpriv/DELG
    "DELG": Layout("globalmodel.head.", (
        ("globalmodel.head.pool.", "model", "pool."),
        ("globalmodel.head.fc.", "model", "fc."),
        ("globalmodel.", "model", "backbone."),
        ("localmodel.", "model", "attention."),
        ("desc_cls.", "loss", "terms.global."),
        ("att_cls.", "loss", "terms.local."),
    ), "bgr", {"pool.p": 3.0}),
    # github.com/leftthomas/CGD; its files also hold what its profiler counted
    "CGD": Layout("main_modules.", (
        *((f"main_modules.{i}.0.", "model", f"branches.{i}.") for i in range(10)),
        ("features.0.", "model", "backbone.stem.conv."),
        ("features.1.", "model", "backbone.stem.bn."),
        *_torchvision_blocks("features.", 4, "model", "backbone."),
        ("auxiliary_module.0.", "loss", "terms.auxiliary.norm."),
        ("auxiliary_module.1.", "loss", "terms.auxiliary.fc."),
    ), "rgb"),
    # github.com/sungonce/CVNet, whose files SuperGlobal takes: the network, its pooling's exponent,
    # which SuperGlobal replaces, and the reranking. Its training has a second network and a queue,
    # SuperGlobal's code three layers (se..) that it never uses
    "CVNet": Layout("encoder_q.", (
        ("encoder_q.head.fc.", "model", "fc."),
        *((f"encoder_q.{unused}.", "", "") for unused in ("head.pool", "seb1", "seb2", "sefc")),
        ("encoder_q.", "model", "backbone."),
        *((unused, "", "") for unused in ("encoder_k.", "queue", "conv2ds.", "cv_learner.")),
    ), "bgr"),
    # github.com/uvavision/RerankingTransformer: RRT_GLD, whose names ours are, and RRT_SOP, whose
    # classifier nothing trains
    "RRT": Layout("scale_encoder.", tuple(
        (part, "model", part) for part in ("encoder.", "remap.", "scale_encoder.", "seg_encoder.",
                                           "classifier."))),
    "RRT_SOP": Layout("matcher.encoder.", (
        *((part, "", "") for part in ("classifier.", "mean", "std")),
        ("matcher.", "model", "matcher."),
        ("remap_local.", "model", "fc_local."),
        ("remap.", "model", "fc."),
        ("conv1.", "model", "backbone.stem.conv."),
        ("bn1.", "model", "backbone.stem.bn."),
        *_torchvision_blocks("layer", 1, "model", "backbone."),
    ), "rgb"),
    # pycls's ImageNet weights: the classifier is of no use here
    "pycls": Layout("stem.conv.", (("head.", "", ""), ("", "backbone", "")), "bgr"),
    # torchvision's and timm's ResNets and ResNeXts
    "torchvision": Layout("layer1.0.conv1.", (
        ("fc.", "", ""),
        ("conv1.", "backbone", "stem.conv."),
        ("bn1.", "backbone", "stem.bn."),
        *_torchvision_blocks("layer", 1, "backbone", ""),
    ), "rgb"),
}
# What a sum of losses puts before the keys of the one on the descriptor; alone it has none
ALONE = "terms.global."
# What a profiler leaves among the weights (thop, which CGD's code calls)
_COUNTERS = ("total_ops", "total_params")


# What DataParallel, torch.compile, Lightning and others put before the names of what they hold
_WRAPPERS = {"module", "_orig_mod", "model", "net", "network"}


def strip_wrappers(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], str]:
    """The state dict without the prefix that wrappers have put before all names, and the prefix.

    Any common prefix that hides a known layout is one; where no layout is known, those of _WRAPPERS are.
    """
    state = {key: value for key, value in state.items() if key.rsplit(".", 1)[-1] not in _COUNTERS}
    shortest = min(state, key=lambda key: key.count("."), default="").split(".")[:-1]
    common = 0
    while common < len(shortest) and all(key.split(".")[common] == shortest[common] for key in state):
        common += 1
    known = 0
    for size in range(common + 1):
        prefix = "".join(f"{part}." for part in shortest[:size])
        stripped = {key.removeprefix(prefix): value for key, value in state.items()}
        if _layout_of(stripped):
            return stripped, prefix
        known = size if all(part in _WRAPPERS for part in shortest[:size]) else known
    prefix = "".join(f"{part}." for part in shortest[:known])
    return {key.removeprefix(prefix): value for key, value in state.items()}, prefix


def _layout_of(state: dict) -> str | None:
    return next((name for name, layout in LAYOUTS.items()
                 if any(key.startswith(layout.mark) for key in state)), None)


def sort_keys(state: dict[str, torch.Tensor], source: str,
              as_timm: bool = False) -> tuple[str, dict[str, dict]]:
    """(layout's name, {"model" | "loss" | "backbone": renamed tensors}) of a file's state dict.

    Keys of no known layout are taken for a bare backbone's (timm's have no common mark), and with
    `as_timm` those of a bare backbone keep their names. Raises UserError where a recognised
    layout holds a key that no rule names.
    """
    name = _layout_of(state)
    if name is None or (as_timm and name in ("pycls", "torchvision")):
        return "timm or other backbone", {"backbone": state}
    layout, parts = LAYOUTS[name], {}
    for key, value in state.items():
        rule = next((rule for rule in layout.rules if key.startswith(rule[0])), None)
        if rule is None:
            raise UserError(f"{source} looks like a file of {name}, but its key {key} is none that "
                            "such files have")
        theirs, part, ours = rule
        if part:
            parts.setdefault(part, {})[ours + key.removeprefix(theirs)] = value
    for key, value in layout.defaults.items():
        parts.get("model", {}).setdefault(key, torch.full((1,), value))
    return name, parts


def unsort_keys(parts: dict[str, dict], name: str) -> dict[str, torch.Tensor]:
    """The tensors of `parts`, {"model", "loss"} with our names, under those of layout `name`.

    A layout of backbones takes those of the model's backbone and leaves the rest. Raises
    UserError for an unknown layout and for keys that it has no name for.
    """
    rules = [rule for rule in choose(LAYOUTS, name, "--to").rules if rule[1]]
    if any(part == "backbone" for _, part, _ in rules):
        inside = {key.removeprefix("backbone."): value for key, value in parts["model"].items()
                  if key.startswith("backbone.")}
        parts = {"backbone": inside}
    state = {}
    for part, tensors in parts.items():
        for key, value in tensors.items():
            rule = next((r for r in rules if r[1] == part and key.startswith(r[2])), None)
            if rule is None:
                raise UserError(f"files of {name} have no place for the {part}'s {key}: this is "
                                "another model, or it has parts that the original lacks")
            state[rule[0] + key.removeprefix(rule[2])] = value
    return state


def swap_colours(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same network fed with its colours in the opposite order: its first layer reversed."""
    return {key: value.flip(1) if key.endswith("stem.conv.weight") else value
            for key, value in state.items()}
