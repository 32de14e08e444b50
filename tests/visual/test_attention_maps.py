"""Maps of attention against slow code on the network's own pieces, and where they lie over an image."""
import math

import cv2
import matplotlib
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dolg.config import load_cfg
from dolg.core.precision import PRECISIONS
from dolg.errors import UserError
from dolg.models import build_model
from dolg.models.backbones.input_spec import TORCHVISION
from dolg.models.layers import GeM
from dolg.models.poolings import AveragePooling, MaximumPooling
from dolg.models.superglobal import regional_gem
from dolg.visual.attention import AttentionMap, attention_maps, orthogonal_shares, pooled_shares
from dolg.visual.draw_attention import colour_range, draw_attention
from dolg.visual.drawing import overlaid, write_picture
from dolg.visual.photographs import Photograph, open_photograph

SCALES = [0.5, 1.0, 1.4142]


def network(arch, *options):
    torch.manual_seed(0)
    model = build_model(load_cfg(None, ["MODEL.ARCH", arch, "MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "8",
                                        "MODEL.HEADS.REDUCTION_DIM", "12", "MODEL.DELG.LOCAL_DIM", "10",
                                        "MODEL.CGD.FEATURE_DIM", "12", *options])).eval()
    for module in model.modules():      # statistics that a folded or ignored norm would show
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


@pytest.fixture
def pixels():
    return np.random.default_rng(3).integers(0, 256, (90, 130, 3), dtype=np.uint8)


def fed(model, pixels, scale):
    """What extraction feeds a network, written once more: resized, in its colours' order, normalised."""
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    size = round(pixels.shape[0] * scale), round(pixels.shape[1] * scale)
    x = F.interpolate(x, size=size, mode="bilinear", align_corners=False) / 255
    if model.input_spec.colour == "bgr":
        x = x.flip(1)
    mean, sd = (torch.tensor(v)[None, :, None, None] for v in (model.input_spec.mean, model.input_spec.sd))
    return (x - mean) / sd


def by_kind(maps):
    found = {}
    for one in maps:
        found.setdefault((one.kind, one.title), []).append(one)
    return found


@pytest.mark.parametrize("arch", ["dolg", "delg", "gem"])
def test_attention_is_the_networks_own(arch, pixels):
    model = network(arch)
    maps = attention_maps(model, pixels, SCALES, ["attention"])
    assert [one.scale for one in maps] == SCALES
    for one, scale in zip(maps, SCALES):
        with torch.no_grad():
            outputs = model(fed(model, pixels, scale))
        np.testing.assert_allclose(one.values, outputs["attention"][0, 0].numpy(), rtol=1e-4, atol=1e-5)
        assert one.fed == (round(90 * scale), round(130 * scale))


def test_attention_of_gem_is_a_length(pixels):
    model = network("gem")
    one, = attention_maps(model, pixels, [1.0], ["attention"])
    with torch.no_grad():
        stage3 = model.backbone(fed(model, pixels, 1.0))["stage3"][0]
    for row, column in ((0, 0), (2, 5), (5, 8)):
        length = math.sqrt(sum(float(v) ** 2 for v in stage3[:, row, column]))
        assert one.values[row, column] == pytest.approx(length, rel=1e-4)


def slow_orthogonal(local, direction):
    """|l - (l.g / g.g) g| / |l| of every position, in plain Python."""
    found = np.zeros(local.shape[1:])
    g = [float(v) for v in direction]
    gg = sum(v * v for v in g)
    for row in range(local.shape[1]):
        for column in range(local.shape[2]):
            x = [float(v) for v in local[:, row, column]]
            along = sum(a * b for a, b in zip(x, g)) / gg if gg else 0.0
            rest = math.sqrt(sum((a - along * b) ** 2 for a, b in zip(x, g)))
            whole = math.sqrt(sum(a * a for a in x))
            found[row, column] = rest / whole if whole else 0.0
    return found


def test_orthogonal_shares_of_vectors():
    rng = torch.Generator().manual_seed(1)
    local = torch.randn(2, 6, 3, 4, generator=rng) * 5
    direction = torch.randn(2, 6, generator=rng) * 3
    local[0, :, 1, 1] = 0                               # no length
    local[0, :, 0, 0] = -2 * direction[0]               # parallel: nothing is left
    local[1, :, 2, 3] = torch.linalg.qr(torch.stack([direction[1], torch.ones(6)], 1))[0][:, 1]
    found = orthogonal_shares(local, direction)
    for image in range(2):
        np.testing.assert_allclose(found[image], slow_orthogonal(local[image], direction[image]), atol=1e-5)
    assert found[0, 1, 1] == 0 and found[0, 0, 0] < 1e-5 and found[1, 2, 3] == pytest.approx(1, abs=1e-5)
    # Without a direction nothing is taken away
    np.testing.assert_allclose(orthogonal_shares(local[:1], torch.zeros(1, 6))[
                               0] > 0, local[0].norm(dim=0) > 0)


def test_orthogonal_map_of_dolg(pixels):
    model = network("dolg", "MODEL.WITH_MA", "True")
    maps = attention_maps(model, pixels, [0.7, 1.0], ["orthogonal"])
    for one, scale in zip(maps, [0.7, 1.0], strict=True):
        with torch.no_grad():
            stages = model.backbone(fed(model, pixels, scale))
            direction = model.fc_global(model.pool(stages["stage4"]))[0]
            local, _ = model.attention(model.multi_atrous(stages["stage3"]))
        expected = slow_orthogonal(local[0].double().numpy(), direction)
        np.testing.assert_allclose(one.values, expected, atol=1e-4)


def slow_shares(kind, maps, p=3.0, eps=1e-6):
    """Shares of |g|^2, channel by channel, by the definition of each pooling."""
    channels, rows, columns = maps.shape
    found, squared = np.zeros((rows, columns)), 0.0
    for channel in maps.astype(np.float64):
        if kind == "gem":
            powers = np.maximum(channel, eps) ** p
            pooled, parts = powers.mean() ** (1 / p), powers / powers.sum()
        elif kind == "average":
            pooled, parts = channel.mean(), channel / channel.sum()
        else:
            pooled = channel.max()
            parts = (channel == pooled) / (channel == pooled).sum()
        found += pooled ** 2 * parts
        squared += pooled ** 2
    return found / squared


@pytest.mark.parametrize("kind, pool", [
    ("gem", GeM(3.0)), ("gem", GeM(1.0)), ("gem", GeM(4.6, fixed=True)),
    ("average", AveragePooling()), ("maximum", MaximumPooling())])
def test_pooled_shares(kind, pool):
    maps = np.random.default_rng(0).gamma(0.5, 2.0, (1, 7, 4, 5)).astype(np.float32)
    maps[0, 2, 1, 1] = maps[0, 2, 3, 3] = 30        # two equal maxima
    p = torch.as_tensor(pool.p).item() if kind == "gem" else 0.0
    found = pooled_shares(pool, torch.from_numpy(maps)).numpy()[0]
    np.testing.assert_allclose(found, slow_shares(kind, maps[0], p), rtol=1e-4, atol=1e-6)
    assert found.sum() == pytest.approx(1, abs=1e-5)


def test_shares_of_nothing_are_none():
    assert (pooled_shares(MaximumPooling(), torch.zeros(1, 3, 2, 2)) == 0).all()


@pytest.mark.parametrize("arch, p", [("gem", 3.0), ("superglobal", 4.6), ("delg", 3.0)])
def test_share_map_is_of_what_the_network_pools(arch, p, pixels):
    model = network(arch)
    for one, scale in zip(attention_maps(model, pixels, SCALES, ["share"]), SCALES, strict=True):
        with torch.no_grad():
            stage4 = model.backbone(fed(model, pixels, scale))["stage4"]
            pooled = regional_gem(stage4) if arch == "superglobal" else stage4
        expected = slow_shares("gem", pooled[0].numpy(), p)
        np.testing.assert_allclose(one.values, expected, rtol=2e-3, atol=1e-5)


def test_each_pooling_of_cgd_has_a_map(pixels):
    model = network("cgd", "MODEL.CGD.CONFIG", "SMG")
    found = by_kind(attention_maps(model, pixels, [1.0, 0.5]))
    assert [title for _, title in found] == [f"share in the pooled vector ({name})"
                                             for name in ("average", "maximum", "GeM")]
    with torch.no_grad():
        stage4 = model.backbone(fed(model, pixels, 0.5))["stage4"][0].numpy()
    for kind, maps in zip(("average", "maximum", "gem"), found.values()):
        np.testing.assert_allclose(maps[1].values, slow_shares(kind, stage4), rtol=2e-3, atol=1e-5)


def test_kinds_come_in_order_and_nothing_stays_hooked(pixels):
    model = network("dolg")
    maps = attention_maps(model, pixels, [1.0, 0.5, 1.0])
    assert [(one.kind, one.scale) for one in maps] == [
        (kind, scale) for kind in ("attention", "orthogonal", "share") for scale in (1.0, 0.5)]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert [one.kind for one in attention_maps(model, pixels, [1.0], ["share", "attention"])] == [
        "share", "attention"]


def test_square_input_and_half_precision(pixels):
    model = network("delg")
    one, = attention_maps(model, pixels, [1.0], ["attention"], side=64)
    assert one.fed == (64, 64) and one.values.shape == (4, 4)
    whole, = attention_maps(model, pixels, [1.0], ["attention"])
    half, = attention_maps(model, pixels, [1.0], ["attention"], PRECISIONS["bf16"])
    assert half.values.dtype == np.float32
    assert 0 < np.abs(half.values - whole.values).max() < 0.1 * whole.values.max()


def test_a_network_without_maps(pixels):
    with pytest.raises(UserError, match="TransformerOnMaps has no attention or orthogonal or share"):
        attention_maps(network("rrt_sop", "MODEL.RRT.DIM", "8"), pixels, [1.0])
    with pytest.raises(UserError, match="DELG has no orthogonal to show"):
        attention_maps(network("delg"), pixels, [1.0], ["orthogonal"])


# Where heat lies

def centre_of_heat(picture, photo):
    """Mean column and row, weighed by how much redder than the grey photograph a pixel became."""
    heat = picture[..., 0].astype(float) - picture[..., 2]
    heat = np.maximum(heat - np.percentile(heat, 60), 0)
    rows, columns = np.indices(heat.shape)
    return (columns * heat).sum() / heat.sum(), (rows * heat).sum() / heat.sum()


@pytest.mark.parametrize("size", [(60, 60), (60, 140), (150, 50)])
def test_cells_share_the_image_evenly(size):
    rng = np.random.default_rng(0)
    photo = np.full((*size, 3), 128, np.uint8)
    for _ in range(10):
        shape = rng.integers(2, 9, 2)
        row, column = (int(rng.integers(0, n)) for n in shape)
        values = np.zeros(shape, np.float32)
        values[row, column] = 1
        hot = overlaid(photo, values, 0, 1)[..., 0].astype(int)
        y, x = (np.argwhere(hot == hot.max()).mean(axis=0) + 0.5)
        cell = np.array(size) / shape
        # At an edge the hottest part reaches from the cell's centre to the edge
        assert abs(y - (row + 0.5) * cell[0]) <= cell[0] / 4 + 1
        assert abs(x - (column + 0.5) * cell[1]) <= cell[1] / 4 + 1


def test_overlay_colours():
    photo = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    values = np.array([[0.0, 2.0], [-5.0, 9.0]], np.float32).repeat(2, 0).repeat(3, 1)
    found = overlaid(photo, values, 0.0, 4.0, opacity=0.5)
    table = matplotlib.colormaps["inferno"]
    for row, column in np.ndindex(4, 6):
        r, g, b = photo[row, column].astype(float)
        grey = (0.299 * r + 0.587 * g + 0.114 * b) / 255
        colour = table(min(1.0, max(0.0, float(values[row, column]) / 4)))[:3]
        np.testing.assert_allclose(found[row, column], [255 * (0.5 * c + 0.5 * grey)
                                   for c in colour], atol=1.6)


class Brightness(torch.nn.Module):
    """A network whose attention is the mean brightness of 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.unit = torch.nn.Parameter(torch.ones(1))
        self.input_spec, self.dim = TORCHVISION, 1

    def forward(self, images):
        bright = F.avg_pool2d(images.mean(dim=1, keepdim=True), 8)
        return {"global": bright.mean(dim=(1, 2, 3))[:, None], "attention": bright - bright.min()}


@pytest.mark.parametrize("box", [None, (24.7, 8.2, 200.0, 120.9), (40.0, 0.0, 1000.0, 150.0)])
def test_heat_lies_on_what_is_bright(box, tmp_path):
    pixels = np.full((160, 240, 3), 40, np.uint8)
    pixels[64:96, 120:168] = 220
    cv2.imwrite(str(tmp_path / "photo.png"), pixels)
    photo = open_photograph(tmp_path / "photo.png", box)
    left, top = (int(box[0]), int(box[1])) if box else (0, 0)
    assert (photo.left, photo.top) == (left, top)
    for one in attention_maps(Brightness(), photo.part, [0.5, 1.0, 2.0], ["attention"]):
        heat = overlaid(np.full_like(photo.part, 90), one.values, 0, one.values.max())
        x, y = centre_of_heat(heat, photo.part)
        assert abs(x + left - 143.5) < 5 and abs(y + top - 79.5) < 5


def test_the_picture_shows_photograph_box_and_heat(tmp_path):
    pixels = np.full((100, 200, 3), 200, np.uint8)
    pixels[..., 2] = 60
    photo = Photograph("yellowish", pixels, 100, 0, 100, 100, True)
    hot, cold = np.ones((2, 2), np.float32), np.zeros((2, 2), np.float32)
    maps = [AttentionMap("attention", "attention", scale, (100, 100), values)
            for scale, values in ((0.5, cold), (1.0, hot))]
    write_picture(draw_attention([(photo, maps)]), tmp_path / "picture.png")
    picture = cv2.imread(str(tmp_path / "picture.png"))[..., ::-1].astype(int)
    # From left to right: the photograph in its colours, a panel that is dark, one that is bright
    middle = picture[int(picture.shape[0] * 0.5)]
    photograph = np.flatnonzero((np.abs(middle - [200, 200, 60]) < 12).all(axis=1))
    low, high = (np.array(c) * 0.6 * 255 + 0.4 * g for c, g in (
        ((0.001462, 0.000466, 0.013866), 184.04), ((0.988362, 0.998364, 0.644924), 184.04)))
    dark = np.flatnonzero((np.abs(middle - low) < 12).all(axis=1))
    bright = np.flatnonzero((np.abs(middle - high) < 12).all(axis=1))
    assert len(photograph) > 100 and len(dark) > 100 and len(bright) > 100
    assert photograph.max() < dark.min() and dark.max() < bright.min()


def test_colour_ranges():
    def one(kind, *values):
        return AttentionMap(kind, kind, 1.0, (1, 1), np.array([values], np.float32))

    assert colour_range([one("attention", 2, 5), one("attention", 3, 9)])[:2] == (0, 9)
    assert colour_range([one("orthogonal", 0.5, 0.75)])[:2] == (0.5, 0.75)
    low, high, words = colour_range([one("share", 0.25, 0.75), one("share", 0.1, 0.2, 0.3, 0.4)])
    assert (low, high) == (0, pytest.approx(1.6)) and "even share" in words
    assert colour_range([one("share", -0.5, 1.5)])[:2] == (-1, 3)
