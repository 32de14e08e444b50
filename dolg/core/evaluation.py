"""Evaluation during training, on a list of images that the loss does not see."""
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import nn

from dolg.core.distributed import gather
from dolg.core.meters import Meter, figures_of
from dolg.data.loader import StepLoader
from dolg.features.extract import average_scales
from dolg.search.classes import evaluate_classes


@torch.no_grad()
def classification_error(module: nn.Module, loader: StepLoader, device: torch.device,
                         autocast: Callable[[], AbstractContextManager]) -> dict[str, float]:
    """Loss and top-1, top-5 error (percent) of model and loss `module` on the loader's images."""
    module.eval()
    meter = Meter()
    for batch in loader.epoch(0):
        labels = batch.labels.to(device)
        with autocast():
            outputs = module(batch.images.to(device), labels)
        meter.update(figures_of(outputs, labels), len(labels))
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
    for batch in loader.epoch(0):
        with autocast():
            raw = model(batch.images.to(device))["global"]
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
