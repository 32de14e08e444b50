"""The report as HTML: one self-contained file, or a folder with the thumbnails beside the page.

The page asks for nothing from a network. Its policy admits the one style and the one script that are
in it, by their digests; names and figures are data, which the script reads.
"""
import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from dolg.errors import UserError
from dolg.files import write_atomically
from dolg.report import charts, curves, record
from dolg.report.data import page_data, script_json, visible, wanted_thumbnails
from dolg.report.results import Report, counted
from dolg.report.thumbnails import Thumbnail, Wanted, make_thumbnails
from revisitop.record import queries_cropped

THUMBNAILS = "thumbnails"
# Embedded thumbnails are read by the block
BLOCK = 256
# Of script/, in this order within one function
SCRIPTS = ("basics", "pictures", "orders", "queries", "curves", "list", "viewer", "keys", "start")


@dataclass(frozen=True)
class _Tiles:
    """The thumbnails of a page, each once: `names` of files, or else `blocks` of base64, BLOCK each;
    `of`: number of each, or why there is none."""

    of: Mapping[Wanted, int | str]
    names: Sequence[str]
    blocks: Sequence[Sequence[str]]


def write_report(report: Report, output: Path) -> Path:
    """Write OUTPUT.html with all in it or, where `output` has no such ending, OUTPUT/index.html and
    OUTPUT/thumbnails/*.jpg, of which those already there are reused. Returns the page's path.

    Raises UserError where something else stands in the way."""
    alone = output.suffix.lower() in (".html", ".htm")
    _check_output(output, alone)
    page = output if alone else output / "index.html"
    html = render_page(report, None if alone else output / THUMBNAILS)
    write_atomically(page, html.encode("utf-8", "backslashreplace"))
    return page


def _check_output(output: Path, alone: bool) -> None:
    if alone and output.is_dir():
        raise UserError(f"{output} is a folder: give the page another name, or a folder's name that does "
                        f"not end in {output.suffix}")
    for folder in output.parents if alone else (output, *output.parents):
        if os.path.exists(folder) and not folder.is_dir():
            raise UserError(f"{folder} is a file: give FILE.html, or a folder for the page and its "
                            "thumbnails")


def render_page(report: Report, folder: Path | None = None) -> str:
    """The report as one HTML document, with its thumbnails in it or in `folder`."""
    queries, images = wanted_thumbnails(report)
    wanted = [*(part for pair in queries for part in pair if part), *images.values()]
    thumbnails = make_thumbnails(wanted, folder)
    tiles = _tiles(thumbnails)
    data = page_data(report, thumbnails, tiles.of, queries, images)
    data["files"] = [f"{THUMBNAILS}/{name}" for name in tiles.names]
    data["block"] = BLOCK
    data["cropped"] = [queries_cropped(method.evaluation) is not False for method in report.methods]
    here = Path(__file__).parent
    style, script = (here / "page.css").read_text(encoding="utf-8"), _script(here / "script")
    return _template(here).render(
        report=report, style=style, script=script, style_digest=_digest(style),
        script_digest=_digest(script), images="'self' file:" if folder else "data:",
        data=script_json(data), blocks=tiles.blocks, charts=charts, record=record,
        figures=_figures(report), **_spread(report))


def _script(folder: Path) -> str:
    parts = [(folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _template(folder: Path) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, finalize=_finalize)
    environment.filters.update(percent=_percent, points=_points, counted=counted)
    return environment.get_template("page.html.j2")


def _tiles(thumbnails: Mapping[Wanted, Thumbnail]) -> _Tiles:
    """Equal thumbnails share one number."""
    numbers: dict[str | bytes, int] = {}
    of = {wanted: thumbnail.problem or numbers.setdefault(thumbnail.file or thumbnail.jpeg, len(numbers))
          for wanted, thumbnail in thumbnails.items()}
    names = [key for key in numbers if isinstance(key, str)]
    encoded = [base64.b64encode(key).decode("ascii") for key in numbers if isinstance(key, bytes)]
    return _Tiles(of, names, [encoded[i:i + BLOCK] for i in range(0, len(encoded), BLOCK)])


def _figures(report: Report) -> dict[str, dict[str, curves.Figure]]:
    """Method -> protocol -> mAP and its change."""
    first = report.methods[0]
    return {method.name: {protocol: curves.map_figure(method, first, protocol)
                          for protocol in report.protocols} for method in report.methods}


def _spread(report: Report) -> dict[str, object]:
    """The distributions of AP by method and protocol, and how many queries the largest bin has."""
    found = {method.name: {protocol: curves.distribution(method.aps(protocol))
                           for protocol in report.protocols} for method in report.methods}
    counts = [count for spreads in found.values() for spread in spreads.values()
              for count in spread.counts]
    return {"distributions": found, "most": max(counts, default=1) or 1}


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _finalize(value: object) -> object:
    """Text of the template as it can be written."""
    return visible(value) if type(value) is str else value


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def _points(value: float, digits: int = 1) -> str:
    """A difference in points with its sign."""
    text = f"{100 * value:+.{digits}f}"
    return "±" + text[1:] if float(text) == 0 else text.replace("-", "−")
