"""Rerank product images: python tools/rerank_classes.py --cfg FILE [KEY VALUE ...]"""
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dolg.config import load_cfg
from dolg.core.checkpoint import load_weights
from dolg.core.cli import config_parser, parse_with_keys, run
from dolg.core.distributed import device, rank
from dolg.core.logging import say
from dolg.core.saving import newest_checkpoint
from dolg.core.validation import HeldOut
from dolg.errors import UserError
from dolg.files import file_digest, write_atomically
from dolg.models import build_model
from dolg.rerank.maps import MapReranker, RerankedRecall, describe_with_maps, reranked_recall
from dolg.search.neighbours import nearest


def weights_of(cfg) -> Path:
    """The file of the model's weights. Raises UserError where there is none, or cfg cannot be evaluated."""
    if cfg.MODEL.ARCH != "rrt_sop":
        raise UserError(f"MODEL.ARCH is {cfg.MODEL.ARCH}: this reranks by rrt_sop (configs/rrt), "
                        "tools/rerank.py by other methods")
    if not cfg.TEST.DATASET:
        raise UserError("TEST.DATASET is empty: give the folder under DATA_DIR whose list TEST.SPLIT is "
                        "evaluated")
    if rank():
        raise UserError("this runs in one process: start it without torchrun")
    weights = Path(cfg.RERANK.RRT.WEIGHTS) if cfg.RERANK.RRT.WEIGHTS else newest_checkpoint(cfg.OUT_DIR)
    if weights is None:
        raise UserError(f"RERANK.RRT.WEIGHTS is empty, and {cfg.OUT_DIR}/checkpoints holds no checkpoint: "
                        "give the model's weights, or train it (configs/rrt)")
    return weights


def evaluate(cfg) -> tuple[RerankedRecall, MapReranker]:
    weights, place, keys = weights_of(cfg), device(cfg.DEVICE), cfg.RERANK
    model = build_model(cfg)
    say(load_weights(model, weights))
    images = HeldOut(cfg, model.input_spec, place)
    labels = np.array(images.images.labels)
    descriptors, maps = describe_with_maps(model.to(place), images.loader.epoch(0), len(labels),
                                           images.autocast)
    reranker = MapReranker(model, maps, model.dim, place, keys.RRT.BATCH, file_digest(weights))
    lists = nearest(descriptors, descriptors, max(*keys.TOP_K, *cfg.TEST.RECALLS),
                    np.arange(len(labels)), place)
    return reranked_recall(reranker, *lists, labels, cfg.TEST.RECALLS, keys.TOP_K, keys.WEIGHT,
                           keys.RRT.TEMPERATURE), reranker


def main() -> None:
    args = parse_with_keys(config_parser(
        "Recall@TEST.RECALLS of the images of TEST.SPLIT among themselves, before and after the first "
        "RERANK.TOP_K of each are reranked by rrt_sop."))
    # The classes of the list need not be the training's, as those of an error would
    cfg = load_cfg(args.cfg, ["TEST.METRIC", "recall", *args.opts])
    found, reranker = evaluate(cfg)
    print(f"{found.images} images; {found.unscored} have no other of their class to find")
    print(f"{'':12}" + "".join(f"{f'R@{k}':>8}" for k in found.before) + "  ms per query  KB per image")
    small = 4 * reranker.model.dim
    rows = [("descriptors", found.before, 0.0, small)] + [
        (f"first {top}", recall, found.seconds[top], reranker.bytes_per_image)
        for top, recall in found.after.items()]
    for name, recall, seconds, size in rows:
        print(f"{name:12}" + "".join(f"{100 * value:8.2f}" for value in recall.values())
              + f"{1000 * seconds:14.1f}{size / 1000:14.2f}")
    file = Path(cfg.RERANK.OUT_DIR or Path(cfg.OUT_DIR) / "rerank") / "recall.json"
    write_atomically(file, json.dumps({**asdict(found), **reranker.settings, "weight": cfg.RERANK.WEIGHT,
                                       "bytes_per_image": reranker.bytes_per_image}, indent=1) + "\n")
    print(f"figures: {file}")


if __name__ == "__main__":
    run(main)
