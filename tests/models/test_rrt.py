"""The reranking transformers against the original's outputs, and against slow, plain code."""
import bisect
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dolg.config import load_cfg
from dolg.core.checkpoint import load_weights, read_parts
from dolg.core.saving import save_checkpoint
from dolg.core.weights import unsort_keys
from dolg.errors import UserError
from dolg.models import build_model
from dolg.models.rrt import RerankingTransformer, scale_indexes
from dolg.models.rrt_sop import sine_positions

SCALES = [0.5, 0.7071, 1.0, 1.4142]
SMALL = {"global_dim": 10, "scales": SCALES, "layers": 3, "heads": 2, "dim": 8, "feedforward": 12}
SOP = ["MODEL.ARCH", "rrt_sop", "MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "16", "MODEL.RRT.DIM", "16",
       "MODEL.RRT.HEADS", "2", "MODEL.RRT.LAYERS", "3", "MODEL.RRT.FEEDFORWARD", "20",
       "MODEL.HEADS.REDUCTION_DIM", "12"]


def transformer(seed: int = 0, **changes) -> RerankingTransformer:
    """A small one with nothing left at zero or one."""
    torch.manual_seed(seed)
    model = RerankingTransformer(**{**SMALL, **changes})
    randomise(model)
    return model.eval()


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))


def side(count: int, length: int, seed: int, global_dim: int = 10, dim: int = 8) -> dict:
    """Features of `count` images with random padding anywhere; the first has none."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, length, generator=rng) < 0.4
    mask[:1] = False
    return {"global": torch.randn(count, global_dim, generator=rng),
            "local": torch.randn(count, length, dim, generator=rng), "mask": mask,
            "scales": torch.randint(0, len(SCALES), (count, length), generator=rng),
            "positions": torch.rand(count, length, 2, generator=rng)}


def row(images: dict, index: int) -> dict:
    return {name: value[index:index + 1] for name, value in images.items()}


def torch_encoder(layers: nn.ModuleList, heads: int) -> list[nn.TransformerEncoderLayer]:
    """torch's own layers with the same weights, in float64."""
    made = []
    for layer in layers:
        hidden, dim = layer.linear1.weight.shape
        other = nn.TransformerEncoderLayer(dim, heads, hidden, 0.0, batch_first=True).double().eval()
        other.load_state_dict(layer.state_dict())
        made.append(other)
    return made


def slow_logit(model: RerankingTransformer, query: dict, candidate: dict, heads: int) -> float:
    """One pair, token by token, without padding, in float64."""
    model = model.double()
    segment, tokens = model.seg_encoder.weight, []
    for images, mark, whole, local in ((query, 2, 4, 0), (candidate, 3, 5, 1)):
        tokens.append(segment[mark])
        x = model.remap.weight @ images["global"][0].double() + model.remap.bias
        tokens.append(x / x.norm() + segment[whole])
        for feature, scale, padded in zip(images["local"][0].double(), images["scales"][0],
                                          images["mask"][0]):
            if not padded:
                tokens.append(feature / feature.norm() + model.scale_encoder.weight[scale] + segment[local])
    x = torch.stack(tokens)[None]
    for layer in torch_encoder(model.encoder.layers, heads):
        x = layer(x)
    logit = float((model.classifier.weight @ x[0, 0] + model.classifier.bias)[0])
    model.float()
    return logit


@pytest.mark.parametrize("lengths", [(7, 7), (5, 9), (0, 6), (6, 0), (0, 0), (1, 1)])
@torch.no_grad()
def test_against_a_pair_at_a_time_without_padding(lengths):
    model = transformer()
    query, candidate = side(4, lengths[0], 1), side(4, lengths[1], 2)
    expected = [slow_logit(model, row(query, i), row(candidate, i), 2) for i in range(4)]
    np.testing.assert_allclose(model(query, candidate), expected, rtol=1e-5, atol=1e-6)
    swapped = [slow_logit(model, row(candidate, i), row(query, i), 2) for i in range(4)]
    np.testing.assert_allclose(model(candidate, query), swapped, rtol=1e-5, atol=1e-6)
    assert np.abs(np.subtract(expected, swapped)).max() > 1e-3     # it tells query from candidate


@torch.no_grad()
def test_what_padded_slots_hold_does_not_matter():
    model, query, candidate = transformer(), side(5, 6, 1), side(5, 9, 2)
    expected = model(query, candidate)
    for noise in (float("nan"), float("inf"), 1e30):
        dirty = [{**images, "local": images["local"].masked_fill(images["mask"][..., None], noise),
                  "scales": images["scales"].masked_fill(images["mask"], 3)}
                 for images in (query, candidate)]
        torch.testing.assert_close(model(*dirty), expected)


def test_no_padded_slot_reaches_a_gradient():
    model, query, candidate = transformer().train(), side(5, 6, 1), side(5, 9, 2)
    gradients = []
    for noise in (0.0, float("nan")):
        model.zero_grad()
        dirty = [{**images, "local": images["local"].masked_fill(images["mask"][..., None], noise)}
                 for images in (query, candidate)]
        model(*dirty).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for clean, with_nan in zip(*gradients):
        torch.testing.assert_close(with_nan, clean)


def test_every_parameter_gets_a_gradient():
    model = transformer().train()
    model(side(3, 5, 1), side(3, 6, 2)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_dropout_is_for_training_only():
    model, plain = transformer(dropout=0.5), transformer()
    images = side(3, 5, 1), side(3, 6, 2)
    with torch.no_grad():
        assert torch.equal(model(*images), plain(*images))
        first, second = model.train()(*images), model(*images)
    assert (first - second).abs().min() > 0


def test_dropout_reaches_the_attention_weights_too():
    model = transformer(dropout=0.5).train()
    attention = model.encoder.layers[0].self_attn
    x = torch.randn(1, 6, 8)
    with torch.no_grad():
        assert not torch.equal(attention(x, None, 6), attention(x, None, 6))
        assert torch.equal(attention.eval()(x, None, 6), attention(x, None, 6))


def test_dropout_is_where_the_original_has_it():
    """On what attention gathers, on the hidden activations, on what they give."""
    model, widths = transformer(dropout=0.5).train(), []
    for layer in model.encoder.layers:
        layer.dropout.register_forward_hook(lambda module, inputs, output: widths.append(output.shape[2]))
    model(side(1, 5, 1), side(1, 6, 2))
    assert widths == [8, 12, 8] * 3 and {layer.dropout.p for layer in model.encoder.layers} == {0.5}


@torch.no_grad()
def test_the_first_rows_alone_are_the_first_rows():
    model = transformer()
    tokens, mask = model.tokens(side(3, 5, 1), side(3, 6, 2))
    assert tokens.shape == (3, 15, 8) and mask.shape == (3, 15)
    whole = model.encode(tokens, mask)
    assert whole.shape == tokens.shape
    for rows in (1, 4):
        torch.testing.assert_close(model.encode(tokens, mask, rows), whole[:, :rows])


@pytest.mark.parametrize("changes, message", [
    ({"scales": []}, "MODEL.RRT.SCALES is .*: give positive scales in rising order"),
    ({"scales": [1.0, 0.5]}, "rising order"), ({"scales": [1.0, 1.0]}, "rising order"),
    ({"scales": [0.0, 1.0]}, "positive"), ({"heads": 3}, "HEADS 3 and DIM 8: .* split evenly"),
    ({"layers": 0}, "MODEL.RRT.LAYERS is 0"),
    ({"scale_index": "nearset"}, r"MODEL.RRT.SCALE_INDEX is 'nearset'.*did you mean 'nearest'"),
])
def test_wrong_settings_are_explained(changes, message):
    with pytest.raises(UserError, match=message):
        RerankingTransformer(**{**SMALL, **changes})


def test_the_configuration_reaches_the_transformer():
    keys = {"LAYERS": 2, "HEADS": 3, "DIM": 12, "FEEDFORWARD": 20, "GLOBAL_DIM": 9, "SCALES": [0.5, 2.0],
            "SCALE_INDEX": "original", "DROPOUT": 0.25}
    options = [str(word) for key, value in keys.items() for word in (f"MODEL.RRT.{key}", value)]
    model = build_model(load_cfg(None, ["MODEL.ARCH", "rrt", *options]))
    assert model.settings == {"layers": 2, "heads": 3, "dim": 12, "feedforward": 20, "global_dim": 9,
                              "scales": [0.5, 2.0], "scale_index": "original"}
    on_maps = build_model(load_cfg(None, [*SOP, *options]))
    for encoder in (model.encoder, on_maps.matcher.encoder):
        assert len(encoder.layers) == 2
        for layer in encoder.layers:
            assert (layer.self_attn.heads, layer.self_attn.dropout, layer.dropout.p) == (3, 0.25, 0.25)
            assert layer.linear1.weight.shape == (20, 12)
    assert on_maps.dims == {"global": 12, "local": 12} and on_maps.dim == 12


def test_other_dimensions_are_explained():
    model = transformer()
    with pytest.raises(UserError, match="descriptors have 11 dim.* takes 10: .*MODEL.RRT.GLOBAL_DIM"):
        model(side(2, 3, 1), side(2, 3, 2, global_dim=11))
    with pytest.raises(UserError, match="local features have 9 dimensions.* takes 8: .*MODEL.RRT.DIM"):
        model(side(2, 3, 1, dim=9), side(2, 3, 2))


# ------------------------------------------------------------------------------- scales

PUBLISHED = [0.5, 0.70710677, 1.0, 1.41421354, 2.0, 2.82842708, 4.0]


def test_the_originals_lookup_takes_every_second_scale_for_the_one_before():
    stored = np.array(PUBLISHED, np.float32)
    # float(): NumPy 2 would round the table to float32
    expected = [bisect.bisect_right(PUBLISHED, float(scale)) - 1 for scale in stored]
    assert expected == [0, 0, 2, 2, 4, 4, 6]
    assert scale_indexes(stored, PUBLISHED, "original").tolist() == expected
    # What the PyTorch DELG extracts at, and no scale at all
    more = np.array([0.5, 0.7071, 1.0, 1.4142, 2.0, 1.9999999, 3.0, 8.0], np.float32)
    expected = [bisect.bisect_right(PUBLISHED, float(scale)) - 1 for scale in more]
    assert scale_indexes(more, PUBLISHED, "original").tolist() == expected
    assert expected[:5] == [0, 0, 2, 2, 4]


@pytest.mark.parametrize("how", ["nearest", "original"])
def test_scales_below_the_table_are_explained(how):
    with pytest.raises(UserError, match=r"scale 0.3535, and MODEL.RRT.SCALES is 0.5, 0.707107, 1,"):
        scale_indexes(np.array([1.0, 0.3535], np.float32), PUBLISHED, how)
    with pytest.raises(UserError, match="scale nan"):
        scale_indexes(np.array([np.nan], np.float32), PUBLISHED, how)


def test_the_nearest_scale_is_so_by_ratio():
    rng = np.random.default_rng(0)
    table = [0.25, 0.3535, 0.5, 0.7071, 1.0, 1.4142, 2.0]
    scales = (rng.choice(table, 200) * np.exp(rng.uniform(-0.045, 0.045, 200))).astype(np.float32)
    expected = [min(range(7), key=lambda i: abs(math.log(scale / table[i]))) for scale in scales]
    assert scale_indexes(scales, table, "nearest").tolist() == expected
    assert scale_indexes(np.array(table, np.float32), table, "nearest").tolist() == list(range(7))
    # Between 1 and 2 by ratio lies 1.414, not 1.5
    assert scale_indexes(np.array([1.03]), [1.0, 1.05], "nearest").tolist() == [1]


@pytest.mark.parametrize("scale", [0.94, 1.06, 0.0, -1.0, np.inf])
def test_scales_of_another_extraction_are_explained(scale):
    with pytest.raises(UserError, match="MODEL.RRT.SCALES is 1, 2: give the scales that"):
        scale_indexes(np.array([1.04, scale], np.float32), [1.0, 2.0], "nearest")


@pytest.mark.parametrize("how", ["nearest", "original"])
def test_no_scales_have_no_indexes(how):
    found = scale_indexes(np.empty(0, np.float32), PUBLISHED, how)
    assert found.shape == (0,) and found.dtype == np.int64


def test_a_model_looks_scales_up_as_it_was_told():
    original = RerankingTransformer(**{**SMALL, "scales": PUBLISHED, "scale_index": "original"})
    stored = np.array(PUBLISHED, np.float32)
    assert original.scale_indexes(stored).tolist() == [0, 0, 2, 2, 4, 4, 6]
    nearest = RerankingTransformer(**{**SMALL, "scales": PUBLISHED})
    assert nearest.scale_indexes(stored).tolist() == list(range(7))


# ------------------------------------------------------------------------------- the original's outputs

@pytest.mark.parametrize("case", ["a", "b"])
def test_rrt_gld(conformance, shared, tmp_path, case):
    golden = conformance.load(shared / "conformance" / "rrt_gld")
    state = {f"module.{key}": torch.from_numpy(value) for key, value in conformance.weights(golden).items()}
    torch.save({"state": state, "optim": {"state": {}, "param_groups": []}}, tmp_path / "rrt.pt")
    cfg = load_cfg(None, ["MODEL.ARCH", "rrt", "MODEL.RRT.SCALES", str(PUBLISHED)])
    model = build_model(cfg).eval()
    assert "(RRT)" in load_weights(model, tmp_path / "rrt.pt")
    query, candidate = ({name: torch.from_numpy(conformance.make(golden["inputs"][f"{case}/{who}_{name}"]))
                         for name in ("global", "local", "mask", "scales", "positions")}
                        for who in ("src", "tgt"))
    with torch.no_grad():
        tokens, mask = model.tokens(query, candidate)
        conformance.close(golden, f"{case}/tokens", tokens)
        conformance.close(golden, f"{case}/tokens_slice", tokens)
        conformance.close(golden, f"{case}/cls", model.encode(tokens, mask)[:, 0])
        conformance.close(golden, f"{case}/logits", model(query, candidate))
        conformance.close(golden, f"{case}/logits_swapped", model(candidate, query))


# ------------------------------------------------------------------------------- weights files

def test_our_own_checkpoint_round_trip(tmp_path):
    saved, images = transformer(), (side(3, 5, 1), side(3, 6, 2))
    bare, whole, averaged = (tmp_path / f"{name}.pyth" for name in ("bare", "whole", "averaged"))
    torch.save(saved.state_dict(), bare)
    save_checkpoint(whole, {"model": saved.state_dict(), "loss": {}, "epoch": 1})
    save_checkpoint(averaged, {"model": transformer(seed=3).state_dict(), "loss": {},
                               "average": saved.state_dict()})
    with torch.no_grad():
        expected = saved(*images)
        for path in (bare, whole, averaged):
            loaded = transformer(seed=1)
            assert not torch.equal(loaded(*images), expected)
            load_weights(loaded, path)
            assert torch.equal(loaded(*images), expected)


def test_weights_of_another_transformer_are_refused(tmp_path):
    torch.save({"state": transformer(scales=SCALES[:3]).state_dict()}, tmp_path / "three.pt")
    with pytest.raises(UserError, match=r"\(RRT\) is not of this RerankingTransformer: 1 of another shape: "
                                        r"scale_encoder.weight \(3, 8\) for \(4, 8\)"):
        load_weights(transformer(), tmp_path / "three.pt")
    dolg = build_model(load_cfg(None, ["MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "8"]))
    with pytest.raises(UserError, match="is not of this DOLG"):
        load_weights(dolg, tmp_path / "three.pt")
    torch.save(dolg.state_dict(), tmp_path / "dolg.pyth")
    with pytest.raises(UserError, match="is not of this RerankingTransformer"):
        load_weights(transformer(), tmp_path / "dolg.pyth")
    torch.save({f"stem.{key}": value for key, value in dolg.backbone.stem.state_dict().items()},
               tmp_path / "pycls.pyth")
    with pytest.raises(UserError, match=r"\(pycls\) has weights of backbone, none of a Reranking"):
        load_weights(transformer(), tmp_path / "pycls.pyth")


def test_converted_to_the_originals_names_and_back(tmp_path):
    model = transformer()
    state = model.state_dict()
    theirs = unsort_keys({"model": state}, "RRT")
    assert theirs.keys() == state.keys() and all(theirs[key] is state[key] for key in state)
    whole = unsort_keys({"model": state, "loss": {}}, "dolg checkpoint")
    torch.save(whole, tmp_path / "flat.pyth")
    assert read_parts(tmp_path / "flat.pyth")[0] == "dolg checkpoint"
    other = transformer(seed=1)
    load_weights(other, tmp_path / "flat.pyth")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(UserError, match="files of RRT have no place for the model's backbone"):
        unsort_keys({"model": {"backbone.stem.conv.weight": torch.zeros(1)}}, "RRT")


# ------------------------------------------------------------------------------- on maps (RRT_SOP)

def slow_positions(dim: int, height: int, width: int) -> np.ndarray:
    """(dim, height, width), entry by entry as the original computes them, in float64."""
    half, table = dim // 2, np.empty((dim, height, width))
    for channel in range(dim):
        index = channel % half
        period = 10000 ** (2 * (index // 2) / half)
        wave = math.cos if index % 2 else math.sin
        for y in range(height):
            for x in range(width):
                place = (y + 1) / (height + 1e-6) if channel < half else (x + 1) / (width + 1e-6)
                table[channel, y, x] = wave(2.0 * place / period)
    return table


@pytest.mark.parametrize("dim, height, width", [(128, 7, 7), (16, 3, 5), (4, 1, 1)])
def test_positions_entry_by_entry(dim, height, width):
    found = sine_positions(dim, height, width)
    assert found.shape == (height * width, dim) and found.dtype == torch.float32
    expected = slow_positions(dim, height, width).reshape(dim, -1).T
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def slow_match(state: dict, query: torch.Tensor, candidate: torch.Tensor, heads: int) -> np.ndarray:
    """Logits by the original's parameters, with torch's own layers, sequence first, in float64."""
    state = {key.removeprefix("matcher."): value.double() for key, value in state.items()
             if key.startswith("matcher.")}
    segments, parts = state["seg_encoder.weight"], []
    dim = segments.shape[1]
    for maps, mark, segment in ((query, 0, 2), (candidate, 1, 3)):
        places = torch.from_numpy(slow_positions(*maps.shape[1:]))
        maps = maps.double() + places + segments[segment][:, None, None]
        parts += [segments[mark].expand(1, len(maps), dim), maps.flatten(2).permute(2, 0, 1)]
    x = torch.cat(parts)
    hidden = len(state["encoder.layers.0.linear1.bias"])
    for number in range(sum(key.endswith("norm2.bias") for key in state)):
        layer = nn.TransformerEncoderLayer(dim, heads, hidden, 0.0).double().eval()
        prefix = f"encoder.layers.{number}."
        layer.load_state_dict({key.removeprefix(prefix): value for key, value in state.items()
                               if key.startswith(prefix)})
        x = layer(x)
    return F.linear(x[0], state["classifier.weight"], state["classifier.bias"])[:, 0].numpy()


def original_sop(dim: int = 16, local_dim: int = 16, hidden: int = 20, layers: int = 2):
    """torchvision's network, and a file's state as the original names it."""
    import torchvision

    torch.manual_seed(5)
    network = torchvision.models.resnet18().eval()
    state = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
    parts = {"remap": nn.Linear(512, dim), "remap_local": nn.Conv2d(512, local_dim, 1),
             "classifier": nn.Linear(dim, 30), "matcher.classifier": nn.Linear(local_dim, 1),
             "matcher.seg_encoder": nn.Embedding(4, local_dim)}
    for number in range(layers):
        layer = nn.TransformerEncoderLayer(local_dim, 2, hidden)
        randomise(layer)
        parts[f"matcher.encoder.layers.{number}"] = layer
    for name, part in parts.items():
        state.update({f"{name}.{key}": value for key, value in part.state_dict().items()})
    spec = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    state.update({key: torch.tensor(values).view(1, 3, 1, 1) for key, values in spec.items()})
    return nn.Sequential(*list(network.children())[:-2]), state


def test_rrt_sop_from_the_originals_file(tmp_path):
    trunk, state = original_sop()
    torch.save({"state": {f"module.{key}": value for key, value in state.items()}, "optim": {},
                "scheduler": {}}, tmp_path / "sop.pt")
    options = ["RESNET.STEM_WIDTH", "64", "MODEL.RRT.LAYERS", "2", "MODEL.HEADS.REDUCTION_DIM", "16"]
    model = build_model(load_cfg(None, [*SOP, *options])).eval()
    assert "(RRT_SOP)" in load_weights(model, tmp_path / "sop.pt")
    assert model.input_spec.colour == "rgb" and model.input_spec.mean == (0.485, 0.456, 0.406)
    images = torch.rand(3, 3, 224, 224)
    with torch.no_grad():
        # The original takes pixels in 0..1 and normalises them itself
        maps = trunk((images - state["mean"]) / state["std"])
        assert maps.shape[2:] == (7, 7)
        mean, sd = (torch.tensor(values).view(3, 1, 1) for values in (model.input_spec.mean,
                                                                      model.input_spec.sd))
        outputs = model((images - mean) / sd)
        pooled = F.adaptive_avg_pool2d(maps, 1).flatten(1)
        expected = F.linear(pooled, state["remap.weight"], state["remap.bias"])
        torch.testing.assert_close(outputs["global"], expected, rtol=1e-4, atol=1e-4)
        local = F.conv2d(maps, state["remap_local.weight"], state["remap_local.bias"])
        torch.testing.assert_close(outputs["local"], local, rtol=1e-4, atol=1e-4)
        for query, candidate in ((local, local.flip(0)), (local.flip(0), local)):
            expected = slow_match(state, query, candidate, 2)
            np.testing.assert_allclose(model.match(query, candidate), expected, rtol=1e-4)


@torch.no_grad()
def test_maps_of_other_sizes():
    model = build_model(load_cfg(None, SOP)).eval()
    randomise(model.matcher)
    torch.manual_seed(2)
    query, candidate = torch.randn(3, 16, 4, 2), torch.randn(3, 16, 3, 5)
    expected = slow_match(model.state_dict(), query, candidate, 2)
    np.testing.assert_allclose(model.match(query, candidate), expected, rtol=1e-4)
    assert len(expected) == 3 and expected.std() > 1e-3


def test_every_parameter_of_the_matcher_gets_a_gradient():
    model = build_model(load_cfg(None, SOP)).train()
    local = model(torch.randn(4, 3, 64, 64))["local"]
    model.match(local[:2], local[2:]).square().sum().backward()
    for name, parameter in model.named_parameters():
        trained = not name.startswith("fc.")
        assert (parameter.grad is not None and parameter.grad.abs().sum() > 0) == trained, name


def test_a_frozen_backbone_leaves_what_matches_to_train():
    model = build_model(load_cfg(None, [*SOP, "MODEL.RRT.FREEZE_BACKBONE", "True"]))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == name.startswith(("fc_local.", "matcher.")), name
    outputs = model(torch.randn(2, 3, 64, 64))
    assert not outputs["global"].requires_grad
    model.match(outputs["local"], outputs["local"]).sum().backward()
    assert model.fc_local.weight.grad.abs().sum() > 0


def test_channels_that_do_not_split_are_explained():
    with pytest.raises(UserError, match="MODEL.RRT.DIM is 18: positions need a multiple of 4"):
        build_model(load_cfg(None, [*SOP, "MODEL.RRT.DIM", "18"]))


def test_rrt_sop_converted_to_the_originals_names(tmp_path):
    torch.manual_seed(0)
    model, other = (build_model(load_cfg(None, SOP)) for _ in range(2))
    theirs = unsort_keys({"model": model.state_dict()}, "RRT_SOP")
    assert {"conv1.weight", "layer3.0.downsample.1.running_var", "remap.bias", "remap_local.weight",
            "matcher.encoder.layers.2.linear2.bias", "matcher.seg_encoder.weight"} <= set(theirs)
    torch.save({"state": theirs}, tmp_path / "theirs.pt")
    load_weights(other, tmp_path / "theirs.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(),
                                                 strict=True))
