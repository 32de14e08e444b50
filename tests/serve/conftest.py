"""A small network of random weights, photographs, stores of them, and the browser."""
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.models import build_model
from dolg.serve.finder import open_finder
from tests.browser import browser, chromium

__all__ = ["browser", "chromium"]

ROOT = Path(__file__).resolve().parents[2]
CFG = str(ROOT / "configs" / "quickstart.yaml")     # a ResNet-18
MODEL = ["MODEL.ARCH", "delg", "MODEL.DELG.LOCAL_DIM", "12", "RESNET.STEM_WIDTH", "8",
         "MODEL.HEADS.REDUCTION_DIM", "16", "LOSS.NAME", "", "INFER.SCALES", "[0.7071, 1.0]",
         "INFER.LOCAL_TOPK", "20", "INFER.LOCAL_THRESHOLD", "0", "INFER.LOCAL_SCALES", "[1.0, 1.4142]"]
RRT = ["MODEL.RRT.DIM", "12", "MODEL.RRT.GLOBAL_DIM", "16", "MODEL.RRT.HEADS", "2", "MODEL.RRT.LAYERS", "1",
       "MODEL.RRT.SCALES", "[1.0, 1.4142]"]


def photograph(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Coloured blocks, uint8 (height,width,3)."""
    blocks = rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(blocks, (width, height), interpolation=cv2.INTER_NEAREST)


@pytest.fixture(scope="session")
def asked(tmp_path_factory, run_tool) -> SimpleNamespace:
    """`keys` and `weights` of a network; `jpg`, `others`: folders of photographs; `database`,
    `distractors`, `query`: stores of these by tools/infer.py, of one image at a time, the last ones cut to
    `boxes`."""
    folder, rng = tmp_path_factory.mktemp("asked"), np.random.default_rng(0)
    names = [*(f"sub dir/{number:02d}.jpg" for number in range(9)), "z é.png"]
    for name, size in zip(names, [(128, 96)] * 6 + [(96, 128)] * 4):
        file = folder / "jpg" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), photograph(rng, *size))
    (folder / "others").mkdir()
    for number in range(6):
        cv2.imwrite(str(folder / "others" / f"{number}.jpg"), photograph(rng, 112, 96))
    (folder / "others" / "2.jpg").write_text("no image")
    (folder / "queries").mkdir()
    boxes = [(8.0, 4.0, 100.0, 90.0), (0.0, 0.0, 128.0, 96.0), (20.7, 10.2, 90.9, 80.0)]
    for number in range(3):
        cv2.imwrite(str(folder / "queries" / f"{number}.jpg"), photograph(rng, 128, 96))
    lines = [f"{number}.jpg,{','.join(map(str, box))}\n" for number, box in enumerate(boxes)]
    (folder / "queries" / "boxes.csv").write_text("path,x1,y1,x2,y2\n" + "".join(lines))
    (folder / "queries" / "query.txt").write_text("0.jpg\n1.jpg\n2.jpg\n")
    torch.manual_seed(0)
    torch.save(build_model(load_cfg(CFG, MODEL)).state_dict(), folder / "w.pyth")
    keys = [*MODEL, "OUT_DIR", str(folder / "out")]
    for images in ("jpg", "others", "queries/query.txt"):
        done = run_tool("tools/infer.py", "--cfg", CFG, *keys, "TEST.WEIGHTS", folder / "w.pyth",
                        "INFER.DATASET", "", "INFER.IMAGES", folder / images, "INFER.LOCAL", "True",
                        "INFER.BATCH_PIXELS", 1, "INFER.OUT_DIR", folder / "features",
                        "DATA_LOADER.NUM_WORKERS", 0, env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
    stores = {name: folder / "features" / part for name, part in
              (("database", "jpg"), ("distractors", "others"), ("query", "query"))}
    return SimpleNamespace(folder=folder, keys=keys, weights=str(folder / "w.pyth"), boxes=boxes, cfg=CFG,
                           jpg=folder / "jpg", others=folder / "others", queries=folder / "queries",
                           **stores)


@pytest.fixture(scope="session")
def rrt_keys(asked) -> list[str]:
    """Keys of a transformer of random weights for its features."""
    torch.manual_seed(1)
    cfg = load_cfg(CFG, [*MODEL, *RRT, "MODEL.ARCH", "rrt"])
    torch.save(build_model(cfg).state_dict(), asked.folder / "rrt.pyth")
    return [*RRT, "RERANK.RRT.WEIGHTS", str(asked.folder / "rrt.pyth")]


@pytest.fixture(scope="session")
def finder(asked, rrt_keys):
    """Asks database and distractors, and can do all that needs no learning."""
    torch.set_num_threads(1)
    return open_finder(asked.cfg, asked.weights, [*asked.keys, *rrt_keys, "RERANK.TOP_K", "[6]"],
                       [asked.database, asked.distractors], [asked.jpg, asked.others], "all")
