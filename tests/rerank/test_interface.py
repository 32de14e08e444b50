"""What every reranker relies on: the first images are permuted, and nothing is lost."""
import numpy as np
import pytest

from dolg.rerank.interface import PairReranker, Reranker, Stage, rerank_list
from dolg.rerank.pairs import PairScores


class Table(Reranker):
    """Scores from a table (queries, images); remembers what it was asked."""

    name, settings = "table", {}

    def __init__(self, table):
        self.table, self.asked = np.asarray(table, float), []

    def rerank(self, query, candidates, scores):
        self.asked.append((query, candidates.tolist(), scores.tolist()))
        return self.table[query, candidates]


class PairTable(PairReranker):
    name, settings = "pairs", {}

    def __init__(self, table):
        super().__init__()
        self.table, self.asked = np.asarray(table, float), []

    def score_pairs(self, query, candidates):
        self.asked += [(query, row) for row in candidates.tolist()]
        return self.table[query, candidates]


def slow_order(candidates, given, table, k, weight=1.0, temperature=1.0):
    """One stage, written out: (image, score) of each place."""
    head, tail = [], []
    for place, (image, score) in enumerate(zip(candidates, given)):
        if place >= k or image < 0:
            tail.append((image, score))
            continue
        first = candidates.index(image)
        unit = table[image] / temperature
        new = unit if weight == 1 else (1 - weight) * given[first] + weight * unit
        head.append((np.isnan(new), -new if not np.isnan(new) else 0, first, place, image, new))
    head.sort(key=lambda entry: entry[:4])
    return [(image, new) for *_, image, new in head] + tail


@pytest.mark.parametrize("seed", range(40))
def test_one_stage_against_slow_code(seed):
    rng = np.random.default_rng(seed)
    count, length, k = 30, int(rng.integers(0, 25)), int(rng.integers(1, 30))
    candidates = rng.integers(0, count, length)             # with duplicates
    given = np.sort(rng.random(length))[::-1]
    table = rng.integers(0, 4, (1, count)).astype(float)    # with ties
    table[0, rng.random(count) < 0.2] = np.nan
    weight, temperature = (1.0, 1.0) if seed % 2 else (0.3, 2.0)
    found, scores = rerank_list([Stage(Table(table), k, weight, temperature)], 0, candidates, given)
    expected = slow_order(candidates.tolist(), given.tolist(), table[0], k, weight, temperature)
    assert found.tolist() == [image for image, _ in expected]
    np.testing.assert_allclose(scores, [score for _, score in expected])
    assert sorted(found) == sorted(candidates)


def test_a_list_that_ends_early_keeps_its_end():
    found, scores = rerank_list([Stage(Table([[1, 2, 3, 4]]), 10)], 0, np.array([2, 3, -1, -1]),
                                np.array([0.9, 0.8, -np.inf, -np.inf]))
    assert found.tolist() == [3, 2, -1, -1] and scores.tolist() == [4, 3, -np.inf, -np.inf]


@pytest.mark.parametrize("candidates", [[], [-1, -1]])
def test_an_empty_list_stays_one(candidates):
    found, _ = rerank_list([Stage(Table([[1, 2]]), 10)], 0, np.array(candidates, np.int64),
                           np.full(len(candidates), -np.inf))
    assert found.tolist() == candidates


def test_a_chain_hands_on_order_and_scores():
    first, second = Table([[0, 1, 2, 3]]), Table([[5, 0, 5, 5]])
    found, _ = rerank_list([Stage(first, 4, temperature=2.0), Stage(second, 3)], 0,
                           np.array([0, 1, 2, 3]), np.array([4.0, 3, 2, 1]))
    # The first stage reverses the list; the second moves 1 behind 3 and 2, whose tie it leaves
    assert first.asked == [(0, [0, 1, 2, 3], [4, 3, 2, 1])]
    assert second.asked == [(0, [3, 2, 1], [1.5, 1.0, 0.5])]
    assert found.tolist() == [3, 2, 1, 0]


def test_scores_that_saturate_keep_their_order():
    class Saturating(Table):
        def unit(self, scores, temperature):
            return np.minimum(scores, 10)

    found, scores = rerank_list([Stage(Saturating([[11, 12, 5, 12]]), 4)], 0, np.arange(4), np.zeros(4))
    assert found.tolist() == [1, 3, 0, 2] and scores.tolist() == [10, 10, 10, 5]


def test_arguments_are_left_as_they_are():
    candidates, scores = np.array([0, 1]), np.array([1.0, 0.5])
    rerank_list([Stage(Table([[0, 1]]), 2)], 0, candidates, scores)
    assert candidates.tolist() == [0, 1] and scores.tolist() == [1.0, 0.5]


def test_each_pair_is_scored_once():
    reranker = PairTable(np.arange(12.0).reshape(2, 6))
    for rows in ([0, 1, 2], [2, 3, 1], [5]):
        scores = reranker.rerank(1, np.array(rows), np.zeros(len(rows)))
        assert scores.tolist() == [6.0 + row for row in rows]
    assert reranker.rerank(0, np.array([2]), np.zeros(1)).tolist() == [2.0]
    assert reranker.asked == [(1, 0), (1, 1), (1, 2), (1, 3), (1, 5), (0, 2)]
    assert reranker.pairs_scored == 6


def test_pairs_in_a_folder_outlive_the_run(tmp_path):
    first = PairTable(np.arange(12.0).reshape(2, 6))
    first.table[1, 3] = np.nan
    first.known = PairScores(tmp_path)
    first.rerank(1, np.array([4, 3]), np.zeros(2))
    second = PairTable(np.full((2, 6), -1.0))
    second.known = PairScores(tmp_path)
    scores = second.rerank(1, np.array([3, 0, 4]), np.zeros(3))
    np.testing.assert_array_equal(scores, [np.nan, -1.0, 10.0])
    assert second.asked == [(1, 0)]
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"no archive"])
def test_a_damaged_file_of_pairs_is_done_again(tmp_path, content):
    scores = PairScores(tmp_path)
    scores.add(0, np.array([1]), np.array([2.0]))
    file, = tmp_path.iterdir()
    file.write_bytes(content)
    again = PairScores(tmp_path)
    assert again.of(0) == {}
    again.add(0, np.array([1]), np.array([3.0]))
    assert PairScores(tmp_path).of(0) == {1: 3.0}
