"""Exported networks against the ones that they were made of, at sizes that they were not traced with."""
import builtins
import copy
import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import dolg.export
from dolg.errors import UserError
from dolg.export import (DescriptorNetwork, _PoolingOfAnySize, _SamePadded, export, largest_difference,
                         metadata, read_metadata)
from dolg.files import file_digest
from dolg.search.whitening import Whitening
from tests.python.conftest import TINY

# PyTorch's and onnxscript's own
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning",
                                        "ignore::UserWarning")

SIZES = ((1, 33, 47), (2, 64, 200), (1, 161, 159), (5, 75, 65))
LARGE = ((1, 65, 131), (2, 97, 200))


def _images(batch, height, width, seed=0):
    """Random uint8 (batch,3,height,width) with structure of many sizes."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (batch, 3, 4, 6)).astype(np.float32)
    smooth = F.interpolate(torch.from_numpy(coarse), (height, width), mode="bicubic").numpy()
    noisy = smooth + rng.normal(0, 12, smooth.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _by_hand(network, images):
    """Unit descriptors of uint8 RGB images, one image and one channel at a time."""
    spec, rows = network.input_spec, []
    for image in images:
        planes = {"rgb": [0, 1, 2], "bgr": [2, 1, 0]}[spec.colour]
        x = np.stack([(image[plane] / 255 - spec.mean[i]) / spec.sd[i] for i, plane in enumerate(planes)])
        with torch.no_grad():
            raw = network(torch.from_numpy(x[None].astype(np.float32)))["global"][0].numpy()
        rows.append(raw / np.sqrt((raw.astype(np.float64) ** 2).sum()))
    return np.array(rows)


def _run(file, images):
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(torch.from_numpy(images).float()).detach().numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(["descriptors"], {"images": images.astype(np.float32)})[0]


def _assert_same(file, network, sizes):
    for seed, size in enumerate(sizes):
        images = _images(*size, seed)
        np.testing.assert_allclose(_run(file, images), _by_hand(network, images), atol=2e-6,
                                   err_msg=str(size))


ARCHITECTURES = {".pt2": {"dolg": SIZES, "cgd": SIZES}, ".onnx": {"delg": SIZES, "superglobal": LARGE}}


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    """`exported(arch, ending)` gives the model, the file made of it, and the largest difference."""
    made = {}

    def export_once(arch, ending):
        if (arch, ending) not in made:
            model = tiny_model("MODEL.ARCH", arch, "INFER.SCALES", [0.5, 1.0])
            file = tmp_path_factory.mktemp(arch) / f"network{ending}"
            made[arch, ending] = model, file, export(model, file)
        return made[arch, ending]

    return export_once


@pytest.mark.parametrize(("ending", "arch"), [(ending, arch) for ending in ARCHITECTURES
                                              for arch in ARCHITECTURES[ending]])
def test_any_size_and_batch(arch, ending, exported):
    model, file, difference = exported(arch, ending)
    assert 0 < difference < 1e-5
    _assert_same(file, model.network, ARCHITECTURES[ending][arch])
    assert list(file.parent.iterdir()) == [file]        # no external data, no leftovers


def test_a_network_of_timm_with_tensorflow_s_padding(tiny_model, tmp_path):
    model = tiny_model("MODEL.TYPE", "timm", "TIMM.NAME", "tf_efficientnet_lite0", "MODEL.ARCH", "gem")
    file = tmp_path / "network.pt2"
    assert export(model, file) < 1e-5
    _assert_same(file, model.network, SIZES)


@pytest.mark.parametrize("side", [3, 5, 7])
def test_tensorflow_s_padding_is_the_same_for_all_sizes(side):
    conv2d_same = pytest.importorskip("timm.layers.conv2d_same")
    torch.manual_seed(side)
    original = conv2d_same.Conv2dSame(4, 4, side, stride=2, groups=2)
    ours = _SamePadded(original)
    for height in range(1, 14):
        for width in (1, 2, 5, 8, 13):
            maps = torch.randn(2, 4, height, width)
            torch.testing.assert_close(ours(maps), original(maps), atol=1e-6, rtol=1e-5)


def test_pooling_by_slices_is_the_same_for_all_sizes():
    for height, width in ((1, 1), (2, 3), (7, 8), (16, 31)):
        maps = torch.randn(2, 3, height, width)
        for options in ((3, 2, 1), (5, 2, 2), (2, 2, 0), (3, 1, 1), (3, 2, 0)):
            if min(height, width) + 2 * options[2] < options[0]:
                continue
            expected = F.max_pool2d(maps, *options)
            with _PoolingOfAnySize():
                assert torch.equal(torch.nn.MaxPool2d(*options)(maps), expected)
                found = F.max_pool2d(maps, options[0], options[1], padding=options[2])
                assert torch.equal(found, expected)
            # A slice of another tensor, where this is what it is for
            assert (found._base is not None) == (options in ((3, 2, 1), (5, 2, 2))), options


@pytest.mark.parametrize("version", ["2.11.0+cu130", "3.0"])
def test_what_is_followed_by_older_and_newer_versions_of_pytorch(version, tiny_model, monkeypatch):
    network = tiny_model().network
    images = torch.from_numpy(_images(2, 90, 71)).float()
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    with torch.no_grad():
        found = DescriptorNetwork(network)(images)
    np.testing.assert_allclose(found, _by_hand(network, images.numpy().astype(np.uint8)), atol=1e-6)


def test_transformers_are_exported_for_one_size(tiny_model, tmp_path):
    model = tiny_model("MODEL.TYPE", "timm", "TIMM.NAME", "vit_tiny_patch16_224", "MODEL.ARCH", "gem")
    file = tmp_path / "network.pt2"
    with pytest.raises(UserError, match=r"vit_tiny_patch16_224 is a transformer.*give --size HEIGHT WIDTH"):
        export(model, file)
    assert not file.exists()
    assert export(model, file, (64, 96)) < 1e-5
    _assert_same(file, model.network, [(1, 64, 96), (3, 64, 96)])
    assert read_metadata(file)["image_size"] == [64, 96]


@pytest.mark.parametrize(("ending", "arch"), [(".pt2", "dolg"), (".onnx", "delg")])
def test_a_file_says_what_it_is(ending, arch, exported):
    model, file, _ = exported(arch, ending)
    about = read_metadata(file)
    assert about == {**about, "model": f"{arch} on ResNet-18", "dim": 16, "scales": [0.5, 1.0],
                     "precision": "fp32", "scale_pooling": "mean", "resize_first": 0,
                     "resize": "bilinear, half-pixel centres", "library": f"dolg {dolg.__version__}",
                     "image_size": None, "config_digest": model.settings["config_digest"],
                     "weights_digest": file_digest(model.cfg.TEST.WEIGHTS)}
    assert about["input"] == "images: float32 (B,3,H,W), RGB, 0 to 255"
    assert about["output"] == "descriptors: float32 (B,16), of unit length"
    if ending == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
        assert session.get_outputs()[0].shape == ["batch", 16]
        assert json.loads(session.get_modelmeta().custom_metadata_map["dolg"]) == about


def test_metadata_of_other_settings(tiny_model, tmp_path):
    model = tiny_model("MODEL.ARCH", "superglobal", "INFER.SCALE_POOLING", "max", "INFER.SIZE", 96,
                       "INPUT.ANTIALIAS", True)
    assert metadata(model, (80, 90)) == {**metadata(model), "scale_pooling": "max", "resize_first": 96,
                                         "resize": "bilinear, half-pixel centres, antialiased",
                                         "image_size": [80, 90]}


def test_files_of_others_are_not_taken_for_ours(tmp_path):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "other.pt2")
    with pytest.raises(UserError, match="other.pt2 was not written by tools/export.py"):
        read_metadata(tmp_path / "other.pt2")


@pytest.fixture
def without_onnx(monkeypatch):
    """As where none of ONNX's packages is installed."""
    real, packages = builtins.__import__, ("onnx", "onnxscript", "onnxruntime", "onnx_ir")

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] in packages:
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    for name in list(sys.modules):
        if name.split(".")[0] in packages:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)


def test_whitening_is_inside_where_there_is_one_scale(tiny_model, tmp_path, without_onnx):
    torch.manual_seed(5)
    whitening = Whitening(torch.randn(16) * 0.1, torch.randn(16, 6))
    whitening.save(tmp_path / "whitening.safetensors")
    options = ("INFER.WHITENING", tmp_path / "whitening.safetensors", "INFER.SCALES")
    with pytest.raises(UserError, match=r"INFER.WHITENING acts on the average over INFER.SCALES.*\[1.0\]"):
        export(tiny_model(*options, [0.5, 1.0]), tmp_path / "network.pt2")
    model = tiny_model(*options, [1.0])
    export(model, tmp_path / "network.pt2")
    images = _images(2, 70, 90)
    centred = _by_hand(model.network, images) - whitening.mean.numpy()
    whitened = centred @ whitening.projection.numpy()
    np.testing.assert_allclose(_run(tmp_path / "network.pt2", images),
                               whitened / np.linalg.norm(whitened, axis=1, keepdims=True), atol=1e-5)


# What may go wrong between the network and the file: each must be seen
FAULTS = {
    "another weight": lambda module: module.network.fc.weight.data.mul_(-1),
    "colours exchanged": lambda module: module.channel_order.copy_(module.channel_order.flip(0)),
    "another mean": lambda module: module.pixel_mean.add_(0.05),
    "another deviation": lambda module: module.pixel_sd.mul_(1.1),
    "no descriptor": lambda module: module.network.fc.weight.data.fill_(torch.nan),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_graph_is_seen(fault, tiny_model):
    model = tiny_model()
    module = DescriptorNetwork(copy.deepcopy(model.network))
    assert largest_difference(module, model.network, None) < 1e-6
    FAULTS[fault](module)
    assert not largest_difference(module, model.network, None) < 3e-4


def test_one_image_without_a_descriptor_is_seen(tiny_model):
    network = tiny_model().network
    module = DescriptorNetwork(copy.deepcopy(network))
    calls = iter(range(100))
    def fails_once(images):
        return module(images) * (torch.nan if next(calls) == 1 else 1)

    assert np.isnan(largest_difference(fails_once, network, None))


@pytest.mark.parametrize("found", [2e-4, float("nan")])
def test_a_difference_is_refused_and_an_earlier_file_stays(found, tiny_model, tmp_path, monkeypatch):
    """Of a file that is written in full: here nothing but the check's result is another."""
    monkeypatch.setattr(dolg.export, "_follow", lambda module, size: None)
    monkeypatch.setattr(dolg.export, "_write_pt2", lambda program, file, about: file.write_bytes(b"new"))
    monkeypatch.setattr(dolg.export, "_run_pt2", lambda file: file.read_bytes())
    monkeypatch.setattr(dolg.export, "largest_difference", lambda *_: found)
    file = tmp_path / "network.pt2"
    for before in (None, "an earlier one"):
        if before:
            file.write_text(before)
        with pytest.raises(UserError, match="network.pt2 is not written: its .* off by .*more than 0.0001"):
            export(tiny_model(), file)
        assert [path.read_text() for path in tmp_path.iterdir()] == ([before] if before else [])
    monkeypatch.setattr(dolg.export, "largest_difference", lambda *_: 9e-5)
    assert export(tiny_model(), file) == 9e-5 and file.read_bytes() == b"new"


def test_a_file_of_a_wrong_graph_is_refused(tiny_model, tmp_path, monkeypatch):
    def faulty(network, whitening):
        module = DescriptorNetwork(copy.deepcopy(network), whitening)
        FAULTS["another mean"](module)
        return module

    monkeypatch.setattr(dolg.export, "DescriptorNetwork", faulty)
    with pytest.raises(UserError, match="network.pt2 is not written: its descriptors are off by"):
        export(tiny_model(), tmp_path / "network.pt2")
    assert not list(tmp_path.iterdir())


def test_a_network_that_cannot_be_followed_is_refused_in_one_line(tiny_model, tmp_path, monkeypatch):
    class Stubborn(DescriptorNetwork):
        def forward(self, images):
            return super().forward(images) * (2.0 if images.sum() > 0 else 1.0)     # depends on pixels

    monkeypatch.setattr(dolg.export, "DescriptorNetwork", Stubborn)
    with pytest.raises(UserError, match="network.pt2 cannot be made of dolg on ResNet-18: ") as caught:
        export(tiny_model(), tmp_path / "network.pt2")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_missing_packages_are_named(tiny_model, tmp_path, monkeypatch):
    real = importlib.util.find_spec
    missing = ("onnx", "onnxruntime")
    monkeypatch.setattr(dolg.export, "find_spec", lambda name: None if name in missing else real(name))
    with pytest.raises(UserError, match="needs onnx, onnxruntime: pip install onnx onnxruntime, or write"):
        export(tiny_model(), tmp_path / "network.onnx")


@pytest.mark.parametrize(("size", "file", "says"), [
    (None, "network.onnxx", "neither in .pt2 .* nor in .onnx"), ((0, 5), "network.pt2", "--size is 0 5")])
def test_wrong_arguments(size, file, says, tiny_model, tmp_path):
    with pytest.raises(UserError, match=says):
        export(tiny_model(), tmp_path / file, size)


def test_the_command(run_tool, tiny_model, tmp_path):
    model, config, file = tiny_model(), tmp_path / "network.yaml", tmp_path / "new" / "network.pt2"
    config.write_text("MODEL: {ARCH: dolg}\n")
    command = ["tools/export.py", "--cfg", config, "-o", file, "--weights"]
    done = run_tool(*command, model.cfg.TEST.WEIGHTS, *TINY, fresh=True)
    assert done.returncode == 0, done.stderr
    assert f"{file}: dolg on ResNet-18, 16 dimensions" in done.stdout
    assert "largest difference" in done.stdout
    _assert_same(file, model.network, SIZES[:2])
    missing = run_tool(*command, tmp_path / "none.pth", *TINY)
    assert missing.returncode == 1
    assert missing.stderr.splitlines()[-1] == f"error: no weights file {tmp_path}/none.pth"
    refused = run_tool("tools/export.py", "--cfg", config, "-o", tmp_path / "network.h5", *TINY)
    assert refused.returncode == 1 and refused.stderr.startswith("error: --output is")
