"""The page and what it asks, as a Flask application."""
import hashlib
import json
import math
import threading
from collections.abc import Mapping
from importlib.resources import files
from typing import TYPE_CHECKING

from dolg.data.boxes import Box
from dolg.data.decode import ImageError
from dolg.errors import UserError, choose
from dolg.serve.finder import Finder, Found, Result
from dolg.serve.guards import HEADERS, host_is_ours, is_from_elsewhere
from dolg.serve.server import WAITED
from dolg.serve.views import SIZES, Views

if TYPE_CHECKING:
    from flask import Flask, Response

MOST_RESULTS = 200
_ASSETS = {"/": ("page.html", "text/html; charset=utf-8"),
           "/page.css": ("page.css", "text/css; charset=utf-8"),
           "/page.js": ("page.js", "text/javascript; charset=utf-8"),
           "/box.js": ("box.js", "text/javascript; charset=utf-8"),
           "/icon.svg": ("icon.svg", "image/svg+xml")}
# The request that takes its turn, and the seconds for which it may wait
SEARCH, PATIENCE = "/api/search", 30.0
_BUSY = "busy with other photographs: try again in a few seconds"
_RETRY_SECONDS = 5


class RequestError(Exception):
    """A request that is not answered: its status, a line that says why, and more headers."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.headers = status, headers


def build_app(finder: Finder, host: str, max_bytes: int) -> "Flask":
    """The application.

    finder: asked by one request at a time. host: the address that is served. max_bytes: of a photograph's
    file. Raises UserError where Flask is not installed.
    """
    try:
        from flask import Flask, request
    except ImportError:
        raise UserError("the page needs Flask: pip install flask waitress") from None
    app = Flask("dolg", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_bytes
    views = Views(finder.files, finder.limits.pixels)
    about = {**_about(finder), "limits": {"bytes": max_bytes, "results": MOST_RESULTS,
                                          "kinds": list(finder.limits.kinds)}}
    version, alone = _version(finder), threading.Lock()

    @app.before_request
    def check() -> None:
        _check_source(request.path, request.headers, host)

    for path, (name, kind) in _ASSETS.items():
        app.add_url_rule(path, path, _asset(name, kind), methods=["GET"])

    @app.get("/api/about")
    def tell() -> "Response":
        return _json(about)

    @app.get("/image/<int:row>")
    def image(row: int) -> "Response":
        size = request.args.get("size", "small")
        if not 0 <= row < len(finder.database) or size not in SIZES:
            raise RequestError(404, "no such image")
        try:
            jpeg = views.view(row, size)
        except ImageError as error:
            name = finder.database.name(row)
            raise RequestError(404, f"{name} cannot be shown: {error.reason}") from None
        return _response(jpeg, "image/jpeg", {"Cache-Control": "private, max-age=3600"})

    @app.post(SEARCH)
    def search() -> "Response":
        if request.environ.get(WAITED, 0.0) > PATIENCE:
            raise RequestError(503, _BUSY, {"Retry-After": str(_RETRY_SECONDS)})
        _check_type(request.content_type)
        box, top, reranker = _asked(request.args, about["rerankers"])
        data = request.get_data(cache=False, parse_form_data=False)
        with alone:
            found = finder.find(data, box, top, reranker)
        return _json(_as_json(found, version))

    _handle_errors(app)
    return app


def _handle_errors(app: "Flask") -> None:
    from werkzeug.exceptions import HTTPException

    @app.errorhandler(Exception)
    def tell(error: Exception) -> "Response":
        if isinstance(error, RequestError):
            return _json({"error": str(error)}, error.status, error.headers)
        if isinstance(error, ImageError):
            return _json({"error": f"{error.path} cannot be read: {error.reason}"}, 400)
        if isinstance(error, UserError):
            return _json({"error": str(error)}, 400)
        if isinstance(error, MemoryError):
            return _json({"error": "not enough memory for this photograph: give a smaller one"}, 413)
        if isinstance(error, HTTPException):
            return _json({"error": f"{error.name}".lower()}, error.code or 500)
        app.logger.exception("a request failed")
        return _json({"error": "something went wrong here; the terminal of the server says what"}, 500)

    @app.after_request
    def harden(response: "Response") -> "Response":
        response.headers.extend(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response


def _asset(name: str, kind: str):
    content = files("dolg.serve").joinpath("assets", name).read_bytes()
    return lambda: _response(content, kind)


def _check_source(path: str, headers: Mapping[str, str], host: str) -> None:
    if not host_is_ours(headers.get("Host", ""), host):
        raise RequestError(403, "this server answers to its own address alone")
    # A link to the page may be anywhere
    if path != "/" and is_from_elsewhere(headers):
        raise RequestError(403, "this server answers its own page and programs, and no other page")


def _check_type(content_type: str | None) -> None:
    """A form of another page cannot send these, whatever browser it is in."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if not (kind.startswith("image/") or kind == "application/octet-stream"):
        raise RequestError(415, "send the photograph's bytes as image/jpeg, image/png, ... or "
                           "application/octet-stream")


def _asked(args: Mapping[str, str], rerankers: list[dict]) -> tuple[Box | None, int, str]:
    """Box, number of results and reranker of a query string."""
    unknown = sorted(set(args) - {"box", "top", "reranker"})
    if unknown:
        raise RequestError(400, f"no such parameter: {unknown[0][:40]!r}; there are box, top and reranker")
    try:
        top = int(args.get("top", "10"))
    except ValueError:
        top = 0
    if not 1 <= top <= MOST_RESULTS:
        raise RequestError(400, f"top is no number from 1 to {MOST_RESULTS}")
    name = args.get("reranker", "")
    if name:
        choose({entry["name"]: entry for entry in rerankers if not entry["missing"]}, name[:40], "reranker")
    return _box(args.get("box", "")), top, name


def _box(text: str) -> Box | None:
    if not text:
        return None
    try:
        box = tuple(float(corner) for corner in text.split(","))
    except ValueError:
        box = ()
    if len(box) != 4 or not all(map(math.isfinite, box)):
        raise RequestError(400, "the box is not x1,y1,x2,y2 in pixels")
    return box


def _about(finder: Finder) -> dict:
    describer, database = finder.describer, finder.database
    return {"model": describer.settings["model"], "dimensions": describer.dim,
            "device": describer.device.type,
            "images": len(database), "database": [path.name for path in database.paths],
            "has_images": bool(finder.files.folders), "depth": finder.rerankers.depth, "side": finder.side,
            "rerankers": [{"name": name, "missing": why} for name, why in finder.rerankers.offer().items()]}


def _version(finder: Finder) -> str:
    """Of the database: views that a browser keeps are not of another."""
    return hashlib.sha256(json.dumps(finder.database.digests).encode()).hexdigest()[:12]


def _as_json(found: Found, version: str) -> dict:
    return {"results": [_result_as_json(result, version) for result in found.results],
            "size": list(found.size), "region": list(found.region), "described_at": found.described_at,
            "reranker": found.reranker, "reranked": found.reranked,
            "seconds": {step: round(seconds, 6) for step, seconds in found.seconds.items()}}


def _result_as_json(result: Result, version: str) -> dict:
    return {"place": result.place, "found_at": result.found_at, "name": result.name,
            "score": _number(result.score), "reranked": result.reranked,
            "similarity": _number(result.similarity),
            "image": f"/image/{result.row}?v={version}" if result.image else None}


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return round(value, 7) if math.isfinite(value) else None


def _json(content: dict, status: int = 200, headers: Mapping[str, str] | None = None) -> "Response":
    # ASCII alone: names of files need not be text
    return _response(json.dumps(content).encode("ascii"), "application/json", headers, status)


def _response(content: bytes, kind: str, headers: Mapping[str, str] | None = None,
              status: int = 200) -> "Response":
    from flask import Response

    return Response(content, status, headers, content_type=kind)
