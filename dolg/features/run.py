"""tools/infer.py's work: from a configuration to finished feature stores."""
import hashlib
import json
from pathlib import Path

import dolg
from dolg.core.checkpoint import load_weights
from dolg.core.distributed import (barrier, device, is_main, local_world_size, rank,
                                   world_size)
from dolg.core.logging import say
from dolg.core.precision import PRECISIONS
from dolg.core.saving import best_checkpoint, newest_checkpoint
from dolg.data.loader import worker_count
from dolg.errors import UserError
from dolg.features.extract import Extractor
from dolg.features.sources import ImageSource, images_of, revisited_set
from dolg.features.store import FeatureStore, StoreWriter
from dolg.files import file_digest
from dolg.models import build_model


def infer(cfg) -> None:
    """Extract what INFER.DATASET and INFER.IMAGES name into stores under INFER.OUT_DIR.

    Started again it computes the missing chunks only; of several processes each takes its
    share of them.
    """
    sources = _sources(cfg)
    weights = _weights_file(cfg)
    model = build_model(cfg)
    say(load_weights(model, weights))
    provenance = {**_settings(cfg), "weights_digest": file_digest(weights),
                  "library": f"dolg {dolg.__version__}"}
    extractor = Extractor(model.to(device(cfg.DEVICE)), cfg.INFER.SCALES, PRECISIONS[cfg.PRECISION],
                          cfg.INFER.BATCH_SIZE,
                          worker_count(cfg.DATA_LOADER.NUM_WORKERS, local_world_size()),
                          cfg.INFER.MAX_PIXELS, cfg.INFER.STRICT, cfg.INFER.SIZE)
    out_dir = Path(cfg.INFER.OUT_DIR or Path(cfg.OUT_DIR) / "features")
    for name, source in sources.items():
        queries = name.endswith("/query")
        writer = StoreWriter(out_dir / name, source.names, model.dim, cfg.INFER.CHUNK_SIZE, {
            **provenance, "images_digest": source.digest(),
            "cropped": queries and any(box is not None for box in source.boxes)})
        missing = writer.missing_chunks()
        if len(missing) < writer.num_chunks:
            say(f"{writer.path}: {writer.num_chunks - len(missing)} of {writer.num_chunks} chunks "
                "are there already")
        mine = [chunk for chunk in missing if chunk % world_size() == rank()]
        extractor.fill(writer, source, mine, progress=is_main())
        barrier()
        _report(writer.path)


def _sources(cfg) -> dict[str, ImageSource]:
    """Store name -> images."""
    sources = {}
    if cfg.INFER.DATASET:
        root = Path(cfg.INFER.DATA_DIR or cfg.DATA_DIR)
        parts = revisited_set(root, cfg.INFER.DATASET, cfg.INFER.CROP_QUERIES)
        sources = {f"{cfg.INFER.DATASET}/{part}": source for part, source in parts.items()}
    if cfg.INFER.IMAGES:
        location = Path(cfg.INFER.IMAGES)
        sources[location.name if location.is_dir() else location.stem] = images_of(location)
    if not sources:
        raise UserError("nothing to extract: set INFER.DATASET (a set in the Revisited format) or "
                        "INFER.IMAGES (a folder or a list)")
    return sources


def _weights_file(cfg) -> Path:
    if cfg.TEST.WEIGHTS == "best":
        return best_checkpoint(cfg.OUT_DIR)
    if cfg.TEST.WEIGHTS:
        return Path(cfg.TEST.WEIGHTS)
    newest = newest_checkpoint(cfg.OUT_DIR)
    if newest is None:
        raise UserError(f"TEST.WEIGHTS is empty, and {cfg.OUT_DIR}/checkpoints holds no checkpoint: "
                        "give the weights, or train first")
    return newest


def _settings(cfg) -> dict:
    """What, besides the weights, decides the descriptors."""
    sections = {name: dict(cfg[name]) for name in ("MODEL", "INPUT", "TIMM", "RESNET")}
    sections["INFER.SIZE"] = cfg.INFER.SIZE
    sections["BN.EPS"] = cfg.BN.EPS
    # The loss has no part in a descriptor
    sections["MODEL"] = {key: value for key, value in sections["MODEL"].items()
                         if key != "NUM_CLASSES"}
    text = json.dumps(sections, sort_keys=True)
    return {"scales": cfg.INFER.SCALES, "precision": cfg.PRECISION,
            "model": f"{cfg.MODEL.ARCH} on {cfg.TIMM.NAME or f'ResNet-{cfg.MODEL.DEPTH}'}",
            "config_digest": hashlib.sha256(text.encode()).hexdigest()}


def _report(path: Path) -> None:
    """Say what is in a finished store, and which images failed."""
    store = FeatureStore(path)
    errors = store.errors()
    say(f"{path}: {store.count} images, {store.dim} dimensions"
        + (f", {len(errors)} FAILED and are marked in the store:" if errors else ""))
    for name, reason in errors[:20]:
        say(f"  {name}: {reason}")
    if len(errors) > 20:
        say(f"  ... and {len(errors) - 20} more")
