"""The page in a real browser, from a photograph to results."""
import base64
import signal
import time
from types import SimpleNamespace

import pytest

from tests.browser import check_clean
from tests.preloaded import Command

IMAGES_SHOWN = "[...document.querySelectorAll('#results img')].every(image => image.naturalWidth > 0)"
NOT_WAITING = "!document.body.classList.contains('waiting')"


def _until(page, expression: str, seconds: float = 20):
    """What a JavaScript expression gives, once that is true (the page's policy forbids Playwright's own
    way)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := page.evaluate(expression):
            return value
        page.wait_for_timeout(20)
    pytest.fail(f"never true: {expression}")


def _address(process: Command) -> str:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for line in process._out.read_text().splitlines() if process._out.exists() else ():
            if line.startswith("ready: "):
                return line.split()[1]
        assert process.poll() is None, process.communicate(1)
        time.sleep(0.05)
    pytest.fail("the server is not ready")


@pytest.fixture(scope="module")
def served(asked, start_command) -> SimpleNamespace:
    """A server of the finder's database, settings and limits: its address, and `origin` without a slash."""
    process = start_command(
        ["tools/serve.py", "--cfg", asked.cfg, "--weights", asked.weights, "--port", 0, "--max-mb", 1,
         "--index", asked.database, asked.distractors, "--images", asked.jpg, asked.others, *asked.keys,
         "RERANK.TOP_K", "[6]"],
        env={"OMP_NUM_THREADS": "1"})
    address = _address(process)
    yield SimpleNamespace(address=address, origin=address.rstrip("/"))
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


@pytest.fixture
def page(browser, served):
    page = browser.open(served.address, served.origin)
    _until(page, "document.getElementById('reranker').options.length === 9")
    return page


def _choose(page, file) -> None:
    page.set_input_files("#file", str(file))
    page.wait_for_selector("#stage:not([hidden])")


def _drag(page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """With the mouse, between places in shares of the photograph."""
    area = page.locator("#stage").bounding_box()
    points = [(area["x"] + x * area["width"], area["y"] + y * area["height"]) for x, y in (start, end)]
    page.mouse.move(*points[0])
    page.mouse.down()
    page.mouse.move(*points[1], steps=4)
    page.mouse.up()


def _box(page) -> list[int] | None:
    values = [page.input_value(f"#{corner}") for corner in ("x1", "y1", "x2", "y2")]
    return [int(value) for value in values] if all(values) else None


def _results(page) -> list[str]:
    _until(page, f"document.querySelectorAll('#results li').length && {NOT_WAITING}")
    return page.locator("#results .name").all_inner_texts()


def test_from_a_photo_to_results(page, asked, finder):
    """Choose, draw, pick, search: what the finder finds, its scores, times and images."""
    assert page.inner_text("#about").startswith("16 images of jpg, others; delg on ResNet-18, 16 dimen")
    assert page.is_disabled("#search")
    _choose(page, asked.queries / "0.jpg")
    _drag(page, (0.125, 0.25), (0.75, 0.875))
    assert _box(page) == pytest.approx([16, 24, 96, 84], abs=1)
    page.select_option("#reranker", "spatial")
    page.fill("#top", "8")
    page.click("#search")
    names = _results(page)
    want = finder.find(asked.queries / "0.jpg", _box(page), 8, "spatial")
    assert names == [result.name for result in want.results]
    scores = [f"{'search ' if place > 6 else ''}{result.score:.4f}"
              for place, result in enumerate(want.results, 1)]
    assert page.locator("#results .score").all_inner_texts() == scores
    assert page.locator("#results .place").all_inner_texts() == [str(place) for place in range(1, 9)]
    moved = [result for result in want.results if result.found_at != result.place]
    assert moved and page.locator("#results .moved").all_inner_texts() == [
        f"{'▲' if result.found_at > result.place else '▼'} was {result.found_at}" for result in moved]
    steps = page.locator("#times dt").all_inner_texts()
    assert steps == ["decode", "describe", "search", "rerank", "total"]
    times = [float(text.removesuffix(" ms")) for text in page.locator("#times dd").all_inner_texts()]
    assert min(times) >= 0 and times[-1] == pytest.approx(sum(times[:-1]), abs=2)
    assert page.inner_text("#status").endswith("the first 6 reordered by spatial, behind them the scores "
                                               "are the search's")
    page.evaluate("document.querySelectorAll('#results img').forEach(image => image.loading = 'eager')")
    _until(page, IMAGES_SHOWN)
    assert page.locator("#results img").count() == 8
    check_clean(page)


def test_the_box_is_moved_resized_and_taken_away(page, asked):
    _choose(page, asked.queries / "0.jpg")
    _drag(page, (0.25, 0.25), (0.5, 0.5))
    assert _box(page) == pytest.approx([32, 24, 64, 48], abs=1)
    _drag(page, (0.375, 0.375), (0.625, 0.375))     # inside: moves
    assert _box(page) == pytest.approx([64, 24, 96, 48], abs=1)
    _drag(page, (0.75, 0.5), (0.875, 0.75))         # its corner
    assert _box(page) == pytest.approx([64, 24, 112, 72], abs=1)
    _drag(page, (0.875, 0.4), (2, 0.4))             # its side, over the edge of the photo
    assert _box(page) == pytest.approx([64, 24, 128, 72], abs=1)
    _drag(page, (0.9, 0.5), (-3, -3))
    assert _box(page) == pytest.approx([0, 0, 64, 48], abs=1)
    _drag(page, (0.9, 0.9), (0.6, 0.7))             # outside, backwards: a new one
    assert _box(page) == pytest.approx([77, 67, 115, 86], abs=1)
    _drag(page, (0.1, 0.1), (0.105, 0.105))         # a click
    assert _box(page) is None and page.is_hidden("#box") and page.is_disabled("#whole")
    for corner, value in (("x1", 90), ("y1", 10), ("x2", 20), ("y2", 4000)):
        page.fill(f"#{corner}", str(value))
    page.press("#y2", "Tab")
    assert _box(page) == [20, 10, 90, 96]
    page.click("#whole")
    assert _box(page) is None
    check_clean(page)


def test_by_keyboard_alone(page, asked, finder):
    _choose(page, asked.queries / "1.jpg")
    page.focus("#add")
    page.keyboard.press("Enter")
    assert _box(page) == [32, 24, 96, 72] and page.evaluate("document.activeElement.id") == "box"
    for key in ["ArrowRight"] * 5 + ["ArrowUp"] * 3 + ["Shift+ArrowDown"] * 4 + ["Shift+ArrowLeft"] * 2:
        page.keyboard.press(key)
    assert _box(page) == [37, 21, 99, 73]
    for _ in range(100):
        page.keyboard.press("ArrowLeft")
    assert _box(page) == [0, 21, 62, 73]
    page.keyboard.press("Enter")
    names = _results(page)
    assert names == [result.name for result in finder.find(asked.queries / "1.jpg",
                                                           (0, 21, 62, 73)).results]
    page.focus("#results li:first-child .open")
    page.keyboard.press("Enter")
    assert page.inner_text("#caption") == f"1. {names[0]}"
    _until(page, "document.getElementById('view').naturalWidth > 0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#caption") == f"2. {names[1]}"
    page.keyboard.press("Escape")
    assert page.is_hidden("#large")
    assert page.evaluate("document.activeElement === document.querySelectorAll('#results .open')[1]")
    page.focus("#box")
    page.keyboard.press("Delete")
    assert _box(page) is None
    page.focus("#top")
    page.keyboard.press("Enter")
    _until(page, "document.getElementById('status').textContent.includes('all of the photo')")
    check_clean(page)


def _hand_over(page, kind: str, name: str, content: bytes, mime: str = "image/jpeg") -> None:
    """A file that is dropped or pasted."""
    page.evaluate("""([kind, name, content, mime]) => {
        const data = new DataTransfer();
        const bytes = Uint8Array.from(atob(content), letter => letter.charCodeAt(0));
        data.items.add(new File([bytes], name, {type: mime}));
        const given = {bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data};
        const event = kind === "drop" ? new DragEvent(kind, given) : new ClipboardEvent(kind, given);
        document.getElementById("drop").dispatchEvent(event);
    }""", [kind, name, base64.b64encode(content).decode(), mime])


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photo_that_is_dropped_or_pasted(page, asked, finder, kind):
    """Its name is text, whatever is in it."""
    name = "<img src=x onerror=alert(1)>.jpg"
    _hand_over(page, kind, name, (asked.queries / "2.jpg").read_bytes())
    page.wait_for_selector("#stage:not([hidden])")
    assert page.inner_text("#name") == name
    page.click("#search")
    assert _results(page) == [result.name for result in finder.find(asked.queries / "2.jpg").results]
    check_clean(page)


def test_what_is_no_photo_is_told(page, asked):
    _hand_over(page, "drop", "notes.txt", b"no photo", "text/plain")
    _until(page, "!document.getElementById('error').hidden")
    assert page.inner_text("#error") == ("notes.txt is no photo that can be shown here: choose JPEG, PNG, "
                                         "WebP, BMP.")
    _hand_over(page, "drop", "large.jpg", bytes(1_100_000))
    _until(page, "document.getElementById('error').textContent.includes('large.jpg')")
    assert page.inner_text("#error") == "large.jpg has 1.1 MB, and 1 MB are the most."
    assert page.is_disabled("#search")
    _choose(page, asked.queries / "0.jpg")
    assert page.is_hidden("#error")


def _answering(answer: dict | None):
    return lambda route: route.fulfill(**answer) if answer else route.abort()


def test_answers_that_say_no(page, asked):
    """The server's words are shown, or that it is not there; the photo stays, and asking again works."""
    _choose(page, asked.queries / "0.jpg")
    for answer, message in (
            ({"status": 503, "json": {"error": "busy with other photographs"}},
             "busy with other photographs"),
            ({"status": 413, "body": "Request Entity Too Large"}, "the server answers 413 "),
            (None, "The server cannot be reached: is it still running?")):
        page.route("**/api/search?*", _answering(answer))
        page.click("#search")
        _until(page, f"!document.getElementById('error').hidden && {NOT_WAITING}")
        assert page.inner_text("#error").startswith(message)
        page.unroute("**/api/search?*")
    page.click("#search")
    assert len(_results(page)) == 10 and page.is_hidden("#error")


def test_names_and_images_of_any_kind(page, asked):
    """Names are text, scores may be none, and images may be missing."""
    entry = {"place": 1, "found_at": 3, "name": "<b>x</b>", "score": None, "reranked": True,
             "similarity": 0.5, "image": None}
    page.route("**/api/search?*", lambda route: route.fulfill(json={
        "results": [entry, {**entry, "image": "/image/12?v=1"}], "size": [9, 9], "region": [0, 0, 9, 9],
        "described_at": [4, 4], "reranker": "rrt", "reranked": 2,
        "seconds": {"decode": 0, "describe": 0.0123, "search": 2}}))
    _choose(page, asked.queries / "0.jpg")
    page.click("#search")
    assert _results(page) == ["<b>x</b>"] * 2
    assert page.locator("#results .score").all_inner_texts() == ["no score"] * 2
    _until(page, "document.querySelectorAll('#results .none').length === 2")       # row 12 is no image
    assert page.locator("#results .open:disabled").count() == 2
    assert "seen at 4 x 4 pixels" in page.inner_text("#status")
    assert page.locator("#times dd").all_inner_texts() == ["0.0 ms", "12 ms", "2000 ms", "2012 ms"]


def test_rerankers_that_are_not_here_say_why(page):
    missing = page.locator("#reranker option:disabled").all_inner_texts()
    assert missing == ["rrt (not here)", "asmk (not here)"]
    assert page.inner_text("#missing summary") == "Why 2 of 8 rerankers are not here"
    page.click("#missing summary")
    assert "give RERANK.RRT.WEIGHTS FILE" in page.inner_text("#missing dl")


def _contrast(page, front: str, back: str) -> float:
    """Of two CSS colours, as the Web Content Accessibility Guidelines measure it."""
    def light(name: str) -> float:
        numbers = page.evaluate("""name => {
            const probe = document.createElement("i");
            probe.style.color = `var(${name})`;
            document.body.append(probe);
            const colour = getComputedStyle(probe).color;
            probe.remove();
            return colour.match(/[0-9.]+/g).slice(0, 3).map(Number);
        }""", name)
        shares = [number / 255 for number in numbers]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(front), light(back)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_dark_and_light(browser, served, scheme):
    """As the system has it, and the other at a click; text can be read in both."""
    page = browser.open(served.address, served.origin, color_scheme=scheme)
    for expected in (scheme, "light" if scheme == "dark" else "dark"):
        red = int(page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0]"))
        assert (red > 200) == (expected == "light")
        for front, back in (("--ink", "--paper"), ("--pale", "--paper"), ("--pale", "--card"),
                            ("--accent", "--card"), ("--on-accent", "--accent"), ("--warm", "--card"),
                            ("--ink", "--alert")):
            assert _contrast(page, front, back) >= 4.5, (expected, front, back)
        page.click("#theme")
    check_clean(page)


def test_on_a_phone(browser, served, asked):
    """Nothing is wider than the screen; a finger draws the box; the results come into view."""
    page = browser.open(served.address, served.origin, viewport={"width": 360, "height": 740},
                        has_touch=True, is_mobile=True)
    _choose(page, asked.queries / "0.jpg")
    area = page.locator("#stage").bounding_box()
    touch = page.context.new_cdp_session(page)

    def send(kind: str, *share: float) -> None:
        points = [{"x": area["x"] + share[0] * area["width"],
                   "y": area["y"] + share[1] * area["height"]}] if share else []
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", 0.25, 0.25)
    for share in (0.4, 0.6, 0.75):
        send("touchMove", share, share)
    send("touchEnd")
    _until(page, "document.getElementById('x1').value")
    assert _box(page) == pytest.approx([32, 24, 96, 72], abs=1)
    page.click("#search")
    assert len(_results(page)) == 10
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    top = page.evaluate("document.getElementById('found').getBoundingClientRect().top")
    assert top < 100
    for selector in ("#search", "#add", "#reranker", "#top"):
        assert page.locator(selector).bounding_box()["height"] >= 40
    check_clean(page)
