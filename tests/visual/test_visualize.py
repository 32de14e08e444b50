"""tools/visualize.py as a user runs it: pictures, and one line for each mistake."""
import re
import sys

import cv2
import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.data.decode import ImageError
from dolg.errors import UserError
from dolg.features.store import FeatureStore, LocalTable, StoreWriter
from dolg.models import build_model
from tools.visualize import main

TOOL = "tools/visualize.py"
SMALL = ["MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "8", "MODEL.HEADS.REDUCTION_DIM", "12",
         "MODEL.DELG.LOCAL_DIM", "8", "DEVICE", "cpu", "INFER.SCALES", "[0.7, 1.0]",
         "INFER.LOCAL_SCALES", "[1.0]", "INFER.LOCAL_THRESHOLD", "0.0"]
RRT = ["MODEL.RRT.LAYERS", "2", "MODEL.RRT.HEADS", "2", "MODEL.RRT.DIM", "8", "MODEL.RRT.FEEDFORWARD", "12",
       "MODEL.RRT.GLOBAL_DIM", "12", "MODEL.RRT.SCALES", "[1.0]", "DEVICE", "cpu"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photographs, the weights of small random networks, and a store of these photographs."""
    root = tmp_path_factory.mktemp("visualize")
    (root / "jpg").mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        pixels = cv2.resize(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8), (208, 144 + 16 * number))
        cv2.imwrite(str(root / "jpg" / f"p{number}.jpg"), pixels)
    for arch, options in (("delg", SMALL), ("dolg", SMALL), ("rrt", RRT),
                          ("rrt_sop", [*SMALL, "MODEL.RRT.DIM", "8"])):
        torch.manual_seed(0)
        model = build_model(load_cfg(None, ["MODEL.ARCH", arch, *options]))
        torch.save(model.state_dict(), root / f"{arch}.pth")
        (root / f"{arch}.yaml").write_text(f"MODEL:\n  ARCH: {arch}\n")
    write_store(root / "store", rng, local=True)
    write_store(root / "bare", rng, local=False)
    write_store(root / "renamed", rng, local=True, letter="q")
    (root / "list.txt").write_text("".join(f"p{number}.jpg {number % 2}\n" for number in range(5)))
    return root


def write_store(path, rng, local, letter="p"):
    names = [f"{letter}{number}.jpg" for number in range(5)]
    writer = StoreWriter(path, names, 12, 8, {}, 8 if local else 0)
    tables = [tuple(part.astype(np.float32) for part in (
        rng.standard_normal((6, 8)), rng.uniform(10, 130, (6, 2)), np.ones(6), np.ones(6))) for _ in names]
    writer.write_chunk(0, rng.standard_normal((5, 12)), {}, LocalTable.joined(tables) if local else None)
    return FeatureStore(path)


def command(name, place, *options, arch="delg", keys=SMALL):
    return [TOOL, name, "--cfg", place / f"{arch}.yaml", "--weights", place / f"{arch}.pth",
            *options, *keys]


@pytest.fixture
def run_here(monkeypatch):
    """The command without a process of its own."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(part) for part in arguments])
        main()

    return run


def picture(file):
    found = cv2.imread(str(file))
    assert found is not None
    return found[..., ::-1].astype(int)


def share_like(picture_, photograph, tolerance=14):
    """Share of a picture's pixels that have one of the 60 most typical colours of a photograph."""
    step = photograph[::16, ::16].reshape(-1, 3)
    near = [(np.abs(picture_ - colour) <= tolerance).all(axis=2) for colour in step[:60]]
    return np.any(near, axis=0).mean()


def test_attention(place, run_tool, tmp_path):
    images = [place / "jpg" / f"p{number}.jpg" for number in (1, 4)]
    done = run_tool(*command("attention", place, "--image", *images, "--box", 0, 0, 208, 144, "--box",
                             20, 30, 150, 170, "-o",
                             tmp_path / "a.png", arch="dolg"), fresh=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "a.png")
    found = picture(tmp_path / "a.png")
    assert (found[:3] == 255).all() and (found[:, :3] == 255).all()      # margins
    # All three kinds of both images: six rows of panels, each beside a bar of all colours
    bars = np.flatnonzero((np.abs(found - [252, 255, 164]) < 8).all(axis=2)[:, -110:].sum(axis=1) > 8)
    assert (np.diff(bars) > 20).sum() + 1 == 6
    assert share_like(found, picture(images[0])) > 0.02     # and the photograph in its own colours


def test_scales_and_kinds(place, run_here, tmp_path):
    sizes = []
    for scales, kinds in ((["0.5"], ["share"]), (["0.5", "1"], ["share"]),
                          (["0.5", "1"], ["share", "attention"])):
        run_here(*command("attention", place, "--image", place / "jpg/p0.jpg", "--scales", *scales,
                          "--kinds", *kinds, "-o", tmp_path / "a.png"))
        sizes.append(picture(tmp_path / "a.png").shape[0])
    assert sizes[0] > 1.3 * sizes[1] and sizes[2] > 1.7 * sizes[1]      # smaller panels, then twice as many


def test_matches_of_files_and_of_stores(place, run_tool, run_here, tmp_path):
    files = [place / "jpg" / f"p{number}.jpg" for number in (0, 3)]
    options = ["RERANK.SPATIAL.MATCHING", "mutual"]
    done = run_tool(*command("matches", place, "--pair", files[0], files[0], "-o", tmp_path / "same.png"),
                    *options)
    assert done.returncode == 0, done.stderr
    run_here(*command("matches", place, "--pair", "p0.jpg", "p3.jpg", "--store", place / "store",
                      "--images", place / "jpg", "-o", tmp_path / "other.png"), *options)
    same, other = picture(tmp_path / "same.png"), picture(tmp_path / "other.png")
    inlier = [(np.abs(p - [0xFF, 0x9F, 0x1C]) < 25).all(axis=2)[:-60].sum() for p in (same, other)]
    # An image and itself agree; six random features hardly do
    assert inlier[0] > 1000 > 3 * inlier[1]
    assert share_like(other, picture(files[1])) > 0.1


def test_rrt(place, run_tool, tmp_path):
    done = run_tool(*command("rrt", place, "--store", place / "store", "--pair", "p0.jpg", "p1.jpg",
                             "--images", place / "jpg", "--layer", "1", "-o", tmp_path / "r.jpg",
                             arch="rrt", keys=RRT))
    assert done.returncode == 0, done.stderr
    assert share_like(picture(tmp_path / "r.jpg"), picture(place / "jpg/p1.jpg"), 20) > 0.1


def test_embedding(place, run_tool, run_here, tmp_path):
    arguments = [TOOL, "embedding", "--store", place / "store", "--list", place / "list.txt"]
    done = run_tool(*arguments, "--images", place / "jpg", "-o", tmp_path / "thumbnails.png")
    assert done.returncode == 0, done.stderr
    run_here(*arguments, "-o", tmp_path / "dots.png")
    run_here(*arguments, "--images", place / "jpg", "-o", tmp_path / "again.png")
    dots, thumbnails = picture(tmp_path / "dots.png"), picture(tmp_path / "thumbnails.png")
    assert (thumbnails == picture(tmp_path / "again.png")).all()
    photograph = picture(place / "jpg/p1.jpg")
    assert share_like(thumbnails, photograph) > 2 * share_like(dots, photograph)
    for colour in ([0x00, 0x72, 0xB2], [0xE6, 0x9F, 0x00]):
        assert (np.abs(dots - colour) < 6).all(axis=2).sum() > 20


@pytest.mark.parametrize("arguments, message", [
    ("attention --image {p}/jpg/none.jpg -o o.png", "cannot read image .*none.jpg: No such file"),
    ("attention --image {p}/list.txt -o o.png", "cannot read image .*list.txt: not an image"),
    ("attention --image {p}/jpg/p0.jpg -o o.gif", "-o o.gif: a picture's name ends in .png"),
    ("attention --image {p}/jpg/p0.jpg --box 0 0 9 9 --box 0 0 9 9 -o o.png",
     "--box: 2 boxes for 1 images"),
    ("attention --image {p}/jpg/p0.jpg --box 900 0 950 9 -o o.png", "p0.jpg: the box .* leaves nothing"),
    ("attention --image {p}/jpg/p0.jpg --scales 0 -o o.png", "--scales 0: give numbers above 0"),
    ("attention --image {p}/jpg/p0.jpg --scales 1 inf -o o.png", "--scales 1 inf: give numbers above 0"),
    ("attention --image {p}/jpg/p0.jpg --scales nan -o o.png", "--scales nan: give numbers above 0"),
    ("attention --image {p}/jpg/p0.jpg --box 1 1 inf 5 -o o.png", "is no box: give four finite numbers"),
    ("attention --image {p}/jpg/p0.jpg --kinds orthogonal -o o.png", "DELG has no orthogonal to show"),
    ("matches --pair p0.jpg p9.jpg --store {p}/store --images {p}/jpg -o o.png",
     r"has no image 'p9.jpg' \(did you mean 'p"),
    ("matches --pair q0.jpg p1.jpg --store {p}/store {p}/renamed --images {p}/jpg -o o.png",
     "the store .*/store has no image 'q0.jpg'"),
    ("matches --pair p0.jpg p1.jpg --store {p}/store {p}/renamed --images {p}/jpg -o o.png",
     "the store .*/renamed has no image 'p1.jpg'"),
    ("matches --pair p0.jpg p1.jpg --store {p}/bare --images {p}/jpg -o o.png",
     "needs local features, and the queries"),
    ("matches --pair p0.jpg p1.jpg --store {p}/store -o o.png", "--store needs --images"),
    ("matches --pair p0.jpg p1.jpg --store {p}/store --images {p}/store -o o.png",
     "no file of the image 'p0.jpg'"),
    ("matches --pair p0.jpg p1.jpg --store {p}/a {p}/b {p}/c --images {p} -o o.png",
     "--store names 3 stores"),
    ("matches --pair p0.jpg p1.jpg --store {p}/jpg --images {p}/jpg -o o.png", "is not a feature store"),
])
def test_mistakes(place, run_here, arguments, message):
    name, *options = arguments.format(p=place).split()
    with pytest.raises((UserError, ImageError), match=message) as error:
        run_here(*command(name, place, *options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("arguments, message",
    [ ("--store {p}/store --gnd {p}/none.pkl",
    "none.pkl"),
    ("--store {p}/store --images {p}/store",
    "none of the stores' images, such as p0.jpg, is under"),
    ("--store {p}/store --list {p}/other.txt",
    "other.txt knows none of the images of the stores, such as p0.jpg"),
     ])
def test_mistakes_of_embedding(place, run_here, arguments, message):
    (place / "other.txt").write_text("elsewhere/x.jpg 0\n")
    with pytest.raises(UserError, match=message):
        run_here(TOOL, "embedding", *arguments.format(p=place).split(), "-o", "o.png")


def test_a_mistake_is_one_line(place, run_tool):
    done = run_tool(*command("attention", place, "--image", place / "jpg/none.jpg", "-o", "o.png"))
    assert done.returncode == 1 and not done.stdout.endswith("o.png\n")
    assert done.stderr.splitlines(
    )[-1].startswith("error: cannot read image") and "Traceback" not in done.stderr


def test_an_architecture_without_attention(place, run_here):
    with pytest.raises(UserError, match="RerankingTransformerOnMaps has no attention"):
        run_here(*command("attention", place, "--image", place / "jpg/p0.jpg", "-o", "o.png",
                          arch="rrt_sop"),
                 "MODEL.RRT.DIM", "8")


def test_keys_among_options(place, run_here, tmp_path, capsys):
    """Before --image and after all: both are obeyed, and what is no option is refused."""
    start = [TOOL, "attention", "--cfg", place / "delg.yaml", *SMALL, "TEST.WEIGHTS", place / "delg.pth"]
    end = ["--image", place / "jpg/p0.jpg", "--kinds", "share", "-o", tmp_path / "a.png"]
    heights = []
    for scales in ("[1.0]", "[0.5, 0.7, 1.0]"):
        run_here(*start, *end, "INFER.SCALES", scales)
        heights.append(picture(tmp_path / "a.png").shape[0])
    assert heights[0] > 1.5 * heights[1]        # one panel is larger than each of three
    wrong = (([*start, *end, "--colour", "red"], "unrecognized arguments: --colour"),
             ([TOOL, "embedding", "--store", "s", "-o", "o.png", "--", "SEED"], "unrecognized"),
             ([*start, *end, "--box", "1", "2", "3"], "argument --box: expected 4 arguments"))
    for arguments, message in wrong:
        with pytest.raises(SystemExit):
            run_here(*arguments)
        assert message in capsys.readouterr().err
