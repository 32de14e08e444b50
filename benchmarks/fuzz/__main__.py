"""Read thousands of generated files of a kind: python -m benchmarks.fuzz KIND --count 10000

Prints how many were read, how many refused, and every case that ended a process by a signal, took longer
than its kind may, raised anything but a refusal, or took too much memory; with one of these it exits with
status 1. --write DIR writes the files of those cases.
"""
import argparse
import importlib
import sys
from pathlib import Path

from tqdm import tqdm

from benchmarks.fuzz.harness import Outcome, Target, case_file, fuzz, work

# Kind -> "module:TARGET" in this folder; imported when it is asked for
KINDS: dict[str, str] = {
    "delg": "tables:DELG", "hdf5": "tables:HDF5", "mat": "tables:MAT", "npy": "tables:NPY",
    "yaml": "configs:YAML",
}


def load_target(kind: str) -> Target:
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(f"benchmarks.fuzz.{module}"), name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--count", type=int, default=10_000, help="files (10000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1, help="that read at a time (1)")
    parser.add_argument("--write", type=Path, metavar="DIR", help="write the files of failed cases there")
    parser.add_argument("--cases", type=int, nargs=2, metavar=("START", "STOP"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    target = load_target(args.kind)
    if args.cases:
        work(target, args.seed, range(*args.cases))
        return 0
    with tqdm(total=args.count, unit="file", desc=args.kind, disable=None) as bar:
        outcome = fuzz(args.kind, target, args.count, args.seed, args.processes, bar.update)
    print(summary(args.kind, args.seed, outcome))
    if args.write:
        args.write.mkdir(parents=True, exist_ok=True)
        for case, _ in outcome.failures:
            name, content = case_file(target, args.seed, case)
            (args.write / f"{case}-{name}").write_bytes(content)
    return 1 if outcome.failures else 0


def summary(kind: str, seed: int, outcome: Outcome) -> str:
    counts = ", ".join(f"{count} {end}" for end, count in sorted(outcome.counts.items()))
    lines = [f"{kind}, seed {seed}: {counts}; slowest {outcome.slowest:.2f} s, "
             f"largest rise of peak memory {outcome.peak / 1e6:.0f} MB"]
    return "\n".join(lines + [f"case {case}: {what}" for case, what in outcome.failures])


if __name__ == "__main__":
    sys.exit(main())
