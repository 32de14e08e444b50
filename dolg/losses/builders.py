"""From configuration keys to a loss: the table of losses."""
from torch import nn

from dolg.errors import UserError, choose
from dolg.losses.margin import ArcFace, CurricularFace

LOSSES = {"arcface": ArcFace, "curricularface": CurricularFace}


def build_loss(cfg, dim: int | None = None) -> nn.Module:
    """The loss of LOSS.NAME, which owns the class weights.

    `dim` is the descriptor's (`model.dim`); without it MODEL.HEADS.REDUCTION_DIM counts.
    """
    dim = dim or cfg.MODEL.HEADS.REDUCTION_DIM
    if not dim:
        raise UserError("MODEL.HEADS.REDUCTION_DIM is 0, so the loss cannot know the descriptor's "
                        "dimensions: pass build_loss(cfg, dim=model.dim)")
    loss = choose(LOSSES, cfg.LOSS.NAME, "LOSS.NAME")
    return loss(dim, cfg.MODEL.NUM_CLASSES, margin=cfg.MODEL.HEADS.MARGIN,
                scale=cfg.MODEL.HEADS.SCALE)
