"""tools/search.py query --image: a photograph asks."""
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dolg.config import load_cfg
from dolg.data.decode import ImageError
from dolg.errors import UserError
from dolg.features.describer import load
from dolg.features.sources import images_of, revisited_sources
from dolg.features.store import FeatureStore
from dolg.models import build_model
from dolg.search.arguments import parse_args
from dolg.search.indexes import build_index
from dolg.serve import command
from dolg.serve.command import ask
from dolg.serve.finder import Found, Result
from dolg.serve.sheet import write_sheet
from revisitop import load_ground_truth

ROOT = Path(__file__).resolve().parents[2]
CFG = str(ROOT / "configs" / "quickstart.yaml")
MODEL = ["MODEL.ARCH", "gem", "RESNET.STEM_WIDTH", "8", "MODEL.HEADS.REDUCTION_DIM", "16", "LOSS.NAME", ""]
# Of the photographs' edges, blue, green and red
COLOURS = [(40, 40, 200), (40, 200, 40), (200, 40, 40), (200, 200, 40), (40, 200, 200), (200, 40, 200),
           (20, 20, 20)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """A folder with seven photographs jpg/N.png, each of another colour, a store and an index of them, and
    weights."""
    folder, rng = tmp_path_factory.mktemp("photo"), np.random.default_rng(0)
    (folder / "jpg").mkdir()
    for number, colour in enumerate(COLOURS):
        pixels = np.full((96, 128, 3), colour, np.uint8)
        pixels[30:66, 30:98] = rng.integers(0, 255, (36, 68, 3))
        cv2.imwrite(str(folder / "jpg" / f"{number}.png"), pixels)
    torch.manual_seed(0)
    torch.save(build_model(load_cfg(CFG, MODEL)).state_dict(), folder / "w.pyth")
    load(CFG, folder / "w.pyth", MODEL).extract(folder / "store", images_of(folder / "jpg"))
    build_index(folder / "index", [FeatureStore(folder / "store")], "flat")
    return folder


def _arguments(monkeypatch, *words: object):
    monkeypatch.setattr(sys, "argv", ["search.py", "query", *map(str, words)])
    return parse_args("")


def _given(toy: Path, *changes: object) -> list:
    return ["--image", toy / "jpg" / "3.png", "--cfg", CFG, "--weights", toy / "w.pyth", *changes,
            "--index", toy / "store", *MODEL]


def _best_first(toy: Path, query: int) -> list[tuple[str, float]]:
    """Name and inner product of all images with one of them, slowly."""
    store = FeatureStore(toy / "store")
    table = np.asarray(store.global_descriptors()).astype(np.float64)
    scores = [float(np.dot(row, table[query])) for row in table]
    return sorted(zip(store.names, scores), key=lambda entry: -entry[1])


def _tiles(picture: Path) -> list[int]:
    """The photographs below the line of a picture, row by row, by the colour of their edges."""
    pixels = cv2.imread(str(picture)).astype(int)
    rows = np.flatnonzero((np.abs(pixels - (205, 214, 217)).max(axis=2) < 12).mean(axis=1) > 0.9)
    below, places = int(rows[0]), []
    for number, colour in enumerate(COLOURS):
        there = np.argwhere((np.abs(pixels[below:] - colour).max(axis=2) < 14))
        if len(there) > 4000:
            places.append((round(there[:, 0].mean() / 100), there[:, 1].mean(), number))
    return [number for _, _, number in sorted(places)]


def test_names_scores_and_a_picture(toy, start_command, tmp_path):
    """From another folder, where the picture is written."""
    process = start_command(
        [ROOT / "tools" / "search.py", "query", "--image", toy / "jpg" / "3.png", "--cfg", CFG, "--weights",
         toy / "w.pyth", "--index", toy / "index", "--top", 6, "--images", toy / "jpg", *MODEL],
        cwd=tmp_path)
    output, errors = process.communicate(120)
    assert process.returncode == 0, errors
    lines = output.splitlines()[1:]
    want = _best_first(toy, 3)
    assert [line.split() for line in lines[:7]] == [["place", "score", "image"]] + [
        [str(place), f"{score:.4f}", name] for place, (name, score) in enumerate(want[:6], 1)]
    assert len({line.rindex("  ") for line in lines[:7]}) == 1       # in columns
    assert lines[7].startswith("decode ") and lines[7].endswith("; 7 images searched")
    assert lines[8] == f"picture: {tmp_path / '3-results.jpg'}" and want[0][0] == "3.png"
    assert _tiles(tmp_path / "3-results.jpg") == [int(name[0]) for name, _ in want[:6]]


def test_a_box_and_a_reranker(toy, monkeypatch, capsys, tmp_path):
    box = (10, 20, 90, 80)
    ask(_arguments(monkeypatch, *_given(toy, "--box", *box, "--reranker", "alpha", "--images", toy / "jpg",
                                        "--top", 4, "-o", tmp_path / "p.png")))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split() for line in lines[:1]] == [["place", "score", "before", "image"]]
    describer = load(CFG, toy / "w.pyth", MODEL)
    query = describer.describe(toy / "jpg" / "3.png", [box])[0].astype(np.float64)
    table = np.asarray(FeatureStore(toy / "store").global_descriptors()).astype(np.float64)
    before = np.argsort(-(table @ query), kind="stable")
    weights = np.maximum(table @ query, 0) ** 3         # alpha 3, n 10: of all seven
    expanded = query + (weights[:, None] * table).sum(axis=0)
    scores = table @ (expanded / np.linalg.norm(expanded))
    order = np.argsort(-scores, kind="stable")[:4]
    assert [line.split() for line in lines[1:5]] == [
        [str(place), f"{scores[row]:.4f}", str(1 + before.tolist().index(row)), f"{row}.png"]
        for place, row in enumerate(order.tolist(), 1)]
    picture = cv2.imread(str(tmp_path / "p.png")).astype(int)
    assert _tiles(tmp_path / "p.png") == order.tolist()
    # The box's frame, of its own colour, where the box is in the photograph
    ys, xs = np.nonzero((np.abs(picture[:450, :580] - (12, 65, 194)).max(axis=2) < 3))
    scale = 520 / 128
    np.testing.assert_allclose([xs.min(), ys.min(), xs.max(), ys.max()],
                               [48 + box[0] * scale, 48 + box[1] * scale, 48 + box[2] * scale,
                                48 + box[3] * scale], atol=5)


def test_images_that_are_not_there(toy, monkeypatch, capsys, tmp_path):
    """Their tiles say so; without folders, all do."""
    (tmp_path / "some").mkdir()
    for number in (0, 3, 5):
        (tmp_path / "some" / f"{number}.png").write_bytes((toy / "jpg" / f"{number}.png").read_bytes())
    (tmp_path / "some" / "1.png").write_text("no image")
    ask(_arguments(monkeypatch, *_given(toy, "-o", tmp_path / "p.png", "--images", tmp_path / "some")))
    assert sorted(_tiles(tmp_path / "p.png")) == [0, 3, 5]
    ask(_arguments(monkeypatch, *_given(toy, "-o", tmp_path / "q.png")))
    assert _tiles(tmp_path / "q.png") == []
    assert "picture: " in capsys.readouterr().out


def test_scores_of_the_search_behind_reranked_ones(toy, monkeypatch, capsys, tmp_path):
    """They stand on another scale: a line in the table tells, and a paler, named score in the picture."""
    ask(_arguments(monkeypatch, *_given(toy, "--reranker", "alpha", "-o", tmp_path / "p.png"),
                   "RERANK.TOP_K", "[3]"))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[4] == "not reranked, with the scores of the search:"
    behind = [line.split() for line in lines[5:9]]
    assert [(cells[1], cells[3]) for cells in behind] == [
        (f"{score:.4f}", name) for name, score in _best_first(toy, 3)[3:]]
    picture = cv2.imread(str(tmp_path / "p.png")).astype(int)
    rule = np.flatnonzero((np.abs(picture - (205, 214, 217)).max(axis=2) < 12).mean(axis=1) > 0.9)[0]
    inked = (np.abs(picture - (48, 36, 29)).max(axis=2) < 12)[rule:rule + 240]      # the first row's scores
    counts = [int(inked[:, 48 + 284 * tile:48 + 284 * tile + 264].sum()) for tile in range(5)]
    assert min(counts[:3]) > 20 and counts[3:] == [0, 0]


def test_no_more_is_drawn_than_a_picture_can_hold(toy, tmp_path):
    """16,383 pixels a side, of WebP."""
    results = [Result(place, place, f"{place}.png", 0.5, False, 0.5, 0, None) for place in range(1, 401)]
    found = Found(results, (128, 96), (0, 0, 128, 96), None, "", 0)
    write_sheet(tmp_path / "p.webp", toy / "jpg" / "3.png", found, "title", 10**6)
    # 20 rows of 250 pixels, and the photograph above them
    assert 20 * 250 + 390 < Image.open(tmp_path / "p.webp").height < 22 * 250 + 390


def test_the_names_come_before_the_picture(toy, monkeypatch, capsys, tmp_path):
    """A disk may be full; and the line of the picture says how much of it is there."""
    drawn = []
    monkeypatch.setattr(command, "MOST_DRAWN", 3)
    monkeypatch.setattr(command, "write_sheet", lambda *_: drawn.append(capsys.readouterr().out))
    ask(_arguments(monkeypatch, *_given(toy, "--top", 4, "-o", tmp_path / "p.png")))
    assert [line.split()[-1] for line in drawn[0].splitlines()[2:6]] == [
        name for name, _ in _best_first(toy, 3)[:4]]
    assert capsys.readouterr().out == f"picture: {tmp_path / 'p.png'} (the first 3 results)\n"
    ask(_arguments(monkeypatch, *_given(toy, "--top", 3, "-o", tmp_path / "p.png")))
    assert capsys.readouterr().out == f"picture: {tmp_path / 'p.png'}\n"


@pytest.mark.parametrize("name", ["p.png", "../{0}/p.png", "other.png", "link.png"])
def test_the_photograph_is_not_drawn_over(toy, monkeypatch, tmp_path, name):
    """By whatever name; told before anything is searched."""
    photo = tmp_path / "p.png"
    photo.write_bytes((toy / "jpg" / "3.png").read_bytes())
    (tmp_path / "other.png").symlink_to(photo)
    (tmp_path / "link.png").hardlink_to(photo)
    monkeypatch.setattr(command, "open_finder", lambda *_, **__: pytest.fail("was asked"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="would take the place of the photograph: give another --output"):
        ask(_arguments(monkeypatch, *_given(toy, "--image", photo, "-o", name.format(tmp_path.name))))
    assert photo.read_bytes() == (toy / "jpg" / "3.png").read_bytes()


@pytest.mark.parametrize("order", [["index", "--query", "store"], ["--query", "store", "index"],
                                   ["--query", "store", "--index", "index"],
                                   ["--top", "3", "index", "--query", "store"]])
def test_the_other_form_goes_on(toy, monkeypatch, order):
    args = _arguments(monkeypatch, *(toy / word if word in ("index", "store") else word for word in order))
    assert args.indexes == [toy / "index"] and args.query == str(toy / "store") and args.image is None
    assert args.top == (3 if "--top" in order else 10) and args.probes == 16


def test_keys_stand_anywhere(toy, monkeypatch):
    for words in (["--index", "a", "b", "--top", "3", "INFER.LOCAL", "True"],
                  ["INFER.LOCAL", "True", "--index", "a", "b"]):
        args = _arguments(monkeypatch, "--image", "p.jpg", "--cfg", "f.yaml", *words)
        assert args.opts == ["INFER.LOCAL", "True"] and args.indexes == ["a", "b"]
        assert args.image == Path("p.jpg") and args.query is None


@pytest.mark.parametrize("words, message", [
    ([], "give --query STORE, or --image PHOTO"),
    (["--image", "p", "--query", "s"], "give --query STORE, or --image"),
    (["--image", "p"], "needs --index INDEX_OR_STORE and --cfg FILE"),
    (["--image", "p", "--cfg", "c"], "needs --index"),
    (["--query", "s"], "are required: INDEX"),
    (["--query", "s", "i", "--box", "1", "2", "3", "4"], "--box goes with --image"),
    (["--query", "s", "i", "--cfg", "c"], "--cfg goes with"),
    (["--query", "s", "i", "--bogus"], "arguments: --bogus"),
    (["--image", "p", "--index", "i", "--cfg", "c", "--bogus", "1"], "arguments: --bogus"),
    (["--image", "p", "--index", "i", "--cfg", "c", "--box", "1", "2"], "expected 4 arguments"),
    (["--image", "p", "--index", "i", "--cfg", "c", "--box", "a", "0", "1", "1"], "invalid float")])
def test_arguments_that_do_not_go_together(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as caught:
        _arguments(monkeypatch, *words)
    assert caught.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("changes, message", [
    (["--image", "w.pyth"], "cannot read image .*w.pyth: not an image"),
    (["--image", "gone.jpg"], "cannot read image .*gone.jpg: No such file"),
    (["--box", 500, 500, 600, 600], "500 500 600 600 leaves nothing of .*3.png, which has 128 x 96 pixels"),
    (["--box", 50, 50, 50, 60], "leaves nothing"), (["--box", "nan", 0, 9, 9], "not of finite numbers"),
    (["--top", 0], "0 results are asked for"), (["--reranker", "spatail"], "did you mean 'spatial'"),
    (["--reranker", "spatial"], "compares local features, and .*store has none: extract it with INFER"),
    (["-o", "picture.txt"], "picture.txt ends in no kind of picture"),
    (["--weights", "gone.pyth"], "gone.pyth"),
    (["--cfg", "gone.yaml"], "no configuration file .*gone.yaml"),
    (["--images", "gone"], "gone is no folder of images")])
def test_mistakes_are_one_line(toy, monkeypatch, changes, message):
    monkeypatch.chdir(toy)
    with pytest.raises((UserError, ImageError), match=message) as caught:
        ask(_arguments(monkeypatch, *_given(toy, *changes)))
    assert "\n" not in str(caught.value) and not list(toy.glob("*results*"))


def test_a_database_that_is_none_or_anothers(toy, run_tool, tmp_path):
    given = ["tools/search.py", "query", "--image", toy / "jpg" / "3.png", "--cfg", CFG, "--weights",
             toy / "w.pyth"]
    done = run_tool(*given, "--index", toy / "gone", *MODEL)
    assert done.returncode == 1
    assert done.stderr == (f"error: {toy}/gone does not exist: give what tools/search.py build or "
                           "tools/infer.py made\n")
    done = run_tool(*given, "--index", toy / "index", *MODEL, "INFER.SCALES", "[1.0]")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"this model and {toy}/store were made with different scales: [1.0] and [0.5, 0.7071, 1.0]" in done.stderr
    done = run_tool(*given, "--index", toy / "index", "--across", "-o", tmp_path / "r.jpg", *MODEL, "INFER.SCALES",
                    "[1.0]")
    assert done.returncode == 0 and (tmp_path / "r.jpg").exists(), done.stderr


def test_the_real_photographs_find_their_own(shared, monkeypatch, capsys, tmp_path):
    """Boxes of the ground truth, ImageNet weights, a database that has other photographs of it alone."""
    data, configuration = shared / "data", str(ROOT / "configs" / "eval" / "efficientnet_lite0_gem.yaml")
    folder, weights = data / "minilandmarks", data / "weights" / "tf_efficientnet_lite0.safetensors"
    truth, keys = load_ground_truth(folder / "gnd_minilandmarks.pkl"), ["INFER.SCALES", "[0.5]"]
    describer = load(configuration, weights, keys)
    describer.extract(tmp_path / "store", revisited_sources(data, "minilandmarks", True)["database"])
    for query in (0, len(truth.queries) // 2, len(truth.queries) - 1):
        ask(_arguments(monkeypatch, "--image", folder / "jpg" / f"{truth.queries[query]}.jpg", "--cfg",
                       configuration, "--weights", weights, "--box", *truth.boxes[query], "--images",
                       folder / "jpg", "--top", 2, "-o", tmp_path / "p.jpg", "--index", tmp_path / "store",
                       *keys))
        lines = capsys.readouterr().out.splitlines()
        heading = next(number for number, line in enumerate(lines) if line.startswith("place"))
        first = lines[heading + 1].split()[2].removesuffix(".jpg")
        same = {truth.images[row] for row in [*truth.easy[query], *truth.hard[query], *truth.junk[query]]}
        assert first in same and first != truth.queries[query], (truth.queries[query], first)
