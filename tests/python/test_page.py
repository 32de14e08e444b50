"""The Python of docs/python.md, from its first line to its last."""
import contextlib
import io
import re

import numpy as np
import pytest

from tests.conftest import ROOT

PAGE = ROOT / "docs" / "python.md"


def _blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def ran(quickstart):
    """(names that the page has at its end, what it printed)."""
    names, output = {"__name__": "page"}, io.StringIO()
    with contextlib.chdir(quickstart), contextlib.redirect_stdout(output):
        for number, block in enumerate(_blocks()):
            exec(compile(block, f"docs/python.md, block {number}", "exec"), names)
    return names, output.getvalue()


def test_it_has_the_subjects_that_it_announces():
    text = PAGE.read_text(encoding="utf-8")
    assert len(_blocks()) >= 12 and text.count("```") % 2 == 0
    for heading in ("Load a model", "Describe images", "Search", "Evaluate", "Local features",
                    "Take the network elsewhere"):
        assert f"\n## {heading}\n" in text


def test_the_descriptor_of_the_file_at_all_scales_is_the_model_s(ran):
    names, _ = ran
    # OpenCV's bilinear resizing differs from PyTorch's by 0.01 grey levels
    assert len(names["about"]["scales"]) == 3
    np.testing.assert_allclose(names["elsewhere"], names["descriptors"][0], atol=1e-5)
    # ... and is one of this photograph alone: another's is further away
    assert np.abs(names["describe"](names["pixels"][::-1].copy()) - names["descriptors"][0]).max() > 1e-3


def test_descriptors_of_the_page(ran):
    names, printed = ran
    assert names["descriptors"].shape == (4, 128)
    # JPEGs by torchvision, Pillow and OpenCV: the same pixels
    np.testing.assert_allclose(names["same"], names["descriptors"][[0, 0]], atol=1e-6)
    assert "no such photo.jpg" in printed and names["query"] @ names["whole"] < 0.99999


def test_the_index_of_the_page_lists_distractors(ran, landmarks):
    names, _ = ran
    distractors = {path.name for path in (landmarks / "synthetic" / "distractors").iterdir()}
    assert set(names["index"].names) == distractors
    found = names["rows"][0][names["rows"][0] >= 0]
    assert len(set(found.tolist())) == 5 and (np.diff(names["scores"][0]) <= 0).all()


def test_the_figures_of_the_page_are_those_of_slow_code(ran):
    names, printed = ran
    truth, scores = names["truth"], names["queries"] @ names["database"].T
    for protocol, (positive, ignored) in {"easy": (["easy"], ["junk", "hard"]),
                                          "medium": (["easy", "hard"], ["junk"]),
                                          "hard": (["hard"], ["junk", "easy"])}.items():
        aps = [_slow_ap(scores[q], {int(i) for kind in positive for i in truth.labels[q][kind]},
                        {int(i) for kind in ignored for i in truth.labels[q][kind]})
               for q in range(len(truth.queries))]
        assert f"{protocol:8} mAP {100 * np.mean(aps):.2f}" in printed
    assert names["result"]["distractors"] == 6


def _slow_ap(scores, positives: set, ignored: set) -> float:
    ranked = sorted((i for i in range(len(scores)) if i not in ignored), key=lambda i: (-scores[i], i))
    hits, area = 0, 0.0
    for place, image in enumerate(ranked):
        if image in positives:
            before = hits / place if place else 1.0
            hits += 1
            area += (before + hits / (place + 1)) / 2 / len(positives)
    return area


def test_local_features_of_the_page(ran):
    local = ran[0]["local"]
    assert 0 < len(local.xy) <= 200 and (np.diff(local.scores) <= 0).all()
    np.testing.assert_allclose(np.linalg.norm(local.descriptors, axis=1), 1, atol=1e-3)
