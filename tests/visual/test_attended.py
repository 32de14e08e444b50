"""The attention of the reranking transformer: that of its forward pass, against slow code."""
import math

import cv2
import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.errors import UserError
from dolg.features.store import LocalTable
from dolg.models.rrt import RerankingTransformer
from dolg.rerank.images import ArrayImages
from dolg.rerank.rrt import RRTReranker
from dolg.visual.attended import PairAttention, attend_pair, watched_forward
from dolg.visual.draw_attended import draw_attended, strongest
from dolg.visual.drawing import write_picture
from dolg.visual.photographs import Photograph

SCALES = [0.5, 1.0]


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = RerankingTransformer(6, SCALES, layers=3, heads=2, dim=8, feedforward=12)
    for parameter in made.parameters():     # biases too, and sharper attention than at the start
        torch.nn.init.normal_(parameter, std=0.7)
    return made.eval()


def side(count, padded=0, pairs=2, seed=0):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.zeros(pairs, count, dtype=torch.bool)
    if padded:
        mask[0, -padded:] = True
    return {"global": torch.randn(pairs, 6, generator=rng),
            "local": torch.randn(pairs, count, 8, generator=rng), "mask": mask,
            "scales": torch.randint(0, 2, (pairs, count), generator=rng)}


def slow_layers(model, query, candidate, pair):
    """Attention weights of every layer for all tokens, heads x T x T, by torch's own MultiheadAttention,
    one pair at a time, without its padded tokens."""
    tokens, mask = model.tokens(query, candidate)
    x, kept = tokens[pair, ~mask[pair]][None], ~mask[pair]
    found = []
    for layer in model.encoder.layers:
        own = layer.self_attn
        theirs = torch.nn.MultiheadAttention(8, own.heads, batch_first=True).eval()
        theirs.load_state_dict(own.state_dict())
        gathered, weights = theirs(x, x, x, average_attn_weights=False)
        whole = torch.zeros(own.heads, len(kept), len(kept))
        whole[:, kept.nonzero(), kept.nonzero()[:, 0]] = weights[0]
        found.append(whole.detach().numpy())
        x = layer.norm1(x + gathered)
        x = layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))
    return found, model.classifier(x[0, 0]).item(), kept.numpy()


@pytest.mark.parametrize("counts, padded", [((5, 7), (0, 0)),
                         ((5, 7), (2, 3)), ((1, 4), (1, 0)), ((0, 3), (0, 0))])
def test_weights_are_those_of_the_forward_pass(model, counts, padded):
    query, candidate = (side(*arguments, seed=seed) for seed, arguments in enumerate(zip(counts, padded)))
    with torch.no_grad():
        before = model(query, candidate)
    logits, layers = watched_forward(model, query, candidate)
    assert torch.equal(logits, before)      # to be watched changes nothing
    tokens = 4 + sum(counts)
    assert [tuple(layer.shape) for layer in layers] == [(2, 2, tokens, tokens)] * 2 + [(2, 2, 1, tokens)]
    for pair in range(2):
        expected, logit, kept = slow_layers(model, query, candidate, pair)
        assert logits[pair].item() == pytest.approx(logit, abs=1e-4)
        for found, wanted in zip(layers, expected, strict=True):
            rows = kept[:found.shape[2]]
            np.testing.assert_allclose(found[pair][:, rows], wanted[:, :found.shape[2]][:, rows], atol=1e-5)
            np.testing.assert_allclose(found[pair].sum(dim=-1), 1, atol=1e-5)
            assert (found[pair][:, :, ~kept] == 0).all()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_hooks_go_after_an_error(model):
    query = side(3)
    with pytest.raises(UserError, match="local features have 5 dimensions"):
        watched_forward(model, query, {**query, "local": query["local"][..., :5]})
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.fixture
def found():
    """3 layers of 2 heads; 2 features of the query, 3 of the candidate."""
    rng = np.random.default_rng(0)
    layers = [rng.dirichlet(np.ones(9), (2, rows)) for rows in (9, 9, 1)]
    return PairAttention(1.5, layers, np.array([[10, 20], [30, 40]]), np.array([[1, 2], [3, 4], [5, 6]]))


def test_means_over_heads_and_layers(found):
    first = [np.mean([layer[head, 0] for head in range(2)], axis=0) for layer in found.layers]
    np.testing.assert_allclose(found.of_first(), (first[0] + first[1] + first[2]) / 3)
    np.testing.assert_allclose(found.of_first(3), first[2])
    assert found.of_first().sum() == pytest.approx(1)
    weights = found.of_first()
    assert found.on_query(weights).tolist() == [weights[2], weights[3]]
    assert found.on_candidate(weights).tolist() == [weights[6], weights[7], weights[8]]
    across = np.zeros((2, 3))
    for row in range(2):
        for column in range(3):
            across[row, column] = np.mean([layer[head, 2 + row, 6 + column]
                                           for layer in found.layers[:2] for head in range(2)])
    np.testing.assert_allclose(found.across(), across)
    # In the last layer only the first token takes anything
    assert (found.across(3) == 0).all() and found.across(3).shape == (2, 3)
    for layer in (0, 4):
        with pytest.raises(UserError, match=f"--layer {layer}: the transformer has layers 1 to 3"):
            found.of_first(layer)


def test_strongest():
    across = np.array([[0.1, 0.5, 0.2], [0.0, 0.0, 0.0], [0.9, 0.8, 0.7], [0.3, 0.3, 0.1]])
    rows, columns = strongest(across, 2)
    assert list(zip(rows.tolist(), columns.tolist())) == [(0, 1), (2, 0)]
    rows, columns = strongest(across, 9)
    assert list(zip(rows.tolist(), columns.tolist())) == [(3, 0), (0, 1), (2, 0)]
    for empty in (np.zeros((0, 3)), np.zeros((3, 0))):
        assert len(strongest(empty, 5)[0]) == 0


def images(rng, counts):
    tables = [LocalTable(np.array([0, n]), *(part.astype(np.float32) for part in (
        rng.standard_normal((n, 8)), rng.uniform(0, 90, (n, 2)), rng.choice(SCALES, n), np.ones(n))))
        for n in counts]
    return ArrayImages(rng.standard_normal((len(counts), 6)).astype(np.float32), tables)


def configured(tmp_path, model, *options):
    file = tmp_path / "rrt.pth"
    torch.save(model.state_dict(), file)
    return load_cfg(None, ["MODEL.RRT.LAYERS", "3", "MODEL.RRT.HEADS", "2", "MODEL.RRT.DIM", "8",
                           "MODEL.RRT.FEEDFORWARD", "12", "MODEL.RRT.GLOBAL_DIM", "6", "MODEL.RRT.SCALES",
                           "[0.5, 1.0]", "RERANK.RRT.WEIGHTS", str(file), "DEVICE", "cpu", *options])


def test_a_pair_is_seen_as_the_reranker_sees_it(model, tmp_path):
    rng = np.random.default_rng(0)
    query, database = images(rng, [4, 9]), images(rng, [3, 0, 12])
    cfg = configured(tmp_path, model, "MODEL.RRT.LOCALS", "7")
    for row, other in ((1, 2), (0, 1), (1, 0)):
        found = attend_pair(cfg, query, row, database, other)
        score, = RRTReranker(model, query, database, 7).score_pairs(row, np.array([other]))
        assert found.logit == pytest.approx(score, abs=1e-4)
        np.testing.assert_array_equal(found.query_xy, query.local(row).xy[:7])
        np.testing.assert_array_equal(found.candidate_xy, database.local(other).xy[:7])
        assert found.layers[0].shape[1] == 4 + len(found.query_xy) + len(found.candidate_xy)
    failed = ArrayImages(np.full((1, 6), np.nan, np.float32), [query.local(0)])
    with pytest.raises(UserError, match="failed in extraction"):
        attend_pair(cfg, query, 0, failed, 0)


def test_the_picture(found, tmp_path):
    """The disc of the largest weight lies on its feature and is the largest."""
    photos = [Photograph(name, np.full((100, 100, 3), 70, np.uint8), 0, 0, 100, 100) for name in "qc"]
    layers = [np.zeros((1, rows, 9)) for rows in (9, 1)]
    for layer in layers:
        layer[:, 0, [2, 8]] = 0.8, 0.2      # the query's first, the candidate's last
    attention = PairAttention(0.0, layers, np.array(
        [[20, 30], [80, 80]]), np.array([[1, 2], [3, 4], [50, 60]]))
    write_picture(draw_attended(*photos, attention), tmp_path / "picture.png")
    picture = cv2.imread(str(tmp_path / "picture.png"))[..., ::-1].astype(int)
    yellow = (picture[..., 0] > 200) & (picture[..., 1] > 200) & (picture[..., 2] < 200)
    _, _, stats, centres = cv2.connectedComponentsWithStats(yellow.astype(np.uint8))
    largest = 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    grey = (picture == 70).all(axis=2)      # the photographs, and edges of letters
    rows, columns = (np.flatnonzero(grey.sum(axis=axis) > 300) for axis in (1, 0))
    extent = rows[-1] + 1 - rows[0]
    assert centres[largest] == pytest.approx([columns[0] + 0.205 * extent, rows[0] + 0.305 * extent], abs=3)
    assert math.isclose(attention.of_first()[2], 0.8)
