"""Published configurations name data sets that a command here makes, and say which when one is missing."""
import pytest

from dolg.config import load_cfg
from dolg.data.images import open_images
from dolg.data.manifest import COMMANDS
from dolg.errors import UserError
from dolg.features.sources import revisited_set
from dolg.prepare.run import PREPARERS
from tests.conftest import ROOT

FILES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("file", FILES)
def test_a_missing_data_set_is_named_with_its_command(file, tmp_path):
    cfg = load_cfg(str(ROOT / file))
    for name, split in ((cfg.TRAIN.DATASET, cfg.TRAIN.SPLIT), (cfg.TEST.DATASET, cfg.TEST.SPLIT)):
        if name:
            assert name in COMMANDS, name
            with pytest.raises(UserError) as error:
                open_images(tmp_path / name, split, 10)
            assert f"{COMMANDS[name]} --root {tmp_path} makes it" in str(error.value)
    for name in filter(None, (cfg.TEST.RETRIEVAL, cfg.INFER.DATASET)):
        assert name in COMMANDS, name
        with pytest.raises(UserError) as error:
            revisited_set(tmp_path, name, True)
        assert f"{COMMANDS[name]} --root {tmp_path} makes it" in str(error.value)


def test_the_commands_exist():
    for command in COMMANDS.values():
        tool, *name = command.removeprefix("python ").split()
        assert (ROOT / tool).is_file() and set(name) <= set(PREPARERS)


@pytest.mark.parametrize("tool, file, command", [
    ("tools/train.py", "configs/dolg/r50_gldv2_8gpu.yaml", "tools/prepare_data.py gldv2"),
    ("tools/train.py", "configs/cgd/r50_cub_cropped.yaml", "tools/prepare_data.py cub"),
    ("tools/train.py", "configs/rrt/sop_frozen.yaml", "tools/prepare_data.py sop"),
    ("tools/infer.py", "configs/dolg/r50_gldv2_8gpu.yaml", "tools/prepare_data.py rparis6k")])
def test_the_commands_say_so(tool, file, command, tmp_path, run_tool):
    more = ["INFER.DATASET", "rparis6k"] if tool == "tools/infer.py" else []
    done = run_tool(tool, "--cfg", file, "DATA_DIR", tmp_path, "OUT_DIR", tmp_path / "out", "NUM_GPUS", 1,
                    "DEVICE", "cpu", "TRAIN.WEIGHTS", "", *more)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"python {command} --root {tmp_path} makes it" in done.stderr
