"""Optimizers, and the schedules of their learning rate as pycls has them."""
import math

import torch
from torch import nn

from dolg.errors import choose


def build_optimizer(cfg, module: nn.Module) -> torch.optim.Optimizer:
    """OPTIM.NAME over all parameters that learn; the norms may have a weight decay of their own."""
    norms, others = [], []
    for child in module.modules():
        is_norm = isinstance(child, nn.modules.batchnorm._NormBase)
        for parameter in child.parameters(recurse=False):
            if parameter.requires_grad:
                (norms if is_norm else others).append(parameter)
    decay = cfg.OPTIM.WEIGHT_DECAY
    norm_decay = cfg.BN.CUSTOM_WEIGHT_DECAY if cfg.BN.USE_CUSTOM_WEIGHT_DECAY else decay
    groups = [{"params": others, "weight_decay": decay},
              {"params": norms, "weight_decay": norm_decay}]
    groups = [group for group in groups if group["params"]]
    return choose(OPTIMIZERS, cfg.OPTIM.NAME, "OPTIM.NAME")(groups, cfg.OPTIM)


def _sgd(groups: list[dict], optim) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=optim.BASE_LR, momentum=optim.MOMENTUM,
                           dampening=optim.DAMPENING, nesterov=optim.NESTEROV)


def _adamw(groups: list[dict], optim) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=optim.BASE_LR)


def _adam(groups: list[dict], optim) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=optim.BASE_LR)


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
    """Give all parameter groups the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
