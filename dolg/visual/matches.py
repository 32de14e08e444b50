"""The local features of two images, and which of them correspond: what the spatial reranker counts."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dolg.core.distributed import device
from dolg.features.store import LocalTable
from dolg.rerank.builders import build_reranker
from dolg.rerank.images import ArrayImages, Images
from dolg.rerank.spatial import VerifiedPair


@dataclass(frozen=True)
class MatchedPair:
    """Two images as spatial verification sees them.

    Attributes:
        query_xy, candidate_xy: (m,2), (n,2) float32, columns and rows in pixels of the whole images, of
            the local features that are compared.
        pair: their matches, of which some are inliers.
        model: homography, affine or fundamental.
    """

    query_xy: np.ndarray
    candidate_xy: np.ndarray
    pair: VerifiedPair
    model: str

    @property
    def inliers(self) -> int:
        return int(self.pair.inliers.sum())


def match_pair(cfg, query: Images, query_row: int, database: Images, database_row: int) -> MatchedPair:
    """What RERANK.METHOD spatial does for one query and one image, by the keys of RERANK.SPATIAL.

    Raises UserError as the reranker does.
    """
    reranker = build_reranker(cfg, "spatial", query, database, Path(cfg.OUT_DIR), device(cfg.DEVICE))
    sides = [images.local(row).xy[:reranker.locals_per_image]
             for images, row in ((query, query_row), (database, database_row))]
    return MatchedPair(*sides, reranker.verify_pair(query_row, database_row), reranker.geometry.model)


def images_of_locals(locals_: LocalTable) -> ArrayImages:
    """One image of which only the local features are known."""
    return ArrayImages(np.zeros((1, 1), np.float32), [locals_])


def projected_outline(pair: MatchedPair, box: tuple[float, float, float, float]) -> np.ndarray | None:
    """Where a box (x0, y0, x1, y1) of the query lies in the candidate: corners (4,2) in pixels, clockwise
    from the upper left one.

    None where no transformation was found, where it is a fundamental matrix, which takes points to lines,
    and where the box crosses the line that the homography takes to infinity.
    """
    matrix = pair.pair.matrix
    if matrix is None or pair.model == "fundamental":
        return None
    x0, y0, x1, y1 = box
    corners = np.array([[x0, y0, 1], [x1, y0, 1], [x1, y1, 1], [x0, y1, 1]], np.float64)
    if len(matrix) == 2:
        return corners @ matrix.T
    moved = corners @ matrix.T
    if not ((moved[:, 2] > 0).all() or (moved[:, 2] < 0).all()):
        return None
    return moved[:, :2] / moved[:, 2:]
