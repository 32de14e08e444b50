"""Reranking: ours against the original codes' ways.

    python benchmarks/rerank.py [--only rrt|spatial|memory] [--device cpu|cuda] [--rounds N] [--threads N]

rrt: the logits of one query and 36 candidates by a reranking transformer of the published size, on 500
local features each, and on 300 to 500 with the rest padded. The original's way is that of
github.com/uvavision/RerankingTransformer (RRT_GLD/models), told again with the same weights: all pairs
in one padded batch, tokens first, torch.nn.MultiheadAttention, whose attention weights it gives and
nobody reads. Also one pair at a time, which some processors prefer. Every way runs in a process of its
own, in turn; both must give the same logits.

spatial: see benchmarks/spatial.py. memory: see benchmarks/rerank_memory.py.
"""
import argparse
import multiprocessing
import statistics
import time
from pathlib import Path

import torch
from rerank_memory import measure_memory
from spatial import measure_spatial
from torch import nn
from torch.nn import functional as F

from dolg.core.memory import keep_freed_memory
from dolg.core.precision import PRECISIONS
from dolg.models.rrt import RerankingTransformer
from dolg.models.scoring import PairScorer

PAIRS, LOCALS, LEAST, DIM, GLOBAL_DIM, HIDDEN, LAYERS = 36, 500, 300, 128, 2048, 1024, 6
SCALES = [0.25, 0.3535, 0.5, 0.7071, 1.0, 1.4142, 2.0]
CASES = ("full", "padded")
TARGETS = {("cpu", "fp32"): 3}
# How far logits may be apart, of the largest
TOLERANCES = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 5e-3}
ORIGINAL, ONE_PAIR = "the original's way", "the original's, one pair at a time"
MOST = 1200.0       # seconds to wait for an answer


# ---------------------------------------------------------------------------- rrt

class OriginalLayer(nn.Module):
    """An encoder layer as RRT_GLD/models/transformer.py computes it; tokens (T,B,dim)."""

    def __init__(self):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(DIM, 4)
        self.linear1, self.linear2 = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        gathered, _ = self.self_attn(x, x, value=x, key_padding_mask=mask)
        x = self.norm1(x + gathered)
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class OriginalTransformer(nn.Module):
    """RRT_GLD/models/matcher.py, from tokens on: those are few operations, and ours are its."""

    def __init__(self, ours: RerankingTransformer):
        super().__init__()
        self.layers = nn.ModuleList(OriginalLayer() for _ in range(LAYERS))
        self.layers.load_state_dict(ours.encoder.layers.state_dict())
        self.tokens, self.classifier = ours.tokens, ours.classifier

    def forward(self, query: dict, candidates: dict) -> torch.Tensor:
        tokens, mask = self.tokens(query, candidates)
        x = tokens.permute(1, 0, 2)
        for layer in self.layers:
            x = layer(x, mask)
        return self.classifier(x[0]).view(-1)


def transformer(device: str) -> RerankingTransformer:
    torch.manual_seed(0)
    return RerankingTransformer(GLOBAL_DIM, SCALES).eval().to(device)


def images(count: int, case: str, seed: int, device: str) -> dict[str, torch.Tensor]:
    """One side of pairs; "padded": 300 to 500 local features each."""
    rng = torch.Generator().manual_seed(seed)
    valid = torch.randint(LEAST, LOCALS + 1, (count, 1), generator=rng)
    mask = torch.arange(LOCALS) >= (valid if case == "padded" else LOCALS)
    side = {"global": torch.randn(count, GLOBAL_DIM, generator=rng),
            "local": torch.randn(count, LOCALS, DIM, generator=rng), "mask": mask.expand(count, LOCALS),
            "scales": torch.randint(0, len(SCALES), (count, LOCALS), generator=rng)}
    return {name: value.to(device) for name, value in side.items()}


def original_way(pairs_at_once: int):
    def make(device: str):
        model = OriginalTransformer(transformer(device)).eval()

        @torch.no_grad()
        def run(query: dict, candidates: dict) -> torch.Tensor:
            logits = []
            for start in range(0, PAIRS, pairs_at_once):
                part = {name: value[start:start + pairs_at_once] for name, value in candidates.items()}
                count = len(part["mask"])
                repeated = {name: value.expand(count, *value.shape[1:]) for name, value in query.items()}
                logits.append(model(repeated, part))
            return torch.cat(logits)
        return run
    return make


def our_way(precision: str):
    def make(device: str):
        keep_freed_memory()     # as every command does (dolg/core/cli.py)
        return PairScorer(transformer(device), PRECISIONS[precision]).score
    return make


WAYS = {ORIGINAL: original_way(PAIRS), ONE_PAIR: original_way(1),
        **{f"ours, {name}": our_way(name) for name in PRECISIONS}}


def serve(way: str, device: str, threads: int, pipe) -> None:
    """In a process of its own: warm up and say so; then answer the name of a case with seconds, logits."""
    torch.set_num_threads(threads)
    run = WAYS[way](device)
    sides = {case: (images(1, case, 1, device), images(PAIRS, case, 2, device)) for case in CASES}
    run(*sides["full"])
    pipe.send("ready")
    while True:     # is killed when all is done
        case = pipe.recv()
        start = time.perf_counter()
        logits = run(*sides[case]).cpu()        # waits for a GPU
        pipe.send((time.perf_counter() - start, logits.tolist()))


def operations(query: int, candidate: int) -> float:
    """Of one pair, a multiplication and an addition counted as two: products of all layers."""
    tokens = query + candidate + 4
    return LAYERS * 2 * (tokens * DIM * (4 * DIM + 2 * HIDDEN) + 2 * tokens ** 2 * DIM)


def measure_rrt(args: argparse.Namespace) -> None:
    precisions = usable_precisions(args.device)
    print(f"rrt: {PAIRS} pairs of {LOCALS} + {LOCALS} local features of {DIM} dimensions, {LAYERS} layers, "
          f"hidden {HIDDEN}; {operations(LOCALS, LOCALS) / 1e9:.2f} GFLOP a pair, all tokens in all "
          "layers; the original's way in fp32", flush=True)
    names = [ORIGINAL, ONE_PAIR, *(f"ours, {name}" for name in precisions)]
    answers = ask_in_turn(names, args)
    for case in CASES:
        what = f"{LOCALS} each" if case == "full" else f"{LEAST} to {LOCALS} each, padded to {LOCALS}"
        print(f"{what}:")
        best = {name: min(seconds for seconds, _ in answers[name, case]) for name in names}
        expected = torch.tensor(answers[ORIGINAL, case][0][1])
        for name in names:
            median = statistics.median(seconds for seconds, _ in answers[name, case])
            print(f"  {name:36} {median:8.3f} s, best {best[name]:8.3f} s, "
                  f"{PAIRS / best[name]:8.1f} pairs/s")
        for precision in precisions:
            name = f"ours, {precision}"
            error = (torch.tensor(answers[name, case][0][1]) - expected).abs().max() / expected.abs().max()
            assert error < TOLERANCES[precision], (precision, error)
            target = TARGETS.get((args.device, precision))
            print(f"  {name}: {best[ORIGINAL] / best[name]:.2f} times as fast as the original's way"
                  f"{f' (target {target})' if target else ''}, {best[ONE_PAIR] / best[name]:.2f} times as "
                  f"one pair at a time; logits differ by {error:.1e} of the largest")
    rate = PAIRS * operations(LOCALS, LOCALS) / min(seconds for seconds, _ in answers["ours, fp32", "full"])
    print(f"ours, fp32, does the work of {rate / 1e9:.0f} GFLOP/s; a bare product of matrices of 1024 runs "
          f"at {bare_product(args.device, args.threads) / 1e9:.0f}")


def ask_in_turn(names: list[str], args: argparse.Namespace) -> dict[tuple[str, str], list]:
    """(seconds, logits) of each way and case, round after round, the ways in turn."""
    context, pipes, processes, answers = multiprocessing.get_context("spawn"), {}, [], {}

    def answer(name: str):
        if not pipes[name].poll(MOST):
            raise SystemExit(f"{name} has not answered for {MOST:.0f} s")
        return pipes[name].recv()

    try:
        for name in names:
            pipes[name], theirs = context.Pipe()
            processes.append(context.Process(target=serve, args=(name, args.device, args.threads, theirs)))
            processes[-1].start()
            answer(name)
        for case in CASES * args.rounds:
            for name in names:
                pipes[name].send(case)
                answers.setdefault((name, case), []).append(answer(name))
    finally:
        for process in processes:
            process.kill()
    return answers


def usable_precisions(device: str) -> list[str]:
    if device == "cuda":
        return list(PRECISIONS)
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.exists() else []
    if {"avx512_bf16", "amx_bf16"} & set(flags):
        return ["fp32", "bf16"]
    print("bf16 is left out: this processor has no instructions for it")
    return ["fp32"]


def bare_product(device: str, threads: int) -> float:
    """Operations per second."""
    torch.set_num_threads(threads)
    matrix, seconds = torch.randn(1024, 1024, device=device), []
    for _ in range(20):
        start = time.perf_counter()
        float((matrix @ matrix)[0, 0])
        seconds.append(time.perf_counter() - start)
    return 2 * 1024 ** 3 / min(seconds)


# ---------------------------------------------------------------------------- all

# Another part is another line, and a function that takes the arguments and prints
PARTS = {"rrt": measure_rrt, "spatial": measure_spatial, "memory": measure_memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS))
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--rounds", type=int, default=3)
    add("--pairs", type=int, default=24, help="of spatial (default: 24)")
    add("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    place = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} threads"
    print(f"torch {torch.__version__}, {args.device} ({place}), {args.rounds} rounds in turn", flush=True)
    for name in args.only:
        PARTS[name](args)


if __name__ == "__main__":
    main()
