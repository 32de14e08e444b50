"""tools/time_net.py times what it says."""
import json

import pytest


def test_the_parts_are_timed_and_nothing_is_left(run_tool, tiny, tmp_path):
    file, out_dir = tmp_path / "seconds.json", tmp_path / "out"
    done = run_tool("tools/time_net.py", "--steps", 3, "--json", file, *tiny, "OUT_DIR", out_dir)
    assert done.returncode == 0, done.stderr
    seconds = json.loads(file.read_text())
    assert list(seconds) == ["forward", "forward and backward", "update", "loader", "training"]
    printed = {line[:22].strip(): line[22:].split() for line in done.stdout.splitlines()}
    for name, value in seconds.items():
        assert value > 0 and printed[name][:2] == [f"{1000 * value:.1f}", "ms/step"]
        assert float(printed[name][2]) == pytest.approx(8 / value, rel=0.01)
    verdict = "the loader is slower" if seconds["loader"] > seconds["update"] else "the update is slower"
    assert done.stdout.splitlines()[-1].startswith(verdict)
    assert not out_dir.exists()


def test_images_are_made_where_there_is_no_data_set(run_tool, tiny):
    done = run_tool("tools/time_net.py", "--steps", 2, "--made-images", *tiny, "DATA_DIR", "nowhere",
                    "TRAIN.DATASET", "none", fresh=True)
    assert done.returncode == 0, done.stderr
    assert "dolg, 8 x 48 x 48, 4 classes, fp32, 1 process(es) on cpu" in done.stdout
