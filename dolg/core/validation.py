"""What a run is judged by between its epochs: a held-out list, a set in the Revisited format."""
import math
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dolg.core.distributed import from_main, local_world_size, rank, world_size
from dolg.core.evaluation import class_retrieval, classification_error, revisited_map
from dolg.core.precision import PRECISIONS, autocast
from dolg.data.datasets import CentredImages
from dolg.data.images import check_images, open_images
from dolg.data.loader import StepLoader, leave_signals, worker_count
from dolg.data.sampler import StepSampler
from dolg.features.extract import Extractor
from dolg.features.sources import revisited_set, revisited_truth


class Validation:
    """TEST.METRIC on TEST.SPLIT, mAP on TEST.RETRIEVAL, as far as they are set.

    Args:
        cfg: the configuration.
        input_spec: of the model.
        device: where the model is.

    Raises UserError where a set is not there or does not fit.
    """

    def __init__(self, cfg, input_spec, device: torch.device):
        self.cfg, self.device = cfg, device
        self.autocast = partial(autocast, cfg.PRECISION, device)
        self.workers = worker_count(cfg.DATA_LOADER.NUM_WORKERS, local_world_size())
        self.loader = self._loader(input_spec) if cfg.TEST.DATASET else None
        self.sources = None
        if cfg.TEST.RETRIEVAL:
            where = (Path(cfg.DATA_DIR), cfg.TEST.RETRIEVAL)
            self.truth = revisited_truth(*where, "TEST.RETRIEVAL")
            self.sources = revisited_set(*where, crop_queries=True, key="TEST.RETRIEVAL")

    @property
    def wanted(self) -> bool:
        """Whether there is anything to evaluate on."""
        return self.loader is not None or self.sources is not None

    def run(self, module: nn.Module) -> dict[str, float]:
        """The figures of a TrainingModule (each process must call this)."""
        figures, cfg = {}, self.cfg
        if self.loader and cfg.TEST.METRIC == "recall":
            figures = class_retrieval(module.model, self.loader, self.images.labels,
                                      cfg.TEST.RECALLS, self.device, self.autocast)
        elif self.loader:
            figures = classification_error(module, self.loader, self.autocast)
        if self.sources:
            extractor = Extractor(module.model, cfg.TEST.SCALES, PRECISIONS[cfg.PRECISION],
                                  cfg.INFER.BATCH_PIXELS, self.workers, cfg.INFER.MAX_PIXELS,
                                  strict=True, side=cfg.INFER.SIZE,
                                  worker_init=leave_signals)
            figures.update(revisited_map(extractor, self.sources, self.truth))
        return figures

    def record(self, figures: dict[str, float], best: dict) -> dict | None:
        """`metric` and `value` if these figures beat the `best` before, or there is none; the mAP
        counts (Medium, where there are protocols), else Recall at the first k, else the error."""
        metric = next(name for name in ("mAP Medium", "mAP Plain", f"R@{self.cfg.TEST.RECALLS[0]}",
                                        "top1_err", "loss") if name in figures)
        value, sign = figures[metric], -1 if metric in ("top1_err", "loss") else 1
        if not math.isfinite(value):
            return None
        if best.get("metric") == metric and sign * value <= sign * best["value"]:
            return None
        return {"metric": metric, "value": value}

    def _loader(self, input_spec) -> StepLoader:
        cfg = self.cfg
        classes = cfg.MODEL.NUM_CLASSES if cfg.TEST.METRIC == "error" else None
        self.images = open_checked(cfg, cfg.TEST.DATASET, cfg.TEST.SPLIT, classes)
        # Never decoded at reduced size: what is measured has to be what it always was
        dataset = CentredImages(self.images, cfg.TEST.IM_SIZE, cfg.TRAIN.IM_SIZE,
                                square=cfg.TRAIN.RESIZE > 0,
                                on_device=cfg.DATA_LOADER.ON_DEVICE)
        sampler = StepSampler(len(self.images), cfg.TEST.BATCH_SIZE, rank(), world_size(),
                              cfg.RNG_SEED, shuffle=False)
        pin = cfg.DATA_LOADER.PIN_MEMORY and self.device.type == "cuda"
        return StepLoader(dataset, sampler, input_spec, self.workers, pin, self.device)


def open_checked(cfg, dataset: str, split: str, num_classes: int | None):
    """The images of a split, once the main process has looked at as many as DATA_LOADER.CHECK says
    (each process must call this); see `open_images` and `check_images`."""
    folder, listing = Path(cfg.DATA_DIR) / dataset, Path(cfg.OUT_DIR) / "missing_images.txt"
    # The main process first: it leaves the index of tar shards to the others
    from_main(lambda: check_images(open_images(folder, split, num_classes, progress=True),
                                   cfg.DATA_LOADER.CHECK, listing, progress=True))
    return open_images(folder, split, num_classes)
