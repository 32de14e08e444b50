"""Extraction: ours against the originals' way, and against the bare network.

    python benchmarks/extract.py [--device cpu|cuda] [--precision fp32|bf16|fp16] [--only global|local]
                                 [--images N] [--rounds N] [--depth 50|101] [--profile]

Every way runs in a process of its own, since how memory is handled is the whole process's affair; they
take turns over the same JPEGs (half 512 x 384, half 1024 x 768, every third upright), drawn once. "The
bare network" gets batches that are ready, of the same sizes: what is left of it for us is how busy the
device is kept.
"""
import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import originals
import torch

from dolg.config import load_cfg
from dolg.core.memory import keep_freed_memory
from dolg.core.precision import PRECISIONS
from dolg.features.extract import Extractor, describe_all
from dolg.features.local import LocalSettings
from dolg.features.sources import images_of
from dolg.features.store import StoreWriter
from dolg.models import build_model
from dolg.models.folding import fold_norms

SCALES = [0.3535, 0.5, 0.7071, 1.0, 1.4142]
LOCAL_SCALES = [0.25, 0.3535, 0.5, 0.7071, 1.0, 1.4142, 2.0]
SIZES = [(384, 512), (768, 1024)]
TARGETS = {("cpu", "fp32"): 2, ("cpu", "bf16"): 5, ("cuda", "bf16"): 10}
WARM = 6            # images, before the clock starts
MOST = 1200.0       # seconds to wait for an answer


def draw(folder: Path, count: int, sizes: list[tuple[int, int]]) -> None:
    """JPEGs with edges and texture, quality 92."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        if number % 3 == 2 and len(sizes) > 1:
            height, width = width, height
        small = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        pixels = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
        pixels += rng.normal(0, 12, pixels.shape)
        cv2.imwrite(str(folder / f"{number:04d}.jpg"), pixels.clip(0, 255).astype(np.uint8),
                    [cv2.IMWRITE_JPEG_QUALITY, 92])


def config(args: argparse.Namespace):
    arch = "dolg" if args.only == "global" else "delg"
    return load_cfg(None, ["MODEL.ARCH", arch, "MODEL.DEPTH", str(args.depth), "MODEL.NUM_CLASSES", "4"])


def original_way(args: argparse.Namespace, folder: Path):
    """One image, one scale at a time; the path of each image in turn."""
    paths = sorted(map(str, folder.glob("*.jpg")))
    torch.backends.cudnn.benchmark = False
    if args.only == "global":
        model = originals.DOLGWithHead(config(args)).to(args.device).eval()
        return lambda: [originals.extract_dolg(model, path, SCALES) for path in paths]
    model = originals.DELGWithHead(config(args)).to(args.device).eval()
    return lambda: [originals.extract_delg(model, path, LOCAL_SCALES) for path in paths]


def our_way(args: argparse.Namespace, folder: Path):
    """What tools/infer.py does, a store on disk included; of local features, their selection alone."""
    keep_freed_memory()     # as every command does (dolg/core/cli.py)
    model = _folded(args)
    local = None if args.only == "global" else LocalSettings(tuple(LOCAL_SCALES), threshold=0.0)
    source = images_of(folder)
    extractor = Extractor(model, SCALES if args.only == "global" else [], PRECISIONS[args.precision],
                          0, args.workers, 10 ** 8, strict=True, local=local)
    if local:
        def run_local() -> None:
            for image in extractor.decoded(source, range(len(source))):
                describe_all(model, image.pixels[None].to(args.device), [], local,
                             PRECISIONS[args.precision])
        return run_local

    def run() -> None:
        with tempfile.TemporaryDirectory() as out:
            writer = StoreWriter(out, source.names, extractor.dim, 256, {})
            extractor.fill(writer, source, writer.missing_chunks())
    return run


def bare_way(args: argparse.Namespace, folder: Path):
    """The network alone, on batches that are ready; nothing is decoded, resized or written."""
    keep_freed_memory()
    model = _folded(args)
    precision = PRECISIONS[args.precision]
    paths = sorted(folder.glob("*.jpg"))
    sizes = [cv2.imread(str(path)).shape[:2] for path in paths]
    extractor = Extractor(model, SCALES, precision, 0, 0, 10 ** 8, True)
    batches = []
    for size in sorted(set(sizes)):
        count, most = sizes.count(size), max(1, int(extractor.batch_pixels / 2 / size[0] / size[1]))
        for start in range(0, count, most):
            batches += [torch.randn(min(most, count - start), 3, round(size[0] * scale),
                                    round(size[1] * scale), device=args.device)
                        .contiguous(memory_format=torch.channels_last) for scale in SCALES]

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast(args.device, dtype=precision, enabled=precision != torch.float32):
            for batch in batches:
                model(batch)
    return run


WAYS = {"the original's way": original_way, "ours": our_way, "the bare network": bare_way}


def _folded(args: argparse.Namespace):
    model = fold_norms(build_model(config(args)).eval(), torch.rand(1, 3, 96, 96))
    return model.to(args.device, memory_format=torch.channels_last)


def serve(way: str, args: argparse.Namespace, folder: Path, pipe) -> None:
    """In a process of its own: warm up and say so, then run when asked to, and answer with the seconds
    it took."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    WAYS[way](args, folder / "warm")()
    run = WAYS[way](args, folder / "images")
    pipe.send("ready")
    while pipe.recv():      # is killed when all is done
        start = time.perf_counter()
        run()
        if args.device == "cuda":
            torch.cuda.synchronize()
        pipe.send(time.perf_counter() - start)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, list[float]]:
    """Seconds of each way's rounds, after the few images of the folder `warm`."""
    context, pipes, seconds, processes = multiprocessing.get_context("spawn"), {}, {}, []

    def answer(name: str):
        if not pipes[name].poll(MOST):
            raise SystemExit(f"{name} has not answered for {MOST:.0f} s")
        return pipes[name].recv()

    names = [name for name in WAYS if args.only == "global" or name != "the bare network"]
    try:
        for name in names:
            pipes[name], theirs = context.Pipe()
            processes.append(context.Process(target=serve, args=(name, args, folder, theirs)))
            processes[-1].start()       # no daemon: those may not have decoding processes
            answer(name)
        for _ in range(args.rounds):
            for name in names:
                pipes[name].send(True)
                seconds.setdefault(name, []).append(answer(name))
    finally:
        for process in processes:
            process.kill()
    return seconds


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--precision", choices=sorted(PRECISIONS), default="fp32", help="ours; the original has fp32")
    add("--only", choices=("global", "local"), default="global")
    add("--images", type=int, default=0, help="default: 100; of local features 4 of 1024 x 768")
    add("--rounds", type=int, default=2)
    add("--depth", type=int, default=50)
    add("--threads", type=int, default=torch.get_num_threads())
    add("--workers", type=int, default=1, help="decoding processes of ours")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    count = args.images or (100 if args.only == "global" else 4)
    sizes = SIZES if args.only == "global" else SIZES[1:]
    scales = SCALES if args.only == "global" else LOCAL_SCALES
    print(f"torch {torch.__version__}, {args.device}, {args.threads} threads, ResNet-{args.depth} "
          f"{config(args).MODEL.ARCH}, {args.only} features, {count} JPEGs of "
          f"{' and '.join(f'{w} x {h}' for h, w in sizes)}, {len(scales)} scales, the original in fp32, "
          f"ours in {args.precision}; {args.rounds} rounds in turn", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder) / "warm", min(count, WARM), sizes)
        draw(Path(folder) / "images", count, sizes)
        seconds = measure(args, Path(folder))
    best = {name: min(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"{name:20} {statistics.median(values):8.2f} s, best {best[name]:8.2f} s, "
              f"{count / best[name]:7.2f} images/s")
    ratio = best["the original's way"] / best["ours"]
    target = TARGETS.get((args.device, args.precision)) if args.only == "global" else 4
    print(f"ours against the original's way: {ratio:.2f} times as fast, target {target}")
    if "the bare network" in best:
        print(f"ours against the bare network: {best['the bare network'] / best['ours']:.2f}, target "
              "0.90 on a GPU")
    print(f"one million images at this mixture on 8 such devices: "
          f"{1e6 / 8 * best['ours'] / count / 3600:.1f} h")


if __name__ == "__main__":
    main()
