"""The figures behind the charts, against slow and obvious ways."""
import json
import statistics

import numpy as np
import pytest

from dolg.report import charts
from dolg.report.curves import (
    LEVELS, count_positives, distribution, interpolated_precision, map_figure, mean_curve,
)
from dolg.report.results import Method


def slow_ap(places, positives):
    """Area by trapezoids, term by term."""
    area = 0.0
    for found, place in enumerate(places):
        before = found / place if place else 1.0
        area += (before + (found + 1) / (place + 1)) / 2 / positives
    return area


def slow_curve(places, positives):
    """At each of 0, 1, ..., 100 percent the best precision of all prefixes that reach the recall."""
    curve = []
    for percent in range(101):
        best = 0.0
        for length in range(1, max(places, default=0) + 2):
            found = sum(place < length for place in places)
            if found and 100 * found >= percent * positives:
                best = max(best, found / length)
        curve.append(best)
    return curve


def random_places(rng, most=60):
    positives = int(rng.integers(1, 25))
    found = int(rng.integers(0, positives + 1))
    return sorted(rng.choice(most, found, replace=False).tolist()), positives


def method(name="m", **protocols):
    return Method(name, {"protocols": {protocol: {"mAP": None, **figures}
                                       for protocol, figures in protocols.items()}})


def test_interpolated_precision_is_the_slow_one():
    rng = np.random.default_rng(0)
    cases = [random_places(rng) for _ in range(60)]
    for places, positives in [*cases, ([], 3), ([0], 1), ([4], 1), ([0, 1, 2], 3), ([2, 5], 7)]:
        assert interpolated_precision(places, positives) == pytest.approx(slow_curve(places, positives))


def test_positives_follow_from_places_and_ap():
    rng = np.random.default_rng(1)
    for places, positives in [random_places(rng, 10**6) for _ in range(200)]:
        if places:
            assert count_positives(places, slow_ap(places, positives)) == positives
    assert count_positives([], 0.0) == 1


def test_the_mean_is_over_queries_with_a_positive():
    ranks, aps = [[0, 3], None, [], [1]], [slow_ap([0, 3], 2), None, 0.0, slow_ap([1], 4)]
    slow = np.mean([slow_curve([0, 3], 2), [0.0] * 101, slow_curve([1], 4)], axis=0)
    assert mean_curve(ranks, aps) == pytest.approx(slow)
    assert mean_curve(None, aps) is None and mean_curve([None], [None]) is None
    assert len(LEVELS) == 101


def test_distributions_are_counted_by_tenths():
    aps = [0.0, 0.05, 0.1, 0.3, 0.7, 0.999, 1.0, None, 1 + 1e-9]
    found = distribution(aps)
    assert found.counts == [2, 1, 0, 1, 0, 0, 0, 1, 0, 3]
    assert found.median == statistics.median(ap for ap in aps if ap is not None)
    assert distribution([None]) == distribution([]) and distribution([]).median is None


def slow_interval(values, rng, samples=4_000):
    means = sorted(statistics.fmean(rng.choice(values, len(values))) for _ in range(samples))
    return means[int(0.025 * samples)], means[int(0.975 * samples) - 1]


def test_intervals_are_those_of_a_slow_bootstrap():
    rng = np.random.default_rng(2)
    before, noise = rng.random(30), 0.2 * rng.random(30)
    after = np.clip(before + noise - 0.05, 0, 1)
    first = method("first", medium={"ap": [*before.tolist(), None, 0.5], "mAP": 0.5})
    second = method("second", medium={"ap": [*after.tolist(), 0.25, None], "mAP": 0.6})
    figure = map_figure(second, first, "medium")
    assert figure.value == 0.6
    assert figure.interval == pytest.approx(slow_interval([*after, 0.25], rng), abs=0.012)
    assert figure.change == pytest.approx(statistics.fmean(after - before))
    assert figure.change_interval == pytest.approx(slow_interval(after - before, rng), abs=0.004)
    assert figure.sure
    alone = map_figure(first, first, "medium")
    assert alone.change is None and alone.interval == pytest.approx(
        slow_interval([*before, 0.5], rng), abs=0.012)


def test_what_cannot_be_compared_has_no_change():
    first = method("a", medium={"ap": [0.5, None], "mAP": 0.5})
    for ap in ([0.5], [None, 0.5], [None, None]):
        figure = map_figure(method("b", medium={"ap": ap}), first, "medium")
        assert figure.change is None and figure.change_interval is None and not figure.sure
    assert map_figure(method("b", medium={"ap": [None]}), first, "medium").interval is None


def test_one_query_has_no_interval():
    first = method("a", medium={"ap": [0.5, None], "mAP": 0.5})
    second = method("b", medium={"ap": [0.75, 0.5], "mAP": 0.625})
    assert map_figure(first, first, "medium").interval is None
    figure = map_figure(second, first, "medium")
    assert figure.interval is not None
    assert (figure.change, figure.change_interval, figure.sure) == (0.25, None, False)


def test_a_line_stands_where_its_figures_say():
    chart = charts.line_chart([charts.Line([(0, 0), (1, 1), (0.5, 0.25)], 8)],
                              charts.Axis("x", 0, 1, [0]), charts.Axis("y", 0, 1, [1]), 'a "title" <b>')
    assert 'points="44.0,196.0 308.0,8.0 176.0,149.0"' in chart
    assert 'class="series colour-1 dash-1"' in chart
    assert 'aria-label="a &#34;title&#34; &lt;b&gt;"' in chart


def test_bars_are_as_high_as_their_counts():
    bars = charts.bars(distribution([0.05] * 4 + [0.95]), 4, 0, "AP")
    heights = [float(part.split('"')[0]) for part in bars.split('height="')[1:]]
    assert heights[0] == 4 * heights[1] == 38.0
    assert 'aria-label="AP; queries by AP: 0 to 10 %: 4, 90 to 100 %: 1"' in bars


def test_curves_need_the_places():
    without = method(easy={"ap": [0.5]})
    assert charts.precision_recall([without], "easy") is None
    chart = charts.precision_recall([without, method(easy={"ap": [1.0], "ranks": [[0]]})], "easy")
    assert chart.count("<polyline") == 1 and 'data-series="1"' in chart
    assert json.dumps(chart)
