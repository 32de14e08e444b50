"""Running figures of training and testing."""
import time

import torch

from dolg.core.distributed import gather


def top_k_hits(logits: torch.Tensor, labels: torch.Tensor, ks: tuple[int, ...]) -> list[float]:
    """How many of the labels (B,) are among the k highest logits (B,C), for each k."""
    highest = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices
    hits = highest == labels[:, None]
    return [float(hits[:, :k].sum()) for k in ks]


def figures_of(outputs: dict[str, torch.Tensor], labels: torch.Tensor) -> dict[str, float]:
    """What a meter counts of a loss's outputs: its scalars, and the share of top-1 and top-5 hits
    where it classifies."""
    figures = {name: value.item() for name, value in outputs.items() if value.ndim == 0}
    if "logits" in outputs:
        top1, top5 = top_k_hits(outputs["logits"], labels, (1, 5))
        figures.update(top1=top1 / len(labels), top5=top5 / len(labels))
    return figures


class Meter:
    """Sums over the images of this process since the last reset, averaged over all processes."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._sums: dict[str, float] = {}
        self._images, self._wait, self._start = 0, 0.0, time.perf_counter()

    def update(self, figures: dict[str, float], count: int, wait: float = 0.0) -> None:
        """Count one step of `count` images: its `figures_of`, the seconds it waited for data."""
        self._images += count
        self._wait += wait
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value * count

    def summary(self) -> dict[str, float]:
        """Mean loss and terms of it, top-1 and top-5 error (percent) where the loss classifies,
        images/s, and the share of time spent waiting for data, over all processes (each must
        call this)."""
        elapsed = time.perf_counter() - self._start
        images, means = 0, {}
        processes = gather((self._images, self._wait / elapsed, self._sums))
        for count, _, sums in processes:
            images += count
            for name, value in sums.items():
                means[name] = means.get(name, 0.0) + value
        means = {name: value / max(images, 1) for name, value in means.items()}
        figures = {"loss": means.pop("total", 0.0)}
        for k in (1, 5):
            if f"top{k}" in means:
                figures[f"top{k}_err"] = 100 * (1 - means.pop(f"top{k}"))
        wait = sum(share for _, share, _ in processes) / len(processes)
        return {**figures, **means, "images_per_s": images / elapsed, "data_wait": wait}
