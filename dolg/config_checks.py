"""What the values of configuration keys may be, alone and together."""
from collections.abc import Callable, Iterable

from yacs.config import CfgNode

from dolg.errors import UserError, closest


def get_key(cfg: CfgNode, key: str):
    """The value of a key such as "MODEL.GEM.P"."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


# What a key may be
_CHOICES = {
    "PRECISION": ("fp32", "bf16", "fp16"), "OPTIM.LR_POLICY": ("cos", "steps", "exp"),
    "OPTIM.LR_UPDATE": ("epoch", "step"), "INPUT.COLOUR": ("", "bgr", "rgb"),
    "TEST.METRIC": ("error", "recall"), "LOSS.TRIPLET.MINING": ("hard", "semihard"),
    "DEVICE": ("auto", "cpu"), "DATA_LOADER.ON_DEVICE": ("", "augment", "decode"),
    "DATA_LOADER.CHECK": ("sample", "all", "none"), "DATA_LOADER.ON_ERROR": ("stop", "skip"),
    "DATA_LOADER.TRUNCATED": ("lenient", "strict"),
    "INFER.LOCAL_DTYPE": ("float16", "int8"),
    "INFER.SCALE_POOLING": ("mean", "max"), "MODEL.RRT.SCALE_INDEX": ("nearest", "original"),
    "MODEL.RRT.INIT": ("xavier", "matching"),
    "TRAIN.PAIRS.POSITIVES": ("neighbours", "class"),
    "RERANK.SPATIAL.MATCHING": ("distance", "ratio", "mutual"),
    "RERANK.SPATIAL.MODEL": ("homography", "affine", "fundamental"),
    "RERANK.SPATIAL.ESTIMATOR": ("magsac", "usac", "ransac", "pydegensac")}
_AT_LEAST_ONE = (
    "MODEL.NUM_CLASSES", "TRAIN.BATCH_SIZE", "TRAIN.IM_SIZE", "TRAIN.EVAL_PERIOD",
    "TRAIN.CHECKPOINT_PERIOD", "TEST.BATCH_SIZE", "TEST.IM_SIZE", "NUM_GPUS", "LOG_PERIOD",
    "INFER.CHUNK_SIZE", "INFER.MAX_PIXELS", "INFER.TOTAL_NUM", "INFER.CUT_NUM",
    "INFER.LOCAL_TOPK", "RESNET.STEM_WIDTH", "RESNET.NUM_GROUPS", "RESNET.WIDTH_PER_GROUP",
    "MODEL.DELG.LOCAL_DIM", "MODEL.CGD.FEATURE_DIM", "LOSS.SUBCENTERS", "TRAIN.ACCUMULATE",
    "BN.NUM_SAMPLES_PRECISE", "MODEL.RRT.LAYERS", "MODEL.RRT.HEADS", "MODEL.RRT.DIM",
    "MODEL.RRT.FEEDFORWARD", "MODEL.RRT.GLOBAL_DIM", "MODEL.RRT.LOCALS", "TRAIN.PAIRS.DEPTH",
    "TRAIN.PAIRS.MIN_POSITIVES", "RERANK.SPATIAL.LOCALS", "RERANK.SPATIAL.ITERATIONS",
    "RERANK.ASMK.WORDS", "RERANK.ASMK.TRAIN_IMAGES", "RERANK.ASMK.LOCALS", "RERANK.ASMK.ASSIGNMENTS",
    "RERANK.SUPERGLOBAL.K", "RERANK.AQE.N", "RERANK.KRECIPROCAL.K1", "RERANK.KRECIPROCAL.K2",
    "RERANK.DIFFUSION.K_GRAPH", "RERANK.DIFFUSION.K_QUERY")
# All other numbers are 0 or more, but for these
_ANY_SIGN = ("DATA_LOADER.NUM_WORKERS", "LOSS.MULTI_SIMILARITY.BASE", "RERANK.ASMK.THRESHOLD")
# Above 0, at most 1; from 0 to 1; 0 or more, below 1; above 0, below 1
_SHARES = ("LOSS.SAMPLE_CLASSES", "OPTIM.LAYER_DECAY", "TRAIN.CROP_AREA")
_UP_TO_ONE = ("RERANK.WEIGHT", "RERANK.KRECIPROCAL.LAMBDA", "BN.MOM", "LOSS.SMOOTHING", "OPTIM.DAMPENING")
_BELOW_ONE = ("MODEL.RRT.DROPOUT", "OPTIM.MOMENTUM")
_BETWEEN = ("RERANK.SPATIAL.CONFIDENCE", "RERANK.DIFFUSION.ALPHA")
_ABOVE_ZERO = (
    "BN.EPS", "MODEL.GEM.P", "MODEL.GEM.EPS", "MODEL.HEADS.SCALE", "LOSS.TEMPERATURE",
    "OPTIM.HEAD_LR_MULT", "INFER.LEASE", "INFER.LOCAL_OVERLAP", "RERANK.RRT.TEMPERATURE",
    "RERANK.SPATIAL.TEMPERATURE", "RERANK.SPATIAL.MAX_DISTANCE", "RERANK.SPATIAL.RATIO", "RERANK.SPATIAL.THRESHOLD", "RERANK.ASMK.ALPHA",
    "RERANK.DIFFUSION.GAMMA")
# Lists of anything but numbers
_LISTS_OF_WORDS = ("RERANK.METHOD", "RERANK.DISTRACTORS")


def check_cfg(cfg: CfgNode) -> None:
    """Raise UserError where values are out of range or contradict each other."""
    for key, allowed in _CHOICES.items():
        if get_key(cfg, key) not in allowed:
            raise UserError(f"{key} is '{get_key(cfg, key)}': choose one of {', '.join(allowed)}"
                            f"{closest(get_key(cfg, key), allowed)}")
    _check_all(cfg, _AT_LEAST_ONE, lambda value: value >= 1, "at least 1")
    _check_all(cfg, _SHARES, lambda value: 0 < value <= 1, "a number above 0, at most 1")
    _check_all(cfg, _UP_TO_ONE, lambda value: 0 <= value <= 1, "a number from 0 to 1")
    _check_all(cfg, _BELOW_ONE, lambda value: 0 <= value < 1, "0 or more, below 1")
    _check_all(cfg, _BETWEEN, lambda value: 0 < value < 1, "a number above 0, below 1")
    _check_all(cfg, _ABOVE_ZERO, lambda value: value > 0, "a number above 0")
    _check_all(cfg, ["DATA_LOADER.NUM_WORKERS"], lambda value: value >= -1,
               "0 or more, or -1 for one per core")
    _check_all(cfg, ["TRAIN.EMA"], lambda value: value < 1, "0 or more, below 1, such as 0.9999")
    _check_all(cfg, [key for key in _of_type(cfg, int, float) if key not in _ANY_SIGN],
               lambda value: value >= 0, "0 or more")
    _check_lists(cfg)
    if cfg.INFER.CUT_NUM > cfg.INFER.TOTAL_NUM:
        raise UserError(f"INFER.CUT_NUM is {cfg.INFER.CUT_NUM}, but INFER.TOTAL_NUM "
                        f"{cfg.INFER.TOTAL_NUM}: the runs are numbered from 1 to TOTAL_NUM")
    if cfg.INFER.LOCAL and cfg.INFER.SIZE:
        raise UserError(f"INFER.LOCAL is True and INFER.SIZE {cfg.INFER.SIZE}: local features are found "
                        "at scales of the image's own size; set INFER.SIZE to 0")
    if 0 < cfg.TRAIN.RESIZE < cfg.TRAIN.IM_SIZE:
        raise UserError(f"TRAIN.RESIZE is {cfg.TRAIN.RESIZE}, less than the crop's TRAIN.IM_SIZE "
                        f"{cfg.TRAIN.IM_SIZE}: give at least that, or 0")
    if cfg.DATA_LOADER.ON_ERROR == "skip" and cfg.DATA_LOADER.ON_DEVICE == "decode":
        raise UserError("DATA_LOADER.ON_ERROR is 'skip' and DATA_LOADER.ON_DEVICE 'decode': a GPU that decodes "
                        "finds a bad image too late to replace it; set ON_DEVICE to 'augment', or ON_ERROR to "
                        "'stop'")
    if cfg.MODEL.POOLING != "gem" and cfg.MODEL.ARCH != "gem":
        raise UserError(f"MODEL.POOLING is '{cfg.MODEL.POOLING}', but MODEL.ARCH {cfg.MODEL.ARCH} has poolings "
                        "of its own: take MODEL.ARCH gem, or leave the key alone")
    if cfg.MODEL.ARCH == "delg" and cfg.LOSS.NAME and "local_softmax" not in cfg.LOSS.NAME:
        raise UserError(f"LOSS.NAME is '{cfg.LOSS.NAME}', but DELG's attention is trained by "
                        "local_softmax alone: add it (... + local_softmax), or leave the key empty")


def check_batches(cfg: CfgNode) -> None:
    """Raise UserError where batches do not divide by the processes that NUM_GPUS starts to train."""
    for key in ("TRAIN.BATCH_SIZE", "TEST.BATCH_SIZE"):
        if get_key(cfg, key) % cfg.NUM_GPUS:
            raise UserError(f"{key} {get_key(cfg, key)} is the total of all GPUs: "
                            f"give a multiple of NUM_GPUS {cfg.NUM_GPUS}")
    if cfg.TRAIN.BATCH_SIZE % (cfg.NUM_GPUS * cfg.TRAIN.ACCUMULATE):
        raise UserError(f"TRAIN.BATCH_SIZE {cfg.TRAIN.BATCH_SIZE} is the total of one update: give "
                        f"a multiple of NUM_GPUS {cfg.NUM_GPUS} x TRAIN.ACCUMULATE "
                        f"{cfg.TRAIN.ACCUMULATE}")


def _check_all(cfg: CfgNode, keys: Iterable[str], fits: Callable, what: str) -> None:
    for key in keys:
        if not fits(get_key(cfg, key)):
            raise UserError(f"{key} is {get_key(cfg, key)}: give {what}")


def _of_type(tree: CfgNode, *types: type, prefix: str = "") -> list[str]:
    """The keys whose values have one of the types, exactly."""
    keys = []
    for name, value in tree.items():
        if isinstance(value, CfgNode) and not value.is_new_allowed():
            keys += _of_type(value, *types, prefix=f"{prefix}{name}.")
        elif type(value) in types:
            keys.append(prefix + name)
    return keys


def _check_lists(cfg: CfgNode) -> None:
    for key in _of_type(cfg, list):
        words = key in _LISTS_OF_WORDS
        for value in get_key(cfg, key):
            if isinstance(value, bool) or not isinstance(value, str if words else (int, float)):
                raise UserError(f"{key} has {value!r}: give {'words' if words else 'numbers'} alone")
    for key in ("INFER.SCALES", "INFER.LOCAL_SCALES", "TEST.SCALES", "MODEL.RRT.SCALES"):
        scales = get_key(cfg, key)
        if not scales or min(scales) <= 0:
            raise UserError(f"{key} is {scales}: give numbers above 0, such as [0.7071, 1.0]")
    steps = cfg.OPTIM.STEPS
    if cfg.OPTIM.LR_POLICY == "steps" and (not steps or steps[0] != 0 or sorted(steps) != steps):
        raise UserError(f"OPTIM.STEPS is {steps}: give epochs in rising order, the first 0")
    strides = cfg.RESNET.STRIDES
    if len(strides) not in (0, 4) or any(stride not in (1, 2) for stride in strides):
        raise UserError(f"RESNET.STRIDES is {strides}: give four numbers, each 1 or 2, or none")
    for key in ("INPUT.MEAN", "INPUT.SD"):
        if len(get_key(cfg, key)) not in (0, 3):
            raise UserError(f"{key} is {get_key(cfg, key)}: give three numbers, or none")
    if min([*cfg.INPUT.SD, 1]) <= 0:
        raise UserError(f"INPUT.SD is {cfg.INPUT.SD}: give numbers above 0")
    if min([*cfg.LOSS.WEIGHTS, *cfg.OPTIM.STEPS, 0]) < 0:
        raise UserError(f"LOSS.WEIGHTS is {cfg.LOSS.WEIGHTS}, OPTIM.STEPS {cfg.OPTIM.STEPS}: give numbers of 0 "
                        "or more")
    if not cfg.RERANK.TOP_K or any(not isinstance(k, int) or k < 1 for k in cfg.RERANK.TOP_K):
        raise UserError(f"RERANK.TOP_K is {cfg.RERANK.TOP_K}: give whole numbers from 1, such as [100]")
    if not cfg.TEST.RECALLS or any(not isinstance(k, int) or k < 1 for k in cfg.TEST.RECALLS):
        raise UserError(f"TEST.RECALLS is {cfg.TEST.RECALLS}: give whole numbers from 1")
