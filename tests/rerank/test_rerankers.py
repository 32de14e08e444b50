"""What all rerankers of descriptors and ASMK do with lists as they come."""
import numpy as np
import pytest

from dolg.rerank.asmk import ASMKReranker
from dolg.rerank.asmk_kernel import MatchKernel
from dolg.rerank.images import ArrayImages
from dolg.rerank.interface import Stage, rerank_list
from dolg.rerank.neighbours import DiffusionReranker, ExpansionReranker, KReciprocalReranker
from dolg.rerank.superglobal import SuperGlobalReranker

COUNT, FAILED, DIM = 40, [7, 19, 33], 8


def asmk(query, database):
    pytest.importorskip("asmk")
    centres = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    return ASMKReranker(query, database, MatchKernel(centres / 3), assignments=2)


RERANKERS = {
    "superglobal": lambda *images: SuperGlobalReranker(*images, k=4),
    "aqe": lambda *images: ExpansionReranker(*images, n=5, alpha=0.0),
    "alpha": lambda *images: ExpansionReranker(*images, n=5, alpha=2.0),
    "kreciprocal": lambda *images: KReciprocalReranker(*images, k1=6, k2=3),
    "diffusion": lambda *images: DiffusionReranker(*images, k_graph=5, k_query=3),
    "asmk": asmk,
}
IN_ORDER = {"aqe", "alpha"}      # those whose scores depend on the order of the candidates


@pytest.fixture(params=RERANKERS)
def reranker(request, make_local):
    """For 3 queries, of which the last failed, and images of which some failed and some are alike."""
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((5, DIM))
    table = rng.standard_normal((COUNT + 3, DIM)) + centres[np.arange(COUNT + 3) % 5]
    table = (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)
    local = [make_local(rng, size) for size in rng.integers(0, 20, COUNT + 3)]
    for copy, image in ((4, 3), (21, 3), (30, 12)):
        table[copy], local[copy] = table[image], local[image]
    for row in (*FAILED, COUNT + 2):
        table[row], local[row] = np.nan, make_local(rng, 0)
    database, query = (ArrayImages(table[part], local[part]) for part in (slice(COUNT), slice(COUNT, None)))
    made = RERANKERS[request.param](query, database)
    assert made.name == request.param
    return made


def given(length, seed=0):
    return np.random.default_rng(seed).permutation(COUNT)[:length], np.linspace(1, 0, length)


@pytest.mark.parametrize("k", [1, 2, 10, COUNT, 100])
@pytest.mark.parametrize("length", [0, 1, 2, 3, 9, COUNT])
def test_a_list_stays_a_permutation(reranker, length, k):
    for query in range(3):
        candidates, scores = given(length, query)
        found, _ = rerank_list([Stage(reranker, k)], query, candidates, scores)
        assert sorted(found[:k]) == sorted(candidates[:k])
        assert found[k:].tolist() == candidates[k:].tolist()
        if query == 2:
            assert found.tolist() == candidates.tolist(), "of a query that failed nothing can be said"


def test_scores_are_there_but_for_images_that_failed(reranker):
    for query in range(3):
        candidates, scores = given(COUNT, query)
        new = reranker.rerank(query, candidates, scores)
        failed = np.isin(candidates, FAILED)
        assert new.shape == (COUNT,) and new.dtype == np.float64
        if reranker.name == "asmk":
            assert (new[failed] == 0).all() and not np.isnan(new).any()
        else:
            assert (np.isnan(new) == (failed | (query == 2))).all()
        assert query == 2 or len(np.unique(new[~failed])) > 15
        found, _ = rerank_list([Stage(reranker, COUNT)], query, candidates, scores)
        if query != 2 and reranker.name != "asmk":
            assert set(found[-3:]) == set(FAILED)


def test_images_that_failed_change_no_scores(reranker):
    for query in range(2):
        candidates, scores = given(COUNT, query)
        fine = ~np.isin(candidates, FAILED)
        np.testing.assert_array_equal(reranker.rerank(query, candidates, scores)[fine],
                                      reranker.rerank(query, candidates[fine], scores[fine]))


def test_only_images_that_failed(reranker):
    found, _ = rerank_list([Stage(reranker, 10)], 0, np.array(FAILED[::-1]), np.ones(3))
    assert found.tolist() == FAILED[::-1]


def test_images_named_twice_and_lists_that_end_early(reranker):
    candidates = np.array([3, 12, 3, 30, 7, 12, 21, 4, 0, 7, -1, -1, -1])
    found, scores = rerank_list([Stage(reranker, 9)], 1, candidates, np.linspace(1, 0, 13))
    assert sorted(found[:9]) == sorted(candidates[:9]) and found[9:].tolist() == [7, -1, -1, -1]
    for image in (3, 12):
        first, second = np.flatnonzero(found == image)
        assert second == first + 1 and scores[first] == scores[second]
    # Two images that are alike in all have one score; in a graph, ties may tell them apart
    if reranker.name not in ("kreciprocal", "diffusion"):
        assert scores[found == 3][0] == pytest.approx(scores[found == 21][0], abs=1e-5)


def test_the_order_of_the_candidates(reranker):
    candidates, scores = given(20, 5)
    shuffled = np.random.default_rng(6).permutation(20)
    for query in range(2):
        new = reranker.rerank(query, candidates, scores)
        other = reranker.rerank(query, candidates[shuffled], scores)
        if reranker.name in IN_ORDER:
            assert np.nanmax(np.abs(other - new[shuffled])) > 1e-3
        else:
            np.testing.assert_array_equal(other, new[shuffled])
        # Nor does any look at the scores that the candidates came with
        np.testing.assert_array_equal(reranker.rerank(query, candidates, -scores), new)


def test_a_score_between_0_and_1_is_mixed_with_the_given_one(reranker):
    candidates, scores = given(10)
    fine = ~np.isin(candidates, FAILED)
    found, mixed = rerank_list([Stage(reranker, 10, 0.25, 2.0)], 0, candidates[fine], scores[fine])
    expected = 0.75 * scores[fine] + 0.25 * reranker.rerank(0, candidates[fine], scores[fine]) / 2
    order = np.argsort(-expected, kind="stable")
    assert found.tolist() == candidates[fine][order].tolist()
    np.testing.assert_allclose(mixed, expected[order])


def test_what_a_database_keeps_of_an_image(reranker):
    assert reranker.bytes_per_image == 0
    reranker.rerank(0, np.array([], np.int64), np.array([]))
    assert reranker.bytes_per_image == 0
    reranker.rerank(0, *given(20))
    if reranker.name == "asmk":     # 4 bytes for a word, 4 for 8 bits; 6 words at most
        assert 8 <= reranker.bytes_per_image <= 48
    else:
        assert reranker.bytes_per_image == 4 * DIM
