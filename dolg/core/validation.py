"""What a run is judged by between its epochs: a held-out list, a set in the Revisited format."""
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from dolg.core.distributed import (failing_together, from_main, local_world_size, rank,
                                   world_size)
from dolg.core.evaluation import class_retrieval, classification_error, revisited_map
from dolg.core.memory import is_out_of_memory
from dolg.core.precision import PRECISIONS, autocast
from dolg.data.datasets import CentredImages
from dolg.data.decode import ImageError
from dolg.data.images import check_images, open_images
from dolg.data.loader import StepLoader, leave_signals, worker_count
from dolg.data.sampler import StepSampler
from dolg.errors import UserError
from dolg.features.extract import Extractor
from dolg.features.sources import revisited_set, revisited_truth
from dolg.rerank.evaluation import evaluate_lists
from dolg.rerank.interface import Stage
from dolg.rerank.rrt import RRTReranker
from dolg.rerank.run import Reranking, with_dataset
from revisitop import GroundTruthError, StoreError


# Gives figures (percent, by name) of a TrainingModule; each process must call it
Judge = Callable[[nn.Module], dict[str, float]]
# What an evaluation may fail by without ending the training; of RuntimeErrors only a lack of memory
FAILURES = (ImageError, UserError, StoreError, GroundTruthError, OSError, MemoryError, RuntimeError)


class EvaluationError(Exception):
    """An evaluation that could not be done, and why."""


class Validation:
    """What `judges` say of a run between its epochs; `workers`: the processes of each of its loaders."""

    def __init__(self, cfg, judges: Sequence[Judge]):
        self.cfg, self.judges, self.workers = cfg, judges, workers_of(cfg)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to evaluate on."""
        return bool(self.judges)

    def run(self, module: nn.Module) -> dict[str, float]:
        """The figures of a TrainingModule (each process must call this). Raises EvaluationError, in all
        processes, where an image, a set, the disk or the memory of one of them did not allow it."""
        figures = {}
        try:
            for judge in self.judges:
                with failing_together(*FAILURES):
                    figures.update(judge(module))
        except FAILURES as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            raise EvaluationError(" ".join(str(error).split()) or type(error).__name__) from error
        return figures

    def record(self, figures: dict[str, float], best: dict) -> dict | None:
        """`metric` and `value` if these figures beat the `best` before, or there is none; the mAP
        counts (Medium, where there are protocols), else Recall at the first k, else the error."""
        metric = next((name for name in ("mAP Medium", "mAP Plain", f"R@{self.cfg.TEST.RECALLS[0]}",
                                         "top1_err", "loss") if name in figures), "")
        value, sign = figures.get(metric), -1 if metric in ("top1_err", "loss") else 1
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return None
        if best.get("metric") == metric and sign * value <= sign * best["value"]:
            return None
        return {"metric": metric, "value": value}


def image_judges(cfg, input_spec, device: torch.device) -> list[Judge]:
    """TEST.METRIC on TEST.SPLIT, mAP on TEST.RETRIEVAL, as far as they are set.

    Args:
        cfg: the configuration.
        input_spec: of the model.
        device: where the model is.

    Raises UserError where a set is not there or does not fit.
    """
    judges = [HeldOut(cfg, input_spec, device)] if cfg.TEST.DATASET else []
    return judges + ([Revisited(cfg)] if cfg.TEST.RETRIEVAL else [])


def pair_judges(cfg, device: torch.device) -> list[Judge]:
    """mAP on TEST.RETRIEVAL as a reranking transformer of stored features leaves it, if that is set.

    Raises UserError where TEST.* asks for something else, or the set's stores are not there.
    """
    for key in ("DATASET",) if cfg.MODEL.ARCH == "rrt" else ("DATASET", "RETRIEVAL"):
        if cfg.TEST[key]:
            raise UserError(f"TEST.{key} judges descriptors, and MODEL.ARCH {cfg.MODEL.ARCH} learns to "
                            "rerank: leave it empty, and judge the weights afterwards")
    return [Reranked(cfg, device)] if cfg.TEST.RETRIEVAL else []


class HeldOut:
    """TEST.METRIC on the images of TEST.SPLIT."""

    def __init__(self, cfg, input_spec, device: torch.device):
        self.cfg, self.device = cfg, device
        self.autocast = partial(autocast, cfg.PRECISION, device)
        classes = cfg.MODEL.NUM_CLASSES if cfg.TEST.METRIC == "error" else None
        self.images = open_checked(cfg, cfg.TEST.DATASET, cfg.TEST.SPLIT, classes,
                                   cfg.DATA_LOADER.CHECK)
        # Never decoded at reduced size: what is measured has to be what it always was
        dataset = CentredImages(self.images, cfg.TEST.IM_SIZE, cfg.TRAIN.IM_SIZE,
                                square=cfg.TRAIN.RESIZE > 0, on_device=cfg.DATA_LOADER.ON_DEVICE,
                                max_pixels=cfg.INFER.MAX_PIXELS,
                                lenient=cfg.DATA_LOADER.TRUNCATED == "lenient")
        sampler = StepSampler(len(self.images), cfg.TEST.BATCH_SIZE, rank(), world_size(),
                              cfg.RNG_SEED, shuffle=False)
        pin = cfg.DATA_LOADER.PIN_MEMORY and device.type == "cuda"
        self.loader = StepLoader(dataset, sampler, input_spec, workers_of(cfg), pin, device)

    def __call__(self, module: nn.Module) -> dict[str, float]:
        if self.cfg.TEST.METRIC == "recall":
            return class_retrieval(module.model, self.loader, self.images.labels,
                                   self.cfg.TEST.RECALLS, self.device, self.autocast)
        return classification_error(module, self.loader, self.autocast)


class Revisited:
    """mAP on the set TEST.RETRIEVAL."""

    def __init__(self, cfg):
        self.cfg = cfg
        where = (Path(cfg.DATA_DIR), cfg.TEST.RETRIEVAL)
        self.truth = revisited_truth(*where, "TEST.RETRIEVAL")
        self.sources = revisited_set(*where, crop_queries=True, key="TEST.RETRIEVAL")

    def __call__(self, module: nn.Module) -> dict[str, float]:
        cfg = self.cfg
        extractor = Extractor(module.model, cfg.TEST.SCALES, PRECISIONS[cfg.PRECISION],
                              cfg.INFER.BATCH_PIXELS, workers_of(cfg), cfg.INFER.MAX_PIXELS,
                              strict=True, side=cfg.INFER.SIZE, worker_init=leave_signals,
                              pooling=cfg.INFER.SCALE_POOLING,
                              lenient=cfg.DATA_LOADER.TRUNCATED == "lenient")
        return revisited_map(extractor, self.sources, self.truth)


class Reranked:
    """mAP on the set TEST.RETRIEVAL, whose stores are in INFER.OUT_DIR, the first max(RERANK.TOP_K) images
    of each list reranked by the transformer."""

    def __init__(self, cfg, device: torch.device):
        self.cfg, self.device = cfg, device
        try:
            self.set = Reranking(with_dataset(cfg, cfg.TEST.RETRIEVAL), [["rrt"]])
        except (StoreError, GroundTruthError) as error:
            raise UserError(f"TEST.RETRIEVAL {cfg.TEST.RETRIEVAL}: {error}") from None

    def __call__(self, module: nn.Module) -> dict[str, float]:
        cfg = self.cfg
        reranker = RRTReranker(module.model, *self.set.images, cfg.MODEL.RRT.LOCALS, cfg.RERANK.RRT.BATCH,
                               self.device, PRECISIONS[cfg.PRECISION])
        result = evaluate_lists(self.set.benchmark, self.set.lists,
                                [Stage(reranker, max(cfg.RERANK.TOP_K))], cfg.RERANK.REMOVE_JUNK)
        return {f"mAP {protocol.capitalize()}": 100 * figures["mAP"]
                for protocol, figures in result["protocols"].items() if figures["mAP"] is not None}


def workers_of(cfg) -> int:
    """Worker processes of each of this process's loaders."""
    return worker_count(cfg.DATA_LOADER.NUM_WORKERS, local_world_size())


def open_checked(cfg, dataset: str, split: str, num_classes: int | None, check: str):
    """The images of a split, once the main process has looked at as many as `check` says, which is
    DATA_LOADER.CHECK's (each process must call this); see `open_images` and `check_images`."""
    folder, listing = Path(cfg.DATA_DIR) / dataset, Path(cfg.OUT_DIR) / "missing_images.txt"
    # The main process first: it leaves the index of tar shards to the others
    from_main(lambda: check_images(open_images(folder, split, num_classes, progress=True),
                                   check, listing, progress=True))
    return open_images(folder, split, num_classes)
