"""Three workers on 150 chunks, killed twenty times: the store is the undisturbed one."""
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dolg.config import load_cfg
from dolg.features.store import FeatureStore
from dolg.models import build_model

ROOT = Path(__file__).resolve().parents[2]
IMAGES, CHUNK, KILLS = 1500, 10, 20
MODEL = ["MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "4", "MODEL.NUM_CLASSES", "4",
         "MODEL.HEADS.REDUCTION_DIM", "8"]

# Workers are forked, so that starting one takes no import. Worker 3 is killed and never restarted;
# the other two are killed, at random, once the store has a random number of chunks more
DRIVER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
import dolg.features.extract as extract
from dolg.config import load_cfg
from dolg.features.run import infer

out_dir, log, total, kills, seed, options = json.loads(sys.argv[1])
store, log = Path(out_dir) / "images", Path(log)
describe_all = extract.describe_all

def counted(model, images, *args, **kwargs):
    with open(log, "a") as file:
        file.write(f"{len(images)}\\n")
    return describe_all(model, images, *args, **kwargs)

extract.describe_all = counted

def start(number):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            infer(load_cfg(None, [*options, "INFER.OUT_DIR", out_dir, "INFER.TOTAL_NUM", str(total),
                                  "INFER.CUT_NUM", str(number)]))
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    return pid

rng = random.Random(seed)
workers = {number: start(number) for number in range(1, total + 1)}
chunks = 1500 // 10
for kill in range(kills + 1 if kills else 0):
    wanted = round((kill + rng.random()) * chunks * 0.8 / (kills + 1))
    while len(list(store.glob("chunk-*"))) < wanted:
        time.sleep(0.001)
    time.sleep(rng.random() * 0.05)
    number = rng.choice([1, 2]) if kill else 3
    os.kill(workers[number], signal.SIGKILL)
    os.waitpid(workers.pop(number), 0)
    if kill:
        workers[number] = start(number)
statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers.values()]
print("statuses", statuses, "workers", len(workers))
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("faults") / "images", np.random.default_rng(0)
    folder.mkdir()
    sizes = [(24, 32), (32, 24), (24, 24), (20, 36)]
    blobs = [cv2.imencode(".jpg", rng.integers(0, 255, (*sizes[i % 4], 3), dtype=np.uint8))[1]
             for i in range(100)]
    for number in range(IMAGES - len(ODD)):
        sub = folder / f"{number // 1000}"
        sub.mkdir(exist_ok=True)
        (sub / f"img{number:05d}.jpg").write_bytes(blobs[number % 100].tobytes())
    for name, make in ODD.items():
        make(folder / name, blobs[0].tobytes())
    return folder


def _pillow(mode: str, size: tuple[int, int] = (24, 32), **options):
    def make(path: Path, _) -> None:
        count = size[0] * size[1] * len(Image.new(mode, (1, 1)).getbands())
        pixels = np.random.default_rng(1).integers(0, 255, count, dtype=np.uint8)
        image = Image.frombytes(mode, size, pixels.tobytes())
        if options.get("exif"):
            exif = Image.Exif()
            exif[0x0112] = options["exif"]
            image.save(path, exif=exif)
        else:
            image.save(path)
    return make


def _sixteen_bits(path: Path, _) -> None:
    pixels = np.random.default_rng(1).integers(0, 65535, (24, 32, 3), dtype=np.uint16)
    cv2.imwrite(str(path), pixels)


FAILING = {"cut.jpg", "empty.jpg", "text.jpg", "cut.png"}
ODD = {
    "cut.jpg": lambda path, blob: path.write_bytes(blob[:300]),
    "empty.jpg": lambda path, blob: path.write_bytes(b""),
    "text.jpg": lambda path, blob: path.write_text("no image"),
    "cut.png": lambda path, blob: (_pillow("RGB")(path, blob),
                                   path.write_bytes(path.read_bytes()[:300])),
    "cmyk.jpg": _pillow("CMYK"), "deep.png": _sixteen_bits, "grey.jpg": _pillow("L"),
    "alpha.png": _pillow("RGBA"), "turned.jpg": _pillow("RGB", exif=6),
    "one.png": _pillow("RGB", (1, 1)), "long.png": _pillow("RGB", (20000, 10)),
    "with spaces in it.jpg": _pillow("RGB"), "ümläut 写真.jpg": _pillow("RGB"),
    "several.dots.in.it.jpg": _pillow("RGB"),
}


@pytest.fixture(scope="module")
def options(images, tmp_path_factory) -> list[str]:
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "model.pyth"
    torch.save(build_model(load_cfg(None, MODEL)).state_dict(), weights)
    return [*MODEL, "TEST.WEIGHTS", str(weights), "INFER.IMAGES", str(images), "INFER.SCALES",
            "[1.0]", "INFER.CHUNK_SIZE", str(CHUNK), "DATA_LOADER.NUM_WORKERS", "0", "DEVICE", "cpu"]


def _run(start_command, options: list[str], out_dir: Path, workers: int, kills: int) -> tuple[Path, int]:
    """The store, and how many images were described in all."""
    log = out_dir.with_suffix(".log")
    script = out_dir.with_suffix(".py")
    script.write_text(DRIVER)
    task = json.dumps([str(out_dir), str(log), workers, kills, 0, options])
    output, errors = start_command([script, task], env={
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}).communicate(timeout=400)
    left = workers - 1 if kills else workers
    assert f"statuses {[0] * left} workers {left}" in output, output + errors
    return out_dir / "images", sum(map(int, log.read_text().split()))


@pytest.fixture(scope="module")
def undisturbed(start_command, options, tmp_path_factory) -> tuple[Path, int]:
    return _run(start_command, options, tmp_path_factory.mktemp("undisturbed") / "out", workers=1, kills=0)


def test_killed_twenty_times_the_store_is_the_same(undisturbed, start_command, options, tmp_path):
    store, described = _run(start_command, options, tmp_path / "out", workers=3, kills=KILLS)
    whole, needed = undisturbed
    files = sorted(path.name for path in whole.iterdir())
    assert sorted(path.name for path in store.iterdir()) == files
    for file in files:
        assert (store / file).read_bytes() == (whole / file).read_bytes(), file
    # A killed worker loses the chunk that it computes and the one that it writes
    assert needed <= described <= needed + (KILLS + 1) * 2 * CHUNK


def test_failed_images_are_named_and_masked(undisturbed):
    store = FeatureStore(undisturbed[0])
    store.verify()
    assert store.count == IMAGES
    reasons = dict(store.errors())
    assert reasons.keys() == FAILING and all(reasons.values())
    assert reasons["empty.jpg"] == "the file is empty" and reasons["text.jpg"] == "not an image"
    table = np.asarray(store.global_descriptors())
    failed = np.array([name in FAILING for name in store.names])
    assert np.isnan(table[failed]).all() and (store.status[failed] != 0).all()
    np.testing.assert_allclose(np.linalg.norm(table[~failed], axis=1), 1, atol=1e-5)
