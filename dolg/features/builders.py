"""From a configuration to an extractor with its weights, and what a store records of how it was made."""
import json
import os
from pathlib import Path

import torch
from torch import nn

import dolg
from dolg.core.checkpoint import load_weights
from dolg.core.distributed import device
from dolg.core.download import weights_file
from dolg.core.logging import say
from dolg.core.precision import PRECISIONS
from dolg.core.saving import best_checkpoint, newest_checkpoint
from dolg.data.loader import worker_count
from dolg.errors import UserError
from dolg.features.extract import Extractor
from dolg.features.local import LocalSettings
from dolg.files import file_digest
from dolg.models import build_model
from dolg.models.folding import fold_norms
from dolg.search.whitening import Whitening, learned_from_others
from revisitop.settings import config_digest


def build_extractor(cfg) -> tuple[Extractor, dict]:
    """The extractor that `cfg` asks for, with its weights, and what the manifest says of it."""
    model = build_model(cfg)
    local = _local_settings(cfg, model)
    weights = _weights_file(cfg)
    say(load_weights(model, weights))
    _check_finite(model, weights)
    whitening = local_whitening = None
    if cfg.INFER.WHITENING:
        whitening = Whitening.load(cfg.INFER.WHITENING, model.dim)
    if local and cfg.INFER.LOCAL_WHITENING:
        local_whitening = Whitening.load(cfg.INFER.LOCAL_WHITENING, model.local_dim)
    provenance = {**_settings(cfg), "weights_digest": file_digest(weights),
                  "library": f"dolg {dolg.__version__}"}
    _tell_of_whitening(cfg, provenance)
    place = device(cfg.DEVICE)
    model = fold_norms(model.eval(), torch.rand(1, 3, 96, 96)).to(
        place, memory_format=torch.channels_last)
    workers = worker_count(cfg.DATA_LOADER.NUM_WORKERS,
                           int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    extractor = Extractor(model, cfg.INFER.SCALES, PRECISIONS[cfg.PRECISION],
                          cfg.INFER.BATCH_PIXELS, workers,
                          cfg.INFER.MAX_PIXELS, cfg.INFER.STRICT, cfg.INFER.SIZE, local,
                          whitening, local_whitening, pooling=cfg.INFER.SCALE_POOLING,
                          lenient=cfg.DATA_LOADER.TRUNCATED == "lenient")
    return extractor, provenance


def _tell_of_whitening(cfg, provenance: dict) -> None:
    """Say where a whitening was learned from descriptors that were made otherwise than these will be."""
    unwhitened = {key: value for key, value in provenance.items() if not key.endswith("whitening")}
    for file, local in ((cfg.INFER.WHITENING, False), (cfg.INFER.LOCAL and cfg.INFER.LOCAL_WHITENING, True)):
        if file and (differing := learned_from_others(file, unwhitened, local)):
            say(f"WARNING: {file} was learned from descriptors that were made with different {differing} "
                "here")


def _check_finite(model: nn.Module, weights: Path) -> None:
    """Raise UserError for weights of a training that went wrong: they make no descriptor."""
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise UserError(f"{weights}: {broken[0]} has values that are NaN or infinite"
                        + (f", as have {len(broken) - 1} other tensors" if broken[1:] else "")
                        + ": take the checkpoint of an earlier epoch")


def _weights_file(cfg) -> Path:
    if cfg.TEST.WEIGHTS == "best":
        return best_checkpoint(cfg.OUT_DIR)
    if cfg.TEST.WEIGHTS:
        return weights_file(cfg.TEST.WEIGHTS)
    newest = newest_checkpoint(cfg.OUT_DIR)
    if newest is None:
        raise UserError(f"TEST.WEIGHTS is empty, and {cfg.OUT_DIR}/checkpoints holds no checkpoint: "
                        "give the weights, or train first")
    return newest


def _local_settings(cfg, model: nn.Module) -> LocalSettings | None:
    if not cfg.INFER.LOCAL:
        return None
    if not (hasattr(model, "forward_local") and model.local_dim):
        raise UserError(f"INFER.LOCAL is True, but MODEL.ARCH {cfg.MODEL.ARCH} on this backbone has no "
                        "attention to select local features by: take delg, dolg or gem")
    return LocalSettings(tuple(cfg.INFER.LOCAL_SCALES), cfg.INFER.LOCAL_TOPK,
                         cfg.INFER.LOCAL_THRESHOLD, cfg.INFER.LOCAL_OVERLAP,
                         model.backbone.strides["stage3"])


def _settings(cfg) -> dict:
    """What, besides the weights, decides the descriptors."""
    sections = {name: dict(cfg[name]) for name in ("MODEL", "INPUT", "TIMM", "RESNET")}
    sections["INFER.SIZE"] = cfg.INFER.SIZE
    sections["BN.EPS"] = cfg.BN.EPS
    # The loss has no part in a descriptor, nor a reranker that is another model
    aside = {"NUM_CLASSES"} if cfg.MODEL.ARCH == "rrt_sop" else {"NUM_CLASSES", "RRT"}
    if cfg.MODEL.POOLING == "gem":              # stores from before there was a choice stay valid
        aside.add("POOLING")
    sections["MODEL"] = {key: value for key, value in sections["MODEL"].items() if key not in aside}
    config = json.loads(json.dumps(sections))       # as a manifest gives it back
    settings = {"scales": cfg.INFER.SCALES, "precision": cfg.PRECISION,
                "model": f"{cfg.MODEL.ARCH} on {cfg.TIMM.NAME or f'ResNet-{cfg.MODEL.DEPTH}'}",
                "config_digest": config_digest(config), "config": config}
    if cfg.INFER.SCALE_POOLING != "mean":       # stores from before there was a choice stay valid
        settings["scale_pooling"] = cfg.INFER.SCALE_POOLING
    if cfg.INFER.WHITENING:
        settings["whitening"] = file_digest(cfg.INFER.WHITENING)
    if cfg.INFER.LOCAL and cfg.INFER.LOCAL_WHITENING:
        settings["local_whitening"] = file_digest(cfg.INFER.LOCAL_WHITENING)
    if cfg.INFER.LOCAL:
        settings["local"] = {key.lower(): cfg.INFER[f"LOCAL_{key}"]
                             for key in ("SCALES", "TOPK", "THRESHOLD", "OVERLAP")}
    return settings
