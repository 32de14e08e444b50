"""Running figures of training and testing."""
import time

import torch

from dolg.core.distributed import sum_over_processes, world_size


def top_k_hits(logits: torch.Tensor, labels: torch.Tensor, ks: tuple[int, ...]) -> list[float]:
    """How many of the labels (B,) are among the k highest logits (B,C), for each k."""
    highest = logits.topk(min(max(ks), logits.shape[1]), dim=1).indices
    hits = highest == labels[:, None]
    return [float(hits[:, :k].sum()) for k in ks]


class Meter:
    """Sums over the images of this process since the last reset, averaged over all processes."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self._sums = {"loss": 0.0, "top1": 0.0, "top5": 0.0}
        self._images, self._wait, self._start = 0, 0.0, time.perf_counter()

    def update(self, loss: float, logits: torch.Tensor, labels: torch.Tensor,
               wait: float = 0.0) -> None:
        """Count one step: its mean loss, its hits, the seconds it waited for data."""
        top1, top5 = top_k_hits(logits, labels, (1, 5))
        self._images += len(labels)
        self._wait += wait
        for name, value in (("loss", loss * len(labels)), ("top1", top1), ("top5", top5)):
            self._sums[name] += value

    def summary(self, device: torch.device) -> dict[str, float]:
        """Mean loss, top-1 and top-5 error (percent), images/s, and the share of time spent
        waiting for data, over all processes (each must call this)."""
        elapsed = time.perf_counter() - self._start
        local = torch.tensor([self._images, *self._sums.values(), self._wait / elapsed],
                             dtype=torch.float64, device=device)
        images, loss, top1, top5, wait = sum_over_processes(local).tolist()
        images = max(images, 1)
        return {"loss": loss / images, "top1_err": 100 * (1 - top1 / images),
                "top5_err": 100 * (1 - top5 / images), "images_per_s": images / elapsed,
                "data_wait": wait / world_size()}
