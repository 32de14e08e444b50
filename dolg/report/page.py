"""The results page: one HTML file that needs no network and no JavaScript."""
import base64
from pathlib import Path

import jinja2

from dolg.report.results import PROTOCOLS, Report
from dolg.report.thumbnails import Thumbnail, make_thumbnail

QUERY_HEIGHT = 240  # pixels
RESULT_HEIGHT = 120


def render_page(report: Report) -> str:
    """The report as one self-contained HTML document.

    Each distinct image is embedded once, as a CSS class, however often it is shown. Images that
    cannot be read show as grey tiles with their name and the reason.
    """
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(percent=_percent, change=_change)
    template = environment.get_template("page.html.j2")
    thumbnails = {path: make_thumbnail(path, height) for path, height in _heights(report).items()}
    classes, styles = _image_classes(thumbnails)
    return template.render(
        report=report, queries=sort_worst_first(report), protocols=PROTOCOLS,
        thumbnails=thumbnails, classes=classes, styles=styles, crop=_crop,
    )


def sort_worst_first(report: Report) -> list:
    """The queries by the Medium AP of the last method, lowest first; those without AP go last."""
    method = report.methods[-1].name

    def key(query):
        ap = query.ap[method]["medium"]
        return (ap is None, ap or 0.0)
    return sorted(report.queries, key=key)


def _heights(report: Report) -> dict[Path, int]:
    """Every image on the page with the height in pixels that it needs."""
    heights = {query.image: QUERY_HEIGHT for query in report.queries}
    for query in report.queries:
        for hits in query.hits.values():
            for hit in hits:
                heights.setdefault(hit.image, RESULT_HEIGHT)
    return heights


def _image_classes(thumbnails: dict[Path, Thumbnail]) -> tuple[dict[Path, str], dict[str, str]]:
    """A CSS class for each readable image, and its base64 data; equal bytes share one."""
    by_jpeg: dict[bytes, str] = {}
    classes = {path: by_jpeg.setdefault(thumbnail.jpeg, f"image-{len(by_jpeg)}")
               for path, thumbnail in thumbnails.items() if thumbnail.jpeg}
    styles = {name: base64.b64encode(jpeg).decode("ascii") for jpeg, name in by_jpeg.items()}
    return classes, styles


def _crop(box: tuple[float, float, float, float], thumbnail: Thumbnail) -> str:
    """CSS that puts the box (x1, y1, x2, y2, pixels of the original) over the thumbnail."""
    width, height = thumbnail.source_width, thumbnail.source_height
    x1, x2 = (min(max(x / width, 0), 1) * 100 for x in (box[0], box[2]))
    y1, y2 = (min(max(y / height, 0), 1) * 100 for y in (box[1], box[3]))
    return f"left:{x1:.2f}%;top:{y1:.2f}%;width:{x2 - x1:.2f}%;height:{y2 - y1:.2f}%"


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _change(value: float | None, base: float | None, digits: int = 1) -> str:
    """The difference in points with its sign; empty where one of the two is missing."""
    if value is None or base is None:
        return ""
    text = f"{100 * (value - base):+.{digits}f}"
    return "±" + text[1:] if float(text) == 0 else text.replace("-", "−")
