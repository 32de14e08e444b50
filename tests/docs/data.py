"""Miniatures of the data sets that pages name, and random weights of the networks of their commands."""
import contextlib
import io
import pickle
import re
import threading
from argparse import Namespace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from scipy.io import savemat

from dolg.config import CfgNode, load_cfg
from dolg.core.weights import unsort_keys
from dolg.errors import UserError
from dolg.features.store import FeatureStore
from dolg.models import build_model
from dolg.prepare.run import PREPARERS, prepare_data
from tests.docs.pages import Page
from tests.prepare.landmark_miniatures import (MakeGLDv2, make_distractors, make_oxford, make_paris,
                                               write_truth)
from tests.prepare.miniatures import make_cars196, make_cub, make_imagenet, make_inshop, make_sop

MAKERS = {"roxford5k": make_oxford, "rparis6k": make_paris, "revisitop1m": make_distractors,
          "gldv2": MakeGLDv2, "sop": make_sop, "cub": make_cub, "cars196": make_cars196,
          "inshop": make_inshop, "imagenet": make_imagenet}
# Data sets that have another name as well
ALIASES = {"landmark": "gldv2"}
# Miniatures have the first archives alone
ARCHIVES = {"revisitop1m": 3, "gldv2": 2}


class Published:
    """Miniatures of the published data sets: to download from `url(name)`, and prepared."""

    def __init__(self, folder: Path):
        self._web, self._root = folder / "web", folder / "prepared"
        self._web.mkdir(parents=True)
        self._folders: dict[str, list[Path]] = {}
        handler = partial(_Quiet, directory=str(self._web))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05},
                         daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def archives(self, name: str) -> Path:
        """The folder of what one downloads."""
        folder = self._web / name
        if not folder.exists():
            folder.mkdir()
            MAKERS[name](folder, np.random.default_rng(7))
        return folder

    def options(self, name: str) -> list[str]:
        """What makes tools/prepare_data.py take them from here."""
        self.archives(name)
        some = ["--archives", str(ARCHIVES[name])] if name in ARCHIVES else []
        return ["--mirror", f"http://127.0.0.1:{self._server.server_port}/{name}", "--unverified", *some]

    def prepared(self, name: str) -> list[Path]:
        """Its folders under DATA_DIR, made once."""
        if name not in self._folders:
            before = set(self._root.glob("*"))
            with contextlib.redirect_stdout(io.StringIO()):
                prepare_data(_arguments(name, self._root, self.archives(name)))
            self._folders[name] = sorted(set(self._root.glob("*")) - before)
        return self._folders[name]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def _arguments(name: str, root: Path, given: Path) -> Namespace:
    """As tools/prepare_data.py NAME --from GIVEN reads them."""
    assert name in PREPARERS
    return Namespace(name=name, root=root, given=given, mirror="", jobs=1, workers=0, check=False,
                     remove_archives=False, partial=False, unverified=True, variant="",
                     archives=ARCHIVES.get(name), parts=["train", "index", "test"], every_image=False,
                     min_images=1, sizes=False, val_share=0.2, seed=0, held_out=0.1)


def make_photographs(folder: Path, names: list[str], size: tuple[int, int] = (24, 20)) -> None:
    """Photographs of noise under these names, of so many pixels (width, height)."""
    rng = np.random.default_rng(len(names))
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), np.uint8)).save(file)


def make_revisited(root: str, name: str, page: str, distractors: int = 4) -> None:
    """A set in the Revisited format of 2 queries and 6 images, with a folder of distractors, and beside
    them the images that a page names."""
    named = re.findall(rf"{name}/jpg/([\w.-]+)", Page(page).code())
    make_photographs(Path(root, name, "jpg"), named, (640, 480))
    names = [f"{kind}_{number}" for number in range(4) for kind in ("one", "two")]
    write_truth(Path(root), name, names[2:], names[:2])
    make_photographs(Path(root, name, "jpg"), [f"{image}.jpg" for image in names])
    make_photographs(Path(root, name, "distractors"), [f"other_{n}.jpg" for n in range(distractors)])


def write_weights(file: Path, layout: str, config: str, options: list[str]) -> None:
    """Random weights of the network that this configuration has, in a layout of dolg.core.weights, or
    "timm": of its backbone alone. None where the configuration is wrong: its command says so itself."""
    try:
        cfg = load_cfg(config, options)
    except UserError:
        return
    torch.manual_seed(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state": _state(cfg, layout)} if layout != "timm" else _state(cfg, layout), file)


def _state(cfg: CfgNode, layout: str) -> dict[str, torch.Tensor]:
    if layout == "timm":
        return timm.create_model(cfg.TIMM.NAME).state_dict()
    if layout == "RRT":
        cfg.defrost()
        cfg.MODEL.ARCH = "rrt"
    model = build_model(cfg)
    return unsort_keys({"model": model.state_dict()}, layout)


def make_delg_files(folder: str, dim: int = 8) -> None:
    """What TensorFlow's DELG writes of three images: protocol buffers of their descriptors."""
    Path(folder).mkdir(parents=True)
    for name in "abc":
        values = np.random.default_rng(ord(name)).standard_normal(dim).astype("<f4").tobytes()
        shape, data = b"\x0a\x03\x0a\x01" + bytes([dim]), b"\x0a" + bytes([len(values)]) + values
        content = shape + b"\x12" + bytes([len(data)]) + data
        (Path(folder) / f"{name}.delg_global").write_bytes(content)


def make_original_files(stores: str, pickled: str, distractors: str) -> None:
    """Descriptors as the original DOLG saves them: a dictionary of queries and database by file name, and
    a MATLAB table of the distractors."""
    entries = {}
    for part in ("query", "database"):
        store = FeatureStore(Path(stores) / part)
        table = np.concatenate(list(store.global_descriptors()))
        entries |= {Path(name).name: row for name, row in zip(store.names, table)}
    Path(pickled).write_bytes(pickle.dumps(entries))
    others = np.concatenate(list(FeatureStore(Path(stores) / "revisitop1m").global_descriptors()))
    savemat(distractors, {"X": others.T})


def make_own_images(page: str) -> None:
    """A user's photographs, in the places and with the table that the page on data sets has, and the files
    of In-shop, fetched by hand."""
    table = next(block.code for block in Page(page).blocks if block.code.startswith("path,role"))
    towers = Path("~/towers").expanduser()
    make_photographs(towers, [line.split(",")[0] for line in table.splitlines()[1:]], (700, 640))
    (towers / "images.csv").write_text(table + "\n")
    make_photographs(Path("~/photos/bridges").expanduser(),
                     [f"{name}/{number}.jpg" for name in ("pont_neuf", "rialto") for number in range(5)])
    make_inshop_download()


def make_inshop_download() -> None:
    """What one fetches by hand."""
    folder = Path("~/Downloads/inshop").expanduser()
    folder.mkdir(parents=True)
    make_inshop(folder, np.random.default_rng(7))
