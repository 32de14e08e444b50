"""Extraction on a CPU: what keeping freed memory saves. python benchmarks/extraction.py"""
import time

import torch

from dolg.config import load_cfg
from dolg.core.memory import keep_freed_memory
from dolg.features.extract import describe
from dolg.models import build_model

BATCH, HEIGHT, WIDTH, ROUNDS = 8, 426, 640, 2


def seconds_per_image(model: torch.nn.Module, images: torch.Tensor, scales: list[float]) -> float:
    """Of the fastest of some rounds, after one to warm up."""
    times = []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        describe(model, images, scales)
        times.append(time.perf_counter() - start)
    return min(times[1:]) / len(images)


def main() -> None:
    cfg = load_cfg("configs/eval/efficientnet_lite0_gem.yaml")
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    images = torch.randint(0, 256, (BATCH, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    print(f"cpu, {torch.get_num_threads()} threads, torch {torch.__version__}: {cfg.TIMM.NAME}, "
          f"{BATCH} x {HEIGHT} x {WIDTH} uint8, scales {cfg.INFER.SCALES}, float32, random weights, "
          f"best of {ROUNDS}")
    before = seconds_per_image(model, images, cfg.INFER.SCALES)
    keep_freed_memory()
    after = seconds_per_image(model, images, cfg.INFER.SCALES)
    print(f"as glibc does it     {before:.3f} s per image\n"
          f"keeping freed memory {after:.3f} s per image\nratio {after / before:.2f}")


if __name__ == "__main__":
    main()
