"""Predictions for Google Landmarks v2 from stores: against slow code, by hand, and the command."""
import csv

import numpy as np
import pytest

from dolg.errors import UserError
from dolg.features.store import FeatureStore, StoreWriter
from dolg.search.predictions import (
    read_landmarks, recognised_landmarks, retrieved_images, write_predictions)
from revisitop.stores import StoreError


def write_store(path, names, table, weights="a" * 64, **more) -> FeatureStore:
    """A store in chunks of 7; rows with NaN are marked as failed."""
    table = np.asarray(table, np.float32)
    writer = StoreWriter(path, names, table.shape[1], 7, {"weights_digest": weights, **more})
    for chunk in range(writer.num_chunks):
        rows = list(writer.rows(chunk))
        failed = np.flatnonzero(np.isnan(table[rows]).any(axis=1))
        writer.write_chunk(chunk, table[rows], {int(row): "unreadable" for row in failed})
    return FeatureStore(path)


@pytest.fixture
def world(tmp_path):
    """12 test images, and 40 others with landmarks in two stores; one or two of each failed."""
    random = np.random.default_rng(3)
    tables = {"query": random.standard_normal((12, 6)), "first": random.standard_normal((25, 6)),
              "second": random.standard_normal((15, 6))}
    tables["query"][4], tables["first"][[2, 9]], tables["second"][0] = np.nan, np.nan, np.nan
    ids = {name: [f"{name}{i:02d}" for i in range(len(table))] for name, table in tables.items()}
    stores = {name: write_store(tmp_path / name, [f"0/1/{image}.jpg" for image in ids[name]], table)
              for name, table in tables.items()}
    images = dict(zip(ids["first"] + ids["second"],
                      np.concatenate([tables["first"], tables["second"]]).astype(np.float32)))
    queries = dict(zip(ids["query"], tables["query"].astype(np.float32)))
    landmark_of = {image: int(random.integers(100, 106)) for image in images}
    return stores, queries, images, landmark_of


def _nearest(query, images, k, cosine):
    """The best images that did not fail, with their scores, one by one."""
    scores = {}
    for image, descriptor in images.items():
        if not np.isnan(descriptor).any():
            scores[image] = float(np.dot(query.astype(float), descriptor.astype(float)))
            if cosine:
                scores[image] /= np.linalg.norm(query) * np.linalg.norm(descriptor)
    return sorted(scores.items(), key=lambda item: -item[1])[:k]


@pytest.mark.parametrize("depth", [1, 10, 100])
def test_retrieval_against_slow_code(world, depth):
    stores, queries, images, _ = world
    got = retrieved_images(stores["query"], [stores["first"], stores["second"]], depth)
    want = {name: [image for image, _ in _nearest(query, images, depth, cosine=False)]
            for name, query in queries.items()}
    want["query04"] = []
    assert list(got) == list(queries)
    assert {name: prediction.split() for name, prediction in got.items()} == want


@pytest.mark.parametrize("neighbours", [1, 5, 60])
def test_recognition_against_slow_code(world, neighbours):
    stores, queries, images, landmark_of = world
    got = recognised_landmarks(stores["query"], [stores["first"], stores["second"]],
                               {**landmark_of, "not in any store": 7}, neighbours)
    assert list(got) == list(queries) and got.pop("query04") == ""
    for name, prediction in got.items():
        sums = {}
        for image, score in _nearest(queries[name], images, neighbours, cosine=True):
            sums[landmark_of[image]] = sums.get(landmark_of[image], 0) + score
        landmark, score = prediction.split()
        assert int(landmark) == max(sums, key=sums.get)
        assert float(score) == pytest.approx(max(sums.values()), abs=1e-5)


def test_recognition_by_hand(tmp_path):
    query = write_store(tmp_path / "q", ["q.jpg", "zero.jpg"], [[2, 0], [0, 0]])
    # Cosines with the query: 1, 0.8, 0.6 and 0, whatever the lengths
    train = write_store(tmp_path / "t", ["a.jpg", "b.jpg", "c.jpg", "z.jpg"],
                        [[5, 0], [0.8, -0.6], [3, 4], [0, 0]])
    landmark_of = {"a": 1, "b": 2, "c": 2, "z": 3}
    assert recognised_landmarks(query, [train], landmark_of, 1) == {"q": "1 1.0", "zero": "1 0.0"}
    landmark, score = recognised_landmarks(query, [train], landmark_of, 4)["q"].split()
    assert landmark == "2" and float(score) == pytest.approx(0.8 + 0.6)


def test_of_landmarks_with_one_score_the_nearest_is_given(tmp_path):
    # The cosines are exact: 1 for a and b, -1 for c, so the scores are 2 - 1 for 9 and 1 for 5
    query = write_store(tmp_path / "q", ["q"], [[1, 0]])
    train = write_store(tmp_path / "t", ["a", "b", "b2", "c"], [[1, 0], [1, 0], [1, 0], [-1, 0]])
    for first, others in ((5, 9), (9, 5)):
        landmark_of = {"a": first, "b": others, "b2": others, "c": others}
        assert recognised_landmarks(query, [train], landmark_of, 4) == {"q": f"{first} 1.0"}


def test_mistakes_in_stores_and_labels(world, tmp_path):
    stores, _, _, landmark_of = world
    query, first = stores["query"], stores["first"]
    del landmark_of["first03"], landmark_of["first07"]
    same = write_store(tmp_path / "same", ["x/a.jpg", "y/a.png"], np.ones((2, 6)))
    blank = write_store(tmp_path / "blank", ["my photo.jpg"], np.ones((1, 6)))
    lost = write_store(tmp_path / "lost", ["lost.jpg"], np.full((1, 6), np.nan))
    broken = write_store(tmp_path / "broken", ["b.jpg"], [[np.inf, 1, 1, 1, 1, 1]])
    empty = write_store(tmp_path / "empty", ["e.jpg"], np.empty((1, 0)))
    for call, error, message in (
            (lambda: retrieved_images(query, [same]), UserError,
             "the images 'x/a.jpg' and 'y/a.png' have one id, 'a'"),
            (lambda: retrieved_images(query, [first, first]), UserError, "have one id, 'first00'"),
            (lambda: retrieved_images(query, [blank]), UserError, "'my photo.jpg' has no id"),
            (lambda: retrieved_images(query, [first], 0), UserError, "k is 0"),
            (lambda: retrieved_images(query, [broken]), StoreError, "values that are not finite"),
            (lambda: retrieved_images(query, [empty]), UserError, "has local features alone"),
            (lambda: recognised_landmarks(query, [first], landmark_of), UserError,
             "2 of the 25 training images have no landmark, such as 'first03'"),
            (lambda: recognised_landmarks(query, [lost], {"lost": 1}), UserError,
             "no training image has a descriptor")):
        with pytest.raises(error, match=message):
            call()


def test_where_all_failed_nothing_is_predicted(world, tmp_path):
    stores = world[0]
    lost = write_store(tmp_path / "lost", ["lost.jpg"], np.full((1, 6), np.nan))
    assert set(retrieved_images(stores["query"], [lost]).values()) == {""}
    assert recognised_landmarks(lost, [stores["first"]], world[3]) == {"lost": ""}


def test_an_image_that_failed_is_not_found_whatever_its_row_holds(world, change_row):
    stores, queries, images, _ = world
    images["first02"][:] = np.nan
    change_row(stores["first"], 2, 1000.0)
    found = retrieved_images(stores["query"], [FeatureStore(stores["first"].path)], 30)
    assert all("first02" not in found[name].split() for name in queries)
    assert len(found["query00"].split()) == 23


def test_labels(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("id,url,landmark_id\na,http://x/y.jpg,142820\nb,,0\na,http://x/y.jpg,142820\n")
    assert read_landmarks(file) == {"a": 142820, "b": 0}
    for text, message in (("id,url\na,b\n", "line 1: it must name the columns id,landmark_id"),
                          ("id,landmark_id\na,1\na,2\n", "line 3: 'a' has the landmark 2, and 1"),
                          ("id,landmark_id\na,x\n", "line 2: the landmark 'x' is not a whole")):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_landmarks(file)
    with pytest.raises(UserError, match="cannot read .*none.csv: No such file"):
        read_landmarks(tmp_path / "none.csv")


def test_names_that_a_csv_must_quote(tmp_path):
    write_predictions(tmp_path / "new" / "p.csv", "images", {'a,"b': "c d", "e": ""})
    with open(tmp_path / "new" / "p.csv", newline="") as file:
        assert list(csv.reader(file)) == [["id", "images"], ['a,"b', "c d"], ["e", ""]]


def _rows(done) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return {line[:20].strip(): line[20:].split() for line in done.stdout.splitlines()}


def test_from_stores_to_the_benchmark(world, run_tool, tmp_path):
    stores, queries, images, landmark_of = world
    names = [stores[name].path for name in ("query", "first", "second")]
    common = ("--query", names[0], "--database", *names[1:], "--output", tmp_path / "p.csv")
    # In each test image's truth is the second nearest image, and one that failed: AP (1/2)/2
    second = {name: _nearest(query, images, 2, cosine=False)[-1][0] if name != "query04" else "x"
              for name, query in queries.items()}
    (tmp_path / "s.csv").write_text("id,images,Usage\n" + "".join(
        f"{name},{second[name]} first02,Public\n" for name in queries))
    done = run_tool("tools/predict.py", "retrieval", *common)
    assert done.returncode == 0 and "12 test images, 11 with a prediction" in done.stdout
    rows = _rows(run_tool("revisitop/gldv2.py", "retrieval", "--solution", tmp_path / "s.csv",
                          "--predictions", tmp_path / "p.csv"))
    assert rows["mAP@100"][0] == f"{100 * 11 * 0.25 / 12:.2f}"
    assert rows["predicted"][0] == "11"

    (tmp_path / "train.csv").write_text("id,landmark_id\n" + "".join(
        f"{image},{landmark}\n" for image, landmark in landmark_of.items()))
    nearest = {name: landmark_of[_nearest(query, images, 1, cosine=True)[0][0]]
               for name, query in queries.items() if name != "query04"}
    (tmp_path / "s.csv").write_text("id,landmarks,Usage\n" + "".join(
        f"{name},{nearest.get(name, 100)},Private\n" for name in queries))
    done = run_tool("tools/predict.py", "recognition", *common, "--labels", tmp_path / "train.csv",
                    "--neighbours", 1)
    assert done.returncode == 0, done.stderr
    rows = _rows(run_tool("revisitop/gldv2.py", "recognition", "--solution", tmp_path / "s.csv",
                          "--predictions", tmp_path / "p.csv"))
    # All 11 predictions are right, and one test image has none
    assert rows["GAP"] == rows["top1"] == ["-", f"{100 * 11 / 12:.2f}"]


def test_mistakes_on_the_command_line(world, run_tool, tmp_path):
    first, query = world[0]["first"].path, world[0]["query"].path
    other = write_store(tmp_path / "other", ["a.jpg"], np.ones((1, 6)), weights="b" * 64).path
    wide = write_store(tmp_path / "wide", ["a.jpg"], np.ones((1, 9))).path
    white = write_store(tmp_path / "white", ["a.jpg"], np.ones((1, 6)), whitening="abc").path
    (tmp_path / "p.csv").write_text("earlier")
    for database, more, message in (
            (other, (), "were made with different weights"),
            (wide, (), "of 9 dimensions"),
            (white, (), "different whitening"),
            (tmp_path, (), "is not a feature store"),
            (first, ("--depth", 0), "k is 0"),
            (first, ("--output", tmp_path), "it is a folder")):
        done = run_tool("tools/predict.py", "retrieval", "--query", query, "--database", database,
                        "--output", tmp_path / "p.csv", *more, fresh="--depth" in more)
        assert done.returncode == 1 and done.stdout == "" and message in done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert (tmp_path / "p.csv").read_text() == "earlier"
