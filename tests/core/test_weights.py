"""Weights files of every origin, and of none."""
import argparse
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks.fuzz.__main__ import summary
from benchmarks.fuzz.harness import fuzz
from benchmarks.fuzz.weights import WEIGHTS
from dolg.config import load_cfg
from dolg.core.checkpoint import load_weights
from dolg.core.saving import newest_checkpoint, save_checkpoint
from dolg.core.weight_files import read_weights
from dolg.core.weights import strip_wrappers
from dolg.errors import UserError
from dolg.losses import build_loss
from dolg.models import build_model
from dolg.models.builders import MODELS

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "8", "MODEL.HEADS.REDUCTION_DIM", "12",
         "MODEL.NUM_CLASSES", "5"]
TIMM = ["MODEL.TYPE", "timm", "TIMM.NAME", "tf_efficientnet_lite0", "MODEL.ARCH", "gem",
        "MODEL.HEADS.REDUCTION_DIM", "0"]


def _cfg(*options):
    return load_cfg(None, [*SMALL, *options])


def _model(*options, seed=0):
    torch.manual_seed(seed)
    return build_model(_cfg(*options)).eval()


def _same_outputs(a, b):
    images = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        return torch.equal(a(images)["global"], b(images)["global"])


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("suffix", [".pyth", ".safetensors"])
def test_our_own_model_round_trip(tmp_path, arch, suffix):
    saved, loaded = _model("MODEL.ARCH", arch), _model("MODEL.ARCH", arch, seed=1)
    assert not _same_outputs(saved, loaded)
    path = tmp_path / f"weights{suffix}"
    save_file(saved.state_dict(), path) if suffix == ".safetensors" else torch.save(
        saved.state_dict(), path)
    load_weights(loaded, path)
    assert _same_outputs(saved, loaded)


def test_our_checkpoint_feeds_model_and_loss(tmp_path):
    model, loss = _model(), build_loss(_cfg())
    path = tmp_path / "model_epoch_0001.pyth"
    save_checkpoint(path, {"model": model.state_dict(), "loss": loss.state_dict(), "epoch": 1})
    other, other_loss = _model(seed=1), build_loss(_cfg())
    load_weights(other, path)
    load_weights(other_loss, path)
    assert _same_outputs(model, other) and torch.equal(loss.weight, other_loss.weight)
    assert load_weights(_model(seed=2).backbone, path)


def _original_layout(model, loss) -> dict:
    """Our parameters under the names of the original DOLG code, written out by hand."""
    renamed = {"backbone.": "globalmodel.", "multi_atrous.branches.": "localmodel.aspp.aspp.",
               "multi_atrous.pooled.": "localmodel.aspp.im_pool.1.",
               "multi_atrous.join.": "localmodel.aspp.conv_after.0.", "attention.": "localmodel.",
               "pool.": "pool_g.", "fc_global.": "fc_t.", "fc.": "fc."}
    state = {"desc_cls." + key: value for key, value in loss.state_dict().items()}
    for key, value in model.state_dict().items():
        ours = next(prefix for prefix in renamed if key.startswith(prefix))
        state[key.replace(ours, renamed[ours], 1)] = value
    return state


@pytest.mark.parametrize("multi_atrous", ["True", "False"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_original_dolg_layout(tmp_path, multi_atrous, prefix):
    options = ["MODEL.WITH_MA", multi_atrous]
    model, loss = _model(*options), build_loss(_cfg())
    state = {prefix + key: value for key, value in _original_layout(model, loss).items()}
    torch.save({"epoch": 99, "model_state": state}, tmp_path / "dolg.pyth")
    other = _model(*options, seed=1)
    load_weights(other, tmp_path / "dolg.pyth")
    assert _same_outputs(model, other)


def test_a_constant_exponent_of_the_original_becomes_three(tmp_path):
    model, loss = _model(), build_loss(_cfg())
    state = _original_layout(model, loss)
    del state["pool_g.p"]
    torch.save({"model_state": state}, tmp_path / "dolg.pyth")
    other = _model("MODEL.GEM.P", "2.0", seed=1)
    load_weights(other, tmp_path / "dolg.pyth")
    assert other.pool.p.item() == 3.0 and _same_outputs(model, other)


def test_a_pycls_backbone_starts_training_only(tmp_path):
    model = _model()
    state = dict(model.backbone.state_dict(), **{"head.fc.weight": torch.zeros(1000, 64)})
    torch.save({"model_state": state}, tmp_path / "R-18.pyth")
    fresh = _model(seed=1)
    said = load_weights(fresh, tmp_path / "R-18.pyth", start=True)
    assert said.endswith("left as initialised: attention, fc, fc_global")
    assert all(torch.equal(a, b) for a, b in zip(model.backbone.parameters(),
                                                 fresh.backbone.parameters()))
    with pytest.raises(UserError, match="a backbone alone.*needs attention, fc, fc_global"):
        load_weights(fresh, tmp_path / "R-18.pyth")


def test_a_whole_timm_model_completes_gem_without_reduction(tmp_path):
    import timm

    torch.manual_seed(3)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    save_file(network.state_dict(), tmp_path / "timm.safetensors")
    model = _model(*TIMM)
    load_weights(model, tmp_path / "timm.safetensors")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_intermediates(images, intermediates_only=True)[-1]
        assert torch.equal(model.backbone(images)["stage4"], expected)


@pytest.mark.parametrize("name", ["densenet121", "resnet18", "convnext_atto"])
def test_timm_names_survive_flattening(tmp_path, name):
    import timm

    network = timm.create_model(name)
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    model = _model("MODEL.TYPE", "timm", "TIMM.NAME", name, "MODEL.ARCH", "gem",
                   "MODEL.HEADS.REDUCTION_DIM", "0")
    load_weights(model, tmp_path / "timm.pth")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = network.eval().forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(model.backbone(images)["stage4"], expected)


@pytest.mark.parametrize("name, options", [
    ("resnet18", ["MODEL.DEPTH", "18"]), ("resnet50", ["MODEL.DEPTH", "50"]),
    ("resnext50_32x4d", ["MODEL.DEPTH", "50", "RESNET.NUM_GROUPS", "32", "RESNET.WIDTH_PER_GROUP",
                         "4"])])
@pytest.mark.parametrize("colour", ["bgr", "rgb"])
def test_torchvision_networks_in_either_colour_order(tmp_path, name, options, colour):
    import torchvision

    torch.manual_seed(4)
    network = getattr(torchvision.models, name)().eval()
    torch.save(network.state_dict(), tmp_path / "torchvision.pth")
    model = _model(*options, "RESNET.STEM_WIDTH", "64", "INPUT.COLOUR", colour)
    load_weights(model, tmp_path / "torchvision.pth", start=True)
    rgb = torch.randn(1, 3, 64, 64)
    trunk = torch.nn.Sequential(*list(network.children())[:-2])
    with torch.no_grad():
        maps = model.backbone(rgb if colour == "rgb" else rgb.flip(1))
        torch.testing.assert_close(maps["stage4"], trunk(rgb), rtol=1e-4, atol=1e-3)


def test_timm_resnets_go_into_ours_too(tmp_path):
    import timm

    torch.manual_seed(5)
    network = timm.create_model("resnet26").eval()
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(UserError, match=r"\(torchvision\) is not of this DOLG"):
        load_weights(_model("MODEL.DEPTH", "50", "RESNET.STEM_WIDTH", "64"), tmp_path / "timm.pth",
                     start=True)
    network = timm.create_model("resnet18").eval()
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    model = _model("RESNET.STEM_WIDTH", "64")
    load_weights(model, tmp_path / "timm.pth", start=True)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_intermediates(images, intermediates_only=True)[-1]
        torch.testing.assert_close(model.backbone(images.flip(1))["stage4"], expected)


ORIGINALS = {"DOLG": ["MODEL.ARCH", "dolg", "MODEL.WITH_MA", "True"],
             "DELG": ["MODEL.ARCH", "delg"],
             "CGD": ["MODEL.ARCH", "cgd", "MODEL.DEPTH", "50", "MODEL.CGD.FEATURE_DIM", "12",
                     "MODEL.CGD.CONFIG", "SMG", "MODEL.HEADS.IN_FEAT", "256"]}


@pytest.mark.parametrize("layout", ORIGINALS)
def test_converted_to_the_original_layout_and_back(tmp_path, run_tool, layout):
    command = ["tools/convert_weights.py", "--cfg", "configs/quickstart.yaml"]
    options = ["LOSS.NAME", "", *SMALL, *ORIGINALS[layout]]
    cfg = load_cfg(str(ROOT / command[2]), options)
    torch.manual_seed(6)
    model = build_model(cfg).eval()
    loss = build_loss(cfg, model.dims)
    ours, theirs, back = (tmp_path / name for name in ("ours.pyth", "theirs.pyth", "back.pyth"))
    save_checkpoint(ours, {"model": model.state_dict(), "loss": loss.state_dict()})
    for source, target, to in ((ours, theirs, layout), (theirs, back, "dolg checkpoint")):
        done = run_tool(*command, "--from", source, "--output", target, "--to", to, *options)
        assert done.returncode == 0, done.stderr
    marks = {"DOLG": {"globalmodel.s4.b1.f.a.weight", "localmodel.aspp.aspp.3.bias", "fc_t.bias",
                      "desc_cls.t", "pool_g.p"},
             "DELG": {"globalmodel.head.fc.bias", "localmodel.conv2.weight", "att_cls.fc.bias",
                      "desc_cls.weight"},
             "CGD": {"features.7.0.downsample.1.running_var", "main_modules.2.0.weight",
                     "features.4.2.conv3.weight", "auxiliary_module.1.bias",
                     "auxiliary_module.0.running_mean"}}
    assert marks[layout] <= set(torch.load(theirs)["model_state"])
    again = torch.load(back)
    for part, module in (("model", model), ("loss", loss)):
        state = module.state_dict()
        assert again[part].keys() == state.keys()
        assert all(torch.equal(again[part][key], state[key]) for key in state)


@pytest.mark.parametrize("layout, mark", [("pycls", "s3.b1.proj.weight"),
                                          ("torchvision", "layer3.0.downsample.0.weight")])
def test_a_backbone_goes_out_and_comes_back(tmp_path, run_tool, layout, mark):
    options = [*SMALL, "MODEL.ARCH", "gem", "MODEL.HEADS.REDUCTION_DIM", "0"]
    model = _model(*options)
    torch.save(model.state_dict(), tmp_path / "ours.pyth")
    done = run_tool("tools/convert_weights.py", "--cfg", "configs/quickstart.yaml", "--from",
                    tmp_path / "ours.pyth", "--output", tmp_path / "out.pyth", "--to", layout,
                    *options)
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / "out.pyth")["model_state"]
    assert mark in state
    stem = state["stem.conv.weight" if layout == "pycls" else "conv1.weight"]
    ours = model.backbone.stem.conv.weight
    assert torch.equal(stem, ours.flip(1) if layout == "torchvision" else ours)
    other = _model(*options, seed=1)
    load_weights(other, tmp_path / "out.pyth")
    assert _same_outputs(model, other)


def test_a_layout_without_a_place_for_a_part_says_so(tmp_path, run_tool):
    torch.save(_model().state_dict(), tmp_path / "dolg.pyth")
    done = run_tool("tools/convert_weights.py", "--cfg", "configs/quickstart.yaml", "--from",
                    tmp_path / "dolg.pyth", "--output", tmp_path / "out.pyth", "--to", "DELG", *SMALL,
                    fresh=True)
    assert done.returncode == 1 and "have no place for the model's fc_global" in done.stderr
    assert not (tmp_path / "out.pyth").exists()


def test_what_a_profiler_counted_is_no_weight(tmp_path):
    counted, other = _model(), _model(seed=1)
    state = dict(counted.state_dict(), **{"backbone.s1.total_ops": torch.zeros(1),
                                          "total_params": torch.zeros(1)})
    torch.save(state, tmp_path / "counted.pyth")
    load_weights(other, tmp_path / "counted.pyth")
    assert _same_outputs(counted, other)


def test_partial_loading_lists_what_was_and_was_not_loaded(tmp_path):
    torch.save(_model("MODEL.HEADS.REDUCTION_DIM", "16").state_dict(), tmp_path / "other.pyth")
    model, fresh = _model(seed=1), _model(seed=1)
    said = load_weights(model, tmp_path / "other.pyth", partial=True)
    assert "loaded 132 of 134 tensors" in said and "backbone.stem" in said
    assert "of another shape, left as initialised (2): fc.bias (16,) for (12,)" in said
    assert torch.equal(model.fc.weight, fresh.fc.weight)
    assert not torch.equal(model.fc_global.weight, fresh.fc_global.weight)
    torch.save({"backbone.nothing": torch.zeros(3)}, tmp_path / "nothing.pyth")
    with pytest.raises(UserError, match="has nothing that fits this DOLG"):
        load_weights(model, tmp_path / "nothing.pyth", partial=True)


def test_the_wrong_model_is_refused_with_the_keys_that_differ(tmp_path):
    torch.save(_model("MODEL.ARCH", "gem").state_dict(), tmp_path / "gem.pyth")
    with pytest.raises(UserError) as error:
        load_weights(_model(), tmp_path / "gem.pyth")
    assert "is not of this DOLG" in str(error.value) and "fc_global.weight" in str(error.value)
    torch.save(_model("RESNET.STEM_WIDTH", "16").state_dict(), tmp_path / "wide.pyth")
    with pytest.raises(UserError, match=r"of another shape: attention.bn.bias \(64,\) for \(32,\)"):
        load_weights(_model(), tmp_path / "wide.pyth")
    with pytest.raises(UserError, match="none of a CurricularFace"):
        load_weights(build_loss(_cfg()), tmp_path / "gem.pyth")
    changed = dict(_model().state_dict(), **{"fc.scale": torch.zeros(1)})
    torch.save(changed, tmp_path / "more.pyth")
    with pytest.raises(UserError, match="1 unexpected: fc.scale"):
        load_weights(_model(), tmp_path / "more.pyth")


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("write", [
    lambda path, mark: torch.save({"model": _Evil(mark)}, path),
    lambda path, mark: path.write_bytes(pickle.dumps({"model": _Evil(mark)})),
])
def test_code_in_a_weights_file_is_never_run(tmp_path, write):
    path, mark = tmp_path / "evil.pyth", str(tmp_path / "pwned")
    write(path, mark)
    with pytest.raises(UserError) as error:
        load_weights(_model(), path)
    assert "nothing in it was run" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name, damage", [
    ("cut.pyth", lambda data: data[:len(data) // 2]), ("empty.pyth", lambda data: b""),
    ("text.pyth", lambda data: b"no weights at all"), ("cut.safetensors", lambda data: data[:500]),
])
def test_damaged_files_are_explained(tmp_path, name, damage):
    path, model = tmp_path / name, _model()
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as error:
        load_weights(model, path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def _renamed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


# What people bring, and what is said of it
BROUGHT = {
    "counters": (lambda state: {key: value for key, value in state.items() if "num_batches_tracked" not in key},
                 ["into DOLG"]),
    "model_state_dict": (lambda state: {"epoch": 3, "model_state_dict": state}, ["[taken from 'model_state_dict']"]),
    "net": (lambda state: {"net": state, "acc": 0.5, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
            ["[taken from 'net']"]),
    "nested": (lambda state: {"checkpoint": {"stage 2": state}}, ["[taken from 'checkpoint.stage 2']"]),
    "ema": (lambda state: {"ema": {key: value + 1 for key, value in state.items()}, "model": state,
                           "rng_state": torch.ones(9)}, ["taken from 'model'; 'ema' holds weights as well"]),
    "compiled": (lambda state: {"state_dict": _renamed(state, "_orig_mod.")},
                 ["taken from 'state_dict'; '_orig_mod.' removed from all names"]),
    "in parallel and compiled": (lambda state: _renamed(state, "module._orig_mod."), ["'module._orig_mod.' removed"]),
    "twice in parallel": (lambda state: _renamed(state, "module.module."), ["'module.module.' removed"]),
    "lightning": (lambda state: {"state_dict": _renamed(state, "retriever.net.")}, ["'retriever.net.' removed"]),
    "model": (lambda state: _renamed(state, "model."), ["(dolg checkpoint) into DOLG"]),
    "numbers of NumPy": (lambda state: {"state_dict": state, "best": np.float64(0.5), "mean": np.ones(3)},
                         ["[taken from 'state_dict']"]),
    "a namespace": (lambda state: {"args": argparse.Namespace(rate=0.1), "state_dict": OrderedDict(state)},
                    ["skipped what is not plain data: args (argparse.Namespace)", "taken from 'state_dict'"]),
    "containers": (lambda state: {"state_dict": defaultdict(list, state), "meters": {"loss": _Unknown()}},
                   [f"meters.loss ({__name__}._Unknown)", "taken from 'state_dict'"]),
}


@pytest.mark.parametrize("keys, prefix", [
    (["model.conv1.weight", "model.layer1.0.conv1.weight", "model.fc.bias"], "model."),
    (["student.backbone.stem.conv.weight", "student.fc.bias"], "student."),
    (["model.blocks.0.norm.bias", "model.head.bias"], "model."),                # timm's, of which nothing is known
    (["features.conv0.weight", "features.norm0.bias"], ""),                     # a DenseNet without classifier
    (["module.conv1.weight", "layer1.0.conv1.weight"], ""),
])
def test_prefixes(keys, prefix):
    state, removed = strip_wrappers(dict.fromkeys([*keys, "total_ops"], torch.zeros(1)))
    assert removed == prefix and list(state) == [key.removeprefix(prefix) for key in keys]


class _Unknown:
    """A class of the file's own code."""


@pytest.mark.parametrize("kind", BROUGHT)
def test_the_state_dict_is_found_whatever_is_around_it(tmp_path, kind):
    saved, loaded = _model(), _model(seed=1)
    wrap, said = BROUGHT[kind]
    torch.save(wrap(saved.state_dict()), tmp_path / "w.pth")
    message = load_weights(loaded, tmp_path / "w.pth")
    assert all(part in message for part in said), message
    assert _same_outputs(saved, loaded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_every_kind_beside_an_unknown_object(tmp_path, dtype):
    """Read from the archive by our own reader: views, shared storages, parameters, other precisions."""
    whole = torch.arange(24).reshape(4, 6).to(dtype)
    state = {"a": whole, "b": whole[1:3, ::2], "c": whole.t(), "d": torch.nn.Parameter(whole), "e": torch.tensor(3),
             "f": torch.tensor([True, False]), "g": torch.empty(0, 3)}
    torch.save({"state_dict": state, "other": _Unknown()}, tmp_path / "w.pth")
    read = read_weights(tmp_path / "w.pth").state
    assert read.keys() == state.keys()
    for key, tensor in state.items():
        wanted = tensor.detach().float() if dtype == torch.bfloat16 and tensor.dtype == dtype else tensor.detach()
        assert read[key].dtype == wanted.dtype and torch.equal(read[key], wanted), key


def test_through_the_command_line(run_tool, tiny, tmp_path):
    """What is brought, in training and in conversion, and whole models, which have no weights to be read."""
    options = [*tiny[2:], "MODEL.ARCH", "gem"]
    torch.manual_seed(0)
    model = build_model(load_cfg(str(ROOT / tiny[1]), list(map(str, options))))
    state = _renamed({key: value for key, value in model.state_dict().items() if "num_batches" not in key}, "module.")
    torch.save({"net": state, "ema": dict(state), "args": argparse.Namespace(), "loss": np.float32(1)}, tmp_path / "w.pth")
    command = ["tools/convert_weights.py", *tiny[:2], "--output", tmp_path / "out.pyth", "--from"]
    done = run_tool(*command, tmp_path / "w.pth", *options)
    assert done.returncode == 0, done.stderr
    assert ("[taken from 'net'; 'ema' holds weights as well; skipped what is not plain data: args "
            "(argparse.Namespace); 'module.' removed from all names]") in done.stdout
    written = torch.load(tmp_path / "out.pyth")["model"]
    assert all(torch.equal(written[key], value) for key, value in model.state_dict().items())
    torch.save(model, tmp_path / "whole.pth")
    done = run_tool(*command, tmp_path / "whole.pth", *options)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "weights_only=False); torch.save(content['state_dict'], 'weights.pth')" in done.stderr
    torch.save({"epoch": 3, "best": torch.ones(())}, tmp_path / "none.pth")
    done = run_tool("tools/train.py", *tiny, "MODEL.ARCH", "gem", "TRAIN.WEIGHTS", tmp_path / "none.pth",
                    "OUT_DIR", tmp_path / "run")
    assert done.returncode == 1 and "none.pth" in done.stderr.splitlines()[-1]


def _rewritten(path: Path, change) -> None:
    """The archive `path` with `change(name, content)` in the place of each record."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    compression = zipfile.ZIP_DEFLATED if change("bomb", b"") else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(name, change(name, content))


def _in_pickle(old: bytes, new: bytes):
    def change(name, content):
        return content.replace(old, new) if name.endswith("data.pkl") else content
    return change


# The pickle of a (4, 4) tensor: its storage of 16 values, offset 0, size (4, 4), strides (4, 1)
HOSTILE = {
    "storage": _in_pickle(b"K\x10tq", b"J\0\0\0\x7ftq"),
    "size": _in_pickle(b"K\4K\4\x86", b"J\0\0\0\1K\4\x86"),
    "negative size": _in_pickle(b"K\4K\4\x86", b"J\xff\xff\xff\xffK\4\x86"),
    "negative stride": _in_pickle(b"K\4K\1\x86", b"J\xff\xff\xff\xffK\1\x86"),
    "offset": _in_pickle(b"QK\0", b"QK\x7f"),
    # 2^56 numbers that are one
    "repeated": lambda name, content: _in_pickle(b"K\4K\1\x86", b"K\0K\0\x86")(name, _in_pickle(
        b"K\4K\4\x86", b"J\0\0\0\x10J\0\0\0\x10\x86")(name, content)),
    "bomb": lambda name, content: bytes(200 << 20) if name.endswith("data/0") else content or b"deflate",
    "short record": lambda name, content: content[:-4] if name.endswith("data/0") else content,
}


@pytest.mark.parametrize("unknown", [False, True], ids=["PyTorch's reader", "ours"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_a_line(tmp_path, kind, unknown):
    path = tmp_path / "stem.pth"
    torch.save({"stem.conv.weight": torch.ones(4, 4), **({"other": _Unknown()} if unknown else {})}, path)
    before = path.read_bytes()
    _rewritten(path, HOSTILE[kind])
    assert path.read_bytes() != before
    with pytest.raises(UserError) as error:
        load_weights(_model(), path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert "of another shape" not in str(error.value)


def test_damaged_and_hostile_files_of_weights():
    """A small part of python -m benchmarks.fuzz weights --count 10000."""
    outcome = fuzz("weights", WEIGHTS, 200, seed=0)
    assert not outcome.failures, summary("weights", 0, outcome)
    assert outcome.counts["read"] and outcome.counts["refused"]


def test_newest_checkpoint_is_that_of_the_latest_epoch(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for epoch in (2, 10, 9):
        save_checkpoint(tmp_path / "checkpoints" / f"model_epoch_{epoch:04d}.pyth", {})
    (tmp_path / "checkpoints" / ".model_epoch_0011.pyth.77.tmp").write_bytes(b"half")
    assert newest_checkpoint(tmp_path).name == "model_epoch_0010.pyth"
