"""docs/tutorial.ipynb runs from its first cell to its last, offline, and its figures are right."""
import ast
import copy
import os
import re

import numpy as np
import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

# No cell reaches beyond this machine
BEFORE = """
import socket
import threading

connect = socket.socket.connect
def refuse(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"the notebook asks {address}")
    return connect(self, address)
socket.socket.connect = refuse
"""
# What the test computes again
AFTER = """
import pickle
with open("found.pkl", "wb") as file:
    pickle.dump({"labels": truth.labels, "images": len(truth.images), "queries": queries,
                 "database": database,
                 "aps": {name: [result.aps for result in results[name]] for name in models}, "worst": worst,
                 "maps": {name: [result.map for result in results[name]] for name in models},
                 "index_scores": scores, "names": [index.names[row] for row in rows[0]],
                 "files": [file.name for file in database_files]}, file)
"""


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, 4)


@pytest.fixture(scope="module")
def executed(committed, tmp_path_factory):
    """(the notebook after a run, its folder, what AFTER found)."""
    folder = tmp_path_factory.mktemp("notebook")
    home = tmp_path_factory.mktemp("home")
    notebook = copy.deepcopy(committed)
    cells = [nbformat.v4.new_code_cell(source) for source in (BEFORE, AFTER)]
    notebook.cells = [cells[0], *notebook.cells, cells[1]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(home)}
    before = _files_of_the_repository()
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)
    assert _files_of_the_repository() == before
    found = np.load(folder / "found.pkl", allow_pickle=True)    # this test's own file
    return notebook, folder, found


def _files_of_the_repository() -> set[str]:
    """Of the folders that a careless cell might write into."""
    return {str(path) for name in ("configs", "docs", "datasets") for path in (ROOT / name).rglob("*")
            if "__pycache__" not in path.parts}


def _text(cell) -> str:
    return "".join(output.text for output in cell.get("outputs", []) if output.output_type == "stream")


def test_every_cell_ran_and_wrote_in_its_folder_alone(executed):
    notebook, folder, _ = executed
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sorted(path.name for path in folder.iterdir()) == ["found.pkl", "tutorial"]
    written = sorted(path.name for path in (folder / "tutorial").iterdir())
    assert written == ["data", "index", "run", "store"]
    assert (folder / "tutorial" / "run" / "checkpoints" / "model_epoch_0010.pyth").exists()


def test_it_shows_pictures(executed):
    figures = [output for cell in executed[0].cells for output in cell.get("outputs", [])
               if "image/jpeg" in output.get("data", {})]
    assert len(figures) == 4


def _slow_ap(scores: list[float], wanted: set[int], aside: set[int]) -> float:
    ranked = [i for i in sorted(range(len(scores)), key=lambda i: -scores[i]) if i not in aside]
    hits = [place for place, image in enumerate(ranked) if image in wanted]
    curve = [((n / place if place else 1.0) + (n + 1) / (place + 1)) / 2 for n, place in enumerate(hits)]
    return sum(curve) / len(wanted)


def test_map_by_slow_code(executed):
    """Average precision, area by area, from the descriptors alone."""
    notebook, _, found = executed
    table = next(_text(cell) for cell in notebook.cells if "by chance" in _text(cell))
    kinds = [(("easy",), ("hard", "junk")), (("easy", "hard"), ("junk",)), (("hard",), ("easy", "junk"))]
    for name, queries in found["queries"].items():
        printed = next(line for line in table.splitlines() if line.startswith(name)).split()[-3:]
        for protocol, (positive, ignored) in enumerate(kinds):
            lowest, highest = [], []
            for query, labels in zip(queries, found["labels"]):
                scores = [float(np.dot(query.astype(np.float64), other)) for other in found["database"][name]]
                wanted = {int(i) for kind in positive for i in labels[kind]}
                aside = {int(i) for kind in ignored for i in labels[kind]}
                # Scores that differ by less than float32 resolves may be ranked either way
                for bounds, shift in ((lowest, -5e-7), (highest, 5e-7)):
                    bounds.append(_slow_ap([score + shift * (i in wanted) for i, score in enumerate(scores)],
                                           wanted, aside))
            aps = np.array(found["aps"][name][protocol])
            assert (lowest - aps < 1e-6).all() and (aps - highest < 1e-6).all()
            assert printed[protocol] == f"{100 * aps.mean():.1f}"
    assert found["worst"] == int(np.argmin(found["aps"]["after"][1]))


def test_the_index_finds_what_the_product_finds(executed):
    found = executed[2]
    distractors = found["database"]["after"][found["images"]:] @ found["queries"]["after"][0]
    best = np.argsort(-distractors)[:3]
    assert found["names"] == [found["files"][found["images"] + row] for row in best]
    np.testing.assert_allclose(found["index_scores"][0], distractors[best], atol=1e-5)


def test_the_committed_file(committed):
    nbformat.validate(committed)
    assert NOTEBOOK.stat().st_size < 300_000
    text = NOTEBOOK.read_text(encoding="utf-8")
    for forbidden in ("/home/", "/root/", "/tmp/", "Traceback", "Warning"):
        assert forbidden not in text
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    for cell in code:
        ast.parse(cell.source)
        assert max(map(len, cell.source.splitlines())) <= 120
    ran = [cell for cell in code if cell.outputs]
    if ran:     # outputs are of one whole run, in order
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))


def test_links_lead_to_pages(committed):
    links = [link for cell in committed.cells if cell.cell_type == "markdown"
             for link in re.findall(r"\]\(([^)#]+)", cell.source)]
    assert len(links) >= 5
    for link in links:
        assert (NOTEBOOK.parent / link).is_file(), link
