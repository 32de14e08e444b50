"""SuperGlobal against slow code of its own: poolings, ReLU-P, scales, and CVNet's files."""
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dolg.config import load_cfg
from dolg.core import validation
from dolg.core.checkpoint import load_weights
from dolg.core.weights import sort_keys, unsort_keys
from dolg.data.decode import read_image
from dolg.data.preprocess import preprocess, scaled_size
from dolg.errors import UserError
from dolg.features.extract import Extractor, average_scales, describe
from dolg.features.run import infer
from dolg.features.store import FeatureStore
from dolg.models import build_model
from dolg.models.folding import fold_norms
from dolg.models.superglobal import SuperGlobal, regional_gem

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["MODEL.DEPTH", "50", "RESNET.STEM_WIDTH", "8", "MODEL.HEADS.REDUCTION_DIM", "24"]
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
SCALES = [0.7071, 1.0, 1.4142]


def _model(*options, arch="superglobal"):
    torch.manual_seed(0)
    model = build_model(load_cfg(None, [*SMALL, "MODEL.ARCH", arch, *options])).eval()
    for module in model.modules():      # norms that do something
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 0.8)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


# ---------------------------------------------------------------------------- slow code

def _bounce(place: int, size: int) -> int:
    """Where a walk beyond the edges of 0 .. size - 1 arrives, that turns at each."""
    while size > 1 and not 0 <= place < size:
        place = -place if place < 0 else 2 * (size - 1) - place
    return place if size > 1 else 0


def _slow_regional(maps: np.ndarray, window: int = 5, p: float = 2.5) -> np.ndarray:
    height, width = maps.shape[2:]
    reach = range(-(window // 2), window // 2 + 1)
    result = np.empty(maps.shape)
    for y in range(height):
        for x in range(width):
            around = [np.maximum(maps[:, :, _bounce(y + dy, height), _bounce(x + dx, width)], 1e-8)
                      for dy in reach for dx in reach]
            mean = sum(values ** p for values in around) / window ** 2
            result[:, :, y, x] = (mean ** (1 / p) + maps[:, :, y, x]) / 2
    return result


def _slow_descriptor(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    powers = np.maximum(_slow_regional(maps), 1e-8) ** 4.6
    pooled = powers.mean(axis=(2, 3)) ** (1 / 4.6)
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True) @ weight.T + bias


def _slow_maps(state: dict, images: torch.Tensor, depth: int, floor: float) -> np.ndarray:
    """The last map of a ResNet in eval mode by pycls's names, in float64.

    `floor` cuts off where SuperGlobal's code does (its model/resnet.py): after each block of fewer than
    2048 channels, of which the first three stages are, and after a and b of a bottleneck of 256
    channels, of which the first stage is; elsewhere 0 does.
    """
    state = {key: value.double() for key, value in state.items()}

    def conv(x, name, norm, stride=1):
        weight = state[f"{name}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)
        return F.batch_norm(x, state[f"{norm}.running_mean"], state[f"{norm}.running_var"],
                            state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-5)

    x = conv(images.double(), "stem.conv", "stem.bn", 2).clamp(min=0)
    x = F.max_pool2d(x, 3, 2, padding=1)
    bottleneck = depth >= 50
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        inside = floor if stage == 1 and bottleneck else 0.0
        after = floor if stage in (1, 2, 3) else 0.0
        for block in range(1, blocks + 1):
            name, stride = f"s{stage}.b{block}", 2 if stage > 1 and block == 1 else 1
            y = conv(x, f"{name}.f.a", f"{name}.f.a_bn", 1 if bottleneck else stride)
            y = conv(y.clamp(min=inside), f"{name}.f.b", f"{name}.f.b_bn", stride if bottleneck else 1)
            if bottleneck:
                y = conv(y.clamp(min=inside), f"{name}.f.c", f"{name}.f.c_bn")
            if f"{name}.proj.weight" in state:
                x = conv(x, f"{name}.proj", f"{name}.bn", stride)
            x = (x + y).clamp(min=after)
    return x.numpy()


def _slow_model(state: dict, images: torch.Tensor, depth: int = 50) -> np.ndarray:
    """The descriptors, raw, of a state dict with CVNet's names (less "encoder_q.")."""
    maps = _slow_maps(state, images, depth, 0.014)
    return _slow_descriptor(maps, *(state[f"head.fc.{part}"].double().numpy()
                                    for part in ("weight", "bias")))


def _cvnet_names(model: nn.Module) -> dict:
    """The tensors of one of our models under the names of CVNet's query encoder, written by hand."""
    return {key.removeprefix("backbone.") if key.startswith("backbone.") else f"head.{key}": value
            for key, value in model.state_dict().items()}


# ---------------------------------------------------------------------------- regional GeM

@pytest.mark.parametrize("size", [(7, 6), (3, 3), (5, 12), (2, 2), (2, 9), (6, 1), (1, 1)])
def test_regional_gem_against_its_definition(size):
    maps = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 3
    np.testing.assert_allclose(regional_gem(maps), _slow_regional(maps.double().numpy()), rtol=1e-5)
    np.testing.assert_allclose(regional_gem(maps, 3, 4.0),
                               _slow_regional(maps.double().numpy(), 3, 4.0), rtol=1e-5)


@pytest.mark.parametrize("size", [(7, 6), (3, 9)])
def test_regional_gem_against_torchs_power_pooling(size):
    """LPPool2d sums, where regional GeM has the mean."""
    maps = torch.rand(2, 3, *size) + 0.01
    windows = nn.LPPool2d(2.5, 5, stride=1)(nn.ReflectionPad2d(2)(maps)) / 25 ** (1 / 2.5)
    torch.testing.assert_close(regional_gem(maps), (windows + maps) / 2, rtol=1e-5, atol=1e-6)


def test_regional_gem_of_zeros_and_negative_values():
    """The original has NaN for these: of the values, or of the gradient."""
    maps = torch.randn(2, 4, 6, 5)
    maps[0, 0] = 0
    maps.requires_grad_()
    pooled = regional_gem(maps)
    np.testing.assert_allclose(pooled.detach(), _slow_regional(maps.detach().double().numpy()),
                               rtol=1e-5, atol=1e-7)
    pooled.sum().backward()
    assert torch.isfinite(maps.grad).all() and (maps.grad > 0).all()


def test_regional_gem_keeps_float32_under_autocast():
    maps = torch.full((1, 1, 4, 4), 300.0, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = regional_gem(maps)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, torch.full((1, 1, 4, 4), 300.0))


# ---------------------------------------------------------------------------- the model

@pytest.mark.parametrize("depth", [18, 50])
def test_the_whole_model_against_slow_code(depth):
    model = _model("MODEL.DEPTH", str(depth))
    images = torch.randn(2, 3, 160, 130)
    expected = _slow_model(_cvnet_names(model), images, depth)
    with torch.no_grad():
        outputs = model(images)
    assert isinstance(model, SuperGlobal) and list(outputs) == ["global"]
    np.testing.assert_allclose(outputs["global"], expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("arch, floor", [("superglobal", 0.014), ("gem", 0.0), ("dolg", 0.0)])
@pytest.mark.parametrize("depth", [18, 50])
def test_only_superglobal_cuts_off_above_zero(arch, floor, depth):
    backbone = _model("MODEL.DEPTH", str(depth), arch=arch).backbone
    images = torch.randn(1, 3, 96, 80)
    expected, other = (_slow_maps(backbone.state_dict(), images, depth, value)
                       for value in (floor, 0.014 - floor))
    with torch.no_grad():
        found = backbone(images)["stage4"].numpy()
    close = 2e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=close)
    assert np.abs(found - other).max() > 20 * close     # the floor makes a difference


def test_images_of_less_than_the_window_have_descriptors():
    model = _model()
    images = torch.randn(1, 3, 40, 20)      # a map of 2 x 1
    with torch.no_grad():
        np.testing.assert_allclose(model(images)["global"], _slow_model(_cvnet_names(model), images),
                                   atol=1e-5)


def test_without_a_reduction_the_descriptor_is_the_pooled_map():
    model = _model("MODEL.HEADS.REDUCTION_DIM", "0")
    images = torch.randn(1, 3, 96, 80)
    maps = _slow_maps(model.backbone.state_dict(), images, 50, 0.014)
    expected = _slow_descriptor(maps, np.eye(256), np.zeros(256))
    with torch.no_grad():
        found = model(images)["global"]
    assert model.dim == model.dims["global"] == 256
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_norms_fold_into_the_convolutions():
    model = _model()
    folded = fold_norms(model, torch.rand(1, 3, 96, 96))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images = torch.randn(2, 3, 100, 84)
    expected = _slow_model(_cvnet_names(model), images)
    with torch.no_grad():
        np.testing.assert_allclose(folded(images)["global"], expected,
                                   atol=2e-5 * np.abs(expected).max())


def test_recomputed_activations_give_the_same_gradients():
    grads = []
    for flag in ("False", "True"):
        model = _model("MODEL.DEPTH", "18", "TRAIN.ACT_CHECKPOINT", flag).train()
        torch.manual_seed(3)
        model(torch.randn(4, 3, 64, 64))["global"].square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------- scales

def _slow_scales(descriptors: list, pooling: str) -> np.ndarray:
    units = [[row / np.linalg.norm(row) for row in np.asarray(d, np.float64)] for d in descriptors]
    result = []
    for rows in zip(*units):
        entries = [max(values) if pooling == "max" else sum(values) for values in zip(*rows)]
        result.append(np.array(entries) / np.linalg.norm(entries))
    return np.array(result)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_scales_become_one_descriptor(pooling, count):
    rng = np.random.default_rng(count)
    raw = [torch.from_numpy(rng.normal(scale=10.0 ** i, size=(3, 7))) for i in range(count)]
    np.testing.assert_allclose(average_scales(raw, pooling), _slow_scales(raw, pooling), atol=1e-6)


def test_the_mean_of_scales_is_what_it_was_to_the_bit():
    raw = [torch.randn(4, 512) * 10 ** i for i in range(5)]
    total = 0
    for descriptor in raw:
        total = total + F.normalize(descriptor, dim=1)
    assert torch.equal(average_scales(raw), F.normalize(total, dim=1))


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_what_is_not_finite_at_one_scale_stays_so(pooling):
    pooled = average_scales([torch.tensor([[1.0, torch.nan], [3.0, 4.0]]), torch.ones(2, 2)], pooling)
    assert not torch.isfinite(pooled[0]).all() and torch.isfinite(pooled[1]).all()


def _raw_scales(model, images):
    spec = model.input_spec
    with torch.no_grad():
        return [model(preprocess(images, scaled_size(*images.shape[2:], scale), spec.colour, spec.mean,
                                 spec.sd))["global"] for scale in SCALES]


def test_images_described_by_the_largest_of_the_scales():
    model = _model()
    images = torch.randint(0, 256, (2, 3, 120, 90), dtype=torch.uint8)
    raw = _raw_scales(model, images)
    expected, mean = _slow_scales(raw, "max"), _slow_scales(raw, "mean")
    np.testing.assert_allclose(describe(model, images, SCALES, pooling="max"), expected, atol=1e-5)
    np.testing.assert_allclose(describe(model, images, SCALES), mean, atol=1e-5)
    assert np.abs(expected - mean).max() > 1e-3


@pytest.fixture(scope="module")
def settings(toy_images, tmp_path_factory) -> list:
    """Options that extract the toy images with a small SuperGlobal."""
    folder = tmp_path_factory.mktemp("superglobal")
    torch.save(_model("MODEL.DEPTH", "18").state_dict(), folder / "weights.pyth")
    return [*SMALL, "MODEL.DEPTH", "18", "MODEL.ARCH", "superglobal", "INFER.SCALES", SCALES,
            "TEST.WEIGHTS", folder / "weights.pyth", "INFER.IMAGES", toy_images / "toy" / "jpg",
            "DATA_LOADER.NUM_WORKERS", 0, "DEVICE", "cpu"]


def _extract(settings, folder, *options) -> FeatureStore:
    infer(load_cfg(None, [str(o) for o in (*settings, "INFER.OUT_DIR", folder, *options)]))
    return FeatureStore(folder / "jpg")


def test_the_store_records_how_scales_were_pooled_where_it_is_not_the_mean(settings, tmp_path):
    mean = _extract(settings, tmp_path / "mean")
    largest = _extract(settings, tmp_path / "max", "INFER.SCALE_POOLING", "max")
    assert largest.manifest["scale_pooling"] == "max" and "scale_pooling" not in mean.manifest
    assert {**mean.manifest, "scale_pooling": "max"} == largest.manifest
    model = _model("MODEL.DEPTH", "18")
    for store, pooling in ((mean, "mean"), (largest, "max")):
        table = np.asarray(store.global_descriptors())
        assert len(table) == 24 and not store.errors()
        for row in (0, 17):
            expected = _slow_scales(_raw_scales(model, _decoded(settings, store.names[row])), pooling)
            np.testing.assert_allclose(table[row:row + 1], expected, atol=1e-5)


def _decoded(settings, name):
    return read_image(Path(settings[settings.index("INFER.IMAGES") + 1]) / name)[None]


def test_stores_of_other_poolings_are_not_mixed(settings, tmp_path):
    _extract(settings, tmp_path)
    before = json.loads((tmp_path / "jpg" / "manifest.json").read_text())
    with pytest.raises(UserError, match='scale_pooling was null, is "max"'):
        _extract(settings, tmp_path, "INFER.SCALE_POOLING", "max")
    assert json.loads((tmp_path / "jpg" / "manifest.json").read_text()) == before
    with pytest.raises(UserError, match="INFER.SCALE_POOLING is 'min': choose one of mean, max"):
        _extract(settings, tmp_path, "INFER.SCALE_POOLING", "min")


def test_the_retrieval_during_training_pools_as_extraction_does(monkeypatch):
    seen = []

    class Seen(Extractor):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            seen.append(self.pooling)

    monkeypatch.setattr(validation, "Extractor", Seen)
    for name, value in {"revisited_truth": None, "revisited_set": {}, "revisited_map": {}}.items():
        monkeypatch.setattr(validation, name, lambda *args, _value=value, **kwargs: _value)
    for pooling in ("max", "mean"):
        cfg = load_cfg(None, ["TEST.RETRIEVAL", "toy", "INFER.SCALE_POOLING", pooling])
        module = SimpleNamespace(model=_model("MODEL.DEPTH", "18"))
        validation.Revisited(cfg)(module)
    assert seen == ["max", "mean"]


# ---------------------------------------------------------------------------- CVNet's files

def _cvnet_file(path, model, **more) -> dict:
    """A file as CVNet publishes them, and with what its training and SuperGlobal's code add."""
    own = _cvnet_names(model)
    state = {f"encoder_q.{key}": value for key, value in own.items()}
    state.update({f"encoder_k.{key}": torch.randn_like(value, dtype=torch.float32)
                  for key, value in own.items()})
    state.update({"encoder_q.head.pool.p": torch.tensor([2.9]), "queue": torch.randn(24, 10),
                  "queue_ptr": torch.zeros(1), "conv2ds.0.weight": torch.randn(4, 4, 3, 3),
                  "cv_learner.block1.0.conv1.weight": torch.randn(4, 9, 5, 5),
                  "cv_learner.mlp.2.bias": torch.zeros(2), "encoder_q.seb1.weight": torch.randn(2, 2),
                  "encoder_q.seb2.bias": torch.zeros(2), "encoder_q.sefc.weight": torch.zeros(1, 2),
                  **more})
    torch.save({"epoch": 24, "model_state": state}, path)
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_file_of_cvnet_gives_its_descriptors(tmp_path, prefix):
    state = _cvnet_file(tmp_path / "cvnet.pyth", _model())
    torch.save({"model_state": {prefix + key: value for key, value in state.items()}},
               tmp_path / "cvnet.pyth")
    torch.manual_seed(5)
    model = build_model(load_cfg(None, [*SMALL, "MODEL.ARCH", "superglobal"])).eval()
    said = load_weights(model, tmp_path / "cvnet.pyth")
    assert "(CVNet) into SuperGlobal" in said and f"loaded {len(model.state_dict())} tensors" in said
    images = torch.randn(1, 3, 110, 96)
    query = {key.removeprefix("encoder_q."): value for key, value in state.items()
             if key.startswith("encoder_q.")}
    expected = _slow_model(query, images)
    with torch.no_grad():
        np.testing.assert_allclose(model(images)["global"], expected,
                                   atol=2e-5 * np.abs(expected).max())


def test_cvnet_was_fed_bgr(tmp_path):
    _cvnet_file(tmp_path / "cvnet.pyth", _model())
    images, outputs = torch.randn(1, 3, 96, 96), []
    for colour, fed in (("bgr", images), ("rgb", images.flip(1))):
        model = _model("INPUT.COLOUR", colour)
        load_weights(model, tmp_path / "cvnet.pyth")
        with torch.no_grad():
            outputs.append(model(fed)["global"])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_a_file_that_lacks_a_part_or_has_an_unknown_one_is_refused(tmp_path):
    state = _cvnet_file(tmp_path / "more.pyth", _model(), **{"encoder_q.s5.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="1 unexpected: backbone.s5.weight"):
        load_weights(_model(), tmp_path / "more.pyth")
    _cvnet_file(tmp_path / "other.pyth", _model(), margin=torch.zeros(1))
    with pytest.raises(UserError, match="looks like a file of CVNet, but its key margin is none"):
        load_weights(_model(), tmp_path / "other.pyth")
    for key in ("encoder_q.s5.weight", "encoder_q.head.fc.bias"):
        del state[key]
    torch.save({"model_state": state}, tmp_path / "less.pyth")
    with pytest.raises(UserError, match="1 missing: fc.bias "):
        load_weights(_model(), tmp_path / "less.pyth")


def test_out_to_the_layout_of_cvnet_and_back():
    model = _model()
    state = unsort_keys({"model": model.state_dict()}, "CVNet")
    assert state.keys() == {f"encoder_q.{key}" for key in _cvnet_names(model)}
    name, parts = sort_keys(state, "file")
    assert name == "CVNet" and list(parts) == ["model"]
    assert parts["model"].keys() == model.state_dict().keys()
    assert all(torch.equal(parts["model"][key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("depth", [50, 101])
def test_the_configuration_files_are_of_the_published_networks(depth):
    """Names and shapes of CVNet's query encoder, as its model/resnet.py builds it."""
    shapes = {"stem.conv.weight": (64, 3, 7, 7), "head.fc.weight": (2048, 2048), "head.fc.bias": (2048,)}
    norms, w_in = {"stem.bn": 64}, 64
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        inner = 32 * 2 ** stage
        for block in range(1, blocks + 1):
            name = f"s{stage}.b{block}"
            if block == 1:
                shapes[f"{name}.proj.weight"], norms[f"{name}.bn"] = (4 * inner, w_in, 1, 1), 4 * inner
            shapes |= {f"{name}.f.a.weight": (inner, w_in, 1, 1),
                       f"{name}.f.b.weight": (inner, inner, 3, 3),
                       f"{name}.f.c.weight": (4 * inner, inner, 1, 1)}
            norms |= {f"{name}.f.a_bn": inner, f"{name}.f.b_bn": inner, f"{name}.f.c_bn": 4 * inner}
            w_in = 4 * inner
    for norm, width in norms.items():
        shapes |= {f"{norm}.{part}": (width,)
                   for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{norm}.num_batches_tracked"] = ()
    cfg = load_cfg(str(ROOT / "configs" / "eval" / f"superglobal_r{depth}.yaml"))
    with torch.device("meta"):
        model = build_model(cfg)
    assert {key: tuple(value.shape) for key, value in _cvnet_names(model).items()} == shapes
    assert cfg.INFER.SCALES == SCALES and cfg.INFER.SCALE_POOLING == "max"
    spec = model.input_spec
    assert spec.colour == "bgr" and spec.mean == (0.406, 0.456, 0.485) and spec.sd == (0.225, 0.224, 0.229)
