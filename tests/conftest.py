"""Fixtures shared by all tests."""
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DOLG_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the conformance vectors and the small real data set, or a skip."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent (set DOLG_SHARED to the folder with conformance/ and data/)")
    return SHARED


@pytest.fixture(scope="session")
def conformance(shared):
    """The module that makes the weights and inputs of the golden files."""
    sys.path.insert(0, str(shared / "conformance"))
    try:
        import conformance as module
    finally:
        sys.path.pop(0)
    return module
