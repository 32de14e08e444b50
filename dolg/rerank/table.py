"""Methods side by side: what they score, and what they cost."""
from collections.abc import Mapping

from revisitop.record import map_heading


def format_table(results: Mapping[str, Mapping]) -> str:
    """name -> result (see `evaluation.evaluate_lists`) as a table in Markdown: mAP in percent, time for a
    query's list in milliseconds, what a database keeps of an image in KB (1000 bytes)."""
    protocols = list(next(iter(results.values()))["protocols"])
    heads = [map_heading(list(results.values())), *map(str.capitalize, protocols), "ms per query",
             "KB per image"]
    rows = [[name, *_figures(result, protocols)] for name, result in results.items()]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(cells, widths) for cells in [heads, rule, *rows])


def _figures(result: Mapping, protocols: list[str]) -> list[str]:
    scores = [result["protocols"][protocol]["mAP"] for protocol in protocols]
    cost = result.get("reranking", {"seconds_per_query": 0.0, "bytes_per_image": 0.0})
    seconds, size = cost["seconds_per_query"], cost["bytes_per_image"]
    return ["-" if score is None else f"{100 * score:.2f}" for score in scores] + [
        "known" if seconds is None else f"{1000 * seconds:.1f}",
        "known" if size is None else f"{size / 1000:.2f}"]


def _line(cells: list[str], widths: list[int]) -> str:
    return "| " + " | ".join([cells[0].ljust(widths[0]),
                              *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:]))]) + " |"
