"""Spatial verification: how many matches of local features one transformation of the image explains.

As DELG reranks (Cao et al., ECCV 2020; in PyTorch feymanpriv/DELG, tools/rerank), whose settings are the
defaults here, but for the estimator, which is pydegensac there: homographies, 20 pixels, 1000 samples. Its
ratio test, which pairs wrong rows, and its sort, which shuffles images of equal counts, are not here.
"""
import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import tee

import cv2
import numpy as np
import torch

from dolg.errors import UserError, choose
from dolg.features.store import LocalTable
from dolg.rerank.images import Images, check_local
from dolg.rerank.interface import PairReranker
from dolg.rerank.matching import Matcher

# One match more than a sample has: any sample agrees with its own transformation. For homographies that
# is the original's limit, too
MIN_MATCHES = {"homography": 5, "affine": 4, "fundamental": 8}
# And how OpenCV calls them
ESTIMATORS = {"magsac": cv2.USAC_MAGSAC, "usac": cv2.USAC_ACCURATE, "ransac": cv2.RANSAC,
              "pydegensac": None}
# Width over length, below which points are taken for a line: what rounding makes of one
_LINE = 1e-6
# Candidates that a thread takes at a time
_TOGETHER = 8
# What a stored local feature takes: float16 descriptors, float32 columns and rows
_DESCRIPTOR_BYTES, _XY_BYTES = 2, 8


@dataclass(frozen=True)
class Geometry:
    """What matches must agree on, and how that is found.

    Attributes:
        model: homography, affine or fundamental (epipolar geometry, for scenes that are not flat).
        estimator: of OpenCV magsac (MAGSAC++; Barath et al., CVPR 2020), usac (its USAC_ACCURATE:
            graph-cut RANSAC; Barath and Matas, CVPR 2018) or ransac; pydegensac (Chum et al., CVPR 2005),
            a package of its own, which has no affine model.
        threshold: pixels of the candidate that an inlier may be off (fundamental: of both, from the lines).
        iterations: most samples that are tried. Of few right matches among many wrong ones 1000 miss most;
            for homographies and affine maps magsac and usac take a few milliseconds for 5000.
        confidence: that the best transformation is found, 0..1, at which fewer samples will do.

    The same points always give the same: no estimator's random numbers depend on what was before.
    Raises UserError for settings that cannot be, and where pydegensac is asked for and not installed.
    """

    model: str = "homography"
    estimator: str = "magsac"
    threshold: float = 20.0
    iterations: int = 1000
    confidence: float = 0.9999

    def __post_init__(self):
        choose(MIN_MATCHES, self.model, "RERANK.SPATIAL.MODEL")
        choose(ESTIMATORS, self.estimator, "RERANK.SPATIAL.ESTIMATOR")
        for name, fine, text in (("threshold", self.threshold > 0, "it must be above 0"),
                                 ("iterations", self.iterations >= 1, "give 1 or more"),
                                 ("confidence", 0 < self.confidence < 1, "it must be between 0 and 1")):
            if not fine:
                raise UserError(f"RERANK.SPATIAL.{name.upper()} is {getattr(self, name)}: {text}")
        if self.estimator == "pydegensac":
            if self.model == "affine":
                raise UserError("RERANK.SPATIAL.ESTIMATOR pydegensac finds homographies and fundamental "
                                "matrices: for RERANK.SPATIAL.MODEL affine take magsac, usac or ransac")
            _pydegensac()

    def estimate(self, query_xy: np.ndarray,
                 candidate_xy: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """The transformation that most matches agree on, and which do.

        query_xy, candidate_xy: (m,2) float, columns and rows of matching points. Returns a matrix,
        float64, which takes the query's points to the candidate's ((3,3), affine (2,3); fundamental: the
        (3,3) F of c^T F q = 0), and (m,) bool; OpenCV's ransac may refine the matrix after it has marked
        the inliers. None and no inliers where there are too few matches (MIN_MATCHES), where nothing is
        found, and where the inliers of an image are on one line: they determine no transformation.
        """
        query_xy, candidate_xy = np.array(query_xy, np.float64), np.array(candidate_xy, np.float64)
        assert query_xy.shape == candidate_xy.shape == (len(query_xy), 2)
        nothing = None, np.zeros(len(query_xy), bool)
        if len(query_xy) < MIN_MATCHES[self.model]:
            return nothing
        estimate = self._pydegensac if self.estimator == "pydegensac" else self._opencv
        try:
            matrix, mask = estimate(query_xy, candidate_xy)
        except (cv2.error, np.linalg.LinAlgError):      # what some make of degenerate points
            return nothing
        # OpenCV may mark all as inliers of no matrix
        if matrix is None or not np.isfinite(matrix).all():
            return nothing
        inliers = np.asarray(mask).reshape(-1) != 0
        if not all(_span_plane(xy[inliers]) for xy in (query_xy, candidate_xy)):
            return nothing
        return matrix, inliers

    def _opencv(self, query_xy: np.ndarray, candidate_xy: np.ndarray):
        points = query_xy, candidate_xy
        method = ESTIMATORS[self.estimator]
        if self.model == "fundamental":
            return cv2.findFundamentalMat(*points, method, self.threshold, self.confidence, self.iterations)
        settings = {"ransacReprojThreshold": self.threshold, "maxIters": self.iterations,
                    "confidence": self.confidence}
        find = cv2.findHomography if self.model == "homography" else cv2.estimateAffine2D
        return find(*points, method=method, **settings)

    def _pydegensac(self, query_xy: np.ndarray, candidate_xy: np.ndarray):
        package = _pydegensac()
        find = package.findHomography if self.model == "homography" else package.findFundamentalMatrix
        return find(query_xy, candidate_xy, self.threshold, self.confidence, self.iterations, seed=1)


def verify(query_xy: np.ndarray, candidate_xy: np.ndarray, **geometry) -> np.ndarray:
    """Which matches (m,2), (m,2) agree on one transformation, (m,) bool: `Geometry.estimate`, told its
    attributes."""
    return Geometry(**geometry).estimate(query_xy, candidate_xy)[1]


@dataclass(frozen=True)
class VerifiedPair:
    """The matches of two images.

    Attributes:
        query_xy, candidate_xy: (m,2) float32, columns and rows in pixels of the images.
        inliers: (m,) bool.
        matrix: of the transformation that they agree on (see `Geometry.estimate`); None: of none.
    """

    query_xy: np.ndarray
    candidate_xy: np.ndarray
    inliers: np.ndarray
    matrix: np.ndarray | None


class SpatialReranker(PairReranker):
    """Scores an image by its number of inliers. An image without local features, and one that failed,
    has 0.

    Args:
        query, database: the images, with local features.
        matching, max_distance, ratio: as a `Matcher` has them.
        locals_per_image: most local features of an image, those of the highest attention: the first.
        model, estimator, threshold, iterations, confidence: as a `Geometry` has them.
        device: for the matching.
        threads: that verify pairs at once; 0: as many as torch has.

    Raises UserError for settings that cannot be, and local features that are not there or not alike.
    """

    name = "spatial"

    def __init__(self, query: Images, database: Images, matching: str = "distance",
                 max_distance: float = 0.99, ratio: float = 0.95, locals_per_image: int = 1000,
                 model: str = "homography", estimator: str = "magsac", threshold: float = 20.0,
                 iterations: int = 1000, confidence: float = 0.9999, device: str | torch.device = "cpu",
                 threads: int = 0):
        super().__init__()
        check_local(query, database, self.name)
        if locals_per_image < 1:
            raise UserError(f"RERANK.SPATIAL.LOCALS is {locals_per_image}: give 1 or more")
        self.matcher = Matcher(matching, max_distance, ratio, device)
        self.geometry = Geometry(model, estimator, threshold, iterations, confidence)
        self.settings = {"matching": matching, "max_distance": max_distance, "ratio": ratio,
                         "locals_per_image": locals_per_image, **asdict(self.geometry)}
        self.query, self.database = query, database
        self.locals_per_image = locals_per_image
        self.threads = threads or torch.get_num_threads()
        self._bytes: dict[int, int] = {}        # of each database image that was read

    @property
    def bytes_per_image(self) -> float:
        """Of float16 descriptors and float32 columns and rows, of the features that are used."""
        return sum(self._bytes.values()) / max(1, len(self._bytes))

    def score_pairs(self, query: int, candidates: np.ndarray) -> np.ndarray:
        own = self._strongest(self.query.local(query))
        parts = [candidates[start:start + _TOGETHER] for start in range(0, len(candidates), _TOGETHER)]
        threads = torch.get_num_threads()
        try:
            # A thread for each part, in which torch starts no others: they would wait for each other.
            # OpenCV lets the others run
            with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                counts = list(pool.map(partial(self._counts, own), parts))
        finally:
            torch.set_num_threads(threads)
        return np.array(counts and np.concatenate(counts), np.float64)

    def verify_pair(self, query: int, candidate: int) -> VerifiedPair:
        """The matches of one pair, of which `score_pairs` counts the inliers."""
        own = self._strongest(self.query.local(query))
        return next(self._verified(own, np.array([candidate])))

    def unit(self, scores: np.ndarray, temperature: float) -> np.ndarray:
        """1 - exp(-inliers / temperature): 0 for none, and hardly more for many than for enough."""
        return 1 - np.exp(-scores / temperature)

    def _counts(self, own: tuple[np.ndarray, np.ndarray], candidates: np.ndarray) -> list[int]:
        return [int(pair.inliers.sum()) for pair in self._verified(own, candidates)]

    def _verified(self, own: tuple[np.ndarray, np.ndarray],
                  candidates: np.ndarray) -> Iterator[VerifiedPair]:
        """Each candidate's matches with a query's descriptors (m,C), xy (m,2)."""
        images, ahead = tee(map(self._candidate, candidates.tolist()))
        matches = self.matcher.match(own[0], (descriptors for descriptors, _ in ahead))
        for (_, xy), found in zip(images, matches):
            points = own[1][found.pairs[:, 0]], xy[found.pairs[:, 1]]
            matrix, inliers = self.geometry.estimate(*points)
            yield VerifiedPair(*points, inliers, matrix)

    def _candidate(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        descriptors, xy = self._strongest(self.database.local(row))
        self._bytes[row] = len(xy) * (_DESCRIPTOR_BYTES * self.database.local_dim + _XY_BYTES)
        return descriptors, xy

    def _strongest(self, table: LocalTable) -> tuple[np.ndarray, np.ndarray]:
        return table.descriptors[:self.locals_per_image], table.xy[:self.locals_per_image]


def _span_plane(points: np.ndarray) -> bool:
    """Whether points (m,2) are neither on one line nor all equal."""
    if len(points) < 3:
        return False
    length, width = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    return bool(width > _LINE * length)


def _pydegensac():
    try:
        return importlib.import_module("pydegensac")
    except ImportError:
        raise UserError("RERANK.SPATIAL.ESTIMATOR is pydegensac, which is not installed: pip install "
                        "pydegensac, or take magsac, usac or ransac") from None
