"""The curves of a training, from its log.jsonl."""
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dolg.errors import UserError

# Of the machine, not of what is learned
_OF_THE_MACHINE = {"images_per_s", "data_wait", "memory_gb"}
_PLACES = {"kind", "step", "epoch"}
_EPOCH = "_epoch"
_LARGEST = 1e300


@dataclass(frozen=True)
class TrainingLog:
    """The figures of each epoch.

    figures: what is measured -> where ("train", "test") -> (epoch, value), epochs ascending.
    """

    name: str
    figures: dict[str, dict[str, list[tuple[float, float]]]]


def read_training(folder: Path) -> TrainingLog:
    """The log of a training's OUT_DIR. Where an epoch was repeated, the later lines count.

    Raises UserError where there is none, or none of a whole epoch. A last line that is cut off, as
    a run that was killed leaves it, is passed over.
    """
    path = Path(folder) / "log.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the training log {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8") from None
    found: dict[str, dict[str, dict[float, float]]] = {}
    for where, record in _epochs(path, lines):
        for figure, value in record.items():
            if figure not in _PLACES | _OF_THE_MACHINE and _can_be_drawn(value):
                found.setdefault(figure, {}).setdefault(where, {})[record["epoch"]] = value
    if not found:
        raise UserError(f"{path} has no figures of a whole epoch")
    return TrainingLog(Path(folder).resolve().name, {
        figure: {where: sorted(values.items()) for where, values in places.items()}
        for figure, places in found.items()})


def _epochs(path: Path, lines: Sequence[str]) -> list[tuple[str, dict]]:
    """Where each epoch's figures were measured, and the record."""
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            kind, epoch = record["kind"], record.get("epoch")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: it is no record of a training log") from None
        if isinstance(kind, str) and kind.endswith(_EPOCH) and _can_be_drawn(epoch):
            found.append((kind.removesuffix(_EPOCH), record))
    return found


def _can_be_drawn(value: object) -> bool:
    """Whether it is a number, and not so large, as a run that diverges makes it, that a difference of
    two were none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
