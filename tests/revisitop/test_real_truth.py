"""The published ground truths of ROxford and RParis, with rankings of every kind, against slow and
obvious code: the original's way, written out."""
import numpy as np
import pytest

from revisitop import Store, compute_map, evaluate_stores, load_ground_truth

LABELS = {"easy": (("easy",), ("junk", "hard")), "medium": (("easy", "hard"), ("junk",)),
          "hard": (("hard",), ("junk", "easy"))}


def _slow_ap(ranking: list[int], positives: set, junk: set) -> float | None:
    """Walk down a ranking, image by image."""
    if not positives:
        return None
    area, seen, found, precision_before = 0.0, 0, 0, 1.0
    for image in ranking:
        if image in junk:
            continue
        if image in positives:
            precision_after = (found + 1) / (seen + 1)
            precision_before = found / seen if seen else 1.0
            area += (precision_before + precision_after) / 2 / len(positives)
            found += 1
        seen += 1
    return area


def _slow_precision(ranking: list[int], positives: set, junk: set, k: int) -> float:
    kept = [image in positives for image in ranking if image not in junk]
    if not any(kept):
        return 0.0
    last = max(place for place, good in enumerate(kept) if good)
    depth = min(k, last + 1)
    return sum(kept[:depth]) / depth


def _scores(truth, kind: str, distractors: int, rng) -> np.ndarray:
    """Scores (Q, images + distractors), float32."""
    total = len(truth.images) + distractors
    scores = rng.standard_normal((len(truth.queries), total), dtype=np.float32)
    if kind != "random":
        for row, entry in zip(scores, truth.labels):
            row[entry["easy"]] += 4
            row[entry["hard"]] += 2
            row[entry["junk"]] += 1
    return np.round(4 * scores) / 4 if kind == "tied" else scores


def _sets(entry: dict, protocol: str) -> tuple[set, set]:
    return tuple({int(image) for kind in kinds for image in entry[kind]} for kinds in LABELS[protocol])


def _stores(make_store, folder, truth, scores: np.ndarray):
    """Stores whose inner products are these scores: the queries are unit vectors of as many
    dimensions."""
    count = len(truth.queries)
    table = np.ascontiguousarray(scores.T)
    query = make_store(folder / "query", truth.queries, np.eye(count, dtype=np.float32), 1000)
    database = make_store(folder / "database", truth.images, table[:len(truth.images)], 1000)
    rest = table[len(truth.images):]
    paths = [query, database]
    if len(rest):
        paths.append(make_store(folder / "distractors", [f"d{i}" for i in range(len(rest))], rest, 50_000))
    return [Store(path) for path in paths]


CASES = [("roxford5k", kind, count) for kind in ("random", "good", "tied") for count in (0, 20_000)]
CASES += [("rparis6k", "good", 0), ("rparis6k", "tied", 20_000), ("roxford5k", "tied", 1_000_000)]


@pytest.mark.parametrize("name, kind, distractors", CASES)
def test_evaluated_by_counting(shared, make_store, tmp_path, name, kind, distractors):
    truth = load_ground_truth(shared / "data" / f"gnd_{name}.pkl")
    scores = _scores(truth, kind, distractors, np.random.default_rng(len(kind) + distractors))
    query, database, *more = _stores(make_store, tmp_path, truth, scores)
    result = evaluate_stores(truth, query, database, more)
    assert result["distractors"] == distractors
    for q, entry in enumerate(truth.labels):
        # What comes after the last labelled image decides nothing
        lowest = min(scores[q, np.concatenate(list(entry.values()))])
        candidates = np.flatnonzero(scores[q] >= lowest)
        ranking = candidates[np.argsort(-scores[q, candidates], kind="stable")].tolist()
        for protocol in LABELS:
            want = _slow_ap(ranking, *_sets(entry, protocol))
            got = result["protocols"][protocol]["ap"][q]
            assert got == want or got == pytest.approx(want, abs=1e-12), (protocol, q)
    for protocol, figures in result["protocols"].items():
        aps = [ap for ap in figures["ap"] if ap is not None]
        assert figures["mAP"] == pytest.approx(sum(aps) / len(aps), abs=1e-12)
    if name == "roxford5k":     # two queries have no easy image
        assert result["protocols"]["easy"]["ap"].count(None) == 2


@pytest.mark.parametrize("name", ["roxford5k", "rparis6k"])
@pytest.mark.parametrize("depth", [1, 10, 100, 1000])
def test_cut_rankings(shared, name, depth):
    """Some then have no positive at all; AP divides by all positives all the same."""
    truth = load_ground_truth(shared / "data" / f"gnd_{name}.pkl")
    scores = _scores(truth, "random", 0, np.random.default_rng(depth))
    ranks = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    for protocol in LABELS:
        sets = [_sets(entry, protocol) for entry in truth.labels]
        entries = [{"ok": sorted(ok), "junk": sorted(junk)} for ok, junk in sets]
        got = compute_map(ranks, entries, [1, 5, 10])
        for q, (ok, junk) in enumerate(sets):
            if not ok:
                assert np.isnan(got.aps[q])
                continue
            row = ranks[q].tolist()
            assert got.aps[q] == pytest.approx(_slow_ap(row, ok, junk), abs=1e-12)
            for place, k in enumerate((1, 5, 10)):
                assert got.prs[q, place] == pytest.approx(_slow_precision(row, ok, junk, k), abs=1e-12)
    assert any(_slow_ap(row.tolist(), *_sets(entry, "hard")) == 0 for row, entry in zip(ranks, truth.labels)) \
        or depth == 1000
