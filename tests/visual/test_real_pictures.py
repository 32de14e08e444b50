"""On real photographs, with the weights of a network of ImageNet: pictures show what they should."""
import cv2
import numpy as np
import pytest

from dolg.features.describer import load
from dolg.visual.attention import attention_maps
from dolg.visual.matches import images_of_locals, match_pair, projected_outline
from dolg.visual.photographs import open_photograph
from revisitop import load_ground_truth

CFG = "configs/eval/efficientnet_lite0_gem.yaml"
PHOTO = "sacre_coeur_93341989_396310999"
# Two photographs of each of four landmarks
PAIRS = (("sacre_coeur_93341989_396310999", "sacre_coeur_71295362_4051449754"),
         ("london_bridge_78916675_4568141288", "london_bridge_19481797_2295892421"),
         ("sceaux_100_7102", "sceaux_100_7103"), ("banana_DSC_0425", "banana_DSC_0424"))


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "data" / "minilandmarks"


@pytest.fixture(scope="module")
def describer(shared):
    return load(CFG, shared / "data" / "weights" / "tf_efficientnet_lite0.safetensors",
                ["INFER.LOCAL", "True", "INFER.LOCAL_SCALES", "[0.5, 0.7071]",
                 "RERANK.SPATIAL.MATCHING", "mutual", "RERANK.SPATIAL.THRESHOLD", "10", "DEVICE", "cpu"])


def test_the_descriptor_is_of_the_landmark(describer, folder):
    """Of whole photographs, the query's box has 60 % of the area, and 79 % of the pooled vector."""
    truth = load_ground_truth(folder / "gnd_minilandmarks.pkl")
    mass, area = [], []
    for name, (x0, y0, x1, y1) in zip(truth.queries, truth.boxes):
        photo = open_photograph(folder / "jpg" / f"{name}.jpg")
        one, = attention_maps(describer.network, photo.part, [0.7071], ["share"])
        rows, columns = one.values.shape
        y = (np.arange(rows) + 0.5) * photo.height / rows
        x = (np.arange(columns) + 0.5) * photo.width / columns
        inside = ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
        mass.append(one.values[inside].sum())
        area.append(inside.mean())
    assert len(mass) == 22 and 0.5 < np.mean(area) < 0.7
    assert np.mean(mass) > np.mean(area) + 0.12
    assert np.mean(np.array(mass) > area) > 0.8


def test_one_landmark_has_more_inliers(describer, folder):
    tables = {name: images_of_locals(describer.describe_local(folder / "jpg" / f"{name}.jpg"))
              for pair in PAIRS for name in pair}
    inliers = np.array([[match_pair(describer.cfg, tables[query], 0, tables[image], 0).inliers
                         for _, image in PAIRS] for query, _ in PAIRS])
    same, other = np.diag(inliers), inliers[~np.eye(len(PAIRS), dtype=bool)]
    assert (same > inliers.max(axis=1, where=~np.eye(len(PAIRS), dtype=bool), initial=0)).all(), inliers
    assert np.median(same) > 3 * np.median(other), inliers


def matched(describer, folder, tmp_path, warped, box=None):
    cv2.imwrite(str(tmp_path / "warped.png"), warped[..., ::-1])
    sides = [images_of_locals(describer.describe_local(file, cut)) for file, cut in
             ((folder / "jpg" / f"{PHOTO}.jpg", box), (tmp_path / "warped.png", None))]
    return match_pair(describer.cfg, sides[0], 0, sides[1], 0)


def errors(found, warp):
    """How far each inlier is from where the warp (2,3) takes its feature, in pixels."""
    query, image = (xy[found.pair.inliers] for xy in (found.pair.query_xy, found.pair.candidate_xy))
    return np.linalg.norm(query @ warp[:, :2].T + warp[:, 2] - image, axis=1)


def test_a_photograph_and_a_part_of_it(describer, folder, tmp_path):
    """Moved by 5 cells of one scale and 7.07 of the other: features lie at the same places of it."""
    photo = open_photograph(folder / "jpg" / f"{PHOTO}.jpg")
    found = matched(describer, folder, tmp_path, photo.pixels[160:, 160:620])
    assert found.inliers > 100
    assert np.median(errors(found, np.array([[1.0, 0.0, -160.0], [0.0, 1.0, -160.0]]))) < 3


@pytest.mark.parametrize("box", [None, (60.0, 10.0, 560.0, 470.0)])
def test_a_photograph_and_its_warp(describer, folder, tmp_path, box):
    """Turned by 10 degrees, at 0.85 of its size, moved: matches lie where the warp takes them, but for the
    cells, of 32 and 23 pixels, and where in them this network's padding has it look."""
    photo = open_photograph(folder / "jpg" / f"{PHOTO}.jpg")
    turn = cv2.getRotationMatrix2D((320, 240), 10, 0.85)
    turn[:, 2] += (-20, 35)
    warped = cv2.warpAffine(photo.pixels, turn, (600, 520), borderMode=cv2.BORDER_REFLECT)
    found = matched(describer, folder, tmp_path, warped, box)
    assert found.inliers > 40
    assert np.median(errors(found, turn)) < 24
    corners = np.array([[200, 100], [440, 100], [440, 380], [200, 380]])
    outline = projected_outline(found, (200, 100, 440, 380))
    assert np.linalg.norm(outline - (corners @ turn[:, :2].T + turn[:, 2]), axis=1).max() < 30
