"""Scores of reranked lists against rankings of everything, and what is said of them."""
import pickle

import numpy as np
import pytest

from dolg.rerank.evaluation import evaluate_lists, open_benchmark
from dolg.rerank.interface import PairReranker, Reranker, Stage
from dolg.rerank.lists import read_lists, search_lists
from dolg.search.collection import Collection
from dolg.search.queries import Results
from revisitop import compute_map, evaluate_stores, load_ground_truth, split

IMAGES, QUERIES, OTHERS = 60, 6, 45


class Oracle(Reranker):
    """A table of scores; notes the lists that it got."""

    name, settings, bytes_per_image = "oracle", {"told": 1}, 12.0

    def __init__(self, table):
        self.table, self.lists = table, []

    def rerank(self, query, candidates, scores):
        self.lists.append((query, candidates.tolist()))
        return self.table[query, candidates]


class PairOracle(PairReranker):
    name, settings = "pair oracle", {}

    def __init__(self, table):
        super().__init__()
        self.table, self.asked = table, []

    def score_pairs(self, query, candidates):
        self.asked += [(query, row) for row in candidates.tolist()]
        return self.table[query, candidates]


@pytest.fixture(params=range(3))
def case(request, tmp_path, write_store):
    """(ground truth, query store, database, entries by row, similarities, scores of a reranker)"""
    rng = np.random.default_rng(request.param)
    shuffled, asked = rng.permutation(IMAGES), rng.permutation(QUERIES)
    labels = []
    for _ in range(QUERIES):
        chosen = np.split(rng.permutation(IMAGES), np.cumsum(rng.integers(0, 9, 3)))[:3]
        labels.append({**dict(zip(("easy", "hard", "junk"), map(np.ndarray.tolist, chosen))),
                       "bbx": [0, 0, 9, 9]})
    file = tmp_path / "gnd_toy.pkl"
    file.write_bytes(pickle.dumps({"imlist": [f"i{n}" for n in range(IMAGES)],
                                   "qimlist": [f"q{n}" for n in range(QUERIES)], "gnd": labels}))
    tables = [rng.standard_normal((n, 5)).astype(np.float32) for n in (QUERIES, IMAGES, OTHERS)]
    tables[1][[4, 9]], tables[2][3] = np.nan, np.nan
    if request.param == 1:
        tables[0][2] = np.nan
    query = write_store("query", tables[0][asked], names=[f"q{n}" for n in asked])
    stores = [write_store("database", tables[1][shuffled], names=[f"i{n}" for n in shuffled]),
              write_store("others", tables[2])]
    similar = np.concatenate([tables[1], tables[2]]) @ tables[0].T.astype(np.float64)
    by_row = np.concatenate([shuffled, IMAGES + np.arange(OTHERS)])     # row -> number in the truth
    scores = rng.integers(0, 5, (QUERIES, IMAGES + OTHERS)).astype(float)   # of query and image numbers
    return (load_ground_truth(file), query, Collection(stores), similar.T, by_row, asked, scores)


def slow_result(truth, similar, scores, k, without_junk, depth=None):
    """mAP and AP per protocol from rankings of everything, image numbers as in the truth."""
    found = {}
    for protocol in ("easy", "medium", "hard"):
        entries, rankings = split(truth, protocol), []
        for q, entry in enumerate(entries):
            values = similar[q]
            ranking = [i for i in np.argsort(-values, kind="stable") if not np.isnan(values[i])][:depth]
            if without_junk:
                ranking = [i for i in ranking if i not in entry["junk"]]
            head = sorted(ranking[:k], key=lambda i: -scores[q, i])     # stable, as ties ask for
            rankings.append(np.array(head + ranking[k:], np.int64))
        found[protocol] = compute_map(rankings, entries, (1, 5, 10))
    return found


def check(result, expected):
    for protocol, figures in result["protocols"].items():
        aps = [np.nan if ap is None else ap for ap in figures["ap"]]
        np.testing.assert_allclose(aps, expected[protocol].aps, atol=1e-12)
        np.testing.assert_allclose([figures[f"mP@{k}"] for k in (1, 5, 10)], expected[protocol].mpr)
        np.testing.assert_allclose(figures["mAP"], expected[protocol].map)


@pytest.mark.parametrize("without_junk", [True, False])
@pytest.mark.parametrize("k", [1, 7, 30, 200])
def test_against_rankings_of_everything(case, k, without_junk):
    truth, query, database, similar, by_row, asked, scores = case
    benchmark = open_benchmark(truth, query, database, ranked=True)
    lists = search_lists(query, database, k + (benchmark.most_junk if without_junk else 0))
    reranker = Oracle(scores[asked][:, by_row])
    result = evaluate_lists(benchmark, lists, [Stage(reranker, k)], without_junk)
    check(result, slow_result(truth, similar, scores, k, without_junk))
    assert result["protocol"]["reranking"]["stages"] == [
        {"method": "oracle", "k": k, "weight": 1.0, "temperature": 1.0, "settings": {"told": 1}}]
    assert result["protocol"]["reranking"]["junk_before_reranking"] == (
        "removed" if without_junk else "left in")
    assert result["reranking"]["bytes_per_image"] == 12.0
    assert result["reranking"]["seconds_per_query"] > 0
    junk = {(protocol, q): set(entry["junk"]) for protocol in benchmark.entries
            for q, entry in enumerate(benchmark.entries[protocol])}
    if without_junk:
        assert len(reranker.lists) == 3 * QUERIES
        for (query_row, candidates), (protocol, q) in zip(
                reranker.lists, [(p, q) for q in range(QUERIES) for p in benchmark.entries]):
            assert query_row == benchmark.query_rows[q] and not junk[protocol, q] & set(candidates)


def test_without_stages_it_is_the_evaluation_of_the_stores(case):
    truth, query, database, *_ = case
    benchmark = open_benchmark(truth, query, database, ranked=True)
    result = evaluate_lists(benchmark, search_lists(query, database, 5), [])
    expected = evaluate_stores(truth, query, database.stores[0], database.stores[1:], double=True)
    assert result == expected


def test_each_pair_is_scored_once_for_all_protocols(case):
    truth, query, database, similar, by_row, asked, scores = case
    benchmark = open_benchmark(truth, query, database, ranked=True)
    reranker = PairOracle(scores[asked][:, by_row])
    lists = search_lists(query, database, 20 + benchmark.most_junk)
    result = evaluate_lists(benchmark, lists, [Stage(reranker, 20)])
    check(result, slow_result(truth, similar, scores, 20, True))
    assert len(reranker.asked) == len(set(reranker.asked)) > 20
    again = evaluate_lists(benchmark, lists, [Stage(reranker, 10)])
    assert again["reranking"]["seconds_per_query"] is None, "nothing was left to score"


def test_lists_of_somebody_else(case, tmp_path):
    truth, query, database, similar, by_row, asked, scores = case
    found = search_lists(query, database, 15)
    names = [name for store in database.stores for name in store.names]
    rows = [[names[row] for row in rows if row >= 0] for rows in found.indexes]
    file = tmp_path / "lists.csv"
    file.write_text(Results(list(query.names), rows, found.scores).csv())
    lists = read_lists(file, query, database)
    np.testing.assert_array_equal(lists.indexes[:, :15][lists.indexes >= 0],
                                  found.indexes[:, :lists.indexes.shape[1]][lists.indexes >= 0])
    benchmark = open_benchmark(truth, query, database, ranked=False)
    result = evaluate_lists(benchmark, lists, [Stage(Oracle(scores[asked][:, by_row]), 8)])
    check(result, slow_result(truth, similar, scores, 8, True, depth=15))


def test_an_image_listed_twice_counts_where_it_comes_first(case, tmp_path):
    truth, query, database, *_ = case
    ok = next(q for q, entry in enumerate(split(truth, "medium")) if len(entry["ok"]))
    image = f"i{split(truth, 'medium')[ok]['ok'][0]}"
    file = tmp_path / "lists.csv"
    file.write_text("query,image,score\n" + "".join(
        f"q{ok},{name},{score}\n" for name, score in (("others 1", 3), (image, 2), (image, 1))))
    benchmark = open_benchmark(truth, query, database, ranked=False)
    result = evaluate_lists(benchmark, read_lists(file, query, database), [])
    count = len(split(truth, "medium")[ok]["ok"])
    # One positive, at the second place: (0 + 1/2) / 2 of its recall
    assert result["protocols"]["medium"]["ap"][ok] == pytest.approx(0.25 / count)
