"""tests/preloaded.py with dolg imported as well: the pages' commands are many, and each command has a test
elsewhere that starts it with a new interpreter.

Run as a script, it is the process that forks.
"""
import gc
import importlib
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests import preloaded  # noqa: E402

IMPORTED = (*preloaded.IMPORTED, "faiss", "matplotlib.pyplot", "dolg.core.cli", "dolg.core.trainer",
            "dolg.features.run", "dolg.rerank.run", "dolg.search.indexes", "dolg.prepare.run",
            "dolg.report.page", "dolg.export", "dolg.features.describer")


class Server(preloaded.Server):
    """The process that forks."""

    def __init__(self):
        self._process = subprocess.Popen([sys.executable, __file__], text=True, stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE)


class Command(preloaded.Command):
    """A command whose output can be read while it runs."""

    def said(self) -> str:
        return "".join(file.read_text() for file in (self._out, self._err) if file.exists())


if __name__ == "__main__":
    for name in IMPORTED:
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()     # else the collector writes to, and thereby copies, what all processes share
    mine = preloaded._serve(sys.stdin, sys.stdout)
    if mine:
        preloaded._set_up(mine)
        preloaded._become(mine["argv"])
    os._exit(0)
