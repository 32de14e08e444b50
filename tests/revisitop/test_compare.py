"""Comparing methods: the statistics against slow code and by hand, and the command."""
import itertools
import json
import random
import re

import numpy as np
import pytest

from revisitop import Comparison, compare_aps
from revisitop.comparison import bootstrap_interval, permutation_p_value, points


def slow_p_value(changes, samples=None) -> float:
    """Try all signs, or so many at random."""
    observed = abs(sum(changes))
    if samples is None:
        every = [abs(sum(sign * change for sign, change in zip(signs, changes)))
                 for signs in itertools.product((1, -1), repeat=len(changes))]
        return sum(value > observed - 1e-9 for value in every) / len(every)
    count = 0
    for _ in range(samples):
        count += abs(sum(random.choice((1, -1)) * c for c in changes)) > observed - 1e-9
    return (count + 1) / (samples + 1)


def slow_interval(changes, samples) -> tuple[float, float]:
    """Sort means of resampled changes, and cut 2.5 % off at each end."""
    means = sorted(sum(random.choices(changes, k=len(changes))) / len(changes)
                   for _ in range(samples))
    return means[int(0.025 * samples)], means[int(0.975 * samples)]


def test_p_value_by_hand():
    rng = np.random.default_rng(0)
    # Of the 8 sums of +-1 +-2 +-3, 6 and -6 are as far from 0 as 6
    assert permutation_p_value(np.array([1.0, 2.0, 3.0]), 1, rng) == 2 / 8
    # 1 + 2 - 3 = 0: every sum is as far
    assert permutation_p_value(np.array([1.0, 2.0, -3.0]), 1, rng) == 1
    # 4 = -1 + 2 + 3; also 6, and the two with all signs changed
    assert permutation_p_value(np.array([-1.0, 2.0, 3.0]), 1, rng) == 4 / 8
    assert permutation_p_value(np.full(16, 0.1), 1, rng) == 2 / 2 ** 16
    assert permutation_p_value(np.zeros(16), 1, rng) == permutation_p_value(np.zeros(40), 9, rng) == 1
    # 17 changes of one sign: of 100 random signs none is alike, by all but one chance in 655
    assert permutation_p_value(np.full(17, 0.1), 100, rng) == 1 / 101


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_exact_p_value_agrees_with_trying_all_signs(count):
    rng = np.random.default_rng(count)
    for _ in range(5):
        changes = rng.choice([-0.3, -0.1, 0.0, 0.1, 0.2], count)
        assert permutation_p_value(changes, 1, rng) == slow_p_value(changes.tolist())


@pytest.mark.parametrize("mean", [0.0, 0.03, 0.1])
def test_sampled_p_value_agrees_with_a_loop(mean):
    random.seed(0)
    rng = np.random.default_rng(1)
    changes = rng.normal(mean, 0.15, 40)
    fast = permutation_p_value(changes, 50_000, rng)        # in two blocks
    assert fast == pytest.approx(slow_p_value(changes.tolist(), 5000), abs=0.03)
    assert fast * 50_001 == pytest.approx(round(fast * 50_001))


def test_p_value_is_uniform_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    found = [permutation_p_value(rng.normal(0, 1, 20), 199, rng) for _ in range(400)]
    assert np.mean(np.array(found) <= 0.2) == pytest.approx(0.2, abs=0.06)


def test_interval_by_hand():
    rng = np.random.default_rng(0)
    assert bootstrap_interval(np.array([0.25]), 100, rng) == (0.25, 0.25)
    # Of two changes the mean is 0, 0.5 or 1, the ends a quarter of the time each
    assert bootstrap_interval(np.array([0.0, 1.0]), 2000, rng) == (0.0, 1.0)
    # One of ten: (9/10)^10 = 35 % of samples lack it; the share of 4 and more is 1.3 %, of 3 7 %
    assert bootstrap_interval(np.eye(10)[0], 50_000, rng) == pytest.approx((0.0, 0.3))


@pytest.mark.parametrize("count", [7, 70])
def test_interval_agrees_with_a_loop(count):
    random.seed(count)
    rng = np.random.default_rng(count)
    changes = rng.normal(0.02, 0.1, count)
    fast = bootstrap_interval(changes, 40_000, rng)         # in several blocks where count is 70
    width = changes.std() / count ** 0.5
    assert fast == pytest.approx(slow_interval(changes.tolist(), 8000), abs=0.15 * width)


def test_a_comparison_by_hand():
    got = compare_aps([0.5, None, 0.25, 0.5, None, 1.0], [0.75, 0.5, 0.0, 0.5, None, 1.0 + 1e-13])
    assert got.queries.tolist() == [0, 2, 3, 5]
    assert got.changes.tolist() == pytest.approx([0.25, -0.25, 0.0, 0.0])
    assert (got.wins, got.losses, got.ties, round(got.mean, 9)) == (1, 1, 2, 0)
    assert got.largest(5, 1) == [(0, 0.25)] and got.largest(5, -1) == [(2, -0.25)]
    assert got.p_value == 1 and not got.is_distinguishable
    more = compare_aps([0.0] * 20, [0.01 * q for q in range(20)], 2000)
    assert [query for query, _ in more.largest(3, 1)] == [19, 18, 17] and more.wins == 19
    assert more.is_distinguishable and more.p_value == 1 / 2001


def test_seeds_repeat_and_matter():
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 30))
    one, again, other = (compare_aps(first, second, 500, seed) for seed in (3, 3, 4))
    assert (one.interval, one.p_value) == (again.interval, again.p_value)
    assert one.interval != other.interval


def test_sentences():
    low, high = 0.0, 0.02
    noise = compare_aps([0.5, 0.5, 0.5], [0.5, 0.5, 0.53], 4000)
    # One of three: its mean is 0, 1, 2 or 3 cents, 3 one time in 27
    assert noise.interval == pytest.approx((low, 0.03))
    assert noise.sentence("mAP Medium") == (
        "+1.00 mAP Medium (95 % interval +0.00 to +3.00, p = 1): not distinguishable from chance "
        "with 3 queries")
    clear = compare_aps([0.5] * 8, [0.4] * 8)
    assert clear.sentence("mAP Hard") == (
        "-10.00 mAP Hard (95 % interval -10.00 to -10.00, p = 0.0078): distinguishable from chance "
        "with 8 queries")
    # With five queries no p value is below 2 / 32, whatever the interval says
    assert not compare_aps([0.5] * 5, [0.6] * 5).is_distinguishable
    for interval, p_value, answer in (((0.01, 0.2), 0.05, True), ((-0.2, -0.01), 0.01, True),
                                      ((-0.01, 0.2), 0.01, False), ((0.01, 0.2), 0.06, False)):
        made = Comparison(np.arange(2), np.ones(2), interval, p_value)
        assert made.is_distinguishable is answer
    assert compare_aps([0.5], [0.6]).sentence("mAP").endswith("with 1 query")
    assert points(-1e-9) == "+0.00" and points(-0.00414) == "-0.41"


@pytest.mark.parametrize("first, second, more, message", [
    ([None, 0.5], [0.5, None], {}, "no query that both methods score"),
    ([], [], {}, "no query that both"),
    ([0.5], [0.5, 0.5], {}, "for 1 queries, the other for 2"),
    ([0.5], [0.5], {"samples": 0}, "at least 1"),
    ([0.5], [0.5], {"seed": -1}, "a seed from 0")])
def test_what_cannot_be_compared(first, second, more, message):
    with pytest.raises(ValueError, match=message):
        compare_aps(first, second, **more)


# ------------------------------------------------------------------ the command

@pytest.fixture
def write_result(tmp_path):
    """Writes a result with the given AP of Medium; Easy and Hard have half and none of it."""

    def write(name, aps, **changes):
        protocols = {protocol: {"mAP": None if share is None else share * sum(aps) / len(aps),
                                "mP@10": share,
                                "ap": [None if share is None else share * ap for ap in aps]}
                     for protocol, share in (("easy", 0.5), ("medium", 1.0), ("hard", None))}
        record = {"ground_truth_sha256": "a" * 64, "query": {"cropped": True}}
        content = {"dataset": "toy", "queries": len(aps), "database": 40, "distractors": 0,
                   "protocols": protocols, "protocol": record,
                   "query_names": [f"name {q}" for q in range(len(aps))], **changes}
        path = tmp_path / name
        path.write_text(json.dumps({key: value for key, value in content.items()
                                    if value is not None}))
        return path

    return write


def test_the_command_prints_a_table_and_comparisons(run_tool, write_result, tmp_path):
    first = write_result("a.json", [0.5, 0.5, 0.5, 0.5])
    second, third = (write_result("b.json", [0.75, 0.25, 0.5, 1.0]),
                     write_result("c.json", [0.5, 0.5, 0.5, 0.5]))
    out = tmp_path / "new" / "out.json"
    done = run_tool("revisitop/compare.py", first, second, third, "--json", out, "--seed", 2)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "toy: 4 queries, 40 database images, 0 distractors"
    assert lines[2].split() == ["mAP", "mP@10"]
    assert lines[3].split() == ["Easy", "Medium", "Hard"] * 2
    assert lines[4].split() == [str(first), "25.00", "50.00", "-", "50.00", "100.00", "-"]
    assert lines[5].split() == [str(second), "31.25", "62.50", "-", "50.00", "100.00", "-"]
    # Sums of +-25 +-25 +-0 +-50 that are as far from 0 as 50: 3 in 4
    assert lines[8] == f"{second} against {first}"
    assert lines[9].startswith("  +12.50 mAP Medium (95 % interval ")
    assert lines[9].endswith(", p = 0.75): not distinguishable from chance with 4 queries")
    assert lines[10:13] == ["  2 wins, 1 losses, 1 ties",
                            "  largest wins: +50.00 name 3 (3), +25.00 name 0 (0)",
                            "  largest losses: -25.00 name 1 (1)"]
    assert lines[15:17] == [
        "  +0.00 mAP Medium (95 % interval +0.00 to +0.00, p = 1): not distinguishable from chance "
        "with 4 queries", "  0 wins, 0 losses, 4 ties"]
    assert lines[-1] == "p values are not corrected for 2 comparisons"
    got = json.loads(out.read_text())
    assert (got["protocol"], got["samples"], got["seed"]) == ("medium", 10_000, 2)
    assert list(got["results"]) == [str(first), str(second), str(third)]
    one, two = got["comparisons"]
    assert (one["first"], one["second"]) == (str(first), str(second))
    assert one["change"] == 0.125 and one["p"] == 0.75 and one["distinguishable"] is False
    assert -0.25 <= one["interval"][0] < 0.125 < one["interval"][1] <= 0.5
    assert [query["change"] for query in one["queries"]] == [0.25, -0.25, 0, 0.5]
    assert one["queries"][3] == {"query": 3, "name": "name 3", "change": 0.5}
    assert two["wins"] == two["losses"] == 0 and two["ties"] == 4


def test_results_of_the_evaluator_are_compared(run_tool, toy, tmp_path):
    """Descriptors against themselves: float32 and float64 sums rank the same here."""
    for name, more in (("a", []), ("b", ["--double"])):
        done = run_tool("revisitop/evaluate.py", "--gnd", toy["gnd"], "--query", toy["query"],
                        "--database", toy["database"], "--json", tmp_path / name, *more)
        assert done.returncode == 0, done.stderr
    done = run_tool("revisitop/compare.py", tmp_path / "a", tmp_path / "b", "--protocol", "easy")
    assert done.returncode == 0, done.stderr
    assert "mAP (cropping unknown)" in done.stdout.splitlines()[2]
    assert "+0.00 mAP Easy (95 % interval +0.00 to +0.00, p = 1)" in done.stdout


def test_other_protocols_are_refused_unless_asked_for(run_tool, write_result):
    first = write_result("a.json", [0.5, 0.5])
    other = write_result("b.json", [0.5, 1.0], distractors=30, protocol={"query": {"cropped": False}})
    done = run_tool("revisitop/compare.py", first, other)
    assert done.returncode == 1 and done.stdout == ""
    words = ("differ in ground truth (SHA-256): aaaaaaaaaaaa and unknown; number of distractors: "
             "0 and 30; queries cropped: yes and no")
    assert done.stderr == (f"error: {first} and {other} cannot be compared, they {words} "
                           "(--across compares them all the same)\n")
    done = run_tool("revisitop/compare.py", first, other, "--across")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"not of one protocol: {first} and {other} {words}"
    assert re.split(" {2,}", lines[3].strip()) == ["mAP (cropping differs)", "mP@10"]
    assert "+25.00 mAP Medium" in done.stdout


def test_results_without_a_record_are_compared(run_tool, write_result):
    older = {"protocol": None, "query_names": None, "queries": None}
    first, other = (write_result("a.json", [0.5, 0.5], **older),
                    write_result("b.json", [0.25, 1.0], **older))
    done = run_tool("revisitop/compare.py", first, other)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "toy: 40 database images, 0 distractors"
    assert "largest wins: +50.00 query 1 (1)" in done.stdout
    assert run_tool("revisitop/compare.py", first, write_result(
        "c.json", [0.5, 0.5])).returncode == 1


def test_across_queries_are_found_by_name(run_tool, write_result, tmp_path):
    first = write_result("a.json", [0.5, 0.25, 1.0])
    other = write_result("b.json", [0.5, 0.5], query_names=["name 2", "name 1"])
    done = run_tool("revisitop/compare.py", first, other, "--across", "--json", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    # name 1 rises from 25 to 50, name 2 falls from 100 to 50
    assert "largest wins: +25.00 name 1 (1)" in done.stdout
    assert "largest losses: -50.00 name 2 (2)" in done.stdout and "with 2 queries" in done.stdout
    assert json.loads((tmp_path / "out").read_text())["comparisons"][0]["queries"] == [
        {"query": 1, "name": "name 1", "change": 0.25}, {"query": 2, "name": "name 2", "change": -0.5}]


def test_the_commands_mistakes(run_tool, write_result, tmp_path):
    first, other = write_result("a.json", [0.5, 0.5]), write_result("b.json", [0.5, 1.0])
    short = write_result("short.json", [0.5], query_names=None)
    strange = write_result("strange.json", [0.5, 0.5], query_names=["x", "y"])
    cases = [([first], "two results or more"), ([first, first], "two results or more"),
             ([first, tmp_path / "absent.json"], "cannot read"),
             ([first, other, "--protocol", "plain"], "choose by --protocol one of easy, medium"),
             ([first, other, "--protocol", "hard"], "no query that both methods score"),
             ([first, other, "--samples", 0], "--samples from 1"),
             ([first, other, "--seed", -1], "--seed from 0"),
             ([first, other, "--samples", "many"], "invalid int"),
             ([first, other, "--json", tmp_path], "it is a folder"),
             ([first, short, "--across"], "they have 2 and 1 queries"),
             ([first, strange], "no query that both methods score")]
    for arguments, message in cases:
        done = run_tool("revisitop/compare.py", *arguments)
        assert done.returncode == 1 and done.stdout == "", arguments
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert message in done.stderr


def test_many_queries_by_command(run_tool, write_result, tmp_path):
    """More than all signs are tried for: p is drawn, and all that is written is plain JSON."""
    rng = np.random.default_rng(0)
    before = rng.uniform(0.2, 0.6, 40)
    first = write_result("a.json", before.tolist())
    better, other = (write_result(name, (before + change).tolist()) for name, change in
                     (("b.json", 0.1), ("c.json", rng.permutation(np.repeat([0.1, -0.1], 20)))))
    done = run_tool("revisitop/compare.py", first, better, other, "--json", tmp_path / "out.json")
    assert done.returncode == 0, done.stderr
    one, two = json.loads((tmp_path / "out.json").read_text())["comparisons"]
    assert one["distinguishable"] is True and one["p"] == 1 / 10_001
    assert two["distinguishable"] is False and two["p"] > 0.9
