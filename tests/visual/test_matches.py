"""Matches of two images: those of the spatial reranker, drawn where they are."""
import cv2
import numpy as np
import pytest

from dolg.config import load_cfg
from dolg.errors import UserError
from dolg.features.store import LocalTable
from dolg.rerank.images import ArrayImages
from dolg.rerank.spatial import SpatialReranker, VerifiedPair
from dolg.visual.draw_matches import INLIER, OUTLINE, draw_matches
from dolg.visual.draw_pair import PairSheet, corners_of
from dolg.visual.drawing import DPI, write_picture
from dolg.visual.matches import MatchedPair, images_of_locals, match_pair, projected_outline
from dolg.visual.photographs import Photograph, open_photograph

WARP = np.array([[0.8, -0.3, 90.0], [0.25, 0.9, 15.0], [0.0002, -0.0001, 1.0]])


def moved(matrix, xy):
    found = []
    for x, y in np.asarray(xy, float).tolist():
        u, v, w = (sum(a * b for a, b in zip(row, (x, y, 1))) for row in matrix.tolist())
        found.append((u / w, v / w))
    return np.array(found)


def locals_at(xy, descriptors):
    n = len(xy)
    return LocalTable(np.array([0, n]), descriptors.astype(np.float32), np.asarray(xy, np.float32),
                      np.ones(n, np.float32), np.linspace(2, 1, n, dtype=np.float32))


@pytest.fixture
def pair():
    """40 features that WARP moves and 25 that have nothing to do with each other."""
    rng = np.random.default_rng(0)
    alike, xy = rng.standard_normal((40, 16)), rng.uniform((20, 20), (380, 280), (40, 2))
    unlike = [locals_at(np.r_[points, rng.uniform(0, 300, (25, 2))],
                        np.r_[alike, rng.standard_normal((25, 16))]) for points in (xy, moved(WARP, xy))]
    return unlike, xy


def cfg(*options):
    return load_cfg(None, ["DEVICE", "cpu", *options])


def test_the_reranker_finds_the_same(pair):
    tables, xy = pair
    query, database = map(images_of_locals, tables)
    found = match_pair(cfg("RERANK.SPATIAL.MATCHING", "mutual",
                       "RERANK.SPATIAL.THRESHOLD", "5"), query, 0, database, 0)
    score, = SpatialReranker(query, database, "mutual", threshold=5.0).score_pairs(0, np.array([0]))
    assert found.inliers == score == 40 and found.model == "homography"
    np.testing.assert_allclose(found.pair.query_xy[found.pair.inliers], xy, atol=1e-3)
    np.testing.assert_allclose(found.pair.candidate_xy[found.pair.inliers], moved(WARP, xy), atol=1e-3)
    np.testing.assert_array_equal(found.query_xy, tables[0].xy)


@pytest.mark.parametrize("options, inliers, compared", [
    (["RERANK.SPATIAL.LOCALS", "12"], 12, 12), (["RERANK.SPATIAL.MODEL", "affine"], None, 65),
    (["RERANK.SPATIAL.MODEL", "fundamental"], None, 65), (["RERANK.SPATIAL.MAX_DISTANCE", "0.01"], 40, 65)])
def test_keys_are_obeyed(pair, options, inliers, compared):
    tables, _ = pair
    found = match_pair(cfg(*options), images_of_locals(tables[0]), 0, images_of_locals(tables[1]), 0)
    assert len(found.query_xy) == len(found.candidate_xy) == compared
    assert inliers is None or found.inliers == inliers
    assert options[0] != "RERANK.SPATIAL.MODEL" or found.model == options[1]


def test_images_without_local_features(pair):
    nothing = ArrayImages(np.zeros((1, 1), np.float32))
    with pytest.raises(UserError, match="needs local features, and the database images have none"):
        match_pair(cfg(), images_of_locals(pair[0][0]), 0, nothing, 0)


def verified(matrix, query_xy=(), candidate_xy=(), inliers=None, model="homography"):
    query_xy, candidate_xy = (np.asarray(xy, np.float32).reshape(-1, 2) for xy in (query_xy, candidate_xy))
    inliers = np.ones(len(query_xy), bool) if inliers is None else np.array(inliers)
    return MatchedPair(query_xy, candidate_xy, VerifiedPair(query_xy, candidate_xy, inliers, matrix), model)


def test_outlines():
    box = (10.0, 20.0, 110.0, 70.0)
    corners = [(10, 20), (110, 20), (110, 70), (10, 70)]
    np.testing.assert_allclose(projected_outline(verified(WARP), box), moved(WARP, corners))
    np.testing.assert_allclose(projected_outline(verified(-WARP), box), moved(WARP, corners))
    affine = np.r_[WARP[:2], [[0, 0, 1]]]
    np.testing.assert_allclose(projected_outline(
        verified(WARP[:2], model="affine"), box), moved(affine, corners))
    assert projected_outline(verified(None), box) is None
    assert projected_outline(verified(WARP, model="fundamental"), box) is None
    # Its third row is 0 along x = 50, in the middle of the box
    assert projected_outline(verified(np.array([[1, 0, 0], [0, 1, 0], [-0.02, 0, 1]])), box) is None


def photograph(height, width, name="photo"):
    return Photograph(name, np.full((height, width, 3), 128, np.uint8), 0, 0, width, height)


@pytest.mark.parametrize("sizes", [((300, 400), (300, 400)),
                         ((900, 300), (200, 1500)), ((2400, 3200), (50, 40))])
def test_places_are_in_their_frames(sizes):
    photos = [photograph(*size) for size in sizes]
    sheet = PairSheet(*photos, "title", [])
    for side, (height, width) in enumerate(sizes):
        left, top, columns, rows = sheet.frames[side]
        assert columns / rows == pytest.approx(width / height)
        found = sheet.place(side, [(-0.5, -0.5), (width - 0.5, height - 0.5),
                            (width / 2 - 0.5, height / 2 - 0.5)])
        np.testing.assert_allclose(found, [(left, top), (left + columns, top + rows),
                                           (left + columns / 2, top + rows / 2)])
    (left, _, width, height), (other, _, other_width, other_height) = sheet.frames
    assert height == other_height and left + width < other
    assert other + other_width < sheet.sheet.width and left > 0


def is_colour(picture, colour, tolerance=40):
    wanted = [int(colour[i:i + 2], 16) for i in (1, 3, 5)]
    return (np.abs(picture.astype(int) - wanted) <= tolerance).all(axis=2)


def drawn(figure, tmp_path):
    write_picture(figure, tmp_path / "picture.png")
    return cv2.imread(str(tmp_path / "picture.png"))[..., ::-1]


def test_a_match_is_drawn_on_what_matches(tmp_path):
    """White spots on dark images of different sizes and shapes: the inlier's discs hide them."""
    photos, spots = [], ((310.0, 95.0), (60.0, 420.0))
    for (height, width), (x, y) in zip(((300, 400), (600, 450)), spots):
        pixels = np.full((height, width, 3), 20, np.uint8)
        cv2.circle(pixels, (int(x), int(y)), 3, (255, 255, 255), -1)
        photos.append(Photograph("spot", pixels, 0, 0, width, height))
    nothing = drawn(PairSheet(*photos, "t", []).sheet.figure, tmp_path)
    found = verified(np.eye(3), [spots[0]], [spots[1]])
    with_match = drawn(draw_matches(*photos, found), tmp_path)
    assert with_match.shape == nothing.shape
    frames = PairSheet(*photos, "t", []).frames
    for left, top, width, height in frames:
        window = np.s_[round(top * DPI):round((top + height) * DPI),
                       round(left * DPI):round((left + width) * DPI)]
        rows, columns = np.nonzero((nothing[window] > 200).all(axis=2))
        assert len(rows) > 5
        y, x = round(rows.mean()), round(columns.mean())
        hidden = is_colour(with_match[window], INLIER, 30)
        assert hidden[y, x - 1:x + 2].all() and hidden[y - 1:y + 2, x].all()
    assert is_colour(with_match, INLIER).sum() > 100      # and a line between


def test_no_inlier_no_bright_line(tmp_path):
    photos = photograph(200, 300), photograph(200, 300)
    found = verified(None, [(10, 10), (50, 90)], [(250, 150), (100, 20)], [False, False])
    picture = drawn(draw_matches(*photos, found), tmp_path)
    legend = picture.shape[0] - round(0.4 * DPI)
    assert not is_colour(picture[:legend], INLIER).any() and not is_colour(picture, OUTLINE).any()


def test_the_outline_is_drawn_where_the_warp_takes_it(tmp_path):
    """A dark image whose box is bright, warped: the outline of the box runs around the bright part."""
    pixels = np.full((300, 400, 3), 30, np.uint8)
    pixels[60:200, 90:260] = 200
    warped = cv2.warpPerspective(pixels, WARP, (520, 400))
    query = Photograph("query", pixels, 90, 60, 170, 140, True)
    candidate = Photograph("candidate", warped, 0, 0, 520, 400)
    picture = drawn(draw_matches(query, candidate, verified(WARP)), tmp_path)
    left, top, width, height = PairSheet(query, candidate, "t", []).frames[1]
    window = picture[round(top * DPI):round((top + height) * DPI),
                           round(left * DPI):round((left + width) * DPI)]
    line = is_colour(window, OUTLINE, 60)
    bright = cv2.resize((warped[..., 0] > 115).astype(np.uint8),
                        window.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    edge = cv2.morphologyEx(bright, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    thick_edge, thick_line = (cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) > 0
                              for mask in (edge, line))
    assert line.sum() > 300
    assert thick_edge[line].mean() > 0.98 and thick_line[edge].mean() > 0.98


def test_boxes_cut_as_extraction_cuts(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., ::-1])
    photo = open_photograph(tmp_path / "a.png", (3.9, 5.2, 99.0, 20.7))
    np.testing.assert_array_equal(photo.part, pixels[5:20, 3:40])
    np.testing.assert_allclose(corners_of(photo), [(2.5, 4.5), (39.5, 4.5), (39.5, 19.5), (2.5, 19.5)])
    whole = open_photograph(tmp_path / "a.png")
    assert not whole.is_cut and whole.part.shape == (30, 40, 3)
    with pytest.raises(UserError, match=r"a.png: the box \(50.0, 0.0, 60.0, 9.0\) leaves nothing"):
        open_photograph(tmp_path / "a.png", (50.0, 0.0, 60.0, 9.0))
