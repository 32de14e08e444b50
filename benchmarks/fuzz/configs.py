"""Configuration files: those of configs/ damaged, and YAML made up of what parsers stumble over."""
import random
from functools import cache
from pathlib import Path

from benchmarks.fuzz.harness import ROOT, Target
from benchmarks.fuzz.tables import damaged
from dolg.config import load_cfg
from dolg.errors import UserError

_SCALARS = [".nan", "-.inf", "1e400", "9" * 5000, "-" + "9" * 30, "0x" + "f" * 5000, "010", "0o17", "1:30:59", "1_0",
            "2020-01-01", "2020-99-99T25:61:61Z", "=", "~", "", "yes", "!!binary aGk=", "!!python/name:os.system",
            "!!float x", "!!int ''", "!!bool maybe", "!!null x", "!!timestamp x", "!!str [a]", "!!set {a}", "!!omap [a: 1]",
            '"\\U00110000"', '"\\x00"', "'a", "|\n  text", "? a", "*a", "&a [*a]", "<<: *a", "%", "@", "\ud7ff", "\0",
            "[1, .nan]", "[[[[1]]]]", "{a: 1}", "[a, 1, true]", "True", "0.5", "-1", "3", "dolg", "1e-5", "-0", "é"]
_KEYS = ["MODEL", "OPTIM", "TRAIN", "LOSS.PML.ARGS", "BASE_LR", "STEPS", "MAX_EPOCH", "NAME", "INFER.SCALES", "OUT_DIR",
         "RERANK.METHOD", "TRAIN.BATCH_SIZE", "1", "null", "[a]", "<<", "? x", "LOSS.WEIGHTS", "INPUT.SD", "true", "",
         "OPTIM.BASE_LR", "TEST.RECALLS", "NUM_GPUS", "MODEL.ARCH", "x" * 5000]


def _yaml(rng: random.Random) -> tuple[str, bytes]:
    kind = rng.random()
    if kind < 0.4:
        return "c.yaml", damaged(rng, rng.choice(_files()))
    if kind < 0.5:
        return "c.yaml", _endless(rng).encode()
    lines, level = [], 0
    for _ in range(rng.randrange(1, 30)):
        value = "" if rng.random() < 0.3 else rng.choice(_SCALARS)
        anchor = rng.choice(("", "", "", "&a ", "&b "))
        lines.append(f"{'  ' * level}{rng.choice(_KEYS)}: {anchor}{value}")
        level = level + 1 if not value else rng.randrange(level + 1)
    return "c.yaml", "\n".join(lines).encode("utf-8", "surrogatepass")


def _endless(rng: random.Random) -> str:
    """Laughs, depth, length, and chains of aliases."""
    many = rng.choice((10, 100, 1000, 10_000, 30_000))
    open_, close = rng.choice((("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", ""), ("&a [", "]"), ("!!x ", "")))
    wide = rng.randrange(2, 12)
    laughs = "".join(f"A{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else 'x'] * wide)}]\n" for i in range(min(many, 900)))
    merged = "".join(f"A{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * wide if i else '')}], k{i}: 1}}\n"
                     for i in range(min(many, 900)))
    return rng.choice((open_ * many + "1" + close * many, f"INFER.SCALES: {open_ * many}", laughs, merged,
                       f"NUM_GPUS: {'1' * many}", f"NUM_GPUS: 1{':1' * many}", f"OUT_DIR: '{'x' * many}'",
                       f"INFER.SCALES: [{'1, ' * many}]", "\n".join(f"K{i}: 1" for i in range(many)), "#" * many,
                       "\n" * many, "--- 1\n" * many, f"%TAG ! {'x' * many}\n---\nA: 1", "a: b: " * many,
                       '"' + "\\u0041" * many + '": 1', "'" * many, f"NUM_GPUS: 1.{'1' * many}"))


@cache
def _files() -> list[bytes]:
    return [path.read_bytes() for path in sorted(ROOT.glob("configs/**/*.yaml"))]


def _load(path: Path) -> None:
    load_cfg(str(path)).dump()


YAML = Target(_yaml, _load, (UserError,))
