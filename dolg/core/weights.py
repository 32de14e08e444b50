"""The key layouts of weights files, ours and other codes', and their mapping onto ours.

One table: each layout names a key that only its files have, and rules that rename keys.
`sort_keys` turns any file into two parts with our names, {"model": ..., "loss": ...}; a part
"backbone" holds weights of a backbone alone.
"""
import re
from dataclasses import dataclass, field

import torch

from dolg.errors import UserError


@dataclass(frozen=True)
class Layout:
    """How to recognise a file's keys, and the (pattern, part, replacement) rules that map them.

    The first matching rule wins; part "" drops the key. `defaults` gives values that the
    other code kept as constants instead of parameters.
    """

    name: str
    mark: str
    rules: tuple[tuple[str, str, str], ...]
    defaults: dict[str, float] = field(default_factory=dict)


LAYOUTS = (
    Layout("dolg checkpoint", r"^model\.backbone\.", (
        (r"^model\.", "model", ""),
        (r"^loss\.", "loss", ""),
    )),
    Layout("dolg model", r"^backbone\.", ((r"^", "model", ""),)),
    # github.com/feymanpriv/DOLG; before its pooling was learned it had no pool_g.p
    Layout("DOLG (original)", r"^globalmodel\.stem\.", (
        (r"^globalmodel\.head\.", "", ""),
        (r"^globalmodel\.", "model", "backbone."),
        (r"^localmodel\.aspp\.aspp\.", "model", "multi_atrous.branches."),
        (r"^localmodel\.aspp\.im_pool\.1\.", "model", "multi_atrous.pooled."),
        (r"^localmodel\.aspp\.conv_after\.0\.", "model", "multi_atrous.join."),
        (r"^localmodel\.", "model", "attention."),
        (r"^pool_g\.", "model", "pool."),
        (r"^fc_t\.", "model", "fc_global."),
        (r"^fc\.", "model", "fc."),
        (r"^desc_cls\.", "loss", ""),
    ), {"pool.p": 3.0}),
    # pycls ImageNet weights: the classifier is of no use here
    Layout("pycls ResNet", r"^stem\.conv\.", (
        (r"^head\.", "", ""),
        (r"^", "backbone", ""),
    )),
)


def sort_keys(state: dict[str, torch.Tensor], source: str) -> tuple[str, dict[str, dict]]:
    """(layout name, {"model" | "loss" | "backbone": renamed tensors}) of a file's state dict.

    Keys of no known layout are taken for a bare backbone's (timm's have no common mark).
    Raises UserError where a recognised layout holds a key that no rule names.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    layout = next((l for l in LAYOUTS if any(re.match(l.mark, key) for key in state)), None)
    if layout is None:
        return "timm or other backbone", {"backbone": state}
    parts: dict[str, dict] = {}
    for key, value in state.items():
        rule = next((r for r in layout.rules if re.match(r[0], key)), None)
        if rule is None:
            raise UserError(f"{source} looks like a file of {layout.name}, but its key {key} is "
                            "none that such files have")
        pattern, part, replacement = rule
        if part:
            parts.setdefault(part, {})[re.sub(pattern, replacement, key, count=1)] = value
    for key, value in layout.defaults.items():
        parts.get("model", {}).setdefault(key, torch.full((1,), value))
    return layout.name, parts
