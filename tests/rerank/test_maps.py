"""Reranking by a transformer on maps: Recall@k before and after, in arrays and by the command."""
import json
import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.core.saving import save_checkpoint
from dolg.core.validation import HeldOut
from dolg.errors import UserError
from dolg.models import build_model
from dolg.models.rrt_sop import RerankingTransformerOnMaps
from dolg.rerank.interface import PairReranker
from dolg.rerank.maps import MapReranker, describe_with_maps, reranked_recall
from dolg.search.classes import evaluate_classes


class Told(PairReranker):
    """Scores from a table."""

    name, settings = "told", {}

    def __init__(self, table: np.ndarray):
        super().__init__()
        self.table, self.asked = table, []

    def score_pairs(self, query: int, candidates: np.ndarray) -> np.ndarray:
        self.asked += [(query, row) for row in candidates.tolist()]
        return self.table[query, candidates]


def _slow_recall(lists: list[list[int]], labels: np.ndarray, k: int) -> float:
    hits = 0
    for image, found in enumerate(lists):
        hits += any(labels[other] == labels[image] for other in found[:k])
    return hits / len(lists)


def _slow_lists(indexes, scores, pair_score, top: int, weight: float = 1.0, unit=float) -> list[list[int]]:
    """Each list, its first `top` by the mixed score, highest first; equal ones, as they were."""
    lists = []
    for image, row in enumerate(indexes.tolist()):
        found = [other for other in row if other >= 0]
        mixed = [(1 - weight) * scores[image, place] + weight * unit(pair_score(image, other))
                 for place, other in enumerate(found[:top])]
        order = sorted(range(len(mixed)), key=lambda place: (-mixed[place], place))
        lists.append([found[place] for place in order] + found[top:])
    return lists


def _random_lists(rng, count: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    indexes = np.full((count, depth), -1, np.int32)
    scores = np.full((count, depth), -np.inf, np.float32)
    for image in range(count):
        some = rng.integers(0, depth + 1)
        indexes[image, :some] = rng.permutation(np.delete(np.arange(count), image))[:some]
        scores[image, :some] = -np.sort(-rng.integers(0, 4, some) / 4)
    return indexes, scores


@pytest.mark.parametrize("weight", [1.0, 0.4, 0.0])
@pytest.mark.parametrize("seed", range(6))
def test_recall_is_that_of_slow_code(seed, weight):
    rng = np.random.default_rng(seed)
    count, ks, tops = 25, [1, 2, 3, 7], [3, 9, 5, 40]
    indexes, scores = _random_lists(rng, count, 9)
    labels = rng.integers(0, 9, count) * 7 - 5
    table = rng.integers(0, 3, (count, count)) / 2        # many ties
    reranker = Told(table)
    found = reranked_recall(reranker, indexes, scores, labels, ks, tops, weight, temperature=0.5)
    assert found.before == {k: pytest.approx(_slow_recall(_slow_lists(indexes, scores, None, 0), labels, k))
                            for k in ks}
    assert list(found.after) == list(found.seconds) == tops
    for top, recall in found.after.items():
        lists = _slow_lists(indexes, scores, lambda a, b: table[a, b], top, weight, lambda s: s / 0.5)
        assert recall == {k: pytest.approx(_slow_recall(lists, labels, k)) for k in ks}
    alone = [label for label in labels.tolist() if labels.tolist().count(label) == 1]
    assert (found.images, found.unscored) == (count, len(alone))
    assert sorted(reranker.asked) == sorted((image, other) for image, row in enumerate(indexes.tolist())
                                            for other in row if other >= 0)


def test_images_alone_in_their_class_are_misses():
    """Also where the last image, which -1 would point to, is of the query's class; and no list at all."""
    indexes = np.array([[1, -1], [-1, -1], [3, 0], [2, -1]])
    labels, scores = np.array([4, 5, 4, 4]), np.zeros((4, 2))
    found = reranked_recall(Told(np.arange(16.0).reshape(4, 4)), indexes, scores, labels, [1, 2], [2])
    assert found.before == {1: 0.5, 2: 0.5} and found.after == {2: {1: 0.5, 2: 0.5}}
    assert found.unscored == 1
    nothing = reranked_recall(Told(np.zeros((2, 2))), np.full((2, 3), -1), np.zeros((2, 3)),
                              np.array([1, 1]), [1], [2])
    assert nothing.before == nothing.after[2] == {1: 0.0} and nothing.seconds == {2: 0.0}


class Backbone(torch.nn.Module):
    """None: what a matcher alone needs."""

    channels, input_spec = {"stage4": 6}, None


def _matching_model(dim: int = 8) -> RerankingTransformerOnMaps:
    torch.manual_seed(0)
    return RerankingTransformerOnMaps(Backbone(), 5, dim, layers=2, heads=2, feedforward=16, dropout=0.5)


@pytest.mark.parametrize("batch", [0, 1, 3, 7])
def test_scores_are_the_logits_of_each_pair_query_first(batch):
    model, rng = _matching_model(), np.random.default_rng(1)
    maps = torch.from_numpy(rng.standard_normal((9, 8, 2, 3))).half()
    reranker = MapReranker(model, maps, 5, batch=batch, weights_digest="abc")
    candidates = np.array([8, 0, 3, 5, 1, 2, 4])
    scores = reranker.score_pairs(6, candidates)
    with torch.no_grad():
        slow = [model.match(maps[6:7].float(), maps[row:row + 1].float()).item() for row in candidates]
        exchanged = [model.match(maps[row:row + 1].float(), maps[6:7].float()).item() for row in candidates]
    assert scores.dtype == np.float64 and scores == pytest.approx(slow, abs=1e-5)
    assert scores != pytest.approx(exchanged, abs=1e-3)
    assert reranker.score_pairs(6, candidates[:0]).shape == (0,)
    assert reranker.bytes_per_image == 2 * 8 * 2 * 3 + 4 * 5
    assert reranker.settings == {"weights": "abc"} and reranker.name == "rrt_sop"
    expected = [1 / (1 + math.exp(-score / 2.5)) for score in slow]
    assert reranker.unit(scores, 2.5) == pytest.approx(expected, abs=1e-5)


def test_maps_that_do_not_fit():
    maps = torch.ones(3, 8, 2, 2).half()
    with pytest.raises(UserError, match="the maps have 8 channels, the transformer takes 4: set MODEL.RRT"):
        MapReranker(_matching_model(4), maps, 5)
    maps[2, 0] = torch.inf
    with pytest.raises(UserError, match="scores of image 0 are not all numbers"):
        MapReranker(_matching_model(), maps, 5).score_pairs(0, np.array([1, 2]))


@pytest.mark.parametrize("part", ["global", "local"])
def test_a_model_that_overflows_is_no_evaluation(part):
    outputs = {"global": torch.ones(2, 5), "local": torch.ones(2, 4, 1, 1)}
    outputs[part].view(-1)[3] = {"global": torch.nan, "local": 1e6}[part]      # more than float16 holds

    class Model(torch.nn.Module):
        dim = 5

        def forward(self, images):
            return outputs

    batch = SimpleNamespace(images=None, indexes=torch.tensor([1, 0]))
    with pytest.raises(UserError, match="not all numbers that float16 holds"):
        describe_with_maps(Model(), [batch], 2, torch.no_grad)


TINY = ["--cfg", "configs/rrt/sop_frozen.yaml", "TEST.DATASET", "toy", "TEST.SPLIT", "listed.txt",
        "MODEL.DEPTH", 18, "RESNET.STEM_WIDTH", 8, "MODEL.HEADS.IN_FEAT", 0, "MODEL.HEADS.REDUCTION_DIM", 4,
        "MODEL.RRT.LAYERS", 2, "MODEL.RRT.HEADS", 2, "MODEL.RRT.DIM", 16, "MODEL.RRT.FEEDFORWARD", 32,
        "TRAIN.IM_SIZE", 64, "TEST.IM_SIZE", 70, "TEST.BATCH_SIZE", 5, "MODEL.NUM_CLASSES", 1,
        "TEST.RECALLS", "[1, 3, 10]", "RERANK.TOP_K", "[4, 8]", "DATA_LOADER.NUM_WORKERS", 0,
        "DEVICE", "cpu"]


@pytest.fixture(scope="module")
def listed(toy_images):
    """A list of the toy images in an order of its own; one is of a class of its own."""
    lines = (toy_images / "toy" / "train_list.txt").read_text().splitlines()
    lines = [lines[i] for i in np.random.default_rng(3).permutation(len(lines))]
    lines[5] = lines[5].rpartition(" ")[0] + " 91"
    (toy_images / "toy" / "listed.txt").write_text("\n".join(lines) + "\n")
    return toy_images


def _written_model(cfg, file) -> RerankingTransformerOnMaps:
    """Random weights, of which descriptors and logits tell images apart, in a file; the model."""
    torch.manual_seed(4)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for parameter in (model.fc.weight, model.fc_local.weight):
            parameter.mul_(4)
    save_checkpoint(file, model.state_dict())
    return model


@pytest.fixture
def run_here(monkeypatch, capsys):
    """As `run_tool`, in this process, which is sooner; gives what it prints, or raises."""

    def run(script: str, *args) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        runpy.run_path(str(Path(__file__).parents[2] / script))["main"]()
        return capsys.readouterr().out

    return run


def _rows_of(output: str) -> dict[str, list[float]]:
    lines = output.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:3] == ["R@1", "R@3", "R@10"])
    return {line[:12].strip(): [float(value) for value in line[12:].split()]
            for line in lines[head + 1:-1]}


@pytest.mark.parametrize("weight, from_out_dir", [(1.0, False), (0.3, True)])
def test_the_command_end_to_end(listed, run_tool, run_here, tmp_path, weight, from_out_dir):
    weights = tmp_path / "checkpoints" / "model_epoch_0003.pyth" if from_out_dir else tmp_path / "mine.pth"
    options = ["DATA_DIR", listed, "OUT_DIR", tmp_path, "RERANK.WEIGHT", weight,
               "RERANK.RRT.WEIGHTS", "" if from_out_dir else weights]
    cfg = load_cfg(TINY[1], [str(part) for part in [*TINY[2:], *options, "TEST.METRIC", "recall"]])
    model = _written_model(cfg, weights)
    if from_out_dir:
        printed = run_here("tools/rerank_classes.py", *TINY, *options)
    else:
        done = run_tool("tools/rerank_classes.py", *TINY, *options, fresh=True)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
    rows, figures = _rows_of(printed), json.loads((tmp_path / "rerank" / "recall.json").read_text())
    assert "24 images; 1 have no other" in printed and list(rows) == ["descriptors", "first 4", "first 8"]

    held = HeldOut(cfg, model.input_spec, torch.device("cpu"))
    with torch.no_grad():
        outputs = [model(batch.images) for batch in held.loader.epoch(0)]
        whole = torch.nn.functional.normalize(torch.cat([output["global"] for output in outputs])).numpy()
        maps = torch.cat([output["local"] for output in outputs]).half().float()
        pairs = np.array([[model.match(a[None], b[None]).item() for b in maps] for a in maps])
    labels = np.array(held.images.labels)
    expected = evaluate_classes(whole, labels, whole, labels, [1, 3, 10], self_retrieval=True).recall
    assert rows["descriptors"][:3] == [pytest.approx(100 * value, abs=0.006) for value in expected.values()]
    assert figures["before"] == {str(k): pytest.approx(value) for k, value in expected.items()}

    similar = whole @ whole.T
    np.fill_diagonal(similar, -np.inf)
    indexes = np.argsort(-similar, axis=1, kind="stable")[:, :10]
    scores = np.take_along_axis(similar, indexes, axis=1)
    for top in (4, 8):
        lists = _slow_lists(indexes, scores, lambda a, b: pairs[a, b], top, weight,
                            (lambda s: 1 / (1 + math.exp(-s))) if weight < 1 else float)
        recall = [_slow_recall(lists, labels, k) for k in (1, 3, 10)]
        assert rows[f"first {top}"][:3] == [pytest.approx(100 * value, abs=0.006) for value in recall]
        assert list(figures["after"][str(top)].values()) == pytest.approx(recall)
        assert recall[0] != expected[1]     # else nothing would be told
        assert rows[f"first {top}"][4] == pytest.approx((2 * 16 * 2 * 2 + 4 * 4) / 1000, abs=0.006)
    assert figures["unscored"] == 1 and figures["weight"] == weight


@pytest.mark.parametrize("options, message", [
    (["MODEL.ARCH", "gem"], "MODEL.ARCH is gem: this reranks by rrt_sop"),
    (["TEST.DATASET", ""], "TEST.DATASET is empty: give the folder under DATA_DIR"),
    (["TEST.SPLIT", "none.txt", "RERANK.RRT.WEIGHTS", "OUT/mine.pth"], "no image list"),
    ([], "RERANK.RRT.WEIGHTS is empty, and .*/checkpoints holds no checkpoint"),
    (["RERANK.RRT.WEIGHTS", "OUT/none.pth"], "no weights file .*none.pth"),
    (["MODEL.DEPTH"], "'MODEL.DEPTH' has no value")])
def test_mistakes_are_explained_in_one_line(listed, run_here, tmp_path, options, message):
    options = [str(part).replace("OUT/", f"{tmp_path}/") for part in options]
    if str(tmp_path / "mine.pth") in options:
        _written_model(load_cfg(TINY[1], [str(part) for part in TINY[2:]]), tmp_path / "mine.pth")
    with pytest.raises(UserError, match=message) as error:
        run_here("tools/rerank_classes.py", *TINY, "DATA_DIR", listed, "OUT_DIR", tmp_path, *options)
    assert "\n" not in str(error.value) and not (tmp_path / "rerank").exists()
