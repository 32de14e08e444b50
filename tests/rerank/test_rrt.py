"""The transformer's reranker against its plain forward, one pair at a time."""
import numpy as np
import pytest
import torch

from dolg.errors import UserError
from dolg.models.rrt import RerankingTransformer
from dolg.rerank.images import ArrayImages, StoredImages
from dolg.rerank.interface import Stage, rerank_list
from dolg.rerank.rrt import RRTReranker

SCALES, DIM, LOCAL, FAILED = [0.5, 1.0, 2.0], 6, 8, [4, 11]


def transformer(**changes) -> RerankingTransformer:
    torch.manual_seed(0)
    settings = {"global_dim": DIM, "scales": SCALES, "layers": 2, "heads": 2, "dim": LOCAL, "feedforward": 12}
    return RerankingTransformer(**{**settings, **changes})


@pytest.fixture
def features(make_local):
    """Descriptors and local features of 3 queries, of which the last failed, and 20 images, of which some
    failed, and the first two have no local features; descriptors are of no particular length."""
    rng = np.random.default_rng(0)
    table = (3 * rng.standard_normal((23, DIM))).astype(np.float32)
    local = [make_local(rng, size, LOCAL) for size in rng.integers(1, 15, 23)]
    for row in (3, 4):
        local[row] = make_local(rng, 0, LOCAL)
    for row in (2, *(3 + row for row in FAILED)):
        table[row], local[row] = np.nan, make_local(rng, 0, LOCAL)
    return (table[:3], local[:3]), (table[3:], local[3:])


@torch.no_grad()
def slow_score(model: RerankingTransformer, own, other, most: int) -> float:
    """Of two images' (descriptor, local features), without padding."""
    sides = []
    for descriptor, table in (own, other):
        count = min(most, len(table.scales))
        scales = [SCALES.index(scale) for scale in table.scales[:count].tolist()]
        sides.append({"global": torch.from_numpy(descriptor)[None],
                      "local": torch.from_numpy(table.descriptors[:count])[None],
                      "mask": torch.zeros(1, count, dtype=torch.bool),
                      "scales": torch.tensor(scales, dtype=torch.int64)[None]})
    return float(model(*sides)[0])


@pytest.mark.parametrize("most", [500, 5, 1])
@pytest.mark.parametrize("run", [256, 7, 1])
def test_scores_are_logits(monkeypatch, features, most, run):
    monkeypatch.setattr("dolg.rerank.rrt._RUN", run)
    (table, local), (others, other_local) = features
    model = transformer()
    reranker = RRTReranker(model, ArrayImages(*features[0]), ArrayImages(*features[1]), most)
    candidates = np.random.default_rng(1).permutation(20)
    for query in range(2):
        scores = reranker.score_pairs(query, candidates)
        assert scores.shape == (20,) and scores.dtype == np.float64
        expected = [np.nan if row in FAILED else
                    slow_score(model, (table[query], local[query]), (others[row], other_local[row]), most)
                    for row in candidates]
        np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
        assert np.nanstd(expected) > 1e-3
    assert np.isnan(reranker.score_pairs(2, candidates)).all()
    assert reranker.score_pairs(0, candidates[:0]).shape == (0,)
    failed = reranker.score_pairs(0, np.array(FAILED))
    assert failed.shape == (2,) and np.isnan(failed).all()


def test_lists_are_reordered_by_score(features):
    reranker = RRTReranker(transformer(), *(ArrayImages(*part) for part in features))
    candidates = np.random.default_rng(1).permutation(20)
    logits = dict(zip(candidates.tolist(), reranker.score_pairs(0, candidates)))
    found, _ = rerank_list([Stage(reranker, 15)], 0, candidates, np.linspace(1, 0, 20))
    fine = [row for row in candidates[:15] if row not in FAILED]
    failed = [row for row in candidates[:15] if row in FAILED]
    assert found[:15].tolist() == sorted(fine, key=lambda row: -logits[row]) + failed
    assert found[15:].tolist() == candidates[15:].tolist()
    assert reranker.pairs_scored == 15
    found, _ = rerank_list([Stage(reranker, 20)], 2, candidates, np.linspace(1, 0, 20))
    assert found.tolist() == candidates.tolist()


def test_from_stores(features, write_store):
    (table, local), (others, other_local) = features
    query = write_store("query", table, local)
    database = [write_store("one", others[:9], other_local[:9], 4),
                write_store("two", others[9:], other_local[9:])]
    stored = RRTReranker(transformer(), StoredImages([query]), StoredImages(database))
    arrays = RRTReranker(transformer(), *(ArrayImages(*part) for part in features))
    candidates = np.array([13, 0, 8, 9, 4, 19])
    # Stores keep local features in float16
    expected = arrays.score_pairs(1, candidates)
    np.testing.assert_allclose(stored.score_pairs(1, candidates), expected, atol=2e-3)


def test_the_model_is_put_into_evaluation_mode(features):
    images = [ArrayImages(*part) for part in features]
    scores = [RRTReranker(transformer(dropout=dropout).train(), *images).score_pairs(0, np.arange(4))
              for dropout in (0.5, 0.0)]
    np.testing.assert_array_equal(*scores)


def test_half_precision_is_near(features):
    images = [ArrayImages(*part) for part in features]
    whole = RRTReranker(transformer(), *images).score_pairs(0, np.arange(4))
    half = RRTReranker(transformer(), *images, precision=torch.bfloat16, batch=3)
    half = half.score_pairs(0, np.arange(4))
    assert 0 < np.abs(whole - half).max() < 0.05 * np.abs(whole).max()


def test_units_are_probabilities(features):
    reranker = RRTReranker(transformer(), *(ArrayImages(*part) for part in features))
    logits = np.array([-1e6, -3.0, 0.0, 0.7, 1e6, np.nan])
    expected = [0, 1 / (1 + np.exp(1.5)), 0.5, 1 / (1 + np.exp(-0.35)), 1, np.nan]
    with np.errstate(all="raise"):
        np.testing.assert_allclose(reranker.unit(logits, 2.0), expected, atol=1e-12)


def test_bytes_are_those_of_the_images_read(features):
    _, (_, local) = features
    reranker = RRTReranker(transformer(), *(ArrayImages(*part) for part in features), locals_per_image=6)
    assert reranker.bytes_per_image == 0
    reranker.score_pairs(0, np.array([0, 5, 6]))
    reranker.score_pairs(1, np.array([6, 4, 7]))        # 4 failed
    counts = [min(6, len(local[row].scales)) for row in (0, 5, 6, 7)]
    # 8 dimensions in float16 and a byte each; 6 dimensions in float32
    assert reranker.bytes_per_image == pytest.approx(np.mean(counts) * 17 + 24)


def test_settings_say_what_scores_depend_on(features):
    images = [ArrayImages(*part) for part in features]
    made = RRTReranker(transformer(), *images, weights_digest="abc")
    assert made.name == "rrt" and made.settings == {
        "global_dim": DIM, "scales": SCALES, "scale_index": "nearest", "layers": 2, "heads": 2,
        "dim": LOCAL, "feedforward": 12, "locals_per_image": 500, "precision": "float32", "weights": "abc"}
    other = RRTReranker(transformer(heads=4), *images, 7, precision=torch.bfloat16).settings
    assert (other["heads"], other["locals_per_image"], other["precision"]) == (4, 7, "bfloat16")


def test_what_does_not_fit_is_explained(features, make_local):
    query, database = (ArrayImages(*part) for part in features)
    with pytest.raises(UserError, match="the queries' descriptors have 6 .* takes 7: .*MODEL.RRT.GLOBAL_DIM"):
        RRTReranker(transformer(global_dim=7), query, database)
    with pytest.raises(UserError, match="the queries' local features have 8 .* takes 10: .*MODEL.RRT.DIM"):
        RRTReranker(transformer(dim=10), query, database)
    wide = ArrayImages(np.ones((2, 9)), [make_local(np.random.default_rng(0), 3, LOCAL)] * 2)
    with pytest.raises(UserError, match="the database images' descriptors have 9 dimensions"):
        RRTReranker(transformer(), query, wide)
    with pytest.raises(UserError, match="rrt needs local features, and the database images have none"):
        RRTReranker(transformer(), query, ArrayImages(features[1][0]))
    with pytest.raises(UserError, match="MODEL.RRT.LOCALS is 0: give 1 or more"):
        RRTReranker(transformer(), query, database, 0)
    with pytest.raises(UserError, match="scale 2, and MODEL.RRT.SCALES is 0.5, 1:"):
        RRTReranker(transformer(scales=[0.5, 1.0]), query, database).score_pairs(0, np.arange(4))


def test_scores_that_are_no_numbers_are_an_error(features):
    model = transformer()
    with torch.no_grad():
        model.classifier.bias.fill_(float("nan"))
    reranker = RRTReranker(model, *(ArrayImages(*part) for part in features))
    with pytest.raises(UserError, match="scores of query 1 are not all numbers: its weights are damaged"):
        reranker.score_pairs(1, np.arange(3))
