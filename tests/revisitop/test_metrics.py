"""Metrics against the original code's figures, and against the definition, written slowly."""
import hashlib
import json
import math

import numpy as np
import pytest

from revisitop import PROTOCOLS, compute_map, load_ground_truth, remove_junk, split
from revisitop.metrics import average_precision

REVISITED = ("easy", "medium", "hard")


def slow_ap(ranking, ok, junk) -> float:
    """Walk down the ranking; each positive adds a trapezoid of width 1 / len(ok)."""
    place = seen = area = 0
    for image in ranking:
        if image in junk:
            continue
        if image in ok:
            before = seen / place if place else 1.0
            seen += 1
            area += (before + seen / (place + 1)) / 2 / len(ok)
        place += 1
    return area


def slow_precision(ranking, ok, junk, k) -> float:
    """Among the first k, or fewer where the last positive comes earlier."""
    kept = [image for image in ranking if image not in junk]
    places = [place for place, image in enumerate(kept, 1) if image in ok]
    if not places:
        return 0.0
    depth = min(k, places[-1])
    return sum(image in ok for image in kept[:depth]) / depth


def random_case(seed):
    """(rankings as rows, labels) with cut rankings and queries without positives."""
    rng = np.random.default_rng(seed)
    count, rankings, gnd = int(rng.integers(3, 80)), [], []
    for _ in range(6):
        cuts = np.cumsum(rng.integers(0, max(count // 4, 1) + 1, 2))
        chosen = rng.permutation(count)
        gnd.append({"ok": chosen[:cuts[0]].tolist(), "junk": chosen[cuts[0]:cuts[1]].tolist()})
        rankings.append(rng.permutation(count)[:rng.integers(0, count + 1)])
    return rankings, gnd


@pytest.mark.parametrize("seed", range(60))
def test_agrees_with_the_definition(seed):
    rankings, gnd = random_case(seed)
    kappas = [1, 2, 5, 10, 1000]
    mean, aps, means, precisions = compute_map(rankings, gnd, kappas)
    scored = []
    for row, entry, ap, prs in zip(rankings, gnd, aps, precisions):
        if not entry["ok"]:
            assert math.isnan(ap) and np.isnan(prs).all()
            continue
        ok, junk = set(entry["ok"]), set(entry["junk"])
        assert ap == pytest.approx(slow_ap(row, ok, junk), abs=1e-12)
        wanted = [slow_precision(row, ok, junk, k) for k in kappas]
        np.testing.assert_allclose(prs, wanted, rtol=0, atol=1e-12)
        scored.append((ap, prs))
    if scored:
        assert mean == pytest.approx(sum(ap for ap, _ in scored) / len(scored), abs=1e-12)
        np.testing.assert_allclose(means, np.mean([prs for _, prs in scored], axis=0), atol=1e-12)
    else:
        assert math.isnan(mean)


@pytest.mark.parametrize("case", ["revisitop_small", "revisitop_roxford5k"])
def test_agrees_with_the_original(conformance, shared, case):
    golden = conformance.load(shared / "conformance" / case)
    config, kappas = golden["config"], golden["config"]["kappas"]
    gnd = config["gnd"] if "gnd" in config else _roxford(shared, config)
    for name, recipe in golden["inputs"].items():
        ranks = conformance.ranking(gnd, config["n"], recipe).T
        results = [compute_map(ranks, split(gnd, protocol), kappas) for protocol in REVISITED]
        conformance.close(golden, f"{name}/map", [result.map for result in results])
        conformance.close(golden, f"{name}/aps", [result.aps for result in results])
        for row, letter in enumerate("EMH"):
            if letter in config["raises"].get(name, {}):
                continue            # the original stops there: see its README
            for output in ("mpr", "prs"):
                np.testing.assert_allclose(getattr(results[row], output),
                                           golden["arrays"][f"{name}/{output}"][row], rtol=1e-9)


def _roxford(shared, config):
    truth = load_ground_truth(shared / "data" / "gnd_roxford5k.pkl")
    labels = [[sorted(entry[kind].tolist()) for kind in ("easy", "hard", "junk")]
              for entry in truth.labels]
    digest = hashlib.sha256(json.dumps(labels, separators=(",", ":")).encode()).hexdigest()
    assert digest == config["labels_sha256"]
    return truth.labels


def test_known_values():
    assert average_precision([0, 2], 2) == pytest.approx(19 / 24)
    assert average_precision([], 3) == 0.0
    # One positive, third: precision at 10 is over the first three, as the original has it
    result = compute_map([[7, 8, 9, 1]], [{"ok": [9]}], [10])
    assert result.mpr[0] == pytest.approx(1 / 3) and result.map == pytest.approx(1 / 6)
    # Junk above it moves it up
    assert compute_map([[7, 8, 9]], [{"ok": [9], "junk": [7, 8]}]).map == 1.0
    # Padding of rows that are shorter
    assert compute_map(np.array([[9, -1, -1]]), [{"ok": [9], "junk": []}]).map == 1.0


def test_transposed_or_repeated_rankings_are_refused():
    with pytest.raises(ValueError, match="rows are queries"):
        compute_map(np.arange(12).reshape(4, 3), [{"ok": [1]}] * 3)
    with pytest.raises(ValueError, match="more than once"):
        compute_map([[1, 2, 1]], [{"ok": [1]}])
    with pytest.raises(ValueError, match="whole numbers"):
        compute_map([[1]], [{"ok": [1]}], [0])


def test_protocols_share_out_all_labels():
    entry = {"easy": [1, 2], "hard": [3], "junk": [4]}
    assert set(PROTOCOLS) == {"easy", "medium", "hard", "plain"}
    parts = {p: {role: sorted(v.tolist()) for role, v in split([entry], p)[0].items()}
             for p in REVISITED}
    assert parts == {"easy": {"ok": [1, 2], "junk": [3, 4]}, "medium": {"ok": [1, 2, 3], "junk": [4]},
                     "hard": {"ok": [3], "junk": [1, 2, 4]}}
    with pytest.raises(ValueError, match="lacks: ok"):
        split([entry], "plain")
    with pytest.raises(ValueError, match="choose one of"):
        split([entry], "middle")
    assert remove_junk([5, 4, 3, 1], [4, 1]).tolist() == [5, 3]
