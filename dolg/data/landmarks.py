"""The synthetic landmark benchmark on disk: folders, lists, ground truth, manifests.

`root/synthetic_train` holds photographs of training landmarks (train_list.txt, val_list.txt,
jpg/), `root/synthetic` a set in the Revisited format of landmarks that training never saw
(gnd_synthetic.pkl, jpg/) with distractors/. Every file follows from the parameters alone: each
photograph has its own random generator, so neither the number of workers nor an interruption
changes a byte.
"""
import json
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dolg.data.facades import draw_facade
from dolg.data.photographs import VIEWS, pyramid, take_photograph
from dolg.errors import UserError
from dolg.files import write_atomically

FORMAT = 1
MANIFEST, STARTED = "manifest.json", "manifest.incomplete.json"
# Landmark numbers begin here; numbers, and so landmarks, are never in two splits
SPLITS = {"train": 0, "test": 1_000_000, "distractor": 2_000_000, "house": 3_000_000,
          "empty": 4_000_000}
HOUSES = 8                      # neighbours that stand around in the photographs of all splits
PHOTOS_PER_DISTRACTOR = 4       # photographs of one distractor landmark
EMPTY_SHARE = 0.04              # of the distractors
# The first number of a generator's seed says what it decides
FAMILY, DETAIL, PHOTO, COUNTS, ORDER = range(5)


@dataclass(frozen=True)
class LandmarkParams:
    """What to make. Counts of photographs are per landmark, except `distractors`; those of
    easy, hard and junk vary by one from landmark to landmark. Sizes are the longest side of a
    photograph in pixels."""

    seed: int = 0
    train_landmarks: int = 60
    train_photos: int = 24
    val_photos: int = 2
    test_landmarks: int = 24
    queries: int = 1
    easy: int = 5
    hard: int = 5
    junk: int = 2
    distractors: int = 300
    train_size: int = 160
    size: int = 320

    def __post_init__(self):
        least = {"train_landmarks": 1, "train_photos": 1, "test_landmarks": 1, "queries": 1,
                 "train_size": 32, "size": 32}
        most = {"train_landmarks": 1_000_000, "test_landmarks": 1_000_000,
                "distractors": 1_000_000, "train_size": 4096, "size": 4096}
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = least.get(field.name, 0), most.get(field.name, 1 << 31)
            if not isinstance(value, int) or not low <= value <= high:
                raise UserError(f"{field.name} is {value!r}: it must be a whole number from {low} "
                                f"to {high}")


@dataclass(frozen=True)
class Shot:
    """One photograph to take: where it goes, its kind, its number and its longest side."""

    path: str
    view: str
    number: int
    longest: int


@dataclass(frozen=True)
class Job:
    """All photographs of one landmark, which is drawn once for them."""

    folder: Path
    seed: int
    landmark: int
    shots: tuple[Shot, ...]


# The jobs of a folder, and what writes its lists given the boxes of all photographs by path and
# returns what the manifest says of them
Plan = tuple[list[Job], Callable[[dict[str, tuple]], dict]]


def make_landmarks(root: Path, params: LandmarkParams, workers: int | None = None,
                   progress: bool = True) -> dict:
    """Make `root/synthetic_train` and `root/synthetic`; a finished one is left as it is.

    Uses `workers` processes, all processors' worth by default. Returns, for each of the two
    folders, its counts and under "made" whether this call made it. Raises UserError where a
    folder was made or begun with other parameters, or holds something else.
    """
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}: it must be at least 1")
    root = Path(root)
    plans = {"synthetic_train": _plan_training, "synthetic": _plan_test}
    made = {name: _is_made(root / name, params) for name in plans}
    summary = {}
    for name, plan in plans.items():
        folder = root / name
        if not made[name]:
            _begin(folder, params)
            jobs, finish = plan(folder, params)
            boxes = _run(jobs, workers or os.cpu_count() or 1, progress, name)
            write_atomically(folder / STARTED, _as_json(
                {"format": FORMAT, "parameters": asdict(params), **finish(boxes)}))
            os.replace(folder / STARTED, folder / MANIFEST)
        counts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["counts"]
        summary[name] = {"made": not made[name], **counts}
    return summary


def _as_json(content: dict) -> str:
    return json.dumps(content, indent=1) + "\n"


def _is_made(folder: Path, params: LandmarkParams) -> bool:
    """Whether the folder is complete; UserError where it is not this benchmark's to fill."""
    for name in (MANIFEST, STARTED):
        if (folder / name).is_file():
            _check_same(folder / name, {"format": FORMAT, **asdict(params)})
            return name == MANIFEST
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and was not made by this command (no {MANIFEST}): "
                        "choose another root or delete it")
    return False


def _check_same(file: Path, wanted: dict) -> None:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        there = {"format": manifest["format"], **manifest["parameters"]}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is not a manifest of synthetic landmarks: choose another root "
                        f"or delete the folder {file.parent}") from None
    differences = [f"{key} is {there.get(key)} there and {wanted.get(key)} here"
                   for key in sorted({*there, *wanted}) if there.get(key) != wanted.get(key)]
    if differences:
        raise UserError(f"{file.parent} was made with other parameters ({', '.join(differences)}):"
                        " choose another root or delete the folder")


def _begin(folder: Path, params: LandmarkParams) -> None:
    """Note what is being made, and clear away what a killed run was writing."""
    write_atomically(folder / STARTED,
                     _as_json({"format": FORMAT, "parameters": asdict(params)}))
    for half_written in folder.rglob(".*.tmp"):
        half_written.unlink()


def _plan_training(folder: Path, params: LandmarkParams) -> Plan:
    """The jobs of the training set, and what to do when they are done."""
    photos = params.train_photos + params.val_photos
    # Photographs held out for classification; landmarks held out for metric learning
    jobs, lists = [], {"train": [], "val": [], "classes_train": [], "classes_val": []}
    for label in range(params.train_landmarks):
        shots = tuple(Shot(f"jpg/landmark{label:04d}_{number:03d}.jpg", "train", number,
                           params.train_size) for number in range(photos))
        jobs.append(Job(folder, params.seed, SPLITS["train"] + label, shots))
        for number, shot in enumerate(shots):
            split = "train" if number < params.train_photos else "val"
            lists[split].append(f"{shot.path} {label}\n")
            split = "train" if label < 2 * params.train_landmarks / 3 else "val"
            lists[f"classes_{split}"].append(f"{shot.path} {label}\n")

    def finish(boxes: dict) -> dict:
        for split, lines in lists.items():
            write_atomically(folder / f"{split}_list.txt", "".join(lines))
        return {"counts": {"landmarks": params.train_landmarks, "train": len(lists["train"]),
                           "val": len(lists["val"])}}

    return jobs, finish


def _plan_test(folder: Path, params: LandmarkParams) -> Plan:
    """The jobs of the test set and its distractors, and what to do when they are done."""
    jobs = [_test_job(folder, params, index) for index in range(params.test_landmarks)]
    jobs_of_distractors = list(_distractor_jobs(folder, params))

    def finish(boxes: dict) -> dict:
        truth = _ground_truth(params, jobs, boxes)
        write_atomically(folder / "gnd_synthetic.pkl", pickle.dumps(truth, protocol=4))
        queries = {name: entry["bbx"] for name, entry in zip(truth["qimlist"], truth["gnd"])}
        return {"counts": {"landmarks": params.test_landmarks, "queries": len(truth["qimlist"]),
                           "database": len(truth["imlist"]), "distractors": params.distractors},
                "queries": queries}

    return jobs + jobs_of_distractors, finish


def _test_job(folder: Path, params: LandmarkParams, index: int) -> Job:
    landmark = SPLITS["test"] + index
    vary = np.random.default_rng((COUNTS, params.seed, landmark))
    shots = []
    for kind, view in enumerate(("query", "easy", "hard", "junk")):
        count = params.queries if view == "query" else getattr(params, view)
        if view != "query" and count:
            count = max(1, count + int(vary.integers(-1, 2)))
        shots += [Shot(f"jpg/landmark{index:04d}_{view}_{i}.jpg", view, 1000 * kind + i,
                       params.size) for i in range(count)]
    return Job(folder, params.seed, landmark, tuple(shots))


def _distractor_jobs(folder: Path, params: LandmarkParams) -> Iterator[Job]:
    empty = int(EMPTY_SHARE * params.distractors)
    numbers = range(params.distractors)
    for start in range(0, params.distractors - empty, PHOTOS_PER_DISTRACTOR):
        chosen = numbers[start:min(start + PHOTOS_PER_DISTRACTOR, params.distractors - empty)]
        yield Job(folder, params.seed, SPLITS["distractor"] + start // PHOTOS_PER_DISTRACTOR,
                  tuple(_distractor(i, params.size) for i in chosen))
    for i in numbers[params.distractors - empty:]:
        yield Job(folder, params.seed, SPLITS["empty"] + i, (_distractor(i, params.size),))


def _distractor(number: int, longest: int) -> Shot:
    return Shot(f"distractors/distractor{number:05d}.jpg", "train", number, longest)


def _ground_truth(params: LandmarkParams, jobs: list[Job], boxes: dict) -> dict:
    """The dictionary of the Revisited format, its database in random order."""
    shots = [shot for job in jobs for shot in job.shots if shot.view != "query"]
    order = np.random.default_rng((ORDER, params.seed)).permutation(len(shots))
    images = [Path(shots[i].path).stem for i in order]
    index = {name: i for i, name in enumerate(images)}
    names, entries = [], []
    for job in jobs:
        lists = {view: [index[Path(shot.path).stem] for shot in job.shots if shot.view == view]
                 for view in ("easy", "hard", "junk")}
        for shot in job.shots:
            if shot.view == "query":
                names.append(Path(shot.path).stem)
                entries.append({"bbx": list(boxes[shot.path]),
                                **{view: sorted(found) for view, found in lists.items()}})
    return {"imlist": images, "qimlist": names, "gnd": entries}


def _run(jobs: list[Job], workers: int, progress: bool, title: str) -> dict[str, tuple]:
    """Do the jobs in processes of their own; the boxes of all photographs by path."""
    boxes = {}
    context = multiprocessing.get_context("spawn")
    total = sum(len(job.shots) for job in jobs)
    with (ProcessPoolExecutor(min(workers, len(jobs)), context, _start_worker) as pool,
          tqdm(total=total, desc=title, unit="photo",
               disable=None if progress else True) as bar):
        try:
            for job, found in zip(jobs, pool.map(_do, jobs)):
                boxes.update({shot.path: box for shot, box in zip(job.shots, found)})
                bar.update(len(job.shots))
        finally:
            pool.shutdown(cancel_futures=True)      # after Ctrl-C, do not do the rest first
    return boxes


def _start_worker() -> None:
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)    # Ctrl-C is the parent's to handle
    # A worker whose parent was killed would wait for work for ever
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _do(job: Job) -> list[tuple[float, float, float, float]]:
    """Take and write the photographs of a job; the landmark's box in each."""
    landmark = None
    if job.landmark < SPLITS["empty"]:
        landmark = pyramid(_facade(job.seed, job.landmark))
    boxes = []
    for shot in job.shots:
        rng = np.random.default_rng((PHOTO, job.seed, job.landmark, shot.number))
        photograph = take_photograph(landmark, _houses(job.seed), rng, VIEWS[shot.view],
                                     _size(rng, shot.longest))
        _write_jpeg(job.folder / shot.path, photograph.image, int(rng.integers(60, 93)))
        boxes.append(photograph.box)
    return boxes


def _facade(seed: int, landmark: int) -> np.ndarray:
    """Every second pair of neighbouring numbers is a family of two that look alike."""
    family = landmark - landmark % 2 if landmark // 2 % 2 == 0 else landmark
    return draw_facade(np.random.default_rng((FAMILY, seed, family)),
                       np.random.default_rng((DETAIL, seed, landmark)))


@lru_cache(maxsize=1)
def _houses(seed: int) -> list[list[np.ndarray]]:
    return [pyramid(_facade(seed, SPLITS["house"] + i)) for i in range(HOUSES)]


def _size(rng: np.random.Generator, longest: int) -> tuple[int, int]:
    """(width, height): landscape, portrait or a smaller landscape, all 4 : 3."""
    sides = ((1, 0.75), (0.75, 1), (0.9, 0.675))[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
    return round(longest * sides[0]), round(longest * sides[1])


def _write_jpeg(path: Path, image: np.ndarray, quality: int) -> None:
    """Whole or not at all. Unlike `write_atomically` it does not wait for the disk: an
    interrupted run makes all photographs again."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(encoded.tobytes())
    os.replace(temporary, path)


# The contact sheet

CELL = (200, 150)       # pixels of a photograph on it
COLUMNS = (("query", (40, 190, 240)), ("easy", (90, 170, 60)), ("easy", (90, 170, 60)),
           ("hard", (40, 120, 230)), ("hard", (40, 120, 230)), ("junk", (70, 60, 190)),
           ("distractor", (170, 120, 80)))
MAX_BYTES = 350_000


def contact_sheet(root: Path, path: Path, rows: int = 8) -> None:
    """Write a JPEG with one row per test landmark: the query with its box, easy and hard
    photographs, junk, a distractor. Raises UserError where `root/synthetic` is not complete."""
    folder = Path(root) / "synthetic"
    if not (folder / MANIFEST).is_file():
        raise UserError(f"no {folder / MANIFEST}: make the landmarks first")
    queries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["queries"]
    distractors = sorted((folder / "distractors").glob("*.jpg"))
    first = [name for name in queries if name.endswith("_query_0")][:rows]
    sheet = [_captions()]
    for row, query in enumerate(first):
        landmark, seen, cells = query.removesuffix("_query_0"), {}, []
        for view, colour in COLUMNS:
            number = seen[view] = seen.get(view, -1) + 1
            file = folder / "jpg" / f"{landmark}_{view}_{number}.jpg"
            if view == "distractor":
                file = distractors[row * 37 % len(distractors)] if distractors else file
            cells.append(_cell(file, colour, queries[query] if view == "query" else None))
        sheet.append(np.hstack(cells))
    for quality in (90, 84, 78, 70, 60, 45):
        _, encoded = cv2.imencode(".jpg", np.vstack(sheet), [cv2.IMWRITE_JPEG_QUALITY, quality])
        if len(encoded) <= MAX_BYTES:
            break
    write_atomically(path, encoded.tobytes())


def _captions() -> np.ndarray:
    width = CELL[0] + 12
    strip = np.full((30, width * len(COLUMNS), 3), 255, np.uint8)
    for i, (view, colour) in enumerate(COLUMNS):
        (wide, _), _ = cv2.getTextSize(view, cv2.FONT_HERSHEY_SIMPLEX, 0.6, 1)
        cv2.putText(strip, view, (i * width + (width - wide) // 2, 22), cv2.FONT_HERSHEY_SIMPLEX,
                    0.6, colour, 1, cv2.LINE_AA)
    return strip


def _cell(file: Path, colour: tuple[int, int, int], box: list[float] | None) -> np.ndarray:
    """A framed photograph with its query box, or an empty cell where there is no file."""
    width, height = CELL
    cell = np.full((height + 12, width + 12, 3), 255, np.uint8)
    if not file.is_file():
        return cell
    image = cv2.imread(str(file))
    scale = min(width / image.shape[1], height / image.shape[0])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    if box is not None:
        x0, y0, x1, y1 = (round(scale * value) for value in box)
        cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), colour, 2)
    tall, wide = image.shape[:2]
    y, x = (cell.shape[0] - tall) // 2, (cell.shape[1] - wide) // 2
    cv2.rectangle(cell, (x - 3, y - 3), (x + wide + 2, y + tall + 2), colour, -1)
    cell[y:y + tall, x:x + wide] = image
    return cell
