"""Lists from a search and from files."""
import numpy as np
import pytest

from dolg.errors import UserError
from dolg.rerank.lists import named, read_lists, search_lists
from dolg.search.collection import Collection


@pytest.fixture
def stores(write_store):
    rng = np.random.default_rng(0)
    tables = [rng.standard_normal((n, 4)).astype(np.float32) for n in (3, 10, 5)]
    tables[1][2], tables[0][1] = np.nan, np.nan
    query, *others = (write_store(name, table) for name, table in zip("qab", tables))
    return query, Collection(others), tables


def test_the_search_is_exact(stores):
    query, database, (queries, *tables) = stores
    lists = search_lists(query, database, 6)
    everything = np.concatenate(tables)
    for row in (0, 2):
        similar = everything.astype(np.float64) @ queries[row].astype(np.float64)
        order = [i for i in np.argsort(-similar) if not np.isnan(similar[i])][:6]
        assert lists.indexes[row].tolist() == order
        np.testing.assert_allclose(lists.scores[row], similar[order], rtol=1e-6)
    assert (lists.indexes[1] == -1).all(), "a query that failed finds nothing"
    assert search_lists(query, database, 99).indexes.shape == (3, 15)


def test_names_there_and_back(stores, tmp_path):
    query, database, _ = stores
    lists = search_lists(query, database, 99)
    file = tmp_path / "lists.csv"
    file.write_text(named(lists, query, database).csv())
    again = read_lists(file, query, database)
    width = again.indexes.shape[1]
    assert width == 14, "the failed image is in no list"
    np.testing.assert_array_equal(again.indexes, lists.indexes[:, :width])
    np.testing.assert_allclose(again.scores, lists.scores[:, :width], atol=1e-6)
    lists.save(tmp_path / "lists.npz")
    np.testing.assert_array_equal(read_lists(tmp_path / "lists.npz", query, database).indexes, lists.indexes)


def test_a_table_of_another_shape(stores, tmp_path):
    query, database, _ = stores
    file = tmp_path / "theirs.csv"
    file.write_text("score,extra,image,query\n0.5,x,b 4.jpg,q 2\n0.25,y,a 0,q 2.png\n")
    lists = read_lists(file, query, database)
    assert lists.indexes.tolist() == [[-1, -1], [-1, -1], [14, 0]]
    assert lists.scores[2].tolist() == [0.5, 0.25]


@pytest.mark.parametrize("content, message", [
    ("query,image\nq 0,a 0\n", "lacks the columns score"),
    ("", "lacks the columns query, image, score"),
    ("query,image,score\nq 0,a 0,high\n", "line 2: the score 'high' is no number"),
    ("query,image,score\nq 9,a 0,1\nq 8,a 0,1\n", "names 2 of column query .*'q 8', 'q 9'"),
    ("query,image,score\nq 0,c 0,1\n", "names 1 of column image .*'c 0'"),
])
def test_tables_that_do_not_fit(stores, tmp_path, content, message):
    query, database, _ = stores
    (tmp_path / "theirs.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        read_lists(tmp_path / "theirs.csv", query, database)


def test_a_file_that_is_not_there(stores, tmp_path):
    query, database, _ = stores
    with pytest.raises(UserError, match="none.csv cannot be read"):
        read_lists(tmp_path / "none.csv", query, database)


def test_a_ranking_of_other_stores(stores, tmp_path):
    query, database, _ = stores
    search_lists(query, database, 3).save(tmp_path / "lists.npz")
    with pytest.raises(UserError, match="made of other stores"):
        read_lists(tmp_path / "lists.npz", query, Collection(database.stores[:1]))
