"""From keys to losses, and what every loss of the table has to stand."""
import numpy as np
import pytest
import torch

from dolg.config import get_cfg
from dolg.errors import UserError
from dolg.losses import build_loss
from dolg.losses.builders import LOSSES
from dolg.losses.margin import ArcFace, CurricularFace
from dolg.losses.pairs import Triplet

DIMS = {"global": 8, "local": 6, "auxiliary": 5}
CLASSES = 4
ALL = [*LOSSES, "pml.CircleLoss", "pml.ProxyAnchorLoss", "curricularface + local_softmax",
       "triplet + aux_softmax"]


def _cfg(name="", **keys):
    """Defaults with LOSS.NAME, 4 classes, and keys such as TRIPLET__MARGIN of the section LOSS."""
    cfg = get_cfg()
    cfg.LOSS.NAME, cfg.MODEL.NUM_CLASSES = name, CLASSES
    for key, value in keys.items():
        node = cfg.LOSS
        *sections, leaf = key.split("__")
        for section in sections:
            node = node[section]
        node[leaf] = value
    return cfg


def _build(name, **keys):
    if "pml." in name:
        pytest.importorskip("pytorch_metric_learning")
    torch.manual_seed(0)
    return build_loss(_cfg(name, **keys), DIMS, class_counts=np.array([9, 1, 4, 4]))


def _outputs(count, dtype=torch.float32):
    shapes = {"global": (8,), "local": (6, 2, 3), "auxiliary": (5,)}
    generator = torch.Generator().manual_seed(count)
    return {name: torch.randn(count, *shape, generator=generator).to(dtype).requires_grad_()
            for name, shape in shapes.items()}


def _run(loss, outputs, labels):
    """Forward and backward; the result, and all gradients, checked to be finite."""
    result = loss(outputs, labels)
    result["total"].backward()
    tensors = [*outputs.values(), *loss.parameters()]
    for grad in (tensor.grad for tensor in tensors if tensor.grad is not None):
        assert torch.isfinite(grad).all()
    assert result["total"].shape == () and torch.isfinite(result["total"])
    return result


@pytest.mark.parametrize("name", ALL)
def test_gradients_reach_the_outputs_and_all_weights(name):
    loss, outputs = _build(name).train(), _outputs(12)
    result = _run(loss, outputs, torch.arange(12) % CLASSES)
    assert result["total"] > 0
    for parameter in loss.parameters():
        assert parameter.grad.abs().max() > 0
    assert any(x.grad is not None and x.grad.abs().max() > 0 for x in outputs.values())
    if "logits" in result:
        assert result["logits"].shape == (12, CLASSES) and not result["logits"].requires_grad


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("labels", [[], [2], [1] * 6, [0, 1, 2, 3]],
                         ids=["empty", "one image", "one class", "no positives"])
def test_batches_that_lack_something(name, mode, labels):
    loss = getattr(_build(name), mode)()
    outputs = _outputs(len(labels))
    result = _run(loss, outputs, torch.tensor(labels, dtype=torch.long))
    # Distributed training waits for the gradients of all weights
    assert all(parameter.grad is not None for parameter in loss.parameters())
    assert any(x.grad is not None for x in outputs.values())
    if not labels:
        assert result["total"] == 0
    for value in loss.state_dict().values():
        assert torch.isfinite(value).all()


@pytest.mark.parametrize("name", ALL)
def test_eval_mode_changes_nothing(name):
    loss = _build(name)
    labels = torch.arange(12) % CLASSES
    loss.train()(_outputs(12), labels)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    first, second = (loss.eval()(_outputs(12), labels)["total"] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


@pytest.mark.parametrize("name", ALL)
def test_float32_under_autocast(name):
    loss, labels = _build(name).eval(), torch.arange(12) % CLASSES
    outputs = {key: value.detach().bfloat16() for key, value in _outputs(12).items()}
    plain = loss({key: value.float() for key, value in outputs.items()}, labels)["total"]
    with torch.autocast("cpu", torch.bfloat16):
        cast = loss(outputs, labels)["total"]
    assert cast.dtype == torch.float32 and torch.equal(plain, cast)


@pytest.mark.parametrize("arch, dims, expected", [
    ("dolg", {"global": 8}, {"": CurricularFace}),
    ("gem", 8, {"": CurricularFace}),
    ("delg", {"global": 8, "local": 6}, {"global": CurricularFace, "local": None}),
    ("cgd", {"global": 8, "auxiliary": 5}, {"global": Triplet, "auxiliary": None}),
])
def test_default_of_each_model(arch, dims, expected):
    cfg = _cfg()
    cfg.MODEL.ARCH = arch
    loss = build_loss(cfg, dims)
    terms = dict(loss.terms) if hasattr(loss, "terms") else {"": loss}
    assert list(terms) == list(expected)
    assert all(isinstance(terms[key], kind) for key, kind in expected.items() if kind)


def test_a_sum_is_weighted_and_reports_its_terms():
    loss = _build("curricularface + local_softmax + arcface", WEIGHTS=[1, 0.5, 2.0]).eval()
    outputs, labels = _outputs(6), torch.arange(6) % CLASSES
    result = loss(outputs, labels)
    parts = {key: term(outputs, labels) for key, term in loss.terms.items()}
    assert list(parts) == ["global", "local", "global_2"]
    values = [part["total"] for part in parts.values()]
    assert torch.allclose(result["total"], values[0] + 0.5 * values[1] + 2 * values[2])
    for name, key in [("curricularface", "global"), ("local_softmax", "local"),
                      ("arcface", "global_2")]:
        assert torch.equal(result[name], parts[key]["total"]) and not result[name].requires_grad
    assert torch.equal(result["logits"], parts["global"]["logits"])
    assert set(loss.state_dict()) == {
        "terms.global.weight", "terms.global.t", "terms.local.fc.weight", "terms.local.fc.bias",
        "terms.global_2.weight"}


def test_logits_are_of_the_first_term_that_has_some():
    outputs, labels = _outputs(6), torch.arange(6) % CLASSES
    loss = _build("triplet+aux_softmax").eval()
    assert torch.equal(loss(outputs, labels)["logits"],
                       loss.terms["auxiliary"](outputs, labels)["logits"])
    assert "logits" not in _build("triplet + contrastive")(outputs, labels)


def test_a_sum_passes_on_what_stands_for_the_logits():
    outputs, labels = _outputs(6), torch.arange(6) % CLASSES
    loss = _build("triplet + arcface + local_softmax", SAMPLE_CLASSES=0.5)
    trained, tested = loss.train()(outputs, labels), loss.eval()(outputs, labels)
    assert "logits" not in trained and trained["better"].shape == (6,)
    assert trained["better"].dtype == torch.int64 and trained["better"].max() < CLASSES
    # All four classes are in the batch, so that all are compared
    logits = tested["logits"]
    assert "better" not in tested
    assert torch.equal(trained["better"], (logits > logits.gather(1, labels[:, None])).sum(1))


@pytest.mark.parametrize("name", ["arcface", "cosface", "curricularface", "subcenter_arcface",
                                  "adaptive_arcface", "curricularface + local_softmax"])
def test_keys_of_margin_softmax_arrive(name):
    loss = _build(name, SHARD_CLASSES=True, SAMPLE_CLASSES=0.25)
    margin = loss.terms["global"] if "+" in name else loss
    assert margin.sampled == 0.25
    whole = _build(name)
    # One process has all classes; their weights are drawn another way
    assert {key: value.shape for key, value in loss.state_dict().items()} == {
        key: value.shape for key, value in whole.state_dict().items()}
    assert not torch.equal(margin.weight, (whole.terms["global"] if "+" in name else whole).weight)
    labels = torch.arange(6) % CLASSES
    assert loss.eval()(_outputs(6), labels)["logits"].shape == (6, CLASSES)


def test_a_single_loss_keeps_its_names():
    assert set(_build("curricularface").state_dict()) == {"weight", "t"}
    assert set(_build("adaptive_arcface").state_dict()) == {"weight"}
    assert set(_build("softmax").state_dict()) == {"fc.weight", "fc.bias"}
    doubled = _build("softmax", WEIGHTS=[2.0])
    outputs, labels = _outputs(6), torch.arange(6) % CLASSES
    result = doubled(outputs, labels)
    assert torch.allclose(result["total"], 2 * result["softmax"])


def test_keys_arrive():
    assert _build("subcenter_arcface", SUBCENTERS=5).weight.shape == (20, 8)
    softmax = _build("softmax", SMOOTHING=0.1, TEMPERATURE=0.5)
    assert (softmax.smoothing, softmax.temperature) == (0.1, 0.5)
    adaptive = _build("adaptive_arcface", ADAPTIVE__LOW=0.2, ADAPTIVE__HIGH=0.3,
                      ADAPTIVE__POWER=1.0)
    middle = 0.2 + 0.1 * (1 / 4 - 1 / 9) / (1 - 1 / 9)
    np.testing.assert_allclose(adaptive.class_margins, [0.2, 0.3, middle, middle], atol=1e-6)
    # Two classes of two: equal pairs, the other class at a right angle, distance sqrt(2)
    x, labels = torch.eye(8)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1])
    far = 2 ** 0.5
    for name, keys, expected in [
            ("triplet", {"TRIPLET__MARGIN": 2.0}, 2 - far),
            ("triplet", {"TRIPLET__MARGIN": 2.0, "TRIPLET__MINING": "semihard"}, 2 - far),
            ("triplet", {"TRIPLET__MARGIN": 1.0, "TRIPLET__MINING": "semihard"}, 0),
            ("contrastive", {"CONTRASTIVE__NEGATIVE_MARGIN": 1.5}, 1.5 - far),
            ("multi_similarity", {"MULTI_SIMILARITY__EPSILON": 1.5, "MULTI_SIMILARITY__ALPHA": 3.0,
                                  "MULTI_SIMILARITY__BETA": 2.0, "MULTI_SIMILARITY__BASE": 0.25},
             np.log1p(np.exp(-3 * 0.75)) / 3 + np.log1p(2 * np.exp(-2 * 0.25)) / 2)]:
        total = _build(name, **keys)({"global": x}, labels)["total"].item()
        assert total == pytest.approx(expected, abs=1e-6), name


def test_dimensions_from_cfg_alone():
    cfg = _cfg("arcface + local_softmax + aux_softmax")
    cfg.MODEL.HEADS.REDUCTION_DIM, cfg.MODEL.DELG.LOCAL_DIM, cfg.MODEL.HEADS.IN_FEAT = 24, 12, 512
    shapes = {key: tuple(value.shape) for key, value in build_loss(cfg).state_dict().items()}
    assert shapes["terms.global.weight"] == (4, 24)
    assert shapes["terms.local.fc.weight"] == (4, 12)
    assert shapes["terms.auxiliary.fc.weight"] == (4, 512)
    cfg = _cfg("arcface")
    cfg.MODEL.ARCH, cfg.MODEL.CGD.FEATURE_DIM = "cgd", 48
    assert build_loss(cfg).weight.shape == (4, 48)
    assert isinstance(build_loss(cfg, 10), ArcFace) and build_loss(cfg, 10).weight.shape == (4, 10)


@pytest.mark.parametrize("name, keys, message", [
    ("arcfase", {}, "LOSS.NAME is 'arcfase': choose one of .*did you mean 'arcface'"),
    ("", {"NAME": "arcface + "}, "LOSS.NAME is ''"),
    ("arcface + arcface", {}, "LOSS.NAME has arcface twice"),
    ("arcface + triplet", {"WEIGHTS": [1.0]}, "LOSS.WEIGHTS has 1 numbers for 2 losses"),
    ("arcface", {"WEIGHTS": ["x"]}, "LOSS.WEIGHTS is .*give numbers"),
    ("softmax", {"SMOOTHING": 1.0}, "LOSS.SMOOTHING is 1.0"),
    ("local_softmax", {"TEMPERATURE": 0.0}, "LOSS.TEMPERATURE is 0.0"),
    ("subcenter_arcface", {"SUBCENTERS": 0}, "LOSS.SUBCENTERS is 0"),
    ("adaptive_arcface", {"ADAPTIVE__LOW": 0.6}, "LOSS.ADAPTIVE.LOW 0.6"),
    ("triplet", {"TRIPLET__MINING": "semi-hard"}, "LOSS.TRIPLET.MINING.*did you mean 'semihard'"),
    ("multi_similarity", {"MULTI_SIMILARITY__BETA": 0.0}, "LOSS.MULTI_SIMILARITY.ALPHA"),
    ("softmax", {"SHARD_CLASSES": True}, "LOSS.SHARD_CLASSES True is for .* softmax has none"),
    ("triplet + aux_softmax", {"SAMPLE_CLASSES": 0.5},
     "SAMPLE_CLASSES 0.5 is .* triplet . aux_softmax has none: give LOSS.SAMPLE_CLASSES 1,"),
])
def test_mistakes(name, keys, message):
    with pytest.raises(UserError, match=message) as error:
        _build(name, **keys)
    assert "\n" not in str(error.value)


def test_mistakes_about_the_model_and_the_data():
    with pytest.raises(UserError, match="pass build_loss.cfg, dims, class_counts"):
        build_loss(_cfg("adaptive_arcface"), 8)
    with pytest.raises(UserError, match="image counts of 3 classes: .* MODEL.NUM_CLASSES 4"):
        build_loss(_cfg("adaptive_arcface"), 8, np.array([1, 2, 3]))
    with pytest.raises(UserError, match="the output 'local', which MODEL.ARCH dolg does not give"):
        build_loss(_cfg("local_softmax"), {"global": 8})
    cfg = _cfg("arcface")
    cfg.MODEL.HEADS.REDUCTION_DIM = 0
    with pytest.raises(UserError, match="MODEL.HEADS.REDUCTION_DIM is 0"):
        build_loss(cfg)
