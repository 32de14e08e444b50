"""The configuration tree: checks, messages, and that every key is read."""
import ast
from pathlib import Path

import pytest
import yaml

from dolg.config import get_cfg, load_cfg
from dolg.config_checks import check_batches
from dolg.errors import UserError
from dolg.losses.builders import DEFAULTS

ROOT = Path(__file__).resolve().parents[1]

# The original DOLG file's keys and values (github.com/feymanpriv/DOLG,
# configs/resnet101_delg_8gpu.yaml)
ORIGINAL = {
    "MODEL": {"TYPE": "resnet", "DEPTH": 101, "NUM_CLASSES": 81313,
              "HEADS": {"IN_FEAT": 2048, "REDUCTION_DIM": 512, "MARGIN": 0.15, "SCALE": 30}},
    "RESNET": {"TRANS_FUN": "bottleneck_transform", "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 64,
               "STRIDE_1X1": False},
    "BN": {"ZERO_INIT_FINAL_GAMMA": True},
    "OPTIM": {"BASE_LR": 0.01, "LR_POLICY": "cos", "STEPS": [0, 30, 60, 90], "LR_MULT": 0.1,
              "MAX_EPOCH": 100, "MOMENTUM": 0.9, "NESTEROV": True, "WEIGHT_DECAY": 0.0001,
              "WARMUP_EPOCHS": 5},
    "TRAIN": {"DATASET": "landmark", "SPLIT": "train_list.txt", "BATCH_SIZE": 64,
              "IM_SIZE": 224, "EVAL_PERIOD": 100},
    "TEST": {"DATASET": "landmark", "SPLIT": "val_list.txt", "BATCH_SIZE": 64, "IM_SIZE": 256},
    "NUM_GPUS": 8, "DATA_LOADER": {"NUM_WORKERS": 4}, "CUDNN": {"BENCHMARK": True},
    "OUT_DIR": "./output",
}


def _leaves(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def test_the_original_file_loads_unmodified(tmp_path):
    file = tmp_path / "resnet101_delg_8gpu.yaml"
    file.write_text(yaml.safe_dump(ORIGINAL))
    cfg = load_cfg(str(file))
    for key, value in _leaves(ORIGINAL):
        assert _value(cfg, key) == value, key
    assert cfg.MODEL.ARCH == "dolg" and DEFAULTS[cfg.MODEL.ARCH] == "curricularface"


def test_ours_for_r101_means_the_same(tmp_path):
    cfg = load_cfg(str(ROOT / "configs/dolg/r101_gldv2_8gpu.yaml"))
    for key, value in _leaves(ORIGINAL):
        # Unused by cos are the second and third; ours sizes the workers from the cores
        if key not in ("OUT_DIR", "OPTIM.STEPS", "OPTIM.LR_MULT", "DATA_LOADER.NUM_WORKERS"):
            assert _value(cfg, key) == value, key


@pytest.mark.parametrize("file", sorted(ROOT.glob("configs/**/*.yaml")), ids=lambda p: p.stem)
def test_every_config_loads(file):
    assert load_cfg(str(file)).is_frozen()


def test_a_dumped_config_loads_again(tmp_path):
    cfg = load_cfg(None, ["OPTIM.BASE_LR", "1e-5", "INFER.SCALES", "(1, 0.5)"])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert load_cfg(str(tmp_path / "config.yaml")) == cfg


def test_copies_are_fresh():
    cfg = get_cfg()
    cfg.INFER.SCALES.append(9.0)
    cfg.MODEL.DEPTH = 18
    assert 9.0 not in get_cfg().INFER.SCALES and get_cfg().MODEL.DEPTH == 50


@pytest.mark.parametrize("key, text, value", [
    ("OPTIM.BASE_LR", "1", 1.0), ("OPTIM.BASE_LR", "5e-4", 5e-4), ("MODEL.WITH_MA", "true", True),
    ("OUT_DIR", "12", "12"), ("TIMM.NAME", "'quoted'", "quoted"), ("INFER.SCALES", "[1]", [1]),
    ("TEST.WEIGHTS", "", ""),
])
def test_values_are_read_as_their_type(key, text, value):
    got = _value(load_cfg(None, [key, text]), key)
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize("options, messages", [
    (["MODEL.DEPHT", "50"], ["unknown configuration key MODEL.DEPHT", "'MODEL.DEPTH'"]),
    (["TRAIN.BATCH_SIZE", "many"], ["TRAIN.BATCH_SIZE is 'many', of type str", "takes int"]),
    (["TRAIN.BATCH_SIZE", "True"], ["of type bool", "takes int"]),
    (["OPTIM.BASE_LR", "fast"], ["takes float"]),
    (["MODEL.WITH_MA", "1"], ["takes bool"]),
    (["MODEL", "dolg"], ["MODEL is a section"]),
    (["PRECISION", "bf61"], ["choose one of fp32, bf16, fp16", "'bf16'"]),
    (["OPTIM.LR_POLICY", "cosine"], ["choose one of cos, steps, exp"]),
    (["OPTIM.LR_POLICY", "steps", "OPTIM.STEPS", "[30]"], ["the first 0"]),
    (["INFER.SCALES", "[]"], ["numbers above 0"]),
    (["LOG_PERIOD", "0"], ["at least 1"]),
    (["INFER.LOCAL", "True", "INFER.SIZE", "224"], ["set INFER.SIZE to 0"]),
    (["INFER.CUT_NUM", "3", "INFER.TOTAL_NUM", "2"], ["numbered from 1 to TOTAL_NUM"]),
    (["OUT_DIR"], ["pairs of KEY VALUE", "'OUT_DIR' has no value"]),
])
def test_mistakes_are_explained_in_one_line(options, messages):
    with pytest.raises(UserError) as error:
        load_cfg(None, options)
    assert "\n" not in str(error.value)
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize("options, message", [
    (["TRAIN.BATCH_SIZE", "10", "NUM_GPUS", "4"], "multiple of NUM_GPUS 4"),
    (["TEST.BATCH_SIZE", "10", "NUM_GPUS", "4"], "multiple of NUM_GPUS 4"),
    (["TRAIN.BATCH_SIZE", "12", "TEST.BATCH_SIZE", "12", "NUM_GPUS", "4", "TRAIN.ACCUMULATE", "2"],
     "a multiple of NUM_GPUS 4 x TRAIN.ACCUMULATE 2"),
])
def test_only_training_minds_how_batches_divide(options, message):
    cfg = load_cfg(None, options)       # extraction takes any number of GPUs
    with pytest.raises(UserError, match=message):
        check_batches(cfg)


@pytest.mark.parametrize("content, message", [
    ("MODEL: [1", "is not YAML"), ("just text", "holds no configuration keys"),
    ("MODEL:\n  NAME: x\n", "unknown configuration key MODEL.NAME"),
    ("NUM_GPUS: '8'\n", "NUM_GPUS is '8', of type str"),
])
def test_bad_files_are_explained(tmp_path, content, message):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_cfg(str(file))


def _chain(node) -> list[str]:
    """["cfg", "LOSS", "NAME"] of the expression cfg.LOSS.NAME; [] of any other."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return [node.id, *parts] if isinstance(node, ast.Name) and parts else []


def _chains(tree) -> set[str]:
    """Everything of the form SECTION.KEY that is read, also through a local name for a section."""
    found, sections = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _chain(node.value):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    sections.setdefault(target.id, set()).add(".".join(_chain(node.value)[1:]))
    for node in ast.walk(tree):
        parts = _chain(node)
        for start in range(1, len(parts)):
            found.add(".".join(parts[start:]))
        if parts:
            found |= {".".join([section, *parts[1:]]) for section in sections.get(parts[0], ())}
    return found


def test_every_key_is_read_somewhere():
    """Looks for the attribute chain ...SECTION.KEY in the code outside config.py."""
    chains = set()
    for file in [*ROOT.glob("dolg/**/*.py"), *ROOT.glob("tools/*.py")]:
        if file.name != "config.py":
            chains |= _chains(ast.parse(file.read_text(encoding="utf-8")))
    # self.cfg.SECTION.KEY, and optimizer.py's OPTIM.* through an argument `optim`
    chains |= {chain.removeprefix("cfg.") for chain in chains}
    chains |= {f"OPTIM.{chain}" for chain in set(chains)}
    unread = [key for key, _ in _leaves(get_cfg()) if key not in chains]
    assert unread == []


def test_every_key_has_a_comment():
    lines = (ROOT / "dolg/config.py").read_text().splitlines()
    keys = [i for i, line in enumerate(lines) if line.startswith("_C.") and "CfgNode()" not in line]
    for i in keys:
        above = i - 1
        while lines[above].startswith("_C.") and "CfgNode()" not in lines[above]:
            above -= 1      # a comment may speak for the keys that follow it without a gap
        assert lines[above].startswith("#"), lines[i]
