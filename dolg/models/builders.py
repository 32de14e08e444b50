"""From configuration keys to a model: the tables of backbones and of retrieval models."""
from dataclasses import replace

from torch import nn

from dolg.errors import UserError, choose
from dolg.models.backbones.input_spec import PYCLS, TORCHVISION, InputSpec
from dolg.models.backbones.resnet import ResNet
from dolg.models.backbones.timm import TimmBackbone
from dolg.models.cgd import CGD
from dolg.models.delg import DELG
from dolg.models.dolg import DOLG
from dolg.models.gem import GeMModel
from dolg.models.poolings import POOLINGS
from dolg.models.rrt import RerankingTransformer
from dolg.models.rrt_sop import RerankingTransformerOnMaps
from dolg.models.superglobal import RELU_FLOOR, SuperGlobal


def _resnet(cfg) -> nn.Module:
    return ResNet(
        depth=cfg.MODEL.DEPTH,
        block=cfg.RESNET.TRANS_FUN,
        groups=cfg.RESNET.NUM_GROUPS,
        width_per_group=cfg.RESNET.WIDTH_PER_GROUP,
        stride_1x1=cfg.RESNET.STRIDE_1X1,
        stem_width=cfg.RESNET.STEM_WIDTH,
        stage_strides=tuple(cfg.RESNET.STRIDES or STRIDES.get(cfg.MODEL.ARCH, (1, 2, 2, 2))),
        **_norms(cfg),
        zero_init_final_gamma=cfg.BN.ZERO_INIT_FINAL_GAMMA,
        recompute=cfg.TRAIN.ACT_CHECKPOINT,
        floor=FLOORS.get(cfg.MODEL.ARCH, 0.0),
    )


def _timm(cfg) -> nn.Module:
    return TimmBackbone(cfg.TIMM.NAME, recompute=cfg.TRAIN.ACT_CHECKPOINT)


def _dolg(cfg, backbone) -> nn.Module:
    return DOLG(backbone, multi_atrous=cfg.MODEL.WITH_MA, **_pooling(cfg), **_norms(cfg))


def _delg(cfg, backbone) -> nn.Module:
    return DELG(backbone, local_dim=cfg.MODEL.DELG.LOCAL_DIM, **_pooling(cfg), **_norms(cfg))


def _cgd(cfg, backbone) -> nn.Module:
    return CGD(backbone, cfg.MODEL.CGD.CONFIG, cfg.MODEL.CGD.FEATURE_DIM)


def _gem(cfg, backbone) -> nn.Module:
    pool = choose(POOLINGS, cfg.MODEL.POOLING, "MODEL.POOLING")(cfg.MODEL.GEM.P, cfg.MODEL.GEM.EPS)
    return GeMModel(backbone, cfg.MODEL.HEADS.REDUCTION_DIM, pool)


def _superglobal(cfg, backbone) -> nn.Module:
    return SuperGlobal(backbone, cfg.MODEL.HEADS.REDUCTION_DIM)


def _rrt(cfg) -> nn.Module:
    return RerankingTransformer(cfg.MODEL.RRT.GLOBAL_DIM, cfg.MODEL.RRT.SCALES,
                                cfg.MODEL.RRT.SCALE_INDEX, dim=cfg.MODEL.RRT.DIM,
                                init=cfg.MODEL.RRT.INIT, **_encoder(cfg))


def _rrt_sop(cfg, backbone) -> nn.Module:
    return RerankingTransformerOnMaps(backbone, cfg.MODEL.HEADS.REDUCTION_DIM, cfg.MODEL.RRT.DIM,
                                      freeze_backbone=cfg.MODEL.RRT.FREEZE_BACKBONE, **_encoder(cfg))


def _encoder(cfg) -> dict:
    rrt = cfg.MODEL.RRT
    return {"layers": rrt.LAYERS, "heads": rrt.HEADS, "feedforward": rrt.FEEDFORWARD,
            "dropout": rrt.DROPOUT}


def _pooling(cfg) -> dict:
    return {"dim": cfg.MODEL.HEADS.REDUCTION_DIM, "gem_p": cfg.MODEL.GEM.P,
            "gem_eps": cfg.MODEL.GEM.EPS}


def _norms(cfg) -> dict:
    return {"bn_eps": cfg.BN.EPS, "bn_momentum": cfg.BN.MOM}


BACKBONES = {"resnet": _resnet, "timm": _timm}
MODELS = {"dolg": _dolg, "delg": _delg, "cgd": _cgd, "gem": _gem, "superglobal": _superglobal,
          "rrt_sop": _rrt_sop}
# Reranking transformers of stored features: they see no images
WITHOUT_BACKBONE = {"rrt": _rrt}
# Strides of a ResNet's stages, where the original of the model has others than the ResNet
STRIDES = {"cgd": (1, 2, 1, 2)}
# Where a ResNet cuts activations off, where that is not 0
FLOORS = {"superglobal": RELU_FLOOR}
# The models that use the map before the last as well
NEED_STAGE3 = {"dolg", "delg"}


def build_model(cfg) -> nn.Module:
    """The retrieval model of MODEL.ARCH on the backbone of MODEL.TYPE, randomly initialised.

    `model(images (B,3,H,W))` gives a dict with `global` (B, model.dim), raw, and where the
    model has them `local` (B,C,h,w), `attention` (B,1,h,w) and `auxiliary` (B,C); `model.dims`
    gives the dimensions of what a loss may use. `model.input_spec` says what the images must be.
    With rrt it is a `RerankingTransformer`, which has no backbone.
    """
    build = choose(MODELS | WITHOUT_BACKBONE, cfg.MODEL.ARCH, "MODEL.ARCH")
    if cfg.MODEL.ARCH in WITHOUT_BACKBONE:
        return build(cfg)
    backbone = choose(BACKBONES, cfg.MODEL.TYPE, "MODEL.TYPE")(cfg)
    if cfg.MODEL.ARCH in NEED_STAGE3 and "stage3" not in backbone.channels:
        raise UserError(f"MODEL.ARCH {cfg.MODEL.ARCH} needs the last two maps of its backbone, and "
                        f"{cfg.TIMM.NAME} gives one: take MODEL.ARCH gem, or a backbone such as "
                        "tf_efficientnet_b5, densenet121 or convnext_base")
    backbone.input_spec = _input_spec(cfg, backbone.input_spec)
    has, wants = backbone.channels["stage4"], cfg.MODEL.HEADS.IN_FEAT
    if wants not in (0, has):
        raise UserError(f"MODEL.HEADS.IN_FEAT is {wants}, but the last stage of this backbone has "
                        f"{has} channels: give {has}, or 0 to follow the backbone")
    return build(cfg, backbone)


def _input_spec(cfg, natural: InputSpec) -> InputSpec:
    """What the backbone is fed: `natural`, and what MODEL.ARCH and INPUT.* change of it."""
    colour = cfg.INPUT.COLOUR
    if cfg.MODEL.TYPE == "timm":
        if colour == "bgr":
            raise UserError(f"INPUT.COLOUR is bgr, but {cfg.TIMM.NAME} of timm takes rgb: leave the "
                            "key empty")
        spec = natural
    else:
        colour = colour or ("rgb" if cfg.MODEL.ARCH in ("cgd", "rrt_sop") else "bgr")
        spec = TORCHVISION if colour == "rgb" else PYCLS
    return replace(spec, mean=tuple(cfg.INPUT.MEAN) or spec.mean, sd=tuple(cfg.INPUT.SD) or spec.sd,
                   antialias=cfg.INPUT.ANTIALIAS)
