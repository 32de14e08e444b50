"""Which data a run was trained and judged on: OUT_DIR/data.json; and which images of it were bad."""
import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dolg.core.logging import say
from dolg.data.boxes import BOXES
from dolg.data.decode import ImageError
from dolg.data.image_list import ImageList
from dolg.data.manifest import data_record
from dolg.data.shards import ImageShards
from dolg.errors import UserError
from dolg.files import append_record, file_digest, read_json, read_records, write_atomically

FILE, BAD_IMAGES = "data.json", "bad_images.jsonl"
# Images whose contents are compared when a run goes on, and how many are read at once
_SAMPLE, _THREADS = 1000, 32
_NAMED = 3

Images = ImageList | ImageShards | None


def data_used(cfg) -> dict:
    """By configuration key, the data sets that `cfg` names: {"folder", "file", "sha256",
    "boxes_sha256", "prepared"}.

    `file` is the list, or the ground truth, and `sha256` its digest (None of shards); `boxes_sha256` that
    of the boxes that its images are cut to, if they are; `prepared` is what `data_record` says, None where
    no command of this project prepared the set.
    """
    named = {"TRAIN": (cfg.TRAIN.DATASET, cfg.TRAIN.SPLIT), "TEST": (cfg.TEST.DATASET, cfg.TEST.SPLIT),
             "TEST.RETRIEVAL": (cfg.TEST.RETRIEVAL, f"gnd_{cfg.TEST.RETRIEVAL}.pkl")}
    root = Path(cfg.DATA_DIR)
    return {key: _used(root / folder, file) for key, (folder, file) in named.items() if folder}


def record_data(cfg, images: Images) -> None:
    """Write down what a new run is trained on: `data_used`; the digests of TRAIN.WEIGHTS, of the lines of
    the list, and of the contents of some of `images`."""
    _write(cfg, {**data_used(cfg), "TRAIN.WEIGHTS": _weights(cfg), **_images_record(cfg, images)})


def check_same_data(cfg, images: Images) -> None:
    """Raise UserError where the run in OUT_DIR was begun on another training list, on images of other
    contents, or from other TRAIN.WEIGHTS than there are now. A list that lost only images which were found
    bad is accepted, said, and recorded."""
    file = Path(cfg.OUT_DIR) / FILE
    if not file.exists():       # a run of an older version
        return
    try:
        recorded = read_json(file)
        if not isinstance(recorded, dict) or not isinstance(recorded.get("TRAIN"), dict):
            raise ValueError("it has no record of TRAIN")
    except (OSError, ValueError) as error:
        say(f"WARNING: {file} is damaged ({error}): whether the data are those that the run began with is "
            "not checked. It is written anew")
        record_data(cfg, images)
        return
    _check_weights(cfg, recorded.get("TRAIN.WEIGHTS"))
    before, now = recorded["TRAIN"], _used(Path(cfg.DATA_DIR) / cfg.TRAIN.DATASET, cfg.TRAIN.SPLIT)
    lost = []
    if before.get("sha256") != now["sha256"]:
        lost = _lost_images(cfg, recorded.get("lines_sha256"))
    if lost is None or before.get("boxes_sha256") != now["boxes_sha256"]:
        raise UserError(f"{now['folder']}/{now['file']} or its boxes were changed since the run in "
                        f"{cfg.OUT_DIR} began, which cannot go on with other images: give another OUT_DIR, "
                        f"or the files as they were (only images named in {BAD_IMAGES} may be removed)")
    _check_contents(cfg, images, recorded.get("contents"))
    if lost:
        say(f"{now['folder']}/{now['file']} lost {len(lost)} image(s) that {BAD_IMAGES} names: the run goes "
            "on without them")
        removed = recorded.get("removed")
        removed = [*(removed if isinstance(removed, list) else []), *(record["image"] for record in lost)]
        _write(cfg, {**recorded, "TRAIN": now, **_images_record(cfg, images), "removed": removed})


def note_bad_images(cfg, images: Images, reasons: dict[int, str]) -> None:
    """Append the images of some indexes, which could not be read, and the reasons to OUT_DIR/BAD_IMAGES,
    if they are not there yet."""
    file = Path(cfg.OUT_DIR) / BAD_IMAGES
    known = {record["index"] for record in _bad_images(cfg)}
    new = {index: reason for index, reason in reasons.items() if index not in known}
    lines = _lines(_list(cfg)) if new else []
    try:
        for index, reason in new.items():
            line = lines[index].decode(errors="replace") if index < len(lines) else None
            append_record(file, json.dumps({"index": index, "line": line, "image": images.name(index),
                                            "reason": reason}))
    except OSError as error:
        say(f"WARNING: could not write {file}: {error.strerror or error}")


def _bad_images(cfg) -> list[dict]:
    """What `note_bad_images` wrote, by index; torn records are left out."""
    file = Path(cfg.OUT_DIR) / BAD_IMAGES
    records = read_records(file)[0] if file.exists() else []
    whole = [record for record in records if isinstance(record.get("index"), int)
             and isinstance(record.get("image"), str)]
    return sorted(whole, key=lambda record: record["index"])


def _lost_images(cfg, lines_digest: str | None) -> list[dict] | None:
    """The bad images whose lines the training list has lost, if it is otherwise as it was, else None.
    BAD_IMAGES then holds those that are left, by their indexes in the shorter list."""
    lines, lost, left = _lines(_list(cfg)), [], []
    for record in _bad_images(cfg):
        index, line = record["index"], str(record.get("line")).encode()
        if index < len(lines) and lines[index] == line:
            left.append({**record, "index": index - len(lost)})
        elif index <= len(lines):
            lines.insert(index, line)
            lost.append(record)
    if not lost or _digest_of(lines) != lines_digest:
        return None
    write_atomically(Path(cfg.OUT_DIR) / BAD_IMAGES, "".join(json.dumps(record) + "\n" for record in left))
    return lost


def _check_weights(cfg, before: object) -> None:
    now = _weights(cfg)
    if not now["file"] or not isinstance(before, dict):
        return
    digests = before.get("sha256"), now["sha256"]
    if (digests[0] == digests[1]) if None not in digests else before.get("file") == now["file"]:
        return
    what = f"'{now['file']}' now" if now["file"] != before.get("file") else "other contents now"
    raise UserError(f"the run in {cfg.OUT_DIR} began from TRAIN.WEIGHTS '{before.get('file')}', which names "
                    f"{what}: a run that goes on does not load it. Leave TRAIN.WEIGHTS empty or as it was, "
                    "or give another OUT_DIR to start from these weights")


def _check_contents(cfg, images: Images, before: object) -> None:
    if not isinstance(before, dict):
        return
    now, bad = _contents(cfg, images), {_short(cfg, record["image"]) for record in _bad_images(cfg)}
    both = [name for name in now if None not in (before.get(name), now[name]) and name not in bad]
    changed = [name for name in both if before[name] != now[name]]
    if changed:
        names = ", ".join(changed[:_NAMED]) + (", ..." if len(changed) > _NAMED else "")
        raise UserError(f"{len(changed)} of the {len(both)} training images looked at have other contents "
                        f"than when the run in {cfg.OUT_DIR} began: {names}. Give another OUT_DIR, or the "
                        "images as they were")


def _weights(cfg) -> dict:
    return {"file": cfg.TRAIN.WEIGHTS, "sha256": _digest(Path(cfg.TRAIN.WEIGHTS))}


def _images_record(cfg, images: Images) -> dict:
    lines = _digest_of(_lines(_list(cfg))) if isinstance(images, ImageList) else None
    return {"lines_sha256": lines, "contents": _contents(cfg, images)}


def _contents(cfg, images: Images) -> dict[str, str | None]:
    """By name in the data set, the start of the SHA-256 of up to _SAMPLE images, evenly spread; None of
    those that cannot be read."""
    if images is None or cfg.DATA_LOADER.CHECK == "none":
        return {}
    count = min(_SAMPLE, len(images))
    chosen = (np.arange(count) * len(images) // count).tolist()
    # Shards keep open files, which threads would close for one another
    with ThreadPoolExecutor(_THREADS if isinstance(images, ImageList) else 1) as threads:
        digests = threads.map(lambda index: _content(images, index), chosen)
        return {_short(cfg, images.name(index)): digest for index, digest in zip(chosen, digests)}


def _content(images: ImageList | ImageShards, index: int) -> str | None:
    try:
        return hashlib.sha256(images.read(index)).hexdigest()[:16]
    except ImageError:
        return None


def _short(cfg, name: str) -> str:
    """An image's name within the data set, which may be moved."""
    return name.removeprefix(f"{Path(cfg.DATA_DIR) / cfg.TRAIN.DATASET}/")


def _list(cfg) -> Path:
    return Path(cfg.DATA_DIR) / cfg.TRAIN.DATASET / cfg.TRAIN.SPLIT


def _lines(file: Path) -> list[bytes]:
    """The lines of an image list, an image each, without the blanks around them; none of shards."""
    if not file.is_file():
        return []
    return [line for line in map(bytes.strip, file.read_bytes().splitlines()) if line]


def _digest_of(lines: Iterable[bytes]) -> str:
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


def _write(cfg, record: dict) -> None:
    write_atomically(Path(cfg.OUT_DIR) / FILE, json.dumps(record, indent=1) + "\n")


def _used(folder: Path, name: str) -> dict:
    return {"folder": str(folder), "file": name, "sha256": _digest(folder / name),
            "boxes_sha256": _digest(folder / BOXES), "prepared": data_record(folder)}


def _digest(file: Path) -> str | None:
    return file_digest(file) if file.is_file() else None
