"""Where a result's ground truth, descriptors, lists and photographs lie."""
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from dolg.data.finder import image_file
from dolg.errors import UserError
from dolg.features.store import FeatureStore
from revisitop.groundtruth import GroundTruth, GroundTruthError, load_ground_truth
from revisitop.stores import StoreError

# What a manifest and a result's record of it both say of the images, their boxes, and of what made
# the descriptors
_MADE_BY = ("weights_digest", "model_digest", "config_digest", "scales", "images_digest")


@dataclass(frozen=True)
class Stores:
    """The descriptors behind a method, and the file of its lists where it has reranked them.

    given: by the user, and not found through the result: what does not fit is the user's mistake.
    """

    query: FeatureStore
    database: FeatureStore
    distractors: Sequence[FeatureStore] = ()
    lists: Path | None = None
    given: bool = False

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
            if folder and not os.path.isdir(folder):
                raise UserError(f"{folder} is not a folder of images: give it by {option}")

    def find(self, name: str, distractor: bool = False) -> Path | None:
        """The path of an image, which may not exist; None for a name that leads out of its folder."""
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            return None
        folder = Path((distractor and self.distractors) or self.benchmark)
        return folder / image_file(folder, name)


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
    return next((path for path in paths if path and os.path.isfile(path)), None)


def find_stores(
    named: Mapping[str, Path], evaluations: Mapping[str, Mapping],
    groups: Sequence[Sequence[str]] = (),
) -> tuple[dict[str, Stores], list[str]]:
    """The stores behind each method, and a note for each that cannot be shown.

    `groups` (see `open_stores`) go before what the results themselves name. The lists of a reranked
    result are its own, whoever names the stores. Raises UserError for groups that the results were
    not made with.
    """
    given = open_stores(groups, list(evaluations))
    for name, opened in given.items():
        _check_same(opened, evaluations[name], f"{name}: ")
    stores, notes = {}, []
    for name, evaluation in evaluations.items():
        try:
            opened = given.get(name) or _open_files(named[name], evaluation)
            stores[name] = replace(opened, lists=_find_lists(named[name], evaluation))
        except (StoreError, UserError) as error:
            notes.append(f"{name}: its lists are not shown: {error}")
    return stores, notes


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
            query, database, *distractors = (FeatureStore(path, across=True) for path in paths)
        except StoreError as error:
            raise UserError(str(error)) from error
        opened[name] = Stores(query, database, distractors, given=True)
    return opened


def _find_lists(result: Path, evaluation: Mapping) -> Path | None:
    """The file of a reranked result's lists; None for a result of a search. Raises UserError where
    there is none: the stores show what came before."""
    lists = _path(result, _files(evaluation).get("lists"))
    if lists is None and ("reranking" in evaluation or "reranking" in (evaluation.get("protocol") or {})):
        raise UserError("it is reranked, and its result names no file of the reranked lists")
    if lists is not None and not os.path.isfile(lists):
        raise UserError(f"there is no {lists}")
    return lists


def _open_files(result: Path, evaluation: Mapping) -> Stores:
    """The stores that a result names. Raises UserError where it names none, or they have changed."""
    files = _files(evaluation)
    if not files.get("query") or not files.get("database"):
        raise UserError("its result does not say where its descriptors lie")
    paths = [files["query"], files["database"], *(files.get("distractors") or [])]
    # Whether they fit together was decided when they were scored
    query, database, *distractors = (FeatureStore(_path(result, path), across=True) for path in paths)
    stores = Stores(query, database, distractors)
    _check_same(stores, evaluation)
    return stores


def _check_same(stores: Stores, evaluation: Mapping, whose: str = "") -> None:
    """Raise UserError for a store that was made otherwise than the result says: its lists would not
    be those that were scored. What either does not record is not checked."""
    record = evaluation.get("protocol") or {}
    distractors = record.get("distractors")
    pairs = [(stores.query, record.get("query")), (stores.database, record.get("database")),
             *zip(stores.distractors, distractors if isinstance(distractors, list) else [])]
    for store, recorded in pairs:
        changed = _changed(store.manifest, recorded) if isinstance(recorded, Mapping) else []
        if changed:
            raise UserError(f"{whose}the store {store.path} is not the one that was scored, it has changed "
                            f"in {', '.join(changed)}: evaluate again")


def _changed(manifest: Mapping, recorded: Mapping) -> list[str]:
    """The keys in which a store differs from what a result recorded of it."""
    manifest = json.loads(json.dumps(dict(manifest)), parse_constant=str)     # as results have it
    keys = [key for key in _MADE_BY if None not in (manifest.get(key), recorded.get(key))]
    # Who names the weights would name the whitening
    if all(side.get("weights_digest") or side.get("whitening") for side in (manifest, recorded)):
        keys.append("whitening")
    return [key for key in keys if manifest.get(key) != recorded.get(key)]


def _files(evaluation: Mapping) -> Mapping:
    files = evaluation.get("files")
    return files if isinstance(files, Mapping) else {}


def _path(result: Path, path: object) -> Path | None:
    """A path that a result gives relative to its own folder."""
    return Path(result).parent / path if isinstance(path, str) and path else None
