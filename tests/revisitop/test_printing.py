"""Control characters in names and files never reach a terminal, whichever command prints them."""
import csv
import io
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress

import numpy as np
import pytest
from tqdm import tqdm

from revisitop.printing import guard_output, one_line

# Red, a line of its own, the title of the window, backwards, one that is not text; and C1's CSI
HOSTILE = "a\x1b[31m\nerror: b\x1b]0;t\x07\u202e\x9b2J\x7f\r\t\udcff.jpg"
SHOWN = r"a\x1b[31m\nerror: b\x1b]0;t\x07\u202e\x9b2J\x7f\r\t\udcff.jpg"


def is_clean(text: str) -> bool:
    return not set(text) & {"\x1b", "\x07", "\u202e", "\x9b", "\x7f", "\r", "\udcff"}


def test_one_line():
    assert one_line(HOSTILE) == SHOWN
    for text in ("", "plain", "é ü 写真 😀 \\x1b", "a\u200db"):
        assert one_line(text) == text
    assert one_line("\0\x1f\x80\u2028\u2066\u061c\ud83d") == r"\x00\x1f\x80\u2028\u2066\u061c\ud83d"


def test_streams_are_guarded_and_bars_go_on(monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    guard_output()
    guard_output()      # twice does no harm
    print("x\x1b[1m\ty", "é\r")
    for _ in tqdm(range(2), desc="n\x1b[1m", ascii=True):
        tqdm.write("z\x1b", file=sys.stdout)
    out, err = (stream.buffer.getvalue().decode() for stream in streams if stream.flush() is None)
    assert out == "x\\x1b[1m\ty \\xe9\\r\nz\\x1b\nz\\x1b\n"
    assert "\rn\\x1b[1m:   0%|" in err and "2/2" in err and "\x1b" not in err


@pytest.mark.parametrize("command", [
    ["revisitop/evaluate.py", "--query", "q", "--database", "d", "--gnd"],
    ["revisitop/gldv2.py", "retrieval", "--predictions", "p", "--solution"],
    ["tools/train.py", "--cfg", "configs/quickstart.yaml", "TRAIN.SPLIT"], ["tools/train.py", "--cfg"],
    ["tools/store.py", "verify"]])
def test_errors_are_one_line(run_tool, command):
    done = run_tool(*command, HOSTILE)
    assert done.returncode == 1 and is_clean(done.stdout + done.stderr)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert r"a\x1b[31m\nerror: b\x1b]0;t\x07\u202e\x9b2J" in done.stderr.replace("\\\\", "\\")


@pytest.fixture
def stores(make_store, tmp_path):
    """A query and a database whose names are hostile, and of which an image failed for a hostile reason."""
    table, names = np.eye(3, dtype=np.float32), [HOSTILE.replace("\udcff", ""), "b", "c"]
    return {"query": make_store(tmp_path / "query", names, table),
            "database": make_store(tmp_path / "database", [f"{name}2" for name in names], table,
                                   errors={1: "no image\x1b[2J\nerror: x"}, model="m\x1b[2J")}


def test_what_is_in_a_store(run_tool, stores):
    done = run_tool("tools/info.py", stores["database"])
    assert done.returncode == 0 and is_clean(done.stdout + done.stderr)
    assert r"    b2: no image\x1b[2J\nerror: x" in done.stdout.splitlines()
    assert not [line for line in done.stdout.splitlines() if line.startswith("error")]


def test_compared_queries(run_tool, tmp_path):
    """Their names come from a result's file."""
    for name, aps in (("one", [0.5, 0.25, 1.0]), ("two", [0.75, 0.5, 0.0])):
        (tmp_path / f"{name}.json").write_text(json.dumps({
            "query_names": [HOSTILE, "b", "c"], "dataset": "toy\x1b[1m",
            "protocols": {"medium": {"mAP": float(np.mean(aps)), "mP@1": 0, "mP@5": 0, "mP@10": 0,
                                     "ap": aps}}}))
    done = run_tool("revisitop/compare.py", tmp_path / "one.json", tmp_path / "two.json")
    assert done.returncode == 0, done.stderr
    assert is_clean(done.stdout) and f"+25.00 {SHOWN} (0)" in done.stdout


def test_data_are_not_altered_but_on_a_terminal(run_tool, stores):
    """A list that goes into a pipe has the names as they are."""
    index = stores["query"].parent / "index"
    done = run_tool("tools/search.py", "build", index, stores["query"], "--kind", "flat")
    assert done.returncode == 0, done.stderr
    command = ["tools/search.py", "query", index, "--query", stores["query"], "--top", "1"]
    name = HOSTILE.replace("\udcff", "").replace("\r", "\n")    # as text is read
    done = run_tool(*command)
    assert list(csv.reader(io.StringIO(done.stdout, newline=""))) == [
        ["query", "place", "image", "score"], *([each, "1", each, "1.000000"] for each in (name, "b", "c"))]
    main, terminal = pty.openpty()
    shown = subprocess.Popen([sys.executable, *map(str, command)], stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = b""
    with suppress(OSError):     # which is how a terminal ends
        while part := os.read(main, 1 << 16):
            seen += part
    os.close(main)
    assert shown.wait(60) == 0
    seen = seen.decode().replace("\r\n", "\n")
    assert is_clean(seen) and seen.startswith("query,place,image,score\n") and r"\x1b]0;t\x07\u202e" in seen
