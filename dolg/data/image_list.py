"""Image lists: text files with one "path label" per line."""
from dataclasses import dataclass
from pathlib import Path

from dolg.errors import UserError


@dataclass(frozen=True)
class ImageList:
    """`paths` (absolute or relative to the working folder) and their class `labels`."""

    paths: list[Path]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.paths)


def read_image_list(file: Path, num_classes: int | None = None) -> ImageList:
    """The images of `file`, whose paths are relative to its folder.

    The label follows the last blank, so paths may hold blanks. Empty lines are skipped.
    Raises UserError, with the line, for a missing or empty list, a line without a label, or a
    label outside 0 .. num_classes - 1 (without `num_classes`, below 0).
    """
    if not file.is_file():
        raise UserError(f"no image list {file}: it has one 'path label' per line "
                        "(DATA_DIR, TRAIN.DATASET and TRAIN.SPLIT, or TEST's, say where)")
    paths, labels = [], []
    try:
        with open(file, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                path, _, label = line.strip().rpartition(" ")
                if not path or not label.removeprefix("-").isdecimal():
                    raise UserError(f"{file}, line {number}: '{line.strip()[:100]}' is not "
                                    "'path label', with a whole number as label")
                if num_classes is None and int(label) < 0:
                    raise UserError(f"{file}, line {number}: label {label} is below 0")
                if num_classes is not None and not 0 <= int(label) < num_classes:
                    raise UserError(f"{file}, line {number}: label {label} is outside 0 .. "
                                    f"{num_classes - 1} (MODEL.NUM_CLASSES is {num_classes})")
                paths.append(file.parent / path)
                labels.append(int(label))
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not a text file in UTF-8: {error}") from None
    if not paths:
        raise UserError(f"the image list {file} is empty")
    return ImageList(paths, labels)
