"""Every model on every kind of backbone: shapes, gradients, and what they promise."""
import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.errors import UserError
from dolg.models import build_model
from dolg.models.backbones.resnet import ResNet
from dolg.models.builders import MODELS
from dolg.models.dolg import orthogonal_part
from dolg.models.layers import GeM

BACKBONES = {
    "resnet18": ["MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "16"],
    "resnet50": ["MODEL.DEPTH", "50", "RESNET.STEM_WIDTH", "16"],
    "resnext50": ["MODEL.DEPTH", "50", "RESNET.NUM_GROUPS", "32", "RESNET.WIDTH_PER_GROUP", "4"],
    "efficientnet": ["MODEL.TYPE", "timm", "TIMM.NAME", "tf_efficientnet_lite0"],
    "densenet": ["MODEL.TYPE", "timm", "TIMM.NAME", "densenet121"],
}


def _model(*options):
    torch.manual_seed(0)
    return build_model(load_cfg(None, ["MODEL.HEADS.REDUCTION_DIM", "24", *options]))


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_shapes_and_gradients(arch, backbone):
    model = _model("MODEL.ARCH", arch, *BACKBONES[backbone]).train()
    outputs = model(torch.randn(2, 3, 96, 64))
    assert outputs["global"].shape == (2, 24) and model.dim == 24
    if arch == "dolg":
        channels = model.backbone.channels["stage3"]
        assert outputs["local"].shape == (2, channels, 6, 4)
        assert outputs["attention"].shape == (2, 1, 6, 4) and (outputs["attention"] > 0).all()
    assert torch.isfinite(outputs["global"]).all()
    outputs["global"].square().sum().backward()
    without = [name for name, p in model.named_parameters()
               if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_announce_their_maps(backbone):
    network = _model(*BACKBONES[backbone]).backbone.eval()
    with torch.no_grad():
        maps = network(torch.randn(1, 3, 128, 96))
    assert list(maps) == ["stage3", "stage4"]
    for name, map_ in maps.items():
        stride = network.strides[name]
        assert map_.shape == (1, network.channels[name], 128 // stride, 96 // stride)
    assert network.input_spec.colour in ("rgb", "bgr")


@pytest.mark.parametrize("depth, millions", [(18, 11.177), (34, 21.285), (50, 23.508),
                                             (101, 42.500), (152, 58.144)])
def test_resnets_have_the_published_size(depth, millions):
    # torchvision's counts (11.690M, 21.798M, 25.557M, 44.549M, 60.193M) less the classifier
    with torch.device("meta"):
        parameters = sum(p.numel() for p in ResNet(depth).parameters())
    assert abs(parameters / 1e6 - millions) < 6e-4


def test_multi_atrous_block_is_there_only_where_asked():
    options = ["MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "16"]
    with_block, without = _model("MODEL.WITH_MA", "True", *options), _model(*options)
    assert any("multi_atrous" in name for name, _ in with_block.named_parameters())
    assert not any("multi_atrous" in name for name, _ in without.named_parameters())
    outputs = with_block(torch.randn(2, 3, 64, 64))
    outputs["global"].sum().backward()
    assert all(p.grad is not None for p in with_block.parameters())


def test_orthogonal_part_against_the_paper():
    # Equation 3 of the paper, position by position, in float64
    rng = np.random.default_rng(0)
    maps, directions = rng.normal(size=(3, 8, 4, 5)), rng.normal(size=(3, 8))
    expected = np.zeros((3, 8))
    for b in range(3):
        for y in range(4):
            for x in range(5):
                f, g = maps[b, :, y, x], directions[b]
                expected[b] += (f - (f @ g) / (g @ g) * g) / 20
    got = orthogonal_part(torch.from_numpy(maps).mean((2, 3)), torch.from_numpy(directions))
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_orthogonal_part_where_it_is_hard():
    zero = orthogonal_part(torch.ones(1, 4), torch.zeros(1, 4))
    assert torch.equal(zero, torch.ones(1, 4))
    torch.manual_seed(0)
    direction = torch.randn(1, 512)
    nearly_parallel = 100 * direction + 1e-3 * torch.randn(1, 512)
    rest = orthogonal_part(nearly_parallel, direction)
    cosine = (rest * direction).sum() / (rest.norm() * direction.norm())
    assert abs(cosine) < 1e-6


@pytest.mark.parametrize("p", [1.0, 2.5, 3.0])
def test_gem_against_its_definition(p):
    maps = torch.randn(2, 3, 4, 5)
    expected = np.mean(np.maximum(maps.double().numpy(), 1e-6) ** p, axis=(2, 3)) ** (1 / p)
    np.testing.assert_allclose(GeM(p)(maps).detach(), expected, rtol=1e-5)


def test_gem_stays_in_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        pooled = GeM()(torch.full((1, 1, 2, 2), 1e4, dtype=torch.bfloat16))
    assert pooled.dtype == torch.float32 and torch.isfinite(pooled).all()


@pytest.mark.parametrize("options, message", [
    (["MODEL.ARCH", "dlog"], "MODEL.ARCH is 'dlog': choose one of dolg, gem (did you mean 'dolg'?)"),
    (["MODEL.TYPE", "vgg"], "MODEL.TYPE is 'vgg': choose one of resnet, timm"),
    (["MODEL.DEPTH", "51"], "MODEL.DEPTH is 51: choose one of 18, 34, 50, 101, 152"),
    (["MODEL.HEADS.IN_FEAT", "512"], "512, but the last stage of this backbone has 2048"),
    (["MODEL.TYPE", "timm", "TIMM.NAME", "efficientnet_b99"], "which timm"),
    (["RESNET.TRANS_FUN", "basic_transform"], "ResNet of MODEL.DEPTH 50 has bottleneck_transform"),
])
def test_wrong_names_are_explained(options, message):
    with pytest.raises(UserError) as error:
        build_model(load_cfg(None, options))
    assert message in str(error.value) and "\n" not in str(error.value)
