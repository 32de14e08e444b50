"""Google Landmarks v2: retrieval and recognition predictions against the solution; see --help.

    python revisitop/gldv2.py retrieval --solution retrieval_solution_v2.1.csv \\
        --predictions FILE.csv [--json OUT]
    python revisitop/gldv2.py recognition --solution recognition_solution_v2.1.csv \\
        --predictions FILE.csv [--json OUT]

The measures are those of the benchmark (Weyand et al., CVPR 2020, section 5) as its published
evaluation computes them. Its average precision is not the trapezoid of Revisited Oxford and Paris:
it sums the precision at each correct image, and divides by min(correct images, 100), so that a
list of 100 can reach 1.
"""
import argparse
import math
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

if __name__ == "__main__" and not __package__:
    # Run as a file, the search path begins with this folder in place of the one around it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from revisitop.commands import Parser, run, show  # noqa: E402
from revisitop.names import NameIndex, find_names, some_names  # noqa: E402
from revisitop.tables import TableError, read_table, sha256  # noqa: E402

SUBSETS = ("Public", "Private")
# Task -> the column that holds what is sought, and what was found
COLUMNS = {"retrieval": "images", "recognition": "landmarks"}
DEPTH = 100
KAPPAS = (1, 5, 10, 50, 100)


class Landmark(NamedTuple):
    """The landmark that was recognised in a test image, and how surely: more is surer."""

    landmark: int
    score: float


class Solution(NamedTuple):
    """subsets: "Public" and "Private" -> test image -> index images (str) or landmarks (int) that
    are correct; ignored: test images that are not scored."""

    subsets: dict[str, dict[str, tuple]]
    ignored: set[str]


def load_solution(path: str | Path, task: str) -> Solution:
    """Read a solution CSV: id, images or landmarks (separated by spaces), Usage.

    task: "retrieval" or "recognition". Landmarks may be empty: an image without any. Raises
    TableError for a malformed file.
    """
    column, parse = COLUMNS[task], _index_images if task == "retrieval" else _landmarks
    subsets, ignored, seen = {name: {} for name in SUBSETS}, set(), set()
    for line, row in read_table(path, ("id", column, "Usage")):
        place, test_image, usage = f"{path}, line {line}", row["id"], row["Usage"]
        _check_new(test_image, seen, place)
        if usage == "Ignored":
            ignored.add(test_image)
        elif usage in subsets:
            subsets[usage][test_image] = parse(row[column], place)
        else:
            raise TableError(f"{place}: Usage is {usage!r}; it must be Public, Private or Ignored")
    return Solution(subsets, ignored)


def load_predictions(path: str | Path, solution: Solution, task: str) -> dict[str, dict]:
    """Read a predictions CSV: id and images (separated by spaces, best first), or id and landmarks
    ("LANDMARK SCORE").

    Returns, for "Public" and "Private", test image -> index images (list of str) or `Landmark`;
    test images with an empty prediction are left out, and so are those that the solution ignores.
    Test images may have the ending of a file. Raises TableError for a malformed file, a repeated id,
    and an id that the solution lacks.
    """
    column, parse = COLUMNS[task], _ranking if task == "retrieval" else _recognised
    predictions, seen = {name: {} for name in SUBSETS}, set()
    known = [*solution.ignored, *(image for name in SUBSETS for image in solution.subsets[name])]
    index = NameIndex(known)
    for line, row in read_table(path, ("id", column)):
        place, number = f"{path}, line {line}", index.find(row["id"])
        if number < 0:
            raise TableError(f"{place}: {row['id']!r} is not a test image of the solution, which has "
                             f"{some_names(known)}")
        test_image = known[number]
        _check_new(test_image, seen, place)
        if test_image in solution.ignored:
            continue
        subset = next(name for name in SUBSETS if test_image in solution.subsets[name])
        if row[column].strip():
            predictions[subset][test_image] = parse(row[column], place)
    return predictions


def retrieval_metrics(
    predictions: Mapping[str, Sequence[str]], truth: Mapping[str, Collection[str]],
    depth: int = DEPTH, kappas: Sequence[int] = KAPPAS,
) -> dict:
    """Metrics of retrieved lists, over all test images of `truth`.

    predictions: test image -> index images, best first; only the first `depth` count. A test
        image without prediction has found nothing. An image that is listed again is not correct
        again, and keeps its place.
    truth: test image -> the index images that are correct, at least one.

    Returns shares in 0..1, None where there is no test image:
        mAP@{depth}: mean of AP = sum of (correct so far / place) over the correct images, divided
            by min(correct images, depth).
        mP@{k}: mean of (correct among the first k) / k; places that a list lacks are wrong.
        mean_position, median_position: of the first correct image, from 1; depth + 1 where there
            is none.
        ap: test image -> AP.
    """
    places = [_correct_places(predictions.get(test_image, ())[:depth], set(wanted))
              for test_image, wanted in truth.items()]
    aps = [sum(count / place for count, place in enumerate(found, 1)) / min(len(wanted), depth)
           for found, wanted in zip(places, truth.values())]
    first = [found[0] if found else depth + 1 for found in places]
    precisions = {f"mP@{k}": _mean([sum(place <= k for place in found) / k for found in places])
                  for k in kappas}
    return {"test_images": len(truth), "predicted": len(predictions), f"mAP@{depth}": _mean(aps),
            **precisions, "mean_position": _mean(first),
            "median_position": float(np.median(first)) if first else None,
            "ap": dict(zip(truth, aps))}


def recognition_metrics(
    predictions: Mapping[str, Landmark], truth: Mapping[str, Collection[int]]
) -> dict:
    """Metrics of recognised landmarks.

    predictions: test image -> its `Landmark`, or nothing where none was recognised.
    truth: test image -> its landmarks; without any, every prediction for it is wrong.

    Returns shares in 0..1, None where no test image has a landmark:
        GAP: global (micro) average precision. All predictions in one ranking by score, ties by
            id; the sum of the precision at each correct one, divided by the number of test images
            with a landmark.
        top1: the share of the test images with a landmark for which it was recognised.
    """
    with_landmark = sum(bool(landmarks) for landmarks in truth.values())
    ranking = sorted(predictions.items(), key=lambda item: (-item[1].score, item[0]))
    correct = np.array([found.landmark in truth[test_image] for test_image, found in ranking], bool)
    precision = np.cumsum(correct) / np.arange(1, len(correct) + 1)
    return {"test_images": len(truth), "with_landmark": with_landmark,
            "predicted": len(predictions),
            "GAP": float(precision[correct].sum()) / with_landmark if with_landmark else None,
            "top1": float(correct.sum()) / with_landmark if with_landmark else None}


def evaluate_predictions(task: str, solution: str | Path, predictions: str | Path) -> dict:
    """Evaluate a file of predictions; raises TableError for files that cannot be used.

    Returns what `gldv2.py --json` writes:
        {"dataset": "gldv2", "task", "subsets": {"Public" | "Private": metrics},
        "protocol": {"solution_sha256", "predictions_sha256"}};
    and, where index images were found by their names without the endings of files, "note", which says so.
    """
    digests = {"solution_sha256": sha256(solution), "predictions_sha256": sha256(predictions)}
    truth = load_solution(solution, task)
    found = load_predictions(predictions, truth, task)
    note = _name_as_solution(found, truth, predictions) if task == "retrieval" else ""
    metrics = retrieval_metrics if task == "retrieval" else recognition_metrics
    return {"dataset": "gldv2", "task": task,
            "subsets": {name: metrics(found[name], truth.subsets[name]) for name in SUBSETS},
            "protocol": digests, **({"note": note} if note else {})}


def _name_as_solution(predictions: dict[str, dict], solution: Solution, path: str | Path) -> str:
    """Give the index images of predictions the ids that the solution has, where the endings of files alone
    differ; a note of it, "" where there are none. Raises TableError where no image at all is one of the
    solution's."""
    listed = list({image for lists in predictions.values() for images in lists.values() for image in images})
    correct = sorted({image for truth in solution.subsets.values() for images in truth.values()
                      for image in images})
    found = find_names(listed, correct)
    if listed and correct and (found < 0).all():
        raise TableError(f"none of the {len(listed)} index images that {path} lists, such as "
                         f"{min(listed)!r}, is among the {len(correct)} correct ones of the solution, such "
                         f"as {correct[0]!r}: list them by the solution's ids")
    id_of = {image: correct[row] for image, row in zip(listed, found.tolist())
             if row >= 0 and image != correct[row]}
    if not id_of:
        return ""
    for lists in predictions.values():
        for test_image, images in lists.items():
            lists[test_image] = [id_of.get(image, image) for image in images]
    example = min(id_of)
    return (f"{len(id_of)} index images were taken for the solution's without the endings of their files, "
            f"such as {example!r} for {id_of[example]!r}")


def format_table(result: dict) -> str:
    """The result of `evaluate_predictions` as text; shares in percent, a column per subset."""
    columns = list(result["subsets"].values())
    lines = [f"{'gldv2 ' + result['task']:20}" + "".join(f"{name:>10}" for name in SUBSETS)]
    for key in columns[0]:
        if key != "ap":
            cells = "".join(f"{_cell(key, column[key]):>10}" for column in columns)
            lines.append(f"{key.replace('_', ' '):20}{cells}")
    if "note" in result:
        lines.append(f"note: {result['note']}")
    return "\n".join(lines)


def _cell(key: str, value: float | None) -> str:
    if value is None or isinstance(value, int):
        return "-" if value is None else str(value)
    return f"{value if key.endswith('position') else 100 * value:.2f}"


def _correct_places(ranking: Sequence[str], wanted: set[str]) -> list[int]:
    """Places, from 1, at which the ranking has one of `wanted` for the first time."""
    place_of = {}
    for place, image in enumerate(ranking, 1):
        place_of.setdefault(image, place)
    return [place for image, place in place_of.items() if image in wanted]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _check_new(test_image: str, seen: set[str], place: str) -> None:
    if test_image in seen:
        raise TableError(f"{place}: {test_image!r} is there for the second time")
    seen.add(test_image)


def _index_images(text: str, place: str) -> tuple[str, ...]:
    if not text.split():
        raise TableError(f"{place}: it has no images; a test image without any must be Ignored")
    return tuple(text.split())


def _landmarks(text: str, place: str) -> tuple[int, ...]:
    return tuple(_landmark(word, place) for word in text.split())


def _ranking(text: str, place: str) -> list[str]:
    names = text.rstrip(" ").split(" ")
    if "" in names:
        # Skipped, it would move the names after it to better places
        raise TableError(f"{place}: place {names.index('') + 1} of the images is empty; separate "
                         "them by one space each")
    return names


def _recognised(text: str, place: str) -> Landmark:
    words = text.split()
    if len(words) != 2:
        raise TableError(f"{place}: the prediction has {len(words)} parts; it must be a landmark "
                         "and a score")
    try:
        score = float(words[1])
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise TableError(f"{place}: the score is {words[1]!r}; it must be a finite number")
    return Landmark(_landmark(words[0], place), score)


def _landmark(word: str, place: str) -> int:
    if not (word.isascii() and word.isdigit()):
        raise TableError(f"{place}: the landmark {word!r} is not a whole number")
    return int(word)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description="Google Landmarks v2: mAP@100, mP@k and the place of the first "
                                "correct image (retrieval), or GAP and top-1 accuracy "
                                "(recognition), of the public and the private test images.")
    add = parser.add_argument
    add("task", choices=tuple(COLUMNS))
    add("--solution", required=True, metavar="FILE",
        help="CSV with the columns id,images,Usage or id,landmarks,Usage")
    add("--predictions", required=True, metavar="FILE",
        help='CSV with the columns id,images or id,landmarks ("LANDMARK SCORE")')
    add("--json", type=Path, metavar="OUT", help="file for the result")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    result = evaluate_predictions(args.task, args.solution, args.predictions)
    show(format_table(result), result, args.json)


if __name__ == "__main__":
    run(main, TableError)
