"""What a file of another code holds, whatever its format."""
import hashlib
from dataclasses import dataclass, field

import numpy as np

from dolg.errors import UserError
from dolg.features.store import LocalTable

# What a norm may differ from 1 by: float16 and int8 round
_NEAR_UNIT = 0.01
_KINDS = {"b": "booleans", "c": "complex numbers", "O": "objects", "S": "text", "U": "text", "V": "records",
          "M": "dates", "m": "times", "T": "text"}


@dataclass
class Imported:
    """What a file of another code holds.

    Attributes:
        names: of the images.
        descriptors: (n,D) float32; a row of NaN where an image has none, D = 0 where none has.
        local: of all images, or None.
        notes: what the user should know of how the file was read.
    """

    names: list[str]
    descriptors: np.ndarray
    local: LocalTable | None = None
    notes: list[str] = field(default_factory=list)

    def digest(self) -> str:
        """SHA-256 of the names and all numbers."""
        digest = hashlib.sha256("\n".join(self.names).encode(errors="surrogateescape"))
        for table in (self.descriptors, *(vars(self.local).values() if self.local else ())):
            digest.update(np.ascontiguousarray(table))
        return digest.hexdigest()

    def failures(self) -> dict[int, str]:
        """Why a row is not a descriptor."""
        finite = np.isfinite(self.descriptors)
        reasons = ("no descriptor", "its descriptor has values that are not finite")
        return {int(row): reasons[int(finite[row].any())] for row in np.flatnonzero(~finite.all(axis=1))}

    def normalize(self) -> None:
        """Scale the descriptors, and those of the local features, to unit length. A descriptor of zeros
        becomes NaN: it has no direction."""
        self.descriptors = _unit(self.descriptors)
        if self.local:
            self.local.descriptors = np.nan_to_num(_unit(self.local.descriptors))

    def summary(self) -> str:
        """The numbers of images, dimensions, local features and images without a descriptor."""
        parts = [f"{len(self.names)} images of {self.descriptors.shape[1]} dimensions"]
        if self.local:
            count, dim = self.local.descriptors.shape
            parts.append(f"{count} local features of {dim} dimensions")
        failed = self.failures()
        if failed:
            row = next(iter(failed))
            parts.append(f"{len(failed)} images are marked as failed, such as {self.names[row]} "
                         f"({failed[row]})")
        return ", ".join(parts)

    def warnings(self) -> list[str]:
        """The notes, and how many descriptors are not of unit length."""
        tables = [("descriptors", self.descriptors)]
        if self.local:
            tables.append(("local descriptors", self.local.descriptors))
        return self.notes + [text for what, table in tables if (text := _about_lengths(what, table))]


def numbers(value, what: str) -> np.ndarray:
    """An array of real numbers as float32. Raises UserError, which begins with `what`, for any other."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise UserError(f"{what} holds {_KINDS[array.dtype.kind]}; descriptors are real numbers")
    # What float32 cannot hold is not finite, and said to be so
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(np.float32, copy=False)


def local_features(what: str, descriptors, xy, scales, scores) -> tuple[np.ndarray, ...]:
    """The local features of one image as `LocalTable.joined` takes them, scales None where they are unknown.

    Raises UserError, which begins with `what`, where their counts differ or they are not finite numbers.
    """
    parts = {"descriptors": numbers(descriptors, f"{what}: descriptors"),
             "keypoints": numbers(xy, f"{what}: keypoints"),
             "scores": numbers(scores, f"{what}: scores").reshape(-1)}
    count = len(parts["scores"])
    if scales is not None:
        parts["scales"] = numbers(scales, f"{what}: scales").reshape(-1)
    if parts["keypoints"].size == 0 == parts["descriptors"].size == count:      # of any shape
        return np.empty((0, 0)), np.empty((0, 2)), np.empty(0), np.empty(0)
    if (parts["keypoints"].ndim != 2 or parts["keypoints"].shape[1] != 2 or parts["descriptors"].ndim != 2
            or len({len(part) for part in parts.values()}) > 1):
        shapes = ", ".join(f"{name} {part.shape}" for name, part in parts.items())
        raise UserError(f"{what} has {shapes}: they must be of the same number of local features, "
                        "each with two coordinates")
    for name, part in parts.items():
        if name != "scales" and not np.isfinite(part).all():
            raise UserError(f"{what}: its {name} have values that are not finite")
    return (parts["descriptors"], parts["keypoints"], parts.get("scales", np.full(count, np.nan, np.float32)),
            parts["scores"])


def joined(path, images: list[tuple[np.ndarray, ...]]) -> LocalTable | None:
    """The local features of all images, None where there are none. Raises UserError where their dimensions
    differ."""
    dims = sorted({part[0].shape[1] for part in images if len(part[0])})
    if len(dims) > 1:
        raise UserError(f"{path} holds local descriptors of different lengths: {', '.join(map(str, dims))}")
    return LocalTable.joined(images) if any(dims) else None


def stacked(path, names: list[str], rows: list[np.ndarray]) -> np.ndarray:
    """The descriptors of all images, (n,D). Raises UserError where their lengths differ."""
    for name, row in zip(names, rows):
        if len(row) != len(rows[0]):
            raise UserError(f"{path} holds descriptors of different lengths: {names[0]} has {len(rows[0])} "
                            f"numbers, {name} {len(row)}")
    return np.stack(rows)


def _unit(table: np.ndarray) -> np.ndarray:
    norms = _norms(table)
    norms[norms == 0] = np.nan
    unit = np.empty(table.shape, np.float32)
    for start in range(0, len(table), 4096):        # the quotients are float64
        rows = slice(start, start + 4096)
        with np.errstate(invalid="ignore"):         # rows that are not finite become NaN
            unit[rows] = table[rows] / norms[rows, None]
    return unit


def _norms(table: np.ndarray) -> np.ndarray:
    # As float64: the squares of large float32 numbers are beyond float32
    return np.sqrt(np.einsum("ij,ij->i", table, table, dtype=np.float64))


def _about_lengths(what: str, table: np.ndarray) -> str:
    norms = _norms(table)
    norms = norms[np.isfinite(norms)] if table.shape[1] else np.empty(0)
    count = np.count_nonzero(np.abs(norms - 1) > _NEAR_UNIT)
    return count and (f"{count} of {len(norms)} {what} are not of unit length: their norms are from "
                      f"{norms.min():.3g} to {norms.max():.3g}, and their similarity, an inner product, depends on "
                      "them; --normalize gives all unit length")
