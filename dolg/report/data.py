"""What the page's script works on: the queries and their results as compact JSON."""
import json
import math
from collections.abc import Mapping, Sequence

from dolg.report.results import Hit, Image, Query, Report
from dolg.report.thumbnails import Thumbnail, Wanted
from revisitop.protocol import PROTOCOLS

# Pixels, at most: of a query, of the results that are seen at once, and of those further on
QUERY_HEIGHT, RESULT_HEIGHT, FAR_HEIGHT = 320, 200, 120
NEAR = 10
LABELS = {"easy": "e", "hard": "h", "ok": "o", "junk": "j", "negative": "n"}


def wanted_thumbnails(report: Report) -> tuple[list[tuple[Wanted, Wanted | None]], dict[Image, Wanted]]:
    """Of each query, whole and cut to its box (None without one); and of each image in results."""
    queries = [(Wanted(query.path, QUERY_HEIGHT),
                Wanted(query.path, QUERY_HEIGHT, tuple(query.box)) if query.box else None)
               for query in report.queries]
    heights: dict[Image, int] = {}
    for query in report.queries:
        for hits in query.hits.values():
            for place, hit in enumerate(hits):
                height = RESULT_HEIGHT if place < NEAR else FAR_HEIGHT
                heights[hit.image] = max(heights.get(hit.image, 0), height)
    return queries, {image: Wanted(image.path, height) for image, height in heights.items()}


def page_data(
    report: Report, thumbnails: Mapping[Wanted, Thumbnail], tile_of: Mapping[Wanted, int | str],
    queries: Sequence[tuple[Wanted, Wanted | None]], images: Mapping[Image, Wanted],
) -> dict:
    """Plain data. `tile_of`: number of a thumbnail, or why there is none.

    {"protocols": [...], "positives": {protocol: letters of the labels it counts as found},
     "skipped": {protocol: letters that it leaves out},
     "methods": [{"name", "lists": whether any are known}],
     "images": {"names": [...], "tiles": [...], "distractors": [...]},
     "queries": [{"name", "tile", "crop" or null, "box": shares of the image or null,
         "counts": {label: n}, "ap": [method][protocol], "ranks": [method][protocol] or null,
         "failed": [method],
         "hits": [method] {"images": [...], "scores": [... or null], "labels": "eehn..."} or null}]}
    """
    numbers = {image: number for number, image in enumerate(images)}
    protocols = report.protocols
    listed = {name for query in report.queries for name in query.hits}
    return {
        "protocols": protocols,
        "positives": {protocol: _letters(protocol, "ok") for protocol in protocols},
        "skipped": {protocol: _letters(protocol, "junk") for protocol in protocols},
        "methods": [{"name": method.name, "lists": method.name in listed} for method in report.methods],
        "images": {"names": [image.name for image in images],
                   "tiles": [tile_of[wanted] for wanted in images.values()],
                   "distractors": [number for image, number in numbers.items() if image.distractor]},
        "queries": [_query(report, number, query, wanted, thumbnails, tile_of, numbers)
                    for number, (query, wanted) in enumerate(zip(report.queries, queries, strict=True))],
    }


def _query(report: Report, number: int, query: Query, wanted: tuple[Wanted, Wanted | None],
           thumbnails: Mapping[Wanted, Thumbnail], tile_of: Mapping[Wanted, int | str],
           numbers: Mapping[Image, int]) -> dict:
    whole, crop = wanted
    protocols, places = report.protocols, []
    for method in report.methods:
        ranks = [method.ranks(protocol) for protocol in protocols]
        places.append([found and found[number] for found in ranks])
    return {
        "name": query.name,
        "tile": tile_of[whole],
        "crop": tile_of[crop] if crop else None,
        "box": _shares(query.box, thumbnails[whole]) if query.box else None,
        "counts": dict(query.counts),
        "ap": [[_rounded(method.aps(protocol)[number]) for protocol in protocols]
               for method in report.methods],
        "ranks": places,
        "failed": [query.name in method.failed("query") for method in report.methods],
        "hits": [_hits(query.hits[method.name], numbers) if method.name in query.hits else None
                 for method in report.methods],
    }


def _hits(hits: Sequence[Hit], numbers: Mapping[Image, int]) -> dict:
    return {"images": [numbers[hit.image] for hit in hits],
            "scores": [float(f"{hit.score:.5g}") if math.isfinite(hit.score) else None for hit in hits],
            "labels": "".join(LABELS[hit.label] for hit in hits)}


def _letters(protocol: str, role: str) -> str:
    return "".join(LABELS[label] for label in PROTOCOLS[protocol][role]) if protocol in PROTOCOLS else ""


def _shares(box: Sequence[float], thumbnail: Thumbnail) -> list[float] | None:
    """Left, top, width and height of a box as shares of the image; None where that is not known."""
    if thumbnail.problem:
        return None
    sizes = (thumbnail.source_width, thumbnail.source_height)
    low, high = ([min(max(value / size, 0), 1) for value, size in zip(corner, sizes)]
                 for corner in (box[:2], box[2:]))
    return [round(value, 4) for value in (*low, high[0] - low[0], high[1] - low[1])]


def _rounded(ap: float | None) -> float | None:
    return None if ap is None else round(ap, 6)


def script_json(data: object) -> str:
    """JSON that may stand in a <script>: no character of it can end the element, or is none of ASCII.

    Names of files may hold bytes that are no UTF-8: they become visible escapes.
    """
    text = json.dumps(_visible(data), separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _visible(data: object) -> object:
    if isinstance(data, str):
        return visible(data)
    if isinstance(data, dict):
        return {visible(key): _visible(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_visible(value) for value in data]
    return data


def visible(text: str) -> str:
    """Text whose bytes that are no UTF-8 show as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
