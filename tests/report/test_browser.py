"""The report in headless Chromium: it shows what it should, follows keys, and asks for nothing."""
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Photograph

from dolg.report.page import write_report
from dolg.report.results import Hit, Image, Method, Query, Report
from tests.browser import check_clean
from tests.report.miniature import FAILED_QUERY, HOSTILE, NO_UTF8, QUERIES

VISIBLE = NO_UTF8.encode("utf-8", "backslashreplace").decode()


@pytest.fixture(scope="module")
def pages(results, run_tool, tmp_path_factory):
    """The page of three evaluations in one file, and that of a rerank comparison in a folder."""
    folder = tmp_path_factory.mktemp("pages")
    jobs = [("quick.html", ["before", "after", "far"]), ("rerank", ["global", "aqe"])]
    for output, names in jobs:
        done = run_tool("tools/report.py", *(f"{name}={results[name]}" for name in names), "--across",
                        "--top", 30, "-o", folder / output)
        assert done.returncode == 0, done.stderr
    return {"quick": (folder / "quick.html").as_uri(),
            "rerank": (folder / "rerank" / "index.html").as_uri()}


@pytest.fixture(params=["quick", "rerank"])
def page(request, browser, pages):
    return open_queries(browser, pages[request.param])


def open_queries(browser, address: str, **options):
    """A page with its queries in view."""
    page = browser.open(address, **{"viewport": {"width": 1280, "height": 1400}, **options})
    page.evaluate("document.getElementById('queries').scrollIntoView()")
    page.locator(".hit").first.wait_for()
    return page


def names_shown(page) -> list[str]:
    return page.eval_on_selector_all("article h3", "all => all.map((one) => one.textContent)")


def order_shown(page) -> list[int]:
    """Indexes of the queries, in order; those not in view have no content yet."""
    return page.eval_on_selector_all("article", "all => all.map((one) => Number(one.id.slice(6)))")


def focused(page) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')")


def choose(page, name: str, value: str) -> None:
    page.evaluate("""([name, value]) => {
        const input = document.getElementById(name);
        input.value = value;
        input.dispatchEvent(new Event("change"));
    }""", [name, value])
    assert page.input_value(f"#{name}") == value


def until(page, expression: str) -> None:
    """Wait for what JavaScript says; in the page itself, whose policy forbids to evaluate strings, it
    could not be waited for."""
    for _ in range(100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it never came to be: {expression}")


def aps(results, name: str, protocol: str = "medium") -> list:
    return json.loads(results[name].read_text())["protocols"][protocol]["ap"]


def test_pictures_load_and_nothing_leaves(page):
    until(page, "[...document.images].every((image) => image.complete)")
    widths = page.eval_on_selector_all("img", "all => all.map((image) => image.naturalWidth)")
    assert len(widths) > 40 and min(widths) > 0
    lost = page.locator(".hit .missing").first
    lost.scroll_into_view_if_needed()
    assert lost.inner_text().split("\n") == ["house 12", "no such file"]
    check_clean(page)


def test_lists_are_those_of_a_slow_search(browser, pages, miniature):
    page = open_queries(browser, pages["quick"])
    choose(page, "order", "given")
    for query in range(2):
        page.locator(f"#query-{query}").scroll_into_view_if_needed()
        for row, method in enumerate(["before", "after"]):
            labels = page.eval_on_selector_all(
                f"#query-{query} .method:nth-child({row + 1}) .hit",
                "all => all.slice(0, 5).map((one) => one.getAttribute('aria-label'))")
            slow = miniature.slow_list(method, query, 30)
            slow = [hit for hit in slow if not hit[1].startswith("stranger")][:5]
            shown = [re.fullmatch(r"Result (\d+), (\w+), score ([-\d.]+): (.*)", label, re.S).groups()
                     for label in labels]
            assert [(int(place), label, name) for place, label, _, name in shown] == [
                (place, label, VISIBLE if name == NO_UTF8 else name)
                for place, (label, name, _) in enumerate(slow, 1)]
            assert [float(score) for _, _, score, _ in shown] == pytest.approx(
                [score for _, _, score in slow], abs=6e-4)


def test_the_failed_query_says_so(browser, pages):
    page = open_queries(browser, pages["quick"])
    choose(page, "filter", "failed")
    assert order_shown(page) == [FAILED_QUERY]
    assert "its extraction failed" in page.locator(f"#query-{FAILED_QUERY}").inner_text()
    assert page.locator(f"#query-{FAILED_QUERY} .hit").count() == 0
    assert page.locator("#status").inner_text().startswith("1 of 6 queries")


def test_orders(browser, pages, results, miniature):
    page = open_queries(browser, pages["quick"], viewport={"width": 800, "height": 300})
    for number, protocol in enumerate(["easy", "medium", "hard"]):
        choose(page, "protocol", str(number))
        choose(page, "method", "1")
        choose(page, "against", "0")
        before, after = (aps(results, name, protocol) for name in ("before", "after"))
        scored = [q for q in range(QUERIES) if after[q] is not None]
        unscored = [q for q in range(QUERIES) if after[q] is None]
        assert len(unscored) == (protocol == "hard")
        expected = {
            "worst": sorted(scored, key=lambda q: after[q]) + unscored,
            "best": sorted(scored, key=lambda q: -after[q]) + unscored,
            "losses": sorted(scored, key=lambda q: round(after[q] - before[q], 6)) + unscored,
            "gains": sorted(scored, key=lambda q: round(before[q] - after[q], 6)) + unscored,
            "given": list(range(QUERIES)),
            "name": sorted(range(QUERIES), key=lambda q: miniature.names["query"][q]),
        }
        for order, indexes in expected.items():
            choose(page, "order", order)
            assert order_shown(page) == indexes, (protocol, order)
        choose(page, "against", "1")
        choose(page, "method", "0")         # the other way round, losses are gains
        choose(page, "order", "losses")
        assert order_shown(page) == expected["gains"]


def test_filters(browser, pages, results):
    page = open_queries(browser, pages["quick"])
    choose(page, "order", "given")
    before, after = aps(results, "before"), aps(results, "far")
    for name, keep in (("lost", lambda a, b: b < a - 1e-6), ("gained", lambda a, b: b > a + 1e-6)):
        choose(page, "filter", name)
        found = [q for q in range(QUERIES) if keep(before[q], after[q])]
        assert order_shown(page) == found
        assert page.locator("#status").inner_text().startswith(f"{len(found)} of 6")
    choose(page, "filter", "nothing")
    assert order_shown(page) == [FAILED_QUERY]
    choose(page, "filter", "all")
    assert order_shown(page) == list(range(QUERIES))


def test_junk_is_hidden_and_places_stay(browser, pages, miniature):
    page = open_queries(browser, pages["quick"])
    choose(page, "order", "given")
    count = page.locator("#query-0 .method:nth-child(2) li").count()
    slow = [hit for hit in miniature.slow_list("after", 0, 50) if not hit[1].startswith("stranger")][:30]
    junk = [place for place, hit in enumerate(slow, 1) if hit[0] == "junk"]
    assert junk and page.locator("#query-0 .method:nth-child(2) li.junk").count() == len(
        [place for place in junk if place <= count])
    page.check("#junk")
    assert page.locator("li.junk").count() == 0
    places = page.eval_on_selector_all("#query-0 .method:nth-child(2) .hit",
                                       "all => all.map((one) => Number(one.dataset.place) + 1)")
    kept = [place for place in range(1, 31) if place not in junk]
    assert places == kept[:len(places)] and max(places) > min(junk)


def test_search_finds_queries_and_results(browser, pages):
    page = open_queries(browser, pages["quick"])
    page.keyboard.press("/")
    assert focused(page) == "search"
    page.keyboard.type("QUERY 2")
    until(page, "document.querySelectorAll('article').length === 1")
    assert names_shown(page) == ["query 2"]
    page.fill("#search", "onerror")     # as a query, and as an image that others find
    until(page, "document.querySelectorAll('article').length > 1")
    assert page.locator(".hit.found").first.get_attribute("title") == HOSTILE
    page.fill("#search", "nowhere at all")
    until(page, "document.querySelectorAll('article').length === 0")
    page.keyboard.press("Escape")
    assert page.locator("article").count() == QUERIES and page.input_value("#search") == ""
    check_clean(page)


def test_keys(page):
    choose(page, "order", "best")       # the failed query, which has no results, is last
    order = order_shown(page)
    for key, at in [("j", 0), ("j", 1), ("ArrowDown", 2), ("k", 1), ("ArrowUp", 0), ("k", 0)]:
        page.keyboard.press(key)
        assert focused(page) == f"query-{order[at]}", key
    page.keyboard.press("ArrowRight")
    assert focused(page).startswith("Result 1, ")
    page.keyboard.press("ArrowRight")
    second = focused(page)
    assert second.startswith("Result 2, ")
    page.keyboard.press("Enter")
    assert page.locator("#viewer").is_visible()
    assert "result 2 of 30" in page.locator("#viewer-title").inner_text()
    page.keyboard.press("ArrowRight")
    assert "result 3 of 30" in page.locator("#viewer-title").inner_text()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowDown")
    assert re.match("(after|aqe): result 2 of", page.locator("#viewer-title").inner_text())
    page.keyboard.press("Escape")
    assert not page.locator("#viewer").is_visible()
    assert focused(page).startswith("Result 2, ")
    page.keyboard.press("o")
    assert page.locator("#viewer").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("#keys").is_visible()
    check_clean(page)


def test_arrows_reach_results_that_were_not_rendered(browser, pages):
    page = open_queries(browser, pages["rerank"], viewport={"width": 390, "height": 800})
    choose(page, "order", "best")
    page.keyboard.press("j")
    rendered = page.locator("article:focus .method:first-child li").count()
    assert 0 < rendered < 30
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    assert focused(page).startswith("Result 30, ")
    box = page.locator(":focus").bounding_box()
    assert 0 <= box["x"] and box["x"] + box["width"] <= 390
    check_clean(page)


def test_the_large_view_shows_both(browser, pages):
    page = open_queries(browser, pages["quick"])
    choose(page, "order", "given")
    page.locator("#query-0 .hit").nth(1).click()
    label = page.locator("#query-0 .hit").nth(1).get_attribute("aria-label")
    assert label.split(": ", 1)[1] in page.locator("#viewer-result figcaption").inner_text()
    assert page.locator("#viewer-query figcaption").inner_text() == "Query query 0"
    until(page, "document.querySelector('#viewer-query img').naturalWidth > 0")
    until(page, "document.querySelector('#viewer-query .photo').style.cssText")
    photo, box = (page.locator(f"#viewer-query {part}").bounding_box() for part in (".photo", ".box"))
    # 64 x 48 pixels, its box 10, 8, 50.5, 40
    assert box["x"] - photo["x"] == pytest.approx(photo["width"] * 10 / 64, abs=1.5)
    assert box["y"] - photo["y"] == pytest.approx(photo["height"] * 8 / 48, abs=1.5)
    assert box["width"] == pytest.approx(photo["width"] * 40.5 / 64, abs=1.5)
    assert box["height"] == pytest.approx(photo["height"] * 32 / 48, abs=1.5)
    assert photo["width"] / photo["height"] == pytest.approx(64 / 48, rel=0.01)
    assert "after: place" in page.locator("#viewer-facts").inner_text()


def test_hostile_names_are_text(browser, pages):
    page = open_queries(browser, pages["quick"])
    until(page, "document.querySelectorAll('img').length > 0")
    assert f"q {HOSTILE}" in page.evaluate(
        "JSON.parse(document.getElementById('data').textContent).queries.map((query) => query.name)")
    assert page.locator("[onerror]").count() == 0 and page.locator("img[src=x]").count() == 0
    titles = set(page.eval_on_selector_all(".hit", "all => all.map((one) => one.title)"))
    assert {HOSTILE, VISIBLE} <= titles
    check_clean(page)


def test_the_policy_stops_what_is_not_the_pages_own(browser, pages):
    page = open_queries(browser, pages["quick"])
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "document.title = 'taken over'";
        document.body.append(script);
        const image = document.createElement("img");
        image.src = "http://127.0.0.1:9/x.png";
        document.body.append(image);
    }""")
    page.wait_for_timeout(100)
    assert page.title() == "toy: retrieval results"
    assert len([error for error in page.watch.errors if "Content Security Policy" in error]) == 2


def test_curves_of_a_query_are_drawn_on_demand(browser, pages):
    page = open_queries(browser, pages["quick"])
    choose(page, "order", "given")
    assert page.locator("#query-0 .about polyline").count() == 0
    page.locator("#query-0 summary").click()
    until(page, "document.querySelectorAll('#query-0 .about polyline').length === 3")
    assert page.locator("figure .chart").count() == 3


def test_without_script_the_summary_and_charts_show(browser, pages):
    page = browser.open(pages["quick"], java_script_enabled=False)
    assert page.locator("table.figures tbody tr").count() == 3
    assert page.locator("figure .chart polyline").count() == 9
    assert page.locator(".bars").count() == 9
    assert "need JavaScript" in page.locator("noscript").text_content()
    assert not page.locator(".tools").is_visible()
    check_clean(page)


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> str:
    """Two queries; the first failed in a method with a long name, has no score in the other's list, and
    no positive for the protocol without a name."""
    folder = tmp_path_factory.mktemp("odd")
    Photograph.new("RGB", (64, 48), "red").save(folder / "a.jpg")
    path, long = folder / "a.jpg", "long" * 60
    evaluations = {name: {
        "failed": {"query": failed}, "protocol": {"query": {"cropped": name == "fine"}},
        "protocols": {"medium": {"mAP": 0.5, "ap": [ap, 1.0], "ranks": [ranks, [0]]},
                      "": {"mAP": 1.0, "ap": [None, 1.0], "ranks": [None, [0]]}}}
        for name, failed, ap, ranks in (("fine", [], 0.0, []), (long, ["q"], 0.0, []))}
    hits = [Hit(Image("a", path), float("nan"), "negative"), Hit(Image("b", path), 0.5, "negative")]
    queries = [Query("q", path, (0, 0, 32, 24), {}, {"fine": hits, long: []}),
               Query("r", path, (0, 0, 32, 24), {}, {"fine": hits, long: hits})]
    methods = [Method(name, content) for name, content in evaluations.items()]
    return write_report(Report("odd", methods, queries), folder / "page.html").as_uri()


def test_odd_results_are_shown_as_they_are(browser, odd):
    page = open_queries(browser, odd, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    about = page.locator("#query-0 .about")
    assert f"its extraction failed in {'long' * 60}: AP is 0" in about.text_content()
    assert page.locator("#query-0 summary").count() == 0        # a chart would be empty
    assert page.locator("#query-1 summary").count() == 1
    labels = page.eval_on_selector_all(
        "#query-0 .hit", "all => all.map((one) => [one.getAttribute('aria-label'), one.innerText])")
    assert labels[0][0] == "Result 1, negative, no score: a" and "no score a" in labels[0][1]
    assert labels[1][0] == "Result 2, negative, score 0.500: b"
    page.locator("#query-0 .hit").first.click()
    assert page.locator("#viewer-facts").inner_text().startswith("no score")
    page.keyboard.press("Escape")
    whole = page.locator("#query-0 .about img").first.get_attribute("alt")
    choose(page, "filter", "failed")
    assert order_shown(page) == [0] and page.locator("#status").inner_text().startswith("1 of 2 queries")
    choose(page, "protocol", "1")
    assert "its extraction failed in" in about.text_content() and "AP is 0" not in about.text_content()
    choose(page, "method", "0")
    assert order_shown(page) == []
    choose(page, "filter", "all")
    cut = page.locator("#query-0 .about img").first.get_attribute("alt")
    assert (whole, cut) == ("Query q", "Query q, cut to its box")     # as the method has it
    check_clean(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_need_not_scroll_sideways(browser, pages, scheme):
    page = open_queries(browser, pages["quick"], viewport={"width": 390, "height": 844},
                        color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator(".hit").first.click()
    assert page.locator("#viewer").bounding_box()["width"] <= 390
    colours = page.evaluate("[getComputedStyle(document.body).color, "
                            "getComputedStyle(document.body).backgroundColor]")
    ink, paper = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in colours)
    assert (ink < paper) == (scheme == "light")


def test_labels_differ_in_line_and_word_and_colour(browser, pages):
    page = open_queries(browser, pages["quick"])
    found = {}
    for label in ("easy", "hard", "junk", "negative"):
        item = page.locator(f"li.{label}").first
        style = item.locator(".frame").evaluate(
            "one => [getComputedStyle(one).borderTopStyle, getComputedStyle(one).borderTopColor]")
        found[label] = (*style, item.locator(".label").inner_text())
    assert all(len({values[part] for values in found.values()}) == 4 for part in range(3))
    assert [values[2] for values in found.values()] == ["✓ easy", "✓✓ hard", "○ junk", "✕ negative"]


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A page of 70 queries x 400 results x 4 methods, of 1500 images."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(1)
    images = []
    for number in range(1500):
        path = folder / f"the_name_of_a_photograph_{number:06}.jpg"
        Photograph.new("RGB", (8, 6), tuple(rng.integers(0, 255, 3).tolist())).save(path)
        images.append(Image(path.stem, path))
    methods, queries = [f"method {number}" for number in range(4)], []
    for number in range(70):
        hits = {method: [Hit(images[i], float(score), label) for i, score, label in zip(
            rng.choice(1500, 400, replace=False), -np.sort(-rng.random(400)),
            rng.choice(["easy", "hard", "junk", "negative"], 400))] for method in methods}
        queries.append(Query(f"query {number}", images[number].path, (1, 1, 6, 5), {"easy": 9}, hits))
    ap = rng.random((4, 70))
    ranks = [np.sort(rng.choice(10**6, 150, replace=False)).tolist() for _ in queries]
    evaluations = [{"protocols": {protocol: {"mAP": float(row.mean()), "ap": row.tolist(), "ranks": ranks}
                                  for protocol in ("easy", "medium", "hard")}} for row in ap]
    report = Report("large", [Method(*pair) for pair in zip(methods, evaluations)], queries)
    return write_report(report, folder / "page")


def test_a_large_page_is_small_and_renders_what_is_seen(browser, large):
    assert os.path.getsize(large) < 5 * 2**20
    assert len(list((large.parent / "thumbnails").iterdir())) > 1500
    page = open_queries(browser, large.as_uri())
    assert page.locator("article").count() == 70
    assert 0 < page.locator(".hit").count() < 70 * 400 * 4 / 100
    page.keyboard.press("j")
    last = page.locator("article").last
    last.scroll_into_view_if_needed()
    last.locator(".hit").first.wait_for()
    strip = last.locator(".strip")
    strip.evaluate("one => { one.scrollLeft = one.scrollWidth; }")
    last.locator("[data-place='399']").first.wait_for()
    assert page.locator(".hit").count() < 70 * 400 * 4 / 100
    until(page, "[...document.images].every((image) => image.complete && image.naturalWidth)")
    check_clean(page)


def test_ten_results_of_every_query_are_printed(browser, pages):
    page = open_queries(browser, pages["rerank"], viewport={"width": 390, "height": 500})
    assert page.locator("article:has(.hit)").count() < QUERIES
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    queries = page.locator("article:has(.hit)")
    assert queries.count() == QUERIES - 1       # one failed
    for number in range(QUERIES - 1):
        for method in range(2):
            row = queries.nth(number).locator(".method").nth(method).locator("li")
            assert sum(item.is_visible() for item in row.all()) == 10
    assert not page.locator(".tools").is_visible()
