"""Which images to extract: the queries and database of a Revisited set, a folder, a list."""
import hashlib
from dataclasses import dataclass
from pathlib import Path

from dolg.errors import UserError
from revisitop.groundtruth import GroundTruth, GroundTruthError, load_ground_truth

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


@dataclass(frozen=True)
class ImageSource:
    """Images in a fixed order: `names` in the store, files, and boxes to cut them to.

    `boxes[i]` is (x1, y1, x2, y2) in pixels, or None for the whole image.
    """

    names: list[str]
    paths: list[Path]
    boxes: list[tuple[float, float, float, float] | None]

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """SHA-256 of the names and boxes, in order."""
        lines = (f"{name}\t{box}\n" for name, box in zip(self.names, self.boxes))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def revisited_truth(root: Path, name: str, key: str) -> GroundTruth:
    """The ground truth root/name/gnd_name.pkl, for which the configuration key `key` asked.

    Raises UserError where it is missing or no ground truth.
    """
    truth_file = root / name / f"gnd_{name}.pkl"
    if not truth_file.is_file():
        raise UserError(f"no ground truth {truth_file}: {key} {name} is a folder under {root} with "
                        f"jpg/ and gnd_{name}.pkl in it")
    try:
        return load_ground_truth(truth_file)
    except GroundTruthError as error:
        raise UserError(str(error)) from None


def revisited_set(root: Path, name: str, crop_queries: bool,
                  key: str = "INFER.DATASET") -> dict[str, ImageSource]:
    """{"query": ..., "database": ...} of the folder root/name with jpg/ and gnd_name.pkl.

    Raises UserError where the folder, its ground truth or an image that this names is missing.
    """
    truth, folder = revisited_truth(root, name, key), root / name
    boxes = list(truth.boxes) if crop_queries else [None] * len(truth.queries)
    parts = {"query": (truth.queries, boxes),
             "database": (truth.images, [None] * len(truth.images))}
    sources = {}
    for part, (names, part_boxes) in parts.items():
        paths = [_image_file(folder / "jpg", image) for image in names]
        sources[part] = ImageSource(list(names), paths, part_boxes)
    _check_present(folder / f"gnd_{name}.pkl", folder / "jpg", sources)
    return sources


def _image_file(folder: Path, name: str) -> Path:
    """The ground truth names images without .jpg; other endings are kept."""
    return folder / (name if Path(name).suffix.lower() in SUFFIXES else f"{name}.jpg")


def _check_present(truth_file: Path, folder: Path, sources: dict[str, ImageSource]) -> None:
    missing = [str(path.name) for source in sources.values() for path in source.paths
               if not path.is_file()]
    if missing:
        more = ", ..." if len(missing) > 3 else ""
        raise UserError(f"{truth_file} names {len(missing)} images that {folder} lacks: "
                        f"{', '.join(missing[:3])}{more}")


def images_of(location: Path) -> ImageSource:
    """All images under a folder, by name; or those of a text file, one path per line.

    Paths in a file are relative to its folder; labels after them, as training lists have them,
    are left aside. Raises UserError where nothing is there.
    """
    if location.is_dir():
        paths = sorted(path for path in location.rglob("*") if path.suffix.lower() in SUFFIXES)
        names = [path.relative_to(location).as_posix() for path in paths]
        if not paths:
            raise UserError(f"the folder {location} holds no images "
                            f"({', '.join(sorted(SUFFIXES))})")
    elif location.is_file():
        try:
            lines = location.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"INFER.IMAGES {location} is neither a folder nor a text file in "
                            f"UTF-8: {error}") from None
        names = [line.strip() for line in lines if line.strip()]
        if names and _has_label(names[0], location.parent):
            names = [name.rpartition(" ")[0] for name in names]
        paths = [location.parent / name for name in names]
        if not names:
            raise UserError(f"the image list {location} is empty")
    else:
        raise UserError(f"INFER.IMAGES {location} does not exist: give a folder or a text file "
                        "with one path per line")
    return ImageSource(names, paths, [None] * len(names))


def _has_label(line: str, folder: Path) -> bool:
    """Whether a list's line is a path and a label, and not a path that ends in a number."""
    path, _, label = line.rpartition(" ")
    return label.isdecimal() and bool(path) and not (folder / line).exists()
