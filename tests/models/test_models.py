"""Every model on every kind of backbone: shapes, gradients, and what they promise."""
import numpy as np
import pytest
import torch

from dolg.config import load_cfg
from dolg.errors import UserError
from dolg.models import build_model
from dolg.models.backbones.resnet import ResNet
from dolg.models.backbones.timm import TimmBackbone
from dolg.models.builders import MODELS
from dolg.models.dolg import orthogonal_part
from dolg.models.layers import GeM
from dolg.models.poolings import POOLINGS

BACKBONES = {
    "resnet18": ["MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "16"],
    "resnet50": ["MODEL.DEPTH", "50", "RESNET.STEM_WIDTH", "16"],
    "resnext50": ["MODEL.DEPTH", "50", "RESNET.NUM_GROUPS", "32", "RESNET.WIDTH_PER_GROUP", "4"],
    "efficientnet": ["MODEL.TYPE", "timm", "TIMM.NAME", "tf_efficientnet_lite0"],
    "densenet": ["MODEL.TYPE", "timm", "TIMM.NAME", "densenet121"],
    "resnest": ["MODEL.TYPE", "timm", "TIMM.NAME", "resnest14d"],
    "nfnet": ["MODEL.TYPE", "timm", "TIMM.NAME", "nf_regnet_b0"],
    "convnext": ["MODEL.TYPE", "timm", "TIMM.NAME", "convnext_atto"],
    "swin": ["MODEL.TYPE", "timm", "TIMM.NAME", "swin_tiny_patch4_window7_224"],
    "vit": ["MODEL.TYPE", "timm", "TIMM.NAME", "vit_tiny_patch16_224"],
    "dinov2": ["MODEL.TYPE", "timm", "TIMM.NAME", "vit_small_patch14_dinov2"],
}
# Those whose maps are not cut by exactly their strides: patches of 14 pixels
UNEVEN = {"dinov2"}


def _model(*options):
    torch.manual_seed(0)
    return build_model(load_cfg(None, ["MODEL.HEADS.REDUCTION_DIM", "24", "MODEL.DELG.LOCAL_DIM",
                                       "20", "MODEL.CGD.FEATURE_DIM", "24", *options]))


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_shapes_and_gradients(arch, backbone):
    model = _model("MODEL.ARCH", arch, *BACKBONES[backbone]).train()
    outputs = model(torch.randn(2, 3, 112, 84))
    assert outputs["global"].shape == (2, 24) and model.dim == model.dims["global"] == 24
    if arch in ("dolg", "delg"):
        channels = {"dolg": model.backbone.channels["stage3"], "delg": 20}[arch]
        size = outputs["attention"].shape[2:]
        assert outputs["local"].shape == (2, channels, *size)
        assert outputs["attention"].shape == (2, 1, *size) and (outputs["attention"] > 0).all()
    if arch == "cgd":
        assert outputs["auxiliary"].shape == (2, model.dims["auxiliary"])
        torch.testing.assert_close(outputs["global"].norm(dim=1), torch.ones(2))
    for output in outputs.values():
        assert torch.isfinite(output).all()
    # Not the length, which is CGD's 1 whatever the weights
    (outputs["global"] * torch.randn(2, 24)).sum().backward(retain_graph=True)
    if arch == "delg":
        outputs["local"].square().sum().backward()
    if arch == "rrt_sop":
        assert outputs["local"].shape[:2] == (2, model.local_dim) == (2, 128)
        model.match(outputs["local"], outputs["local"].flip(0)).sum().backward()
    without = [name for name, p in model.named_parameters()
               if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without


@pytest.mark.parametrize("backbone", BACKBONES)
def test_backbones_announce_their_maps(backbone):
    network = _model(*BACKBONES[backbone]).backbone.eval()
    with torch.no_grad():
        maps = network(torch.randn(1, 3, 128, 96))
        odd = network(torch.randn(1, 3, 117, 75))       # an image as it comes
    assert list(maps) == list(odd) == ["stage3", "stage4"]
    for name, map_ in maps.items():
        stride = network.strides[name]
        assert map_.shape[:2] == odd[name].shape[:2] == (1, network.channels[name])
        if backbone not in UNEVEN:
            assert map_.shape[2:] == (128 // stride, 96 // stride)
        assert map_.shape[2] >= odd[name].shape[2] and map_.shape[3] >= odd[name].shape[3]
        assert torch.isfinite(odd[name]).all()
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


@pytest.mark.parametrize("name", POOLINGS)
def test_what_every_pooling_does(name):
    pool = POOLINGS[name](3.0, 1e-6)
    maps = torch.rand(2, 3, 4, 5, requires_grad=True)
    pooled = pool(maps)
    assert pooled.shape == (2, 3)
    turned = maps.flatten(2)[:, :, torch.randperm(20)].view(2, 3, 5, 4)
    torch.testing.assert_close(pool(turned), pooled)        # where something is does not matter
    torch.testing.assert_close(pool(torch.full((1, 3, 2, 7), 0.25)), torch.full((1, 3), 0.25))
    low, high = maps.amin(dim=(2, 3)), maps.amax(dim=(2, 3))
    assert (pooled >= low).all() and (pooled <= high + 1e-6).all()
    pooled.sum().backward()
    assert torch.isfinite(maps.grad).all() and (maps.grad.flatten(2).abs().sum(2) > 0).all()


def test_a_model_pools_as_it_is_told():
    model = _model("MODEL.ARCH", "gem", "MODEL.POOLING", "maximum", *BACKBONES["resnet18"]).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        highest = model.backbone(images)["stage4"].flatten(2).max(dim=2).values
        torch.testing.assert_close(model(images)["global"], model.fc(highest))
    with pytest.raises(UserError, match="MODEL.POOLING is 'mean': choose one of average, gem, maximum"):
        _model("MODEL.ARCH", "gem", "MODEL.POOLING", "mean")
    with pytest.raises(UserError, match="MODEL.ARCH dolg has poolings of its own"):
        _model("MODEL.POOLING", "average")


def test_gem_stays_in_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        pooled = GeM()(torch.full((1, 1, 2, 2), 1e4, dtype=torch.bfloat16))
    assert pooled.dtype == torch.float32 and torch.isfinite(pooled).all()


def test_the_attention_of_delg_never_reaches_the_backbone():
    model = _model("MODEL.ARCH", "delg", *BACKBONES["resnet18"]).train()
    outputs = model(torch.randn(2, 3, 64, 64))
    (outputs["local"].sum() + outputs["attention"].sum()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("attention."), name


@pytest.mark.parametrize("config", ["S", "M", "G", "SM", "MS", "SG", "GS", "MG", "GM", "SMG", "MSG",
                                    "GSM", "GMS", "SS"])
def test_cgd_against_its_definition(config):
    model = _model("MODEL.ARCH", "cgd", "MODEL.CGD.CONFIG", config, *BACKBONES["resnet18"]).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        outputs = model(images)
        maps = model.backbone(images)["stage4"].double().numpy()
    pools = {"S": lambda m: m.mean((2, 3)), "M": lambda m: m.max((2, 3)),
             "G": lambda m: (np.maximum(m, 1e-6) ** 3).mean((2, 3)) ** (1 / 3)}
    parts = []
    for letter, branch in zip(config, model.branches):
        part = pools[letter](maps) @ branch.weight.detach().double().numpy().T
        parts.append(part / np.linalg.norm(part, axis=1, keepdims=True))
    expected = np.concatenate(parts, axis=1) / np.sqrt(len(config))
    np.testing.assert_allclose(outputs["global"], expected, atol=1e-6)
    np.testing.assert_allclose(outputs["auxiliary"], pools[config[0]](maps), rtol=1e-5)


def test_cgd_keeps_the_resolution_of_the_third_stage():
    given = _model("MODEL.ARCH", "gem", "RESNET.STRIDES", "[1, 2, 1, 2]", *BACKBONES["resnet18"])
    assert given.backbone.strides == {"stage3": 8, "stage4": 16}
    backbone = _model("MODEL.ARCH", "cgd", *BACKBONES["resnet50"]).backbone
    assert backbone.strides == {"stage3": 8, "stage4": 16}
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, 224, 224))["stage4"].shape[2:] == (14, 14)


def test_colours_and_statistics_follow_the_configuration():
    assert _model(*BACKBONES["resnet18"]).input_spec.colour == "bgr"
    rgb = _model("MODEL.ARCH", "cgd", *BACKBONES["resnet18"]).input_spec
    assert rgb.colour == "rgb" and rgb.mean == (0.485, 0.456, 0.406) and not rgb.antialias
    given = _model("INPUT.MEAN", "[0.1, 0.2, 0.3]", "INPUT.ANTIALIAS", "True", "INPUT.COLOUR",
                   "rgb", *BACKBONES["resnet18"]).input_spec
    assert given.mean == (0.1, 0.2, 0.3) and given.sd == rgb.sd and given.antialias


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "convnext", "vit"])
def test_recomputed_activations_give_the_same_gradients(backbone):
    """And the same running statistics: the second pass must not count."""
    results = []
    for flag in ("False", "True"):
        model = _model("MODEL.ARCH", "gem", "TRAIN.ACT_CHECKPOINT", flag, *BACKBONES[backbone])
        model.train()
        torch.manual_seed(3)
        model(torch.randn(4, 3, 64, 64))["global"].square().sum().backward()
        results.append(({k: p.grad for k, p in model.named_parameters()}, dict(model.named_buffers())))
    (kept, kept_buffers), (anew, anew_buffers) = results
    assert kept.keys() == anew.keys()
    for key in kept:
        torch.testing.assert_close(anew[key], kept[key], rtol=1e-4, atol=1e-6)
    for key in kept_buffers:
        torch.testing.assert_close(anew_buffers[key], kept_buffers[key])


def test_recomputing_keeps_fewer_activations():
    kept = []
    for flag in ("False", "True"):
        model = _model("MODEL.ARCH", "gem", "TRAIN.ACT_CHECKPOINT", flag, *BACKBONES["resnet50"])
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor: saved.append(tensor.numel()) or tensor, lambda tensor: tensor):
            model.train()(torch.randn(1, 3, 64, 64))
        kept.append(sum(saved))
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch14_dinov2"])
def test_vision_transformers_keep_all_blocks(name):
    import timm

    network = TimmBackbone(name).eval()
    whole = timm.create_model(name, dynamic_img_size=True, dynamic_img_pad=True).eval()
    blocks = {key: value for key, value in whole.state_dict().items()
              if not key.startswith(("norm.", "head.", "fc_norm."))}
    assert len(network.body.model.blocks) == 12
    network.body.model.load_state_dict(blocks)
    images = torch.randn(1, 3, 112, 84)
    with torch.no_grad():
        expected = whole.forward_intermediates(images, indices=[8, 11], norm=False,
                                               intermediates_only=True)
        for mine, theirs in zip(network(images).values(), expected, strict=True):
            torch.testing.assert_close(mine, theirs)


def test_a_backbone_with_one_map_is_explained(monkeypatch):
    from dolg.models.backbones import timm as timm_backbone

    monkeypatch.setattr(timm_backbone, "_last_two", lambda strides: (len(strides) - 1,))
    options = ["MODEL.TYPE", "timm", "TIMM.NAME", "tf_efficientnet_lite0"]
    assert _model("MODEL.ARCH", "gem", *options).backbone.channels == {"stage4": 320}
    with pytest.raises(UserError, match="needs the last two maps.* such as tf_efficientnet_b5"):
        _model("MODEL.ARCH", "dolg", *options)


@pytest.mark.parametrize("options, message", [
    (["MODEL.ARCH", "dlog"], "MODEL.ARCH is 'dlog': choose one of cgd, delg, dolg, gem, "),
    (["MODEL.ARCH", "dlog"], "superglobal (did you mean 'dolg'?)"),
    (["MODEL.ARCH", "cgd", "MODEL.CGD.CONFIG", "SX"], "MODEL.CGD.CONFIG is 'SX': give letters of"),
    (["MODEL.ARCH", "cgd", "MODEL.CGD.FEATURE_DIM", "25"], "does not split evenly among the 2"),
    (["MODEL.TYPE", "timm", "TIMM.NAME", "sknet_nothing"], "which timm"),
    (["MODEL.TYPE", "timm", "TIMM.NAME", "densenet121", "INPUT.COLOUR", "bgr"], "takes rgb"),
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
