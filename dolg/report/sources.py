"""Where a result's ground truth, descriptors, lists and photographs lie."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.report.thumbnails import find_image
from revisitop.groundtruth import GroundTruth, GroundTruthError, load_ground_truth
from revisitop.stores import StoreError


@dataclass(frozen=True)
class Stores:
    """The descriptors behind a method, and the file of its lists where it has reranked them."""

    query: FeatureStore
    database: FeatureStore
    distractors: Sequence[FeatureStore] = ()
    lists: Path | None = None

    def reasons(self) -> dict[str, str]:
        """Name -> reason of each query and database image whose extraction failed."""
        return {name: reason for store in (self.query, self.database)
                for name, reason in store.errors()}


@dataclass(frozen=True)
class ImageFolders:
    """Where the images of the benchmark and, if elsewhere, those of the distractors lie."""

    benchmark: Path
    distractors: Path | None = None

    def check(self) -> None:
        """Raise UserError for a folder that is not there."""
        for folder, option in ((self.benchmark, "--images"),
                               (self.distractors, "--distractor-images")):
            if folder and not folder.is_dir():
                raise UserError(f"{folder} is not a folder of images: give it by {option}")

    def find(self, name: str, distractor: bool = False) -> Path:
        """The path of an image, which may not exist."""
        return find_image((distractor and self.distractors) or self.benchmark, name)


def image_folders(truth: Path, images: Path | None, distractors: Path | None) -> ImageFolders:
    """The folders given, else jpg/ and, where it is there, distractors/ beside the ground truth."""
    beside = truth.parent / "distractors"
    return ImageFolders(images or truth.parent / "jpg",
                        distractors or (beside if beside.is_dir() else None))


def open_ground_truth(path: Path) -> GroundTruth:
    """The ground-truth file at `path`; UserError if it cannot be read."""
    try:
        return load_ground_truth(path)
    except GroundTruthError as error:
        raise UserError(str(error)) from error


def find_ground_truth(named: Mapping[str, Path], evaluations: Mapping[str, Mapping]) -> Path | None:
    """The first ground truth that a result names and that is there."""
    paths = (_path(named[name], _files(evaluation).get("ground_truth"))
             for name, evaluation in evaluations.items())
    return next((path for path in paths if path and path.is_file()), None)


def find_stores(
    named: Mapping[str, Path], evaluations: Mapping[str, Mapping],
    groups: Sequence[Sequence[str]] = (),
) -> tuple[dict[str, Stores], list[str]]:
    """The stores behind each method, and a note for each that cannot be shown.

    `groups` (see `open_stores`) go before what the results themselves name.
    """
    stores, notes = open_stores(groups, list(evaluations)), []
    for name, evaluation in evaluations.items():
        if name in stores:
            continue
        files = _files(evaluation)
        if not files.get("query") or not files.get("database"):
            notes.append(f"{name}: its result does not say where its descriptors lie, so its lists "
                         "are not shown")
            continue
        try:
            stores[name] = _open_files(named[name], evaluation, files)
        except (StoreError, UserError) as error:
            notes.append(f"{name}: its lists are not shown: {error}")
    return {name: stores[name] for name in evaluations if name in stores}, notes


def open_stores(groups: Sequence[Sequence[str]], methods: Sequence[str]) -> dict[str, Stores]:
    """Open groups of NAME QUERY DATABASE [DISTRACTORS ...]; each NAME must be in `methods`."""
    opened: dict[str, Stores] = {}
    for name, *paths in groups:
        if name not in methods:
            raise UserError(f"stores are given for {name!r}, which is no result; results are: "
                            + ", ".join(methods))
        if name in opened:
            raise UserError(f"stores are given twice for {name!r}")
        if len(paths) < 2:
            raise UserError(f"stores of {name!r} need a QUERY and a DATABASE store, given: "
                            + (" ".join(paths) or "nothing"))
        try:
            query, database, *distractors = (FeatureStore(path) for path in paths)
        except StoreError as error:
            raise UserError(str(error)) from error
        opened[name] = Stores(query, database, distractors)
    return opened


def _open_files(result: Path, evaluation: Mapping, files: Mapping) -> Stores:
    """The stores that a result names. Raises UserError for a reranked one that names no lists: the
    stores show what came before."""
    lists = _path(result, files.get("lists"))
    if lists is None and "reranking" in evaluation:
        raise UserError("it is reranked, and its result names no file of the reranked lists")
    if lists is not None and not lists.is_file():
        raise UserError(f"there is no {lists}")
    distractors = files.get("distractors") or []
    query, database, *others = (
        FeatureStore(_path(result, path)) for path in (files["query"], files["database"], *distractors))
    return Stores(query, database, others, lists)


def _files(evaluation: Mapping) -> Mapping:
    files = evaluation.get("files")
    return files if isinstance(files, Mapping) else {}


def _path(result: Path, path: object) -> Path | None:
    """A path that a result gives relative to its own folder."""
    return Path(result).parent / path if isinstance(path, str) and path else None
