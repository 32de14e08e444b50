"""Fixtures of the report's tests."""
import pytest

from tests.browser import browser, chromium
from tests.report.miniature import make_miniature

__all__ = ["browser", "chromium"]


@pytest.fixture(scope="session")
def miniature(tmp_path_factory):
    return make_miniature(tmp_path_factory.mktemp("report") / "toy")


@pytest.fixture(scope="session")
def results(miniature, run_tool):
    """Name -> file, in the miniature's folder: before, after, far (after, with distractors), and
    reranked lists of far, aqe, as the commands write them."""
    found = {}
    for name, method in (("before", "before"), ("after", "after"), ("far", "after")):
        query, database, distractors = miniature.stores(method)
        found[name] = miniature.folder / f"{name}.json"
        more = ["--distractors", distractors] if name == "far" else []
        done = run_tool("revisitop/evaluate.py", "--gnd", miniature.gnd, "--query", query,
                        "--database", database, *more, "--json", found[name])
        assert done.returncode == 0, done.stderr
    folder = miniature.folder / "rerank"
    done = run_tool("tools/rerank.py", "--methods", "aqe", "--cfg", "configs/rrt/synthetic.yaml",
                    "RERANK.QUERY", query, "RERANK.DATABASE", database, "RERANK.DISTRACTORS",
                    f"['{distractors}']", "RERANK.GND", miniature.gnd, "RERANK.OUT_DIR", folder,
                    "RERANK.TOP_K", "[20]", "NUM_GPUS", "1")
    assert done.returncode == 0, done.stderr
    return {**found, "global": folder / "global.json", "aqe": folder / "aqe_top20.json"}
