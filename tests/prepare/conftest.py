"""A web server with the manners of real ones: it breaks off, stalls, redirects, lies and forgets."""
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Page:
    """What the server has at a path, and how it behaves there.

    Attributes:
        content, etag, modified: of the file; "": it does not say.
        ranges: whether it answers requests for a part with that part.
        next: how its next answers differ, each used up: a number of bytes after which it breaks off, or
            (status, headers) without a body.
        redirect: another address; "": none.
        length: the Content-Length that it claims; None: the true one; "": it says none.
        chunked: it sends chunks, and no length.
        most: bytes of a part that it sends at once.
        content_range: what it says instead of the true one.
        headers: more to say.
        block, after: it calls `after` after each `block` bytes.
    """

    content: bytes = b""
    etag: str = '"1"'
    modified: str = ""
    ranges: bool = True
    next: list[int | tuple[int, dict]] = field(default_factory=list)
    redirect: str = ""
    length: int | str | None = None
    chunked: bool = False
    most: int | None = None
    content_range: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    block: int = 1 << 16
    after: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Request:
    """What was asked: the path, and the headers Range and If-Range, "" where absent."""

    path: str
    range: str = ""
    if_range: str = ""


class Web:
    """A running server: `pages` by path, `requests` in their order, `headers` of the last one."""

    def __init__(self, url: str):
        self.url, self.pages, self.requests, self.headers = url, {}, [], {}

    def publish(self, name: str, content: bytes = b"", **behaviour) -> str:
        """Have a page; gives its address."""
        self.pages[f"/{name}"] = Page(content, **behaviour)
        return f"{self.url}/{name}"

    def page(self, name: str) -> Page:
        return self.pages[f"/{name}"]

    @property
    def ranges(self) -> list[str]:
        return [request.range for request in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        web, sent = self.server.web, self.headers
        web.headers = dict(sent)
        web.requests.append(Request(self.path, sent.get("Range", ""), sent.get("If-Range", "")))
        self.close_connection = True
        page = web.pages.get(self.path)
        if page is None:
            return self._say(404, {"Content-Length": 0})
        now = page.next.pop(0) if page.next else len(page.content)
        if isinstance(now, tuple):
            return self._say(now[0], {"Content-Length": 0, **now[1]})
        if page.redirect:
            return self._say(302, {"Content-Length": 0, "Location": page.redirect})
        try:
            self._send(page, sent, now)
        except (BrokenPipeError, ConnectionResetError):     # the client has gone
            pass

    def do_HEAD(self):
        page = self.server.web.pages.get(self.path)
        self.close_connection = True
        self._say(200 if page else 404, {"Content-Length": len(page.content) if page else 0})

    def _send(self, page: Page, sent, cut: int) -> None:
        start = int(sent["Range"].removeprefix("bytes=").rstrip("-")) if sent.get("Range") else 0
        same = sent.get("If-Range", page.etag or page.modified) in (page.etag, page.modified)
        if not (page.ranges and same):
            start = 0
        size = len(page.content)
        if start >= size > 0:
            return self._say(416, {"Content-Length": 0, "Content-Range": f"bytes */{size}"})
        stop = size if page.most is None or not start else min(size, start + page.most)
        body, headers = page.content[start:stop], {"ETag": page.etag, "Last-Modified": page.modified}
        if start:
            headers["Content-Range"] = page.content_range or f"bytes {start}-{stop - 1}/{size}"
        headers["Content-Length"] = len(body) if page.length is None else page.length
        if page.chunked:
            headers |= {"Content-Length": "", "Transfer-Encoding": "chunked"}
        self._say(206 if start else 200, {**headers, **page.headers})
        for first in range(0, min(cut, len(body)), page.block):
            block = body[first:min(first + page.block, cut)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(block), block) if page.chunked else block)
            self.wfile.flush()
            page.after()
        if page.chunked and cut >= len(body):
            self.wfile.write(b"0\r\n\r\n")

    def _say(self, status: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value != "":
                self.send_header(name, str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def web(monkeypatch):
    """A running `Web` on this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.web = Web(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server.web
    server.shutdown()
    server.server_close()
    thread.join()
