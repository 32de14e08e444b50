"""Labels of a store's images, for colours: of a ground truth, or of an image list."""
from collections.abc import Sequence
from os.path import commonprefix
from pathlib import Path

import numpy as np

from dolg.data.image_list import read_image_list
from dolg.errors import UserError
from revisitop import GroundTruth, load_ground_truth


def labels_by_name(gnd: Path | None, list_file: Path | None) -> dict[str, str]:
    """Image name -> label, by a ground truth (see `landmarks_of`) or a list of 'path label' lines, paths
    relative to its folder; nothing where neither is given."""
    if gnd and list_file:
        raise UserError("--gnd and --list both say what is what: give one")
    if gnd:
        return landmarks_of(load_ground_truth(gnd))
    if not list_file:
        return {}
    listed, found = read_image_list(list_file), {}
    for index, label in enumerate(listed.labels.tolist()):
        path = Path(listed.name(index))
        # As extraction takes them from the same list: relative ones as they stand there, others whole
        found[str(path)] = str(label)
        if path.is_relative_to(list_file.parent):
            found[path.relative_to(list_file.parent).as_posix()] = str(label)
    return found


def landmarks_of(truth: GroundTruth) -> dict[str, str]:
    """Image name -> landmark. Queries that share a positive show one landmark, as do all their positives;
    it is called by what the names of all, or of the queries, begin with alike. What is nobody's positive
    is in no landmark."""
    groups = _joined([{("query", row), *(("image", int(i)) for i in _positives(entry))}
                      for row, entry in enumerate(truth.labels)])
    found = {}
    for group in groups:
        queries = [truth.queries[row] for kind, row in sorted(group) if kind == "query"]
        images = [truth.images[row] for kind, row in sorted(group) if kind == "image"]
        name = _beginning([*queries, *images]) or _beginning(queries) or queries[0]
        while name in found.values():
            name += "'"
        for kind, row in group:
            found[truth.queries[row] if kind == "query" else truth.images[row]] = name
    return found


def _positives(entry: dict[str, np.ndarray]) -> list[int]:
    return [int(row) for label in ("ok", "easy", "hard") for row in entry.get(label, ())]


def _joined(sets: Sequence[set]) -> list[set]:
    """Sets that have members in common, as one."""
    groups: list[set] = []
    for new in sets:
        apart = []
        for group in groups:
            if group & new:
                new = new | group
            else:
                apart.append(group)
        groups = [*apart, new]
    return groups


def _beginning(names: Sequence[str]) -> str:
    """What the names begin with alike, without a number that has only begun."""
    prefix = commonprefix(list(names))
    whole = prefix.rstrip("_- .")
    return whole if whole != prefix else prefix.rstrip("0123456789").rstrip("_- .")
