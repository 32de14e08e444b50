"""Which data a run was trained and judged on: OUT_DIR/data.json."""
import json
from pathlib import Path

from dolg.data.boxes import BOXES
from dolg.data.manifest import data_record
from dolg.errors import UserError
from dolg.files import file_digest, write_atomically

FILE = "data.json"


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


def record_data(cfg) -> None:
    """Write down what a new run is trained on."""
    write_atomically(Path(cfg.OUT_DIR) / FILE, json.dumps(data_used(cfg), indent=1) + "\n")


def check_same_data(cfg) -> None:
    """Raise UserError where the run in OUT_DIR was begun on another training list than there is now."""
    file = Path(cfg.OUT_DIR) / FILE
    if not file.exists():       # a run of an older version
        return
    before = json.loads(file.read_text(encoding="utf-8")).get("TRAIN", {})
    now = _used(Path(cfg.DATA_DIR) / cfg.TRAIN.DATASET, cfg.TRAIN.SPLIT)
    if any(before.get(key) != now[key] for key in ("sha256", "boxes_sha256")):
        raise UserError(f"{now['folder']}/{now['file']} or its boxes were changed since the run in "
                        f"{cfg.OUT_DIR} began, which cannot go on with other images: give another OUT_DIR, "
                        "or the files as they were")


def _used(folder: Path, name: str) -> dict:
    return {"folder": str(folder), "file": name, "sha256": _digest(folder / name),
            "boxes_sha256": _digest(folder / BOXES), "prepared": data_record(folder)}


def _digest(file: Path) -> str | None:
    return file_digest(file) if file.is_file() else None
