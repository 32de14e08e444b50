"""The key that a user may have meant by one that does not exist."""
import difflib
import re
from collections.abc import Sequence

from dolg.errors import closest

# What other codes call them: the last word of a key, or all of it
_USUAL_NAMES = {
    "OPTIM.BASE_LR": "LR LEARNING_RATE INITIAL_LR INIT_LR LR0 MAX_LR",
    "OPTIM.MAX_EPOCH": "EPOCHS EPOCH NUM_EPOCHS N_EPOCHS MAX_EPOCHS TOTAL_EPOCHS TRAIN_EPOCHS MAX_ITER",
    "OPTIM.WEIGHT_DECAY": "WD DECAY L2",
    "OPTIM.LR_POLICY": "SCHEDULER LR_SCHEDULER SCHEDULE LR_SCHEDULE POLICY",
    "OPTIM.NAME": "OPTIMIZER OPT SOLVER",
    "OPTIM.STEPS": "MILESTONES LR_STEPS",
    "OPTIM.WARMUP_EPOCHS": "WARMUP",
    "OPTIM.CLIP_NORM": "CLIP_GRAD GRAD_CLIP MAX_GRAD_NORM CLIP_GRADIENTS",
    "TRAIN.BATCH_SIZE": "BATCH_SIZE BATCH BS IMS_PER_BATCH TRAIN_BATCH_SIZE",
    "TRAIN.IM_SIZE": "IM_SIZE IMAGE_SIZE IMG_SIZE IMSIZE INPUT_SIZE CROP_SIZE RESOLUTION",
    "TRAIN.WEIGHTS": "WEIGHTS PRETRAINED PRETRAINED_WEIGHTS CHECKPOINT MODEL.WEIGHTS",
    "TRAIN.DATASET": "DATASET DATA",
    "TRAIN.AUTO_RESUME": "RESUME",
    "TRAIN.ACCUMULATE": "ACCUM_ITER GRADIENT_ACCUMULATION_STEPS ACCUMULATION_STEPS",
    "MODEL.NUM_CLASSES": "CLASSES N_CLASSES NCLASSES",
    "MODEL.ARCH": "MODEL.NAME",
    "MODEL.TYPE": "BACKBONE",
    "MODEL.HEADS.REDUCTION_DIM": "DIM EMBED_DIM EMBEDDING_DIM FEATURE_DIM EMBEDDING_SIZE OUT_DIM",
    "DATA_LOADER.NUM_WORKERS": "WORKERS N_WORKERS NUMBER_OF_WORKERS",
    "NUM_GPUS": "GPUS NGPUS N_GPUS WORLD_SIZE",
    "RNG_SEED": "SEED RANDOM_SEED",
    "OUT_DIR": "OUTPUT OUTPUT_DIR SAVE_DIR LOG_DIR WORK_DIR",
    "DATA_DIR": "DATA_ROOT DATA_PATH",
    "PRECISION": "AMP FP16 BF16 MIXED_PRECISION DTYPE",
    "INFER.SCALES": "SCALES MULTISCALE MS"}
_SECTIONS = {"VAL": "TEST", "EVAL": "TEST"}


def closest_key(name: str, keys: Sequence[str]) -> str:
    """" (did you mean 'OPTIM.BASE_LR'?)", or nothing.

    In this order: a key that is spelled alike, that other codes call so, that has the same last word in
    another section, or that shares most of the words.
    """
    name = name[:100].upper()
    section, _, last = name.rpartition(".")
    section = _SECTIONS.get(section, section)
    usual = {word: key for key, words in _USUAL_NAMES.items() for word in words.split()}
    if name not in usual and (spelled := difflib.get_close_matches(name, keys, n=1, cutoff=0.85)):
        return _suggested(spelled[0])
    if key := usual.get(name, usual.get(last)):
        here = f"{section}.{key.rpartition('.')[2]}"        # TEST.BATCH is TEST.BATCH_SIZE, not TRAIN's
        return _suggested(here if here in keys else key)
    same = [key for key in keys if key.rpartition(".")[2] == last]
    if same:
        return _suggested(max(same, key=lambda key: difflib.SequenceMatcher(None, name, key).ratio()))
    near = max(keys, key=lambda key: _common(name, key))
    return _suggested(near) if _common(name, near) >= 0.5 else closest(name, keys)


def _suggested(key: str) -> str:
    return f" (did you mean '{key}'?)"


def _common(name: str, key: str) -> float:
    """The fraction of their words that both have; plurals count as one."""
    words, others = ({word.removesuffix("S") for word in re.split("[._]", text)} for text in (name, key))
    return len(words & others) / len(words | others)
