"""From configuration keys to a model: the tables of backbones and of retrieval models."""
from torch import nn

from dolg.errors import UserError, choose
from dolg.models.backbones.resnet import ResNet
from dolg.models.backbones.timm import TimmBackbone
from dolg.models.dolg import DOLG
from dolg.models.gem import GeMModel


def _resnet(cfg) -> nn.Module:
    return ResNet(
        depth=cfg.MODEL.DEPTH,
        block=cfg.RESNET.TRANS_FUN,
        groups=cfg.RESNET.NUM_GROUPS,
        width_per_group=cfg.RESNET.WIDTH_PER_GROUP,
        stride_1x1=cfg.RESNET.STRIDE_1X1,
        stem_width=cfg.RESNET.STEM_WIDTH,
        bn_eps=cfg.BN.EPS,
        bn_momentum=cfg.BN.MOM,
        zero_init_final_gamma=cfg.BN.ZERO_INIT_FINAL_GAMMA,
    )


def _timm(cfg) -> nn.Module:
    return TimmBackbone(cfg.TIMM.NAME)


def _dolg(cfg, backbone) -> nn.Module:
    return DOLG(
        backbone,
        dim=cfg.MODEL.HEADS.REDUCTION_DIM,
        multi_atrous=cfg.MODEL.WITH_MA,
        gem_p=cfg.MODEL.GEM.P,
        gem_eps=cfg.MODEL.GEM.EPS,
        bn_eps=cfg.BN.EPS,
        bn_momentum=cfg.BN.MOM,
    )


def _gem(cfg, backbone) -> nn.Module:
    return GeMModel(
        backbone,
        dim=cfg.MODEL.HEADS.REDUCTION_DIM,
        gem_p=cfg.MODEL.GEM.P,
        gem_eps=cfg.MODEL.GEM.EPS,
    )


BACKBONES = {"resnet": _resnet, "timm": _timm}
MODELS = {"dolg": _dolg, "gem": _gem}


def build_model(cfg) -> nn.Module:
    """The retrieval model of MODEL.ARCH on the backbone of MODEL.TYPE, randomly initialised.

    `model(images (B,3,H,W))` gives a dict with `global` (B, model.dim), raw, and where the
    model has them `local` (B,C,h,w) and `attention` (B,1,h,w). `model.input_spec` says what
    the images must be.
    """
    backbone = choose(BACKBONES, cfg.MODEL.TYPE, "MODEL.TYPE")(cfg)
    build = choose(MODELS, cfg.MODEL.ARCH, "MODEL.ARCH")
    has, wants = backbone.channels["stage4"], cfg.MODEL.HEADS.IN_FEAT
    if wants not in (0, has):
        raise UserError(f"MODEL.HEADS.IN_FEAT is {wants}, but the last stage of this backbone has "
                        f"{has} channels: give {has}, or 0 to follow the backbone")
    return build(cfg, backbone)
