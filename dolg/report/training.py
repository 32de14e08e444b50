"""The curves of a training, from its log.jsonl."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dolg.errors import UserError
from dolg.files import read_records

# Of the machine, not of what is learned
_OF_THE_MACHINE = {"images_per_s", "data_wait", "memory_gb", "bad_images"}
_PLACES = {"kind", "step", "epoch"}
_EPOCH = "_epoch"
_LARGEST = 1e300


@dataclass(frozen=True)
class TrainingLog:
    """The figures of each epoch.

    figures: what is measured -> where ("train", "test") -> (epoch, value), epochs ascending.
    notes: what of the log was passed over.
    """

    name: str
    figures: dict[str, dict[str, list[tuple[float, float]]]]
    notes: Sequence[str] = ()


def read_training(folder: Path) -> TrainingLog:
    """The log of a training's OUT_DIR. Where an epoch was repeated, the later lines count.

    Raises UserError where there is none, or none of a whole epoch. Torn lines, as a killed run or a full
    disk leaves them, are passed over.
    """
    path = Path(folder) / "log.jsonl"
    try:
        records, torn = read_records(path)
    except OSError as error:
        raise UserError(f"cannot read the training log {path}: {error.strerror}") from None
    found: dict[str, dict[str, dict[float, float]]] = {}
    for where, record in _epochs(records):
        for figure, value in record.items():
            if figure not in _PLACES | _OF_THE_MACHINE and _can_be_drawn(value):
                found.setdefault(figure, {}).setdefault(where, {})[record["epoch"]] = value
    if not found:
        raise UserError(f"{path} has no figures of a whole epoch"
                        + (f"; {len(torn)} of its lines hold no record" if torn else ""))
    notes = [f"{path}: {len(torn)} damaged line(s) without a record were passed over, the first line "
             f"{torn[0]}"] if torn else []
    return TrainingLog(Path(folder).resolve().name, {
        figure: {where: sorted(values.items()) for where, values in places.items()}
        for figure, places in found.items()}, notes)


def _epochs(records: Sequence[Mapping]) -> list[tuple[str, Mapping]]:
    """Where each epoch's figures were measured, and the record."""
    return [(record["kind"].removesuffix(_EPOCH), record) for record in records
            if isinstance(record.get("kind"), str) and record["kind"].endswith(_EPOCH)
            and _can_be_drawn(record.get("epoch"))]


def _can_be_drawn(value: object) -> bool:
    """Whether it is a number, and not so large, as a run that diverges makes it, that a difference of
    two were none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
