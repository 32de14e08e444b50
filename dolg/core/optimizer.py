"""Optimizers, their parameter groups, and the schedules of the learning rate as pycls has them."""
import math
from bisect import bisect
from collections.abc import Collection, Iterator

import torch
import torch.distributed as dist
from torch import nn

from dolg.errors import choose
from dolg.models.backbones.timm import TimmBackbone, flat_key

# Where torch's fused kernels run, of the devices that we train on (PyTorch 2.4 and later)
_FUSED = {"cpu", "cuda"}
_BACKBONE = "model.backbone."


def build_optimizer(cfg, module: nn.Module) -> torch.optim.Optimizer:
    """OPTIM.NAME over all parameters of `module` (`.model` and `.loss`) that learn.

    Fused kernels do the update wherever torch has them. Every group bears `lr_scale`, its share
    of the learning rate: see `set_learning_rate`. A state dict of the same parameters loads
    whether or not it was saved by a fused optimizer.
    """
    groups = parameter_groups(cfg, module)
    parameters = [parameter for group in groups for parameter in group["params"]]
    fused = all(p.device.type in _FUSED and p.is_floating_point() for p in parameters)
    build = choose(OPTIMIZERS, cfg.OPTIM.NAME, "OPTIM.NAME")
    optimizer = build(groups, cfg.OPTIM, fused or None)
    optimizer.register_load_state_dict_pre_hook(_keep_own_settings)
    return optimizer


def parameter_groups(cfg, module: nn.Module) -> list[dict]:
    """Groups of parameters that share a rate and a weight decay.

    First the weights, then batch norms (and with OPTIM.NO_DECAY_NORM_BIAS all other vectors), each
    in the order of their first parameters. A parameter's share of the rate, `lr_scale`, is
    OPTIM.LAYER_DECAY ** (n - i) in layer i of the backbone's n (see `backbone_layers`), and
    OPTIM.HEAD_LR_MULT outside the backbone.
    """
    layers = backbone_layers(module.model.backbone) if cfg.OPTIM.LAYER_DECAY != 1 else {}
    depth = 1 + max(layers.values(), default=0)
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, parameter, is_norm in _learning(module):
        scale = cfg.OPTIM.HEAD_LR_MULT
        if name.startswith(_BACKBONE):
            layer = layers.get(name.removeprefix(_BACKBONE), depth)
            scale = cfg.OPTIM.LAYER_DECAY ** (depth - layer)
        is_vector = cfg.OPTIM.NO_DECAY_NORM_BIAS and parameter.ndim < 2
        decay = 0.0 if is_vector else cfg.OPTIM.WEIGHT_DECAY
        if is_norm and cfg.BN.USE_CUSTOM_WEIGHT_DECAY:
            decay = cfg.BN.CUSTOM_WEIGHT_DECAY
        groups.setdefault((is_norm or is_vector, decay, scale), []).append(parameter)
    return [{"params": parameters, "weight_decay": decay, "lr_scale": scale}
            for (_, decay, scale), parameters in sorted(groups.items(), key=lambda g: g[0][0])]


def _learning(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, bool]]:
    """Name, parameter, and whether it is a batch norm's, of each that learns, once."""
    seen = set()
    for prefix, child in module.named_modules():
        is_norm = isinstance(child, nn.modules.batchnorm._NormBase)
        for name, parameter in child.named_parameters(prefix, recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield name, parameter, is_norm


def backbone_layers(backbone: nn.Module) -> dict[str, int]:
    """The number of the layer, from 0 at the input, that each parameter of a backbone is in.

    A ResNet's layers are its stem and its stages; those of timm's networks are what timm groups
    them to: the stages of a convolutional network, the blocks of a transformer, each after its
    stem. Counting follows BEiT (Bao et al., ICLR 2022, optim_factory.py) and timm: the head is
    layer n, so that the backbone's last layer learns at decay ** 1. Other backbones: their
    children, in order.
    """
    names = [name for name, _ in backbone.named_parameters()]
    if isinstance(backbone, TimmBackbone):
        places = _timm_layers(backbone)
    else:
        stages = [child for child, _ in backbone.named_children()]
        places = {name: stages.index(name.split(".")[0]) for name in names}
    # A norm alone makes no layer but goes with the one before, as timm has it for transformers
    order = sorted({places[name] for name, parameter in backbone.named_parameters()
                    if parameter.ndim > 1})
    return {name: max(0, bisect(order, places[name]) - 1) for name in names}


def _timm_layers(backbone: TimmBackbone) -> dict[str, int]:
    """timm's own grouping of the whole network, under the backbone's names."""
    import timm
    from timm.models import group_parameters

    with torch.device("meta"):
        whole = timm.create_model(backbone.name, pretrained=False)
    places = {flat_key(name): place for name, place in group_parameters(
        whole, whole.group_matcher(coarse=True), reverse=True).items()}
    return {name: places[flat_key(name.removeprefix("body."))]
            for name, _ in backbone.named_parameters()}


def _keep_own_settings(optimizer: torch.optim.Optimizer, state: dict) -> dict:
    """Checkpoints bring their groups' settings along: what is ours to decide stays as it is."""
    kept = ("fused", "lr_scale")
    groups = [{**saved, **{key: own[key] for key in kept}}
              for own, saved in zip(optimizer.param_groups, state["param_groups"])]
    # Groups beyond ours stay, for torch to refuse
    return {**state, "param_groups": groups + state["param_groups"][len(groups):]}


def _sgd(groups: list[dict], optim, fused: bool | None) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=optim.BASE_LR, momentum=optim.MOMENTUM,
                           dampening=optim.DAMPENING, nesterov=optim.NESTEROV, fused=fused)


def _adamw(groups: list[dict], optim, fused: bool | None) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=optim.BASE_LR, fused=fused)


def _adam(groups: list[dict], optim, fused: bool | None) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=optim.BASE_LR, fused=fused)


OPTIMIZERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw}


def learning_rate(cfg, epoch: float) -> float:
    """The rate at `epoch`, counted from 0; fractions where OPTIM.LR_UPDATE is step."""
    optim = cfg.OPTIM
    if optim.LR_POLICY == "cos":
        rate = 0.5 * optim.BASE_LR * (1 + math.cos(math.pi * epoch / optim.MAX_EPOCH))
    elif optim.LR_POLICY == "steps":
        passed = sum(epoch >= step for step in optim.STEPS) - 1
        rate = optim.BASE_LR * optim.LR_MULT ** passed
    else:
        rate = optim.BASE_LR * optim.GAMMA ** epoch
    if epoch < optim.WARMUP_EPOCHS:
        share = epoch / optim.WARMUP_EPOCHS
        rate *= optim.WARMUP_FACTOR * (1 - share) + share
    return rate


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group its share of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def clip_gradients(module: nn.Module, max_norm: float,
                   sharded: Collection[str] = ()) -> torch.Tensor:
    """Scale all gradients of `module` so that together they are no longer than `max_norm` (2-norm).

    Of the parameters named in `sharded` every process holds other rows: those are counted over all
    processes (each must call this). Returns the length as it was, a float32 scalar on the
    gradients' device; nothing waits for it. Gradients scaled for fp16 must be unscaled before.
    """
    own, rows = [], []
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            (rows if name in sharded else own).append(parameter.grad)
    device = next(module.parameters()).device
    squared = _squared_norm(own, device)
    if sharded:
        elsewhere = _squared_norm(rows, device)
        if dist.is_initialized():
            dist.all_reduce(elsewhere)
        squared = squared + elsewhere
    norm = squared.sqrt()
    nn.utils.clip_grads_with_norm_(module.parameters(), max_norm, norm)
    return norm


def _squared_norm(gradients: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    return nn.utils.get_total_norm(gradients).to(device, torch.float32).square()
