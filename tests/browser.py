"""Headless Chromium for tests, by Playwright: a page that records what must not happen.

The conftest.py of a folder of tests takes the fixtures: `from tests.browser import browser, chromium`.
"""
import shutil
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost")
LOCAL_SCHEMES = ("file", "data", "blob", "about")


class Watch:
    """What went wrong on a page: `errors` (console, uncaught, crash) and `strays` (addresses of
    requests that are neither of this machine's files nor to `origin`, "http://127.0.0.1:8000")."""

    def __init__(self, page, origin: str = ""):
        self.errors: list[str] = []
        self.strays: list[str] = []
        self._origin = origin
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))
        page.on("crash", lambda _: self.errors.append("the page crashed"))
        # Of the context: it tells of workers' requests, and of those of windows that a page opens
        page.context.on("request", self._note_request)

    def _note_console(self, message) -> None:
        if message.type == "error":
            self.errors.append(f"console: {message.text}")

    def _note_request(self, request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in LOCAL_SCHEMES and f"{parts.scheme}://{parts.netloc}" != self._origin:
            self.strays.append(request.url)


class Browser:
    """One headless Chromium; `open` gives fresh pages, whose `watch` is a Watch."""

    def __init__(self, chromium):
        self._chromium = chromium
        self._contexts: list = []

    def open(self, address: str, origin: str = "", wait_until: str = "load", **options):
        """A Playwright page in a context of its own (options: viewport, color_scheme, ...), at
        `address`. Requests elsewhere than to `origin` are noted in `page.watch.strays`."""
        context = self._chromium.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(10_000)
        self._contexts.append(context)
        page = context.new_page()
        page.watch = Watch(page, origin)
        page.goto(address, wait_until=wait_until)
        return page

    def close_pages(self) -> None:
        for context in self._contexts:
            context.close()
        self._contexts.clear()


def check_clean(page) -> None:
    """Fail where the page has written an error, or asked for what is not on this machine."""
    assert page.watch.errors == []
    assert page.watch.strays == []


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    """Chromium, once per test file; a skip where it or Playwright is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is absent")
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        yield launched
        launched.close()


@pytest.fixture
def browser(chromium) -> Iterator[Browser]:
    """A Browser whose pages are closed after each test."""
    made = Browser(chromium)
    yield made
    made.close_pages()
