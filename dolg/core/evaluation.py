"""Evaluation during training, on a list of images that the loss does not see."""
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dolg.core.distributed import (READ_ERRORS, agreed, failing_together, gather, is_main, rank,
                                   world_size)
from dolg.core.meters import Meter, figures_of
from dolg.data.loader import StepLoader
from dolg.features.extract import Extractor, average_scales
from dolg.features.sources import ImageSource
from dolg.search.classes import evaluate_classes
from revisitop import GroundTruth, compute_map, split
from revisitop.protocol import protocols_of

# What may befall one process alone, while the others go on to their next exchange
_FAILURES = (*READ_ERRORS, RuntimeError, MemoryError)


@torch.no_grad()
def classification_error(module: nn.Module, loader: StepLoader,
                         autocast: Callable[[], AbstractContextManager]) -> dict[str, float]:
    """Loss and top-1, top-5 error (percent) of model and loss `module` on the loader's images."""
    module.eval()
    meter = Meter()
    with failing_together(*_FAILURES):
        for batch in agreed(loader.epoch(0)):       # the loss may compare the images of all processes
            with autocast():
                outputs = module(batch.images, batch.labels)
            meter.update(figures_of(outputs, batch.labels), batch.indexes)
    return meter.summary()


@torch.no_grad()
def class_retrieval(model: nn.Module, loader: StepLoader, labels: list[int], ks: list[int],
                    device: torch.device,
                    autocast: Callable[[], AbstractContextManager]) -> dict[str, float]:
    """Recall@k, MAP@R and R-precision (percent) of the loader's images among themselves.

    `labels` are those of the whole list, whose classes need not be the training's. Every process
    describes its share of the images; each must call this.
    """
    model.eval()
    indexes, descriptors = [], [np.empty((0, model.dim), np.float32)]
    with failing_together(*_FAILURES):
        for batch in loader.epoch(0):
            with autocast():
                raw = model(batch.images)["global"]
            descriptors.append(average_scales([raw]).cpu().numpy())
            indexes += batch.indexes.tolist()
    table = np.empty((len(labels), model.dim), np.float32)
    for places, part in gather((indexes, np.concatenate(descriptors))):
        table[places] = part
    metrics = evaluate_classes(table, np.array(labels), [table], np.array(labels), ks,
                               self_retrieval=True, device=device)
    figures = {f"R@{k}": metrics.recall[k] for k in ks}
    figures.update({"MAP@R": metrics.map_at_r, "RP": metrics.r_precision})
    return {name: 100 * value for name, value in figures.items()}


def revisited_map(extractor: Extractor, sources: dict[str, ImageSource],
                  truth: GroundTruth) -> dict[str, float]:
    """mAP (percent) of each protocol of a set in the Revisited format, queries as `sources` crop
    them.

    Every process describes its share of the images; each must call this. Ties in the ranking go to
    the lower index. Raises ImageError where an image cannot be read, if the extractor is strict.
    """
    queries, database = (_described(extractor, sources[part]) for part in ("query", "database"))
    ranks = np.argsort(-(queries @ database.T), axis=1, kind="stable")
    return {f"mAP {protocol.capitalize()}": 100 * compute_map(ranks, split(truth, protocol)).map
            for protocol in protocols_of(truth)}


def _described(extractor: Extractor, source: ImageSource) -> np.ndarray:
    """Unit descriptors (N,D) of all images of a source, on every process."""
    mine = list(range(rank(), len(source), world_size()))
    table = np.empty((len(source), extractor.model.dim), np.float32)
    with tqdm(total=len(mine), unit="image", leave=False,
              disable=None if is_main() else True) as bar:
        with failing_together(*_FAILURES):
            part = extractor.table(source, mine, on_batch=bar.update)
    for rows, part in gather((mine, part)):
        table[rows] = part
    return table
