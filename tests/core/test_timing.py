"""tools/time_net.py times what it says."""
import json


def test_the_parts_are_timed_and_nothing_is_left(run_tool, tiny, tmp_path):
    file, out_dir = tmp_path / "seconds.json", tmp_path / "out"
    done = run_tool("tools/time_net.py", "--steps", 3, "--json", file, *tiny, "OUT_DIR", out_dir)
    assert done.returncode == 0, done.stderr
    seconds = json.loads(file.read_text())
    assert list(seconds) == ["forward", "forward and backward", "update", "loader", "training"]
    assert 0 < seconds["forward"] < seconds["forward and backward"] < 2 * seconds["update"]
    assert seconds["training"] > max(seconds["loader"], seconds["update"]) / 2
    assert "slower than the" in done.stdout.splitlines()[-1]
    assert not out_dir.exists()


def test_images_are_made_where_there_is_no_data_set(run_tool, tiny):
    done = run_tool("tools/time_net.py", "--steps", 2, "--made-images", *tiny, "DATA_DIR", "nowhere",
                    "TRAIN.DATASET", "none")
    assert done.returncode == 0, done.stderr
    assert "dolg, 8 x 48 x 48, 4 classes, fp32, 1 process(es) on cpu" in done.stdout
