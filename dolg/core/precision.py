"""Mixed precision: what PRECISION means on a device."""
import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """A context in which networks compute in the precision of that name."""
    return torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=precision != "fp32")


def grad_scaler(precision: str, device: torch.device, sharded: bool) -> torch.amp.GradScaler:
    """Of fp16's gradients, which would vanish; off for other precisions.

    sharded: processes have parameters of their own, yet must skip the same steps.
    """
    if precision == "fp16" and sharded:
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device.type)
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
