"""From configuration keys to a loss: the table of losses."""
from collections.abc import Mapping
from functools import partial

import numpy as np

from dolg.errors import UserError, choose
from dolg.losses.base import Loss, SumOfLosses
from dolg.losses.margin import AdaptiveArcFace, ArcFace, CosFace, CurricularFace, MarginSoftmax
from dolg.losses.matching import PairCrossEntropy
from dolg.losses.pairs import MININGS, Contrastive, MultiSimilarity, Triplet
from dolg.losses.pml import PREFIX, build_pml
from dolg.losses.softmax import LinearSoftmax


def _margin(kind: type[MarginSoftmax]):
    def build(cfg, dim: int, counts: np.ndarray | None) -> Loss:
        return kind(dim, cfg.MODEL.NUM_CLASSES, cfg.MODEL.HEADS.MARGIN, cfg.MODEL.HEADS.SCALE,
                    **_class_keys(cfg))
    return build


def _class_keys(cfg) -> dict:
    return {"sharded": cfg.LOSS.SHARD_CLASSES, "sampled": cfg.LOSS.SAMPLE_CLASSES}


def _subcenter_arcface(cfg, dim: int, counts: np.ndarray | None) -> Loss:
    """Sub-center ArcFace (Deng et al., ECCV 2020): a class's nearest centre counts."""
    if cfg.LOSS.SUBCENTERS < 1:
        raise UserError(f"LOSS.SUBCENTERS is {cfg.LOSS.SUBCENTERS}: give at least 1")
    return ArcFace(dim, cfg.MODEL.NUM_CLASSES, cfg.MODEL.HEADS.MARGIN, cfg.MODEL.HEADS.SCALE,
                   cfg.LOSS.SUBCENTERS, **_class_keys(cfg))


def _adaptive_arcface(cfg, dim: int, counts: np.ndarray | None) -> Loss:
    keys = cfg.LOSS.ADAPTIVE
    if counts is None:
        raise UserError("LOSS.NAME adaptive_arcface needs the number of training images of each "
                        "class: pass build_loss(cfg, dims, class_counts)")
    if len(counts) != cfg.MODEL.NUM_CLASSES:
        raise UserError(f"LOSS.NAME adaptive_arcface got image counts of {len(counts)} classes: "
                        f"give one for each of MODEL.NUM_CLASSES {cfg.MODEL.NUM_CLASSES}")
    if keys.LOW > keys.HIGH or keys.POWER < 0:
        raise UserError(f"LOSS.ADAPTIVE.LOW {keys.LOW}, HIGH {keys.HIGH}, POWER {keys.POWER}: LOW "
                        "may not exceed HIGH, nor POWER be negative")
    return AdaptiveArcFace(dim, counts, cfg.MODEL.HEADS.SCALE, keys.LOW, keys.HIGH, keys.POWER,
                           **_class_keys(cfg))


def _linear_softmax(output: str, batch_norm: bool = False):
    def build(cfg, dim: int, counts: np.ndarray | None) -> Loss:
        if not 0 <= cfg.LOSS.SMOOTHING < 1:
            raise UserError(f"LOSS.SMOOTHING is {cfg.LOSS.SMOOTHING}: give 0 or more, below 1")
        if not cfg.LOSS.TEMPERATURE > 0:
            raise UserError(f"LOSS.TEMPERATURE is {cfg.LOSS.TEMPERATURE}: give a number above 0")
        return LinearSoftmax(dim, cfg.MODEL.NUM_CLASSES, output, batch_norm,
                             cfg.LOSS.SMOOTHING, cfg.LOSS.TEMPERATURE)
    return build


def _triplet(cfg, dim: int, counts: np.ndarray | None) -> Loss:
    choose(MININGS, cfg.LOSS.TRIPLET.MINING, "LOSS.TRIPLET.MINING")
    return Triplet(cfg.LOSS.TRIPLET.MARGIN, cfg.LOSS.TRIPLET.MINING)


def _contrastive(cfg, dim: int, counts: np.ndarray | None) -> Loss:
    keys = cfg.LOSS.CONTRASTIVE
    return Contrastive(keys.POSITIVE_MARGIN, keys.NEGATIVE_MARGIN)


def _multi_similarity(cfg, dim: int, counts: np.ndarray | None) -> Loss:
    keys = cfg.LOSS.MULTI_SIMILARITY
    if not (keys.ALPHA > 0 and keys.BETA > 0):
        raise UserError(f"LOSS.MULTI_SIMILARITY.ALPHA {keys.ALPHA} and BETA {keys.BETA}: give "
                        "numbers above 0")
    return MultiSimilarity(keys.ALPHA, keys.BETA, keys.BASE, keys.EPSILON)


def _pair_bce(cfg, dim: int, counts: np.ndarray | None) -> Loss:
    return PairCrossEntropy()


def _pml(name: str, cfg, dim: int, counts: np.ndarray | None) -> Loss:
    keys = cfg.LOSS.PML
    return build_pml(name.removeprefix(PREFIX), dict(keys.ARGS), keys.MINER, dict(keys.MINER_ARGS),
                     dim, cfg.MODEL.NUM_CLASSES)


# Each is called with cfg, the dimensions of the output that it judges, and the training images of
# each class, (num_classes,), or None
LOSSES = {
    "arcface": _margin(ArcFace),
    "curricularface": _margin(CurricularFace),
    "cosface": _margin(CosFace),
    "subcenter_arcface": _subcenter_arcface,
    "adaptive_arcface": _adaptive_arcface,
    "softmax": _linear_softmax("global"),
    "local_softmax": _linear_softmax("local"),
    "aux_softmax": _linear_softmax("auxiliary", batch_norm=True),
    "triplet": _triplet,
    "contrastive": _contrastive,
    "multi_similarity": _multi_similarity,
}
# Those of pairs, which the reranking transformers give
PAIR_LOSSES = {"pair_bce": _pair_bce}
# The output that a loss judges, where it is not the descriptor
OUTPUTS = {"local_softmax": "local", "aux_softmax": "auxiliary", "pair_bce": "match"}
# What the models were published with
DEFAULTS = {
    "dolg": "curricularface",
    "gem": "curricularface",
    "delg": "curricularface + local_softmax",
    "superglobal": "curricularface",
    "cgd": "triplet + aux_softmax",
    "rrt": "pair_bce",
    "rrt_sop": "pair_bce",
}
# The models whose pairs are trained, by one logit of each
MATCHERS = ("rrt", "rrt_sop")


def build_loss(cfg, dims: Mapping[str, int] | int | None = None,
               class_counts: np.ndarray | None = None) -> Loss | SumOfLosses:
    """The loss of LOSS.NAME, or the weighted sum of several; it owns the class weights.

    `dims` is `model.dims`, output name to dimensions, or the descriptor's alone; without it, what
    cfg says. `class_counts` (num_classes,) are the training images of each class, which
    adaptive_arcface needs. A single loss of weight 1 comes as it is.

    LOSS.SHARD_CLASSES and SAMPLE_CLASSES go to every margin softmax among them. With the former
    each process of the group builds its part, so build the loss after joining the group, with the
    default generator in the same state on all.
    """
    names = [name.strip() for name in
             (cfg.LOSS.NAME or choose(DEFAULTS, cfg.MODEL.ARCH, "MODEL.ARCH")).split("+")]
    weights = list(cfg.LOSS.WEIGHTS) or [1.0] * len(names)
    _check_sum(names, weights)
    dims = _known_dims(cfg, dims)
    terms = {name: _build_term(cfg, name, dims, class_counts) for name in names}
    _check_margin_keys(cfg, terms)
    if weights == [1]:
        return terms[names[0]]
    return SumOfLosses(terms, weights)


def _check_sum(names: list[str], weights: list) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"LOSS.NAME has {twice[0]} twice: give it once, and its weight in "
                        "LOSS.WEIGHTS")
    if len(weights) != len(names):
        raise UserError(f"LOSS.WEIGHTS has {len(weights)} numbers for {len(names)} losses "
                        f"({' + '.join(names)}): give one each, or none")
    if not all(isinstance(w, (int, float)) and not isinstance(w, bool) for w in weights):
        raise UserError(f"LOSS.WEIGHTS is {weights}: give numbers, such as [1.0, 0.5]")


def _check_margin_keys(cfg, terms: dict[str, Loss]) -> None:
    if any(isinstance(loss, MarginSoftmax) for loss in terms.values()):
        return
    for key, off in (("SHARD_CLASSES", False), ("SAMPLE_CLASSES", 1)):
        if cfg.LOSS[key] != off:
            raise UserError(f"LOSS.{key} {cfg.LOSS[key]} is for margin softmax, and LOSS.NAME "
                            f"{' + '.join(terms)} has none: give LOSS.{key} {off}, or a loss such "
                            "as arcface")


def _build_term(cfg, name: str, dims: Mapping[str, int], counts: np.ndarray | None) -> Loss:
    if name.startswith(PREFIX):
        build = partial(_pml, name)
    else:
        build = choose({**LOSSES, **PAIR_LOSSES, f"{PREFIX}NAME": None}, name, "LOSS.NAME")
    output = OUTPUTS.get(name, "global")
    if output not in dims:
        raise UserError(f"LOSS.NAME {name} judges the output '{output}', which MODEL.ARCH "
                        f"{cfg.MODEL.ARCH} does not give: it gives {', '.join(dims)}")
    if not dims[output]:
        raise UserError("MODEL.HEADS.REDUCTION_DIM is 0, so the loss cannot know the descriptor's "
                        "dimensions: pass build_loss(cfg, dims=model.dims)")
    return build(cfg, dims[output], counts)


def _known_dims(cfg, dims: Mapping[str, int] | int | None) -> Mapping[str, int]:
    """`dims` as a table; from cfg where it is None, with 0 where cfg cannot know."""
    if isinstance(dims, int):
        return {"global": dims}
    if dims is not None:
        return dims
    if cfg.MODEL.ARCH in MATCHERS:
        return {"match": 1}
    is_cgd = cfg.MODEL.ARCH == "cgd"
    return {
        "global": cfg.MODEL.CGD.FEATURE_DIM if is_cgd else cfg.MODEL.HEADS.REDUCTION_DIM,
        "local": cfg.MODEL.DELG.LOCAL_DIM,
        "auxiliary": cfg.MODEL.HEADS.IN_FEAT or 2048,
    }
