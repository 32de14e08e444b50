"""SuperGlobal's reranking against the published procedure, one image at a time."""
import numpy as np
import pytest

from dolg.errors import UserError
from dolg.rerank.images import ArrayImages
from dolg.rerank.interface import Stage, rerank_list
from dolg.rerank.superglobal import SuperGlobalReranker


def unit(table):
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


def published(query, table, k, beta):
    """The steps of MDescAug and RerankwMDA: candidates' places, best first, and their scores."""
    query, table = query.astype(np.float64), table.astype(np.float64)
    count, refined, first = len(table), [], []
    for own in table:
        similarities = [float(own @ other) for other in table]
        near = sorted(range(count), key=lambda j: -similarities[j])[:k + 1]
        weights = [1.0] + [beta * similarities[j] for j in near[1:]]
        refined.append(sum(w * table[j] for w, j in zip(weights, near)) / sum(weights))
        first.append(float(query @ refined[-1]))
    # From here on all is in the order of the first score, as it is there
    order = sorted(range(count), key=lambda i: -first[i])
    falling, reordered = sorted(first, reverse=True), [refined[i] for i in order]
    expanded = [max(x[d] for x in reordered[:k + 1]) for d in range(table.shape[1])]
    final = [(value + float(np.dot(expanded, x))) / 2 for value, x in zip(falling, reordered)]
    best = sorted(range(count), key=lambda place: -final[place])
    return [order[place] for place in best], [final[place] for place in best]


def tables(seed, count, clustered, dim=24):
    """A query (1,D) and images (N,D)."""
    rng = np.random.default_rng(seed)
    centres = 2 * clustered * rng.standard_normal((4, dim))
    table = unit(centres[rng.integers(0, 4, count + 1)] + rng.standard_normal((count + 1, dim)))
    return table[:1], table[1:]


@pytest.mark.parametrize("clustered", [0, 1])
@pytest.mark.parametrize("count, k, beta", [(60, 9, 0.15), (60, 3, 1.0), (60, 9, 0.0), (60, 100, 0.15),
                                            (11, 9, 0.15), (10, 9, 0.15), (9, 9, 0.15), (2, 1, 0.5),
                                            (1, 9, 0.15)])
def test_against_the_published_procedure(clustered, count, k, beta):
    for seed in range(3):
        query, table = tables(seed, count, clustered)
        order, final = published(query[0], table, k, beta)
        reranker = SuperGlobalReranker(ArrayImages(query), ArrayImages(table), k, beta)
        scores = reranker.rerank(0, np.arange(count), np.zeros(count))
        assert scores.dtype == np.float64
        np.testing.assert_allclose(scores[order], final, atol=1e-6)
        found, _ = rerank_list([Stage(reranker, count)], 0, np.arange(count), np.zeros(count))
        assert found.tolist() == order


def test_only_the_candidates_have_a_part():
    query, table = tables(0, 40, 1)
    whole = SuperGlobalReranker(ArrayImages(query), ArrayImages(table))
    rows = np.array([31, 4, 17, 8, 25, 0])
    alone = SuperGlobalReranker(ArrayImages(query), ArrayImages(table[rows]))
    np.testing.assert_allclose(whole.rerank(0, rows, np.zeros(6)),
                               alone.rerank(0, np.arange(6), np.zeros(6)), atol=1e-6)


def test_by_hand():
    """Refined: (1, .5) / 1 at K 1, beta 1 and similarity .5; two alike stay as they are."""
    table = np.array([[1, 0], [0.5, np.sqrt(0.75)], [0.5, np.sqrt(0.75)]], np.float32)
    query = np.array([[1, 0]], np.float32)
    refined = np.array([(table[0] + 0.5 * table[1]) / 1.5, table[1], table[2]])
    first = refined[:, 0]
    expanded = np.maximum(refined[0], table[1])
    reranker = SuperGlobalReranker(ArrayImages(query), ArrayImages(table), 1, 1.0)
    np.testing.assert_allclose(reranker.rerank(0, np.arange(3), np.zeros(3)),
                               (first + refined @ expanded) / 2, atol=1e-6)


def test_what_it_was_told_and_what_it_keeps():
    query, table = tables(0, 5, 0)
    reranker = SuperGlobalReranker(ArrayImages(query), ArrayImages(table))
    assert (reranker.name, reranker.settings) == ("superglobal", {"k": 9, "beta": 0.15})
    assert reranker.bytes_per_image == 0
    reranker.rerank(0, np.arange(2), np.zeros(2))
    assert reranker.bytes_per_image == 4 * 24


def test_users_mistakes_are_named():
    images = ArrayImages(np.ones((1, 2), np.float32))
    with pytest.raises(UserError, match="SUPERGLOBAL.K is 0"):
        SuperGlobalReranker(images, images, 0)
    for beta in (-0.1, np.nan, np.inf):
        with pytest.raises(UserError, match="SUPERGLOBAL.BETA is"):
            SuperGlobalReranker(images, images, 9, beta)
