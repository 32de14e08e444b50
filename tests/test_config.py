"""The configuration tree: checks, messages, and that every key is read."""
import ast
from pathlib import Path

import pytest
import yaml

from benchmarks.fuzz.configs import YAML
from benchmarks.fuzz.harness import fuzz
from dolg.config import get_cfg, load_cfg
from dolg.config_checks import check_batches
from dolg.config_names import _USUAL_NAMES
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


_LAUGHS = "A0: &a0 [x]\n" + "".join(f"A{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


@pytest.mark.parametrize("content, message", [
    ("[" * 30_000, "line 1: it nests deeper than 20 levels"),
    ("".join(f"{'  ' * i}A:\n" for i in range(150)), "line 20: it nests deeper than 20 levels"),
    (_LAUGHS, "line 5: it has more than 10000 values"),
    ("A: &a0 [x]\n" + "".join(f"B{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000)), "line 20: .* 20 levels, with its aliases"),
    ("A: &a [*a]", "an alias stands for what it is part of"),
    ("x: " + "y" * 70_000, "it has more than 65536 bytes"),
    ("NUM_GPUS: " + "1" * 50_000, "line 1: 1111.* is not a whole number of usual size in decimal digits"),
    ("TRAIN:\n  BATCH_SIZE: 010", "line 2: 010 is not a whole number .* in decimal digits"),
    ("NUM_GPUS: 1:30", "line 1: 1:30 is not a whole number"),
    ("OPTIM: {BASE_LR: 1:30.5}", "line 1: 1:30.5 would be read in base 60"),
    ("NUM_GPUS: 99999999999999999999", "NUM_GPUS is a number of 67 bits: give one below"),
    ("OPTIM:\n  BASE_LR: .nan", "OPTIM.BASE_LR is nan: give a finite number"),
    ("INFER: {SCALES: [1.0, .inf]}", "INFER.SCALES has inf: give a finite number"),
    ("LOSS.PML.ARGS: {margin: -.inf}", "LOSS.PML.ARGS.margin is -inf: give a finite number"),
    ("OPTIM:\n  BASE_LR: 0.1\n  BASE_LR: 0.2", "line 3: the key BASE_LR is given twice"),
    ("OPTIM: {BASE_LR: 0.1}\nOPTIM.BASE_LR: 0.2", "OPTIM.BASE_LR is given twice"),
    ("1: 2", "line 1: a key is not text"), ("MODEL:", "MODEL is a section"), ("MODEL: 1", "MODEL is a section"),
    ("OUT_DIR: !!binary aGk=", "line 1: could not determine a constructor for the tag"),
    ("OUT_DIR: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ("OPTIM.BASE_LR: !!float x", "could not convert"), ("OUT_DIR: \"\\U00110000\"", "is not YAML"),
])
def test_hostile_files_are_refused_in_a_line(tmp_path, content, message):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_cfg(str(file))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_dates_are_text_and_merge_keys_and_aliases_are_read(tmp_path):
    file = tmp_path / "good.yaml"
    file.write_text("OUT_DIR: 2020-01-01\nINFER: {SCALES: &scales [1.0, 0.5]}\nTEST:\n  SCALES: *scales\n"
                    "TRAIN: &train {IM_SIZE: 64, BATCH_SIZE: 4}\n")
    cfg = load_cfg(str(file))
    assert (cfg.OUT_DIR, cfg.TEST.SCALES) == ("2020-01-01", [1.0, 0.5])
    file.write_text("TRAIN: &train {IM_SIZE: 64, BATCH_SIZE: 4}\nTEST: {<<: *train, BATCH_SIZE: 8}\n")
    assert load_cfg(str(file)).TEST == {**get_cfg().TEST, "IM_SIZE": 64, "BATCH_SIZE": 8}


@pytest.mark.parametrize("options, message", [
    (["OPTIM.BASE_LR", "nan"], "the command line: OPTIM.BASE_LR is nan: give a finite number"),
    (["MODEL.HEADS.MARGIN", "1e999"], "MODEL.HEADS.MARGIN is inf"), (["NUM_GPUS", "-" * 90_000 + "1"], "takes int"),
    (["LOSS.PML.ARGS.margin", "nan"], "LOSS.PML.ARGS.margin is nan"), (["NUM_GPUS", "(" * 9000], "takes int"),
    (["INFER.SCALES", "[1, nan]"], "INFER.SCALES has nan"), (["OPTIM.BASE_LR", "9" * 400], "of 1329 bits"),
    (["NUM_GPUS", "9" * 5000], "takes int"), (["OPTIM.BASE_LR", "+-nan"], "takes float"), (["TEST.RECALLS", "[1, True]"], "TEST.RECALLS has True"),
    (["OPTIM.LR_POLICY", "steps", "OPTIM.STEPS", "[0, 'a']"], "OPTIM.STEPS has 'a': give numbers alone"),
    (["INPUT.MEAN", "[a, b, c]"], "INPUT.MEAN has 'a'"), (["RERANK.METHOD", "[1]"], "RERANK.METHOD has 1"),
    (["OPTIM.BASE_LR", "-0.1"], "OPTIM.BASE_LR is -0.1: give 0 or more"),
    (["OPTIM.WEIGHT_DECAY", "-1"], "give 0 or more"), (["LOSS.TRIPLET.MARGIN", "-1"], "give 0 or more"),
    (["OPTIM.MOMENTUM", "1.5"], "0 or more, below 1"), (["INPUT.SD", "[0, 1, 1]"], "give numbers above 0"),
])
def test_values_that_would_train_wrongly(options, message):
    with pytest.raises(UserError, match=message) as error:
        load_cfg(None, options)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("name, key", [
    ("OPTIM.LR", "OPTIM.BASE_LR"), ("TRAIN.LR", "OPTIM.BASE_LR"), ("LR", "OPTIM.BASE_LR"),
    ("learning_rate", "OPTIM.BASE_LR"), ("SOLVER.BASE_LR", "OPTIM.BASE_LR"), ("TRAIN.EPOCHS", "OPTIM.MAX_EPOCH"),
    ("EPOCHS", "OPTIM.MAX_EPOCH"), ("NUM_EPOCHS", "OPTIM.MAX_EPOCH"), ("TRAIN.MAX_EPOCHS", "OPTIM.MAX_EPOCH"),
    ("BATCH_SIZE", "TRAIN.BATCH_SIZE"), ("EVAL.BATCH_SIZE", "TEST.BATCH_SIZE"), ("TEST.BATCH", "TEST.BATCH_SIZE"),
    ("SOLVER.IMS_PER_BATCH", "TRAIN.BATCH_SIZE"), ("TRAIN.WEIGHT_DECAY", "OPTIM.WEIGHT_DECAY"),
    ("TRAIN.IMG_SIZE", "TRAIN.IM_SIZE"), ("SEED", "RNG_SEED"), ("TRAIN.NUM_WORKERS", "DATA_LOADER.NUM_WORKERS"),
    ("MODEL.WEIGHTS", "TRAIN.WEIGHTS"), ("MODEL.NAME", "MODEL.ARCH"), ("OUTPUT_DIR", "OUT_DIR"),
    ("MODEL.MARGIN", "MODEL.HEADS.MARGIN"), ("OPTIM.MAX_EPOCHS", "OPTIM.MAX_EPOCH"), ("LOSS_NAME", "LOSS.NAME"),
    ("TRAIN.BATCHSIZE", "TRAIN.BATCH_SIZE")])
def test_usual_names_lead_to_keys(name, key):
    with pytest.raises(UserError) as error:
        load_cfg(None, [name, "1"])
    assert str(error.value).endswith(f"unknown configuration key {name} (did you mean '{key}'?)")


def test_names_of_other_codes_lead_to_keys_that_are_there():
    assert set(_USUAL_NAMES) <= {key for key, _ in _leaves(get_cfg())}


@pytest.mark.parametrize("content, options, message", [
    (_LAUGHS, [], "it has more than 10000 values"), ("A: [" * 10_000, [], "it nests deeper than 20 levels"),
    ("", ["OPTIM.LR", "0.1"], "(did you mean 'OPTIM.BASE_LR'?)"),
    ("", ["TRAIN.EPOCHS", "3"], "(did you mean 'OPTIM.MAX_EPOCH'?)"),
    ("", ["MODEL.HEADS.MARGIN", "nan"], "MODEL.HEADS.MARGIN is nan: give a finite number"),
    ("", ["NUM_GPUS", "9" * 5000], "NUM_GPUS is '999")])
def test_a_command_says_so_in_one_line(run_tool, tmp_path, content, options, message):
    (tmp_path / "c.yaml").write_text(content or "PRECISION: fp32")
    done = run_tool("tools/train.py", "--cfg", tmp_path / "c.yaml", *options, timeout=30)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_damaged_files_are_read_or_refused():
    outcome = fuzz("yaml", YAML, count=300, seed=1)
    assert outcome.failures == [] and outcome.counts["read"] > 3


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
