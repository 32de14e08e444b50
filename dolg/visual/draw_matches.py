"""The picture of matches: two images, their local features, and the matches that agree."""
import numpy as np
from matplotlib.figure import Figure

from dolg.visual.draw_pair import DARK, PairSheet, corners_of
from dolg.visual.matches import MatchedPair, projected_outline
from dolg.visual.photographs import Photograph

INLIER, OUTLIER, OUTLINE = "#ff9f1c", "#ffffff", "#2ee6a8"
# Inliers whose lines hide nothing
_FEW = 40


def draw_matches(query: Photograph, candidate: Photograph, found: MatchedPair) -> Figure:
    """All local features as small dots, matches faint, inliers clear, and where the query's outline (or
    its box's) lies in the candidate."""
    pair, corners = found.pair, corners_of(query)
    outline = projected_outline(found, (*corners[0], *corners[2]))
    sheet = PairSheet(query, candidate, _title(found), _legend(found, query, outline is not None))
    for side, xy in enumerate((found.query_xy, found.candidate_xy)):
        sheet.discs(side, xy, 1.2, OUTLIER, opacity=0.55)
    outliers = ~pair.inliers
    sheet.lines(pair.query_xy[outliers], pair.candidate_xy[outliers], OUTLIER, 0.5, 0.28)
    if outline is not None:
        sheet.outline(1, outline, OUTLINE)
    ends = pair.query_xy[pair.inliers], pair.candidate_xy[pair.inliers]
    # Many lines must leave the photographs to be seen
    crowd = min(1.0, _FEW / max(1, found.inliers))
    sheet.lines(*ends, INLIER, 0.5 + 0.5 * crowd, 0.6 + 0.35 * crowd, cased=crowd == 1)
    for side, xy in enumerate(ends):
        sheet.discs(side, xy, 5 + 6 * crowd, INLIER, edge=DARK)
    return sheet.sheet.figure


def _title(found: MatchedPair) -> str:
    if found.pair.matrix is None:
        return f"no {found.model} explains these matches: score 0"
    return f"{count(found.inliers, 'match', 'matches')} agree on one {found.model}"


def _legend(found: MatchedPair, query: Photograph, has_outline: bool) -> list[tuple[str, dict]]:
    dot = {"linestyle": "", "marker": "o"}
    entries = [
        (count(found.inliers, "inlier"), {"color": INLIER, "linewidth": 1.6, "marker": "o", "markersize": 4,
                                          "markeredgecolor": DARK, "markeredgewidth": 0.5}),
        (f"{count(int(np.sum(~found.pair.inliers)), 'other match', 'other matches')}",
         {"color": "#bdbdbd", "linewidth": 0.9}),
        (f"{len(found.query_xy)} and {len(found.candidate_xy)} local features",
         {**dot, "color": "#bdbdbd", "markersize": 2.5})]
    if has_outline:
        what = "box" if query.is_cut else "outline"
        entries.append((f"the first image's {what} in the second", {"color": OUTLINE, "linewidth": 1.6}))
    return entries


def count(number: int, one: str, many: str = "") -> str:
    """"1 inlier", "2 inliers"."""
    return f"{number} {one if number == 1 else many or one + 's'}"
