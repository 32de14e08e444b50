"""Time of the streamed class metrics, beside sorting the whole similarity matrix.

python benchmarks/recall.py [--images 8000] [--dim 512] [--per-class 50] [--device cuda] [--nmi]

The baseline sorts all N x N similarities at once and reads the same figures off the order. It
computes in float32 where the streamed search adds in float64, and so may place near ties
differently.
"""
import argparse
import resource
import time

import numpy as np
import torch

from dolg.search.classes import clustering_nmi, evaluate_classes


def clusters(images: int, dim: int, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit descriptors (images, dim) float32 in noisy classes, and their labels."""
    random = np.random.default_rng(0)
    labels = random.permutation(images) // per_class
    centres = random.standard_normal((labels.max() + 1, dim), np.float32)
    table = centres[labels] + 3 * random.standard_normal((images, dim), np.float32)
    return table / np.linalg.norm(table, axis=1, keepdims=True), labels


def sort_everything(table: np.ndarray, labels: np.ndarray, ks: list[int], device: str) -> list:
    """Recall at each k, MAP@R and R-precision from a full argsort."""
    descriptors, classes = (torch.from_numpy(array).to(device) for array in (table, labels))
    scores = descriptors @ descriptors.T
    scores.fill_diagonal_(-torch.inf)
    hits = classes[scores.argsort(dim=1, descending=True)[:, :-1]] == classes[:, None]
    relevant = hits.sum(dim=1, keepdim=True)
    places = torch.arange(1, len(table), device=device)
    recall = [hits[:, :k].any(dim=1).double().mean().item() for k in ks]
    hits &= places <= relevant
    scored = relevant[:, 0] > 0
    precision = (hits.cumsum(dim=1) / places * hits).sum(dim=1) / relevant[:, 0]
    share = hits.sum(dim=1) / relevant[:, 0]
    return [*recall, precision[scored].mean().item(), share[scored].mean().item()]


def peak_memory() -> float:
    """The most that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--per-class", type=int, default=50)
    parser.add_argument("--recalls", type=int, nargs="+", default=[1, 10, 100, 1000], metavar="K")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-baseline", action="store_true", help="where N x N is too large")
    parser.add_argument("--nmi", action="store_true", help="also time k-means")
    args = parser.parse_args()
    table, labels = clusters(args.images, args.dim, args.per_class)
    print(f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}: "
          f"{args.images} x {args.dim} {table.dtype}, classes of {args.per_class}, "
          f"K {args.recalls}, best of {args.repeat}")

    def streamed() -> list:
        metrics = evaluate_classes(table, labels, np.array_split(table, -(-len(table) // 4096)),
                                   labels, args.recalls, True, args.device)
        return [*metrics.recall.values(), metrics.map_at_r, metrics.r_precision]

    rows = {"streamed": streamed}
    if not args.no_baseline:
        rows["full sort"] = lambda: sort_everything(table, labels, args.recalls, args.device)
    best = {name: np.inf for name in rows}
    figures, start_memory = {}, peak_memory()
    for name, evaluate in rows.items():
        for _ in range(args.repeat):
            start = time.perf_counter()
            figures[name] = evaluate()
            best[name] = min(best[name], time.perf_counter() - start)
        print(f"{name:10} {best[name]:8.2f} s, peak {peak_memory() - start_memory:6.0f} MiB above "
              f"the start; " + " ".join(f"{100 * value:.3f}" for value in figures[name]))
    if not args.no_baseline:
        print(f"ratio streamed / full sort: {best['streamed'] / best['full sort']:.2f}")
        assert np.allclose(figures["streamed"], figures["full sort"], atol=1e-3), "they disagree"
    if args.nmi:
        start = time.perf_counter()
        nmi = clustering_nmi(table, labels, args.device)
        print(f"NMI        {time.perf_counter() - start:8.2f} s; {100 * nmi:.3f}")


if __name__ == "__main__":
    main()
