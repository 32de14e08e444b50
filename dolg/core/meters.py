"""Running figures of training and testing."""
import resource
import time

import numpy as np
import torch

from dolg.core.distributed import gather


def figures_of(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a meter counts of a loss's outputs, as scalars on their device: its own scalars, the
    share of top-1 and top-5 hits where it classifies, that of correct pairs where it judges pairs."""
    figures = {name: value.detach() for name, value in outputs.items() if value.ndim == 0}
    if "logits" in outputs or "better" in outputs:
        better = outputs["better"] if "better" in outputs else classes_ahead(outputs["logits"],
                                                                             labels)
        for k in (1, 5):
            figures[f"top{k}"] = (better < k).float().sum() / max(len(labels), 1)
    if "correct" in outputs:
        figures["correct"] = outputs["correct"].float().sum() / max(len(outputs["correct"]), 1)
    return figures


def classes_ahead(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many classes have a higher logit (B,C) than the label's: (B,) int64."""
    return (logits > logits.gather(1, labels[:, None])).sum(1)


class Meter:
    """Figures of the steps since the last reset: of this process, averaged over all in the end.

    They stay on their device until asked for, so that no step waits for it. `indexes` has those of
    each step's images, by step.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget all steps, and start the clock."""
        self._names: list[str] = []
        self._rows: list[torch.Tensor] = []
        self.indexes: list[torch.Tensor] = []
        self._values = np.empty((0, 0))
        self._wait, self._start = 0.0, time.perf_counter()

    def update(self, figures: dict[str, torch.Tensor], indexes: torch.Tensor,
               wait: float = 0.0) -> None:
        """Count one step: its `figures_of`, its images' indexes, the seconds it waited for data."""
        self._names = list(figures)
        self._rows.append(torch.stack([value.float() for value in figures.values()]))
        self.indexes.append(indexes)
        self._wait += wait

    def losses(self) -> np.ndarray:
        """The loss (steps,) of each step since the last reset; waits for the device."""
        values = self._read()
        return values[:, self._names.index("total")] if len(values) else np.empty(0)

    def _read(self) -> np.ndarray:
        if self._rows:
            new = torch.stack(self._rows).cpu().double().numpy()
            self._values = np.concatenate([self._values, new]) if self._values.size else new
            self._rows = []
        return self._values

    def sums(self) -> dict:
        """Images, seconds, seconds waited, and the figures' sums over images, of this process."""
        values = self._read()
        counts = np.array([len(indexes) for indexes in self.indexes], dtype=np.float64)
        sums = {name: float((values[:, i] * counts).sum()) for i, name in enumerate(self._names)}
        return {"images": int(counts.sum()), "seconds": time.perf_counter() - self._start,
                "wait": self._wait, "sums": sums}

    def summary(self) -> dict[str, float]:
        """`summarise` of the steps since the last reset."""
        return summarise(self.sums())


NOTHING = {"images": 0, "seconds": 0.0, "wait": 0.0, "sums": {}}


def add_sums(a: dict, b: dict) -> dict:
    """The sums of two meters, one after the other."""
    names = dict.fromkeys([*a["sums"], *b["sums"]])
    sums = {name: a["sums"].get(name, 0.0) + b["sums"].get(name, 0.0) for name in names}
    return {**{name: a[name] + b[name] for name in ("images", "seconds", "wait")}, "sums": sums}


def pool_sums(mine: dict) -> dict:
    """The sums of all processes, side by side in time (each must call this)."""
    parts, pooled = gather(mine), NOTHING
    for part in parts:
        pooled = add_sums(pooled, part)
    return {**pooled, "seconds": pooled["seconds"] / len(parts), "wait": pooled["wait"] / len(parts)}


def summarise(mine: dict) -> dict[str, float]:
    """Mean loss and terms of it, top-1 and top-5 error (percent) where the loss classifies, accuracy
    (percent) where it judges pairs, images/s, the share of time spent waiting for data, and the most
    memory that a process has had (GB: the GPU's, or on a CPU the process's), over all processes (each
    must call this)."""
    pooled = pool_sums(mine)
    images, seconds = max(pooled["images"], 1), max(pooled["seconds"], 1e-9)
    means = {name: value / images for name, value in pooled["sums"].items()}
    figures = {"loss": means.pop("total", 0.0)}
    for k in (1, 5):
        if f"top{k}" in means:
            figures[f"top{k}_err"] = 100 * (1 - means.pop(f"top{k}"))
    if "correct" in means:
        figures["pair_acc"] = 100 * means.pop("correct")
    return {**figures, **means, "images_per_s": images / seconds,
            "data_wait": pooled["wait"] / seconds, "memory_gb": max(gather(_memory()))}


def _memory() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
