"""The picture of a reranking transformer's attention across a pair of images."""
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dolg.visual.attended import PairAttention
from dolg.visual.draw_pair import DARK, PairSheet
from dolg.visual.drawing import HEAT
from dolg.visual.photographs import Photograph

# Lines drawn, the strongest; area of the disc of the largest weight, in square points
LINES, _LARGEST = 40, 150.0
# The colours' darkest part is left out: it is not seen on a photograph
_DARKEST = 0.25


def draw_attended(query: Photograph, candidate: Photograph, found: PairAttention,
                  layer: int | None = None) -> Figure:
    """Discs: what the token that the logit is read off takes of each local feature, as area and colour.
    Lines: the strongest of what the query's local features take of the candidate's."""
    first, across = found.of_first(layer), found.across(layer)
    sides = found.on_query(first), found.on_candidate(first)
    sheet = PairSheet(query, candidate, _title(found, layer), _legend(sides, across), in_line=False)
    rows, columns = strongest(across, LINES)
    share = across[rows, columns] / max(across.max(initial=0), 1e-12)
    sheet.lines(found.query_xy[rows], found.candidate_xy[columns], _colours(share), 0.5 + 1.3 * share,
                0.9, cased=True)
    largest = max(max(side.max(initial=0) for side in sides), 1e-12)
    for side, (xy, weights) in enumerate(zip((found.query_xy, found.candidate_xy), sides)):
        order = np.argsort(-weights, kind="stable")      # the small ones upon the large
        share = weights[order] / largest
        sheet.discs(side, xy[order], _LARGEST * share + 1.5, _colours(share), edge=DARK, opacity=0.8)
    return sheet.sheet.figure


def strongest(across: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the `most` largest entries above 0, the least of them first: it is drawn
    first. Of a row at most one: the line to what a feature looks at most."""
    if not across.size:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    columns = across.argmax(axis=1)
    values = across[np.arange(len(across)), columns]
    rows = np.argsort(-values, kind="stable")[:most][::-1]
    rows = rows[values[rows] > 0]
    return rows, columns[rows]


def _colours(shares: np.ndarray) -> np.ndarray:
    return matplotlib.colormaps[HEAT](_DARKEST + (1 - _DARKEST) * np.asarray(shares))


def _title(found: PairAttention, layer: int | None) -> str:
    probability = (1 + np.tanh(found.logit / 2)) / 2
    which = "all layers" if layer is None else f"layer {layer} of {len(found.layers)}"
    return f"logit {found.logit:.2f}, the same object with {probability:.1%}  ·  mean over heads, {which}"


def _legend(sides: tuple[np.ndarray, np.ndarray], across: np.ndarray) -> list[tuple[str, dict]]:
    shares = [float(side.sum()) for side in sides]
    colour = tuple(_colours(np.array(0.75)))
    entries = [("disc: how much the token that the logit is read off takes of a local feature; of the "
                f"query's together {shares[0]:.0%}, of the candidate's {shares[1]:.0%}",
                {"linestyle": "", "marker": "o", "color": colour, "markeredgecolor": DARK,
                 "markersize": 6})]
    if across.any():
        entries.append(("line: of which feature of the candidate one of the query takes most; the "
                        f"strongest {across.max():.1%}",
                        {"color": colour, "linewidth": 1.6}))
    return entries
