"""Metric-learning metrics: worked examples, the CGD code's values, and slow obvious code."""
import json
import math
import sys

import numpy as np
import pytest

from dolg.errors import UserError
from dolg.features.labelled import labelled_store
from dolg.features.store import FeatureStore, StoreWriter
from dolg.search import classes, exact
from dolg.search.classes import (
    clustering_nmi, evaluate_classes, normalised_mutual_information,
)
from revisitop.stores import StoreError

KS = [1, 2, 4, 8]


def slow_metrics(queries, query_labels, gallery, gallery_labels, ks, self_retrieval):
    """One query at a time: sort everything, and apply the definitions."""
    hit_at, precisions, averages = {k: [] for k in ks}, [], []
    valid = np.flatnonzero(~np.isnan(gallery).any(axis=1))
    for number, (query, label) in enumerate(zip(queries, query_labels)):
        relevant = sum(gallery_labels == label) - self_retrieval
        results = []
        if not np.isnan(query).any():
            scores = (gallery[valid].astype(np.float64) @ query.astype(np.float64))
            order = valid[np.argsort(-scores.astype(np.float32), kind="stable")]
            results = [gallery_labels[i] == label for i in order
                       if not (self_retrieval and i == number)]
        for k in ks:
            hit_at[k].append(any(results[:k]))
        if relevant:
            precisions.append(sum(results[:relevant]) / relevant)
            averages.append(sum(sum(results[:place]) / place for place in range(1, relevant + 1)
                                if results[place - 1:place] == [True]) / relevant)
    return ({k: np.mean(hits) for k, hits in hit_at.items()},
            np.mean(averages), np.mean(precisions), len(queries) - len(averages))


def assert_same(metrics, expected):
    recall, map_at_r, r_precision, unscored = expected
    assert metrics.recall == pytest.approx(recall, abs=1e-12)
    assert metrics.map_at_r == pytest.approx(map_at_r, abs=1e-12)
    assert metrics.r_precision == pytest.approx(r_precision, abs=1e-12)
    assert metrics.unscored == unscored


def split(array, size):
    return [array[i:i + size] for i in range(0, len(array), size)]


def clusters(random, images, dim, labels, spread=1.5):
    """Unit descriptors (images, dim) around one centre per class."""
    centres = random.standard_normal((labels.max() + 1, dim))
    table = centres[labels] + spread * random.standard_normal((images, dim))
    return (table / np.linalg.norm(table, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def small_blocks(monkeypatch):
    """Make the borders of groups and blocks fall inside these small sets."""
    monkeypatch.setattr(classes, "QUERIES_AT_ONCE", 23)
    monkeypatch.setattr(classes, "RESULTS_AT_ONCE", 3000)
    monkeypatch.setattr(exact, "BLOCK_QUERIES", 8)
    monkeypatch.setattr(exact, "BLOCK_ROWS", 50)


def test_a_worked_example():
    """Results of the class are at places 1, 3 and 5; three exist, so R = 3."""
    gallery = np.array([[5], [4], [3], [2], [1]], np.float32)
    metrics = evaluate_classes(np.ones((1, 1), np.float32), np.array([7]), gallery,
                               np.array([7, 0, 7, 0, 7]), [1], False)
    assert metrics.recall == {1: 1.0}
    assert metrics.r_precision == pytest.approx(2 / 3)
    assert metrics.map_at_r == pytest.approx((1 / 1 + 2 / 3) / 3)


def test_an_image_does_not_find_itself_but_does_find_its_duplicate():
    """Images 0 and 1 are equal. Each finds the other first, and only the class decides."""
    table = np.array([[1, 0], [1, 0], [0.6, 0.8], [0.5, 0.8]], np.float32)
    same = evaluate_classes(table, [0, 0, 1, 1], [table], [0, 0, 1, 1], [1, 3], True)
    assert same.recall == {1: 1.0, 3: 1.0} and same.map_at_r == same.r_precision == 1
    table = np.array([[1, 0], [1, 0], [0.8, 0.6], [0, 1]], np.float32)
    other = evaluate_classes(table, [0, 1, 0, 1], [table], [0, 1, 0, 1], [1, 3], True)
    # Only image 2 is right at once: images 0 and 1 tie, and 0 comes first and is of its class
    assert other.recall == {1: 0.25, 3: 1.0}
    assert other.map_at_r == other.r_precision == 0.25


def test_a_longer_descriptor_may_hide_an_image_from_its_own_search():
    """Image 0 is not among its own first results, so nothing is to be taken out of them."""
    table = np.array([[0.1], [1], [2], [3]], np.float32)
    metrics = evaluate_classes(table, [0, 1, 0, 1], [table], [0, 1, 0, 1], [1, 2], True)
    assert_same(metrics, slow_metrics(table, np.array([0, 1, 0, 1]), table,
                                      np.array([0, 1, 0, 1]), [1, 2], True))


@pytest.mark.parametrize("case", ["recall", "recall_small", "recall_gallery"])
def test_recall_of_the_cgd_code(conformance, shared, case):
    golden = conformance.load(shared / "conformance" / "losses")
    recipe, config = golden["inputs"][case], golden["config"][case]
    table, labels = conformance.make(recipe), conformance.make(recipe["labels"])
    queries = config["queries"]
    if case == "recall_gallery":
        metrics = evaluate_classes(table[:queries], labels[:queries], table[queries:],
                                   labels[queries:], config["ks"], False)
        assert metrics.gallery == config["gallery"]
    else:
        metrics = evaluate_classes(table, labels, [table], labels, config["ks"], True)
    assert metrics.queries == queries
    conformance.close(golden, case, [metrics.recall[k] for k in config["ks"]])


@pytest.mark.parametrize("chunk_size", [13, 64, 500])
@pytest.mark.parametrize("self_retrieval", [True, False])
@pytest.mark.parametrize("trouble", ["none", "ties", "failed", "both"])
def test_agrees_with_sorting(chunk_size, self_retrieval, trouble, small_blocks):
    """Classes of one image and of many, labels that are not 0 .. n - 1."""
    random = np.random.default_rng(chunk_size)
    labels = np.minimum(random.geometric(0.15, 150), 40)
    labels[:90] = 3
    random.shuffle(labels)
    gallery = clusters(random, 150, 6, labels)
    if trouble in ("ties", "both"):
        gallery = np.rint(1.2 * gallery)            # many duplicates, and rows of zeros
    if trouble in ("failed", "both"):
        gallery[random.permutation(150)[:30]] = np.nan
        gallery[10, 2] = np.nan
    queries, query_labels = gallery, labels
    if not self_retrieval:
        query_labels = random.choice([1, 2, 3, 3, 4, 5, 90, 1000], 60)
        queries = np.rint(clusters(random, 60, 6, query_labels) * 2)
        queries[random.permutation(60)[:10]] = np.nan
    arguments = queries, query_labels * 17, gallery, labels * 17, [1, 3, 10, 400], self_retrieval
    expected = slow_metrics(*arguments)
    metrics = evaluate_classes(*arguments[:2], split(gallery, chunk_size), *arguments[3:])
    assert_same(metrics, expected)
    assert metrics.failed == np.isnan(queries).any(axis=1).sum()
    assert 0 < expected[1] < expected[2] < 1 and expected[3] > 0


def test_failed_images_are_misses():
    """They count in R, and as queries score 0; they are no reason to leave a query out."""
    table = np.array([[1, 0], [1, 0.1], [np.nan, np.nan], [0, 1]], np.float32)
    metrics = evaluate_classes(table, [0, 0, 0, 5], [table], [0, 0, 0, 5], [1], True)
    assert metrics.recall == {1: 0.5} and (metrics.failed, metrics.unscored) == (1, 1)
    assert metrics.r_precision == pytest.approx((0.5 + 0.5 + 0) / 3)


def test_nothing_to_score():
    table = np.eye(3, dtype=np.float32)
    alone = evaluate_classes(table, [0, 1, 2], [table], [0, 1, 2], [1], True)
    assert alone.recall == {1: 0} and math.isnan(alone.map_at_r) and alone.unscored == 3
    broken = np.full((2, 3), np.nan, np.float32)
    all_failed = evaluate_classes(broken, [0, 0], [table], [0, 0, 0], [1], False)
    assert all_failed.recall == {1: 0} and all_failed.map_at_r == 0 and all_failed.failed == 2


def test_the_search_is_cut_into_bounded_parts(monkeypatch):
    """One class of 300 among small ones: few queries at a time, and only its own go deep."""
    searches = []

    def spy(queries, chunks, k, device):
        searches.append((len(queries), k))
        return exact.top_k(queries, chunks, k, device)

    monkeypatch.setattr(classes, "top_k", spy)
    monkeypatch.setattr(classes, "RESULTS_AT_ONCE", 3000)
    random = np.random.default_rng(0)
    labels = np.concatenate([np.zeros(300, int), 1 + np.arange(900) // 3])
    table = clusters(random, 1200, 4, labels)
    evaluate_classes(table, labels, [table], labels, KS, True)
    assert sum(rows for rows, _ in searches) == 1200
    assert all(rows * k <= 3000 for rows, k in searches)
    assert sum(rows for rows, k in searches if k == 9) == 900
    assert sum(rows for rows, k in searches if k == 300) == 300


@pytest.mark.gpu
def test_a_gpu_gives_the_same():
    random = np.random.default_rng(4)
    labels = random.integers(0, 200, 6000)
    table = clusters(random, 6000, 64, labels)
    on_cpu, on_gpu = (evaluate_classes(table, labels, [table], labels, KS, True, device)
                      for device in ("cpu", "cuda"))
    assert on_cpu == on_gpu
    assert clustering_nmi(table, labels, "cuda") == pytest.approx(
        clustering_nmi(table, labels, "cpu"), abs=0.02)


def test_agrees_with_pytorch_metric_learning():
    module = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    random = np.random.default_rng(5)
    labels = np.arange(400) % 37                    # no class of one image: it leaves them out
    table = clusters(random, 400, 16, labels)
    names = ("precision_at_1", "mean_average_precision_at_r", "r_precision")
    theirs = module.AccuracyCalculator(include=names)
    for queries, gallery, same in ((slice(None), slice(None), True),
                                   (slice(0, 150), slice(150, None), False)):
        expected = theirs.get_accuracy(
            table[queries], labels[queries], table[gallery], labels[gallery], same)
        ours = evaluate_classes(table[queries], labels[queries], table[gallery], labels[gallery],
                                [1], same)
        assert [ours.recall[1], ours.map_at_r, ours.r_precision] == pytest.approx(
            [expected[name] for name in names], rel=1e-6)


def test_mistakes_are_named():
    table, labels = np.eye(3, dtype=np.float32), np.arange(3)
    infinite = table.copy()
    infinite[2, 1] = np.inf
    for arguments, message in [
            ((table, labels, [table], labels, [0, 1], True), "K = 0, 1"),
            ((table, labels, [table], labels, [], True), "K = nothing"),
            ((table, labels[:2], [table], labels, [1], False), r"3 queries .* \(2,\)"),
            ((table, labels, [table, table], labels, [1], False), r"6 gallery images .* \(3,\)"),
            ((table, labels / 2, [table], labels, [1], False), "float64"),
            ((infinite, labels, [table], labels, [1], False), "row 2"),
            ((table, labels, [table[:, :2]], labels, [1], False), "3 dimensions"),
            ((table[:0], labels[:0], [table], labels, [1], False), "no queries")]:
        with pytest.raises(UserError, match=message):
            evaluate_classes(*arguments)
    with pytest.raises(TypeError, match="generator"):
        evaluate_classes(table, labels, (part for part in [table]), labels, [1], True)


def slow_nmi(a, b):
    """Sums over all pairs of classes, with natural logarithms."""
    def share(*masks):
        return np.logical_and.reduce(masks).mean()

    information = sum(share(a == x, b == y) * math.log(
        share(a == x, b == y) / (share(a == x) * share(b == y)))
        for x in set(a) for y in set(b) if share(a == x, b == y))
    entropies = [-sum(share(v == x) * math.log(share(v == x)) for x in set(v)) for v in (a, b)]
    return information / (sum(entropies) / 2)


@pytest.mark.parametrize("seed", range(5))
def test_nmi_agrees_with_the_sum_over_all_cells(seed):
    random = np.random.default_rng(seed)
    a = random.integers(-3, 10, 200) * 1000
    b = np.where(random.random(200) < 0.5, a, random.integers(0, 30, 200))
    assert normalised_mutual_information(a, b) == pytest.approx(slow_nmi(a, b), abs=1e-12)


def test_nmi_known_values():
    a = np.repeat([4, 7, 9], 10)
    assert normalised_mutual_information(a, -a) == pytest.approx(1, abs=1e-12)
    independent = np.tile(np.arange(10), 3)
    assert normalised_mutual_information(a, independent) == pytest.approx(0, abs=1e-12)
    assert normalised_mutual_information(a, np.zeros(30, int)) == 0
    assert normalised_mutual_information(np.zeros(3, int), np.ones(3, int)) == 1
    # I = ln(4/3)/2 + ln(2/3)/4 + ln(2)/4, H = ln 2 and 2 ln 2 - 3/4 ln 3
    information = (2 * math.log(4 / 3) + math.log(2 / 3) + math.log(2)) / 4
    expected = 2 * information / (3 * math.log(2) - 0.75 * math.log(3))
    assert normalised_mutual_information(
        np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1])) == pytest.approx(expected, abs=1e-12)


def test_clustering_finds_separate_classes_and_no_others():
    pytest.importorskip("faiss")
    random = np.random.default_rng(6)
    labels = np.repeat(np.arange(5) * 3, 40)
    table = clusters(random, 200, 16, labels, spread=0.01)
    table[::9] = np.nan                             # failed images are left out
    scores = [clustering_nmi(table, labels, seed=seed) for seed in range(4)]
    assert max(scores) == pytest.approx(1, abs=1e-9) and scores[0] == clustering_nmi(table, labels)
    assert clustering_nmi(table, random.permutation(labels)) < 0.15
    with pytest.raises(UserError, match="every image failed"):
        clustering_nmi(np.full((4, 2), np.nan), np.zeros(4, int))


def test_faiss_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="pip install faiss-gpu"):
        clustering_nmi(np.eye(2), np.arange(2))


def write_store(path, names, table, weights="a" * 64):
    """A store in chunks of 16; rows with NaN are marked as failed."""
    writer = StoreWriter(path, names, table.shape[1], 16, {"weights_digest": weights})
    for chunk in range(writer.num_chunks):
        rows = list(writer.rows(chunk))
        failed = np.flatnonzero(np.isnan(table[rows]).any(axis=1))
        writer.write_chunk(chunk, table[rows], {int(row): "unreadable" for row in failed})


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Stores and lists `all`, `query` and `gallery`, the descriptors and the labels of all."""
    folder = tmp_path_factory.mktemp("stores")
    random = np.random.default_rng(7)
    labels = random.integers(0, 12, 100) * 5
    labels[40] = 999                                # the only one of its class
    table = clusters(random, 100, 8, labels)
    table[[3, 60]] = np.nan
    names = [f"jpg/a photo {i}.jpg" for i in range(100)]
    for name, rows in {"all": range(100), "query": range(50), "gallery": range(50, 100)}.items():
        write_store(folder / name, [names[i] for i in rows], table[rows])
        lines = [f"{names[i]} {labels[i]}\n" for i in rows]
        (folder / f"{name}.txt").write_text("".join(lines[::-1]))     # in another order
    return folder, table, labels


def test_the_command_on_one_set(run_tool, stores):
    folder, table, labels = stores
    done = run_tool("tools/recall.py", "--query", folder / "all", "--labels", folder / "all.txt",
                    "--recalls", 1, 10, "--nmi", "--json", folder / "out" / "all.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "out" / "all.json").read_text())
    recall, map_at_r, r_precision, unscored = slow_metrics(
        table, labels, table, labels, [1, 10], True)
    assert figures["recall"] == pytest.approx({str(k): recall[k] for k in recall})
    assert figures["map_at_r"] == pytest.approx(map_at_r)
    assert figures["r_precision"] == pytest.approx(r_precision)
    assert (figures["queries"], figures["gallery"], figures["failed"]) == (100, 100, 2)
    assert figures["unscored"] == unscored == 1
    assert 0.2 < figures["nmi"] < 1
    assert f"{100 * recall[10]:.2f}" in done.stdout and f"{100 * map_at_r:.2f}" in done.stdout
    assert "(2 failed)" in done.stdout


def test_the_command_on_query_and_gallery(run_tool, stores):
    folder, table, labels = stores
    done = run_tool("tools/recall.py", "--query", folder / "query", "--labels",
                    folder / "query.txt", "--gallery", folder / "gallery", "--gallery-labels",
                    folder / "gallery.txt", "--json", folder / "two.json")
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "two.json").read_text())
    recall, map_at_r, _, unscored = slow_metrics(
        table[:50], labels[:50], table[50:], labels[50:], KS, False)
    assert figures["recall"] == pytest.approx({str(k): recall[k] for k in KS})
    assert figures["map_at_r"] == pytest.approx(map_at_r) and figures["nmi"] is None
    assert (figures["queries"], figures["gallery"], figures["unscored"]) == (50, 50, unscored)


def test_the_labels_must_be_those_of_the_store(stores, tmp_path):
    folder, table, _ = stores
    lines = (folder / "query.txt").read_text().splitlines()

    def labelled(store, *lines):
        (folder / "changed.txt").write_text("\n".join(lines))
        return labelled_store(store, folder / "changed.txt")

    with pytest.raises(UserError, match="query lacks 1 images of .*changed.txt, .*/b.jpg:"):
        labelled(folder / "query", *lines, "b.jpg 4")
    with pytest.raises(UserError, match="changed.txt lacks 49 images of .*query"):
        labelled(folder / "query", lines[0])
    with pytest.raises(UserError, match="more than once"):
        labelled(folder / "query", *lines, lines[0])
    with pytest.raises(UserError, match="line 1: label -4 is below 0"):
        labelled(folder / "query", "b.jpg -4")
    writer = StoreWriter(tmp_path / "broken", ["b.jpg"], 2, 1, {})
    writer.write_chunk(0, np.array([[1, np.nan]]), {})      # not marked as failed
    with pytest.raises(StoreError, match="not finite, but the image is not marked"):
        labelled(tmp_path / "broken", "b.jpg 4")


@pytest.mark.parametrize("mistake, message", [
    ("no store", "is not a feature store"),
    ("no gallery labels", "--gallery and --gallery-labels go together"),
])
def test_mistakes_on_the_command_line(run_tool, stores, tmp_path, mistake, message):
    folder, _, _ = stores
    query, gallery = folder / "query", []
    if mistake == "no store":
        query = folder / "absent"
    else:
        gallery = ["--gallery", folder / "gallery"]
    done = run_tool("tools/recall.py", "--query", query, "--labels", folder / "query.txt",
                    *gallery, "--json", tmp_path / "out.json", fresh=message == "is not a feature store")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "out.json").exists()
