"""The quick way through the reranking transformer against its plain forward."""
import pytest
import torch
from torch import nn

from dolg.models import scoring
from dolg.models.rrt import RerankingTransformer
from dolg.models.scoring import PairScorer

SCALES = [0.5, 0.7071, 1.0, 1.4142]


def transformer(layers: int = 3, heads: int = 2, dim: int = 16, feedforward: int = 24, gain: float = 1.0):
    """With nothing left at zero or one; `gain` multiplies what attention scores come from."""
    torch.manual_seed(0)
    model = RerankingTransformer(10, SCALES, layers=layers, heads=heads, dim=dim, feedforward=feedforward)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for layer in model.encoder.layers:
            layer.self_attn.in_proj_weight[:2 * dim] *= gain
    return model.eval()


def images(count: int, length: int, seed: int, dim: int = 16, padded: float = 0.4) -> dict:
    """With random padding anywhere; the last of several is all padding. Padded slots hold NaN."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, length, generator=rng) < padded
    mask[1:][-1:] = True
    local = torch.randn(count, length, dim, generator=rng).masked_fill(mask[..., None], float("nan"))
    return {"global": torch.randn(count, 10, generator=rng), "local": local, "mask": mask,
            "scales": torch.randint(0, len(SCALES), (count, length), generator=rng)}


@torch.no_grad()
def plain(model: nn.Module, query: dict, candidates: dict) -> torch.Tensor:
    count = len(candidates["mask"])
    return model({name: value.expand(count, *value.shape[1:]) for name, value in query.items()}, candidates)


def scorers(model: nn.Module, **options) -> list[PairScorer]:
    """In float32, pair by pair, and in batches, as other devices and precisions have it."""
    one_by_one, batches = PairScorer(model, **options), PairScorer(model, **options)
    batches._layers = []
    return [one_by_one, batches]


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("query_length, length", [(9, 12), (0, 12), (9, 0), (0, 0), (1, 1), (30, 3)])
@pytest.mark.parametrize("layers, heads", [(3, 2), (1, 4), (2, 1)])
def test_the_logits_of_the_plain_forward(layers, heads, query_length, length):
    model = transformer(layers, heads)
    query, candidates = images(1, query_length, 1), images(7, length, 2)
    expected = plain(model, query, candidates)
    assert torch.isfinite(expected).all() and expected.std() > 1e-3
    for scorer in scorers(model, batch=3):
        same(scorer.score(query, candidates), expected)


def test_the_published_size_on_hundreds_of_features():
    torch.manual_seed(3)
    model = RerankingTransformer(10, SCALES).eval()
    query, candidates = images(1, 240, 1, dim=128, padded=0.1), images(3, 400, 2, dim=128, padded=0.2)
    expected = plain(model, query, candidates)
    for scorer in scorers(model):
        same(scorer.score(query, candidates), expected)


@pytest.mark.parametrize("block", [1, 100, 333, 1000])
def test_any_size_of_the_blocks(monkeypatch, block):
    monkeypatch.setattr(scoring, "_BLOCK", block)
    model, query, candidates = transformer(), images(1, 11, 1), images(4, 13, 2)
    same(PairScorer(model).score(query, candidates), plain(model, query, candidates))


@pytest.mark.parametrize("gain", [30.0, 1000.0])
def test_scores_whose_powers_overflow(gain):
    """Attention that is all on one token: 2 to the power of its score is infinite."""
    model, query, candidates = transformer(layers=2, gain=gain), images(1, 9, 1), images(5, 12, 2)
    for scorer in scorers(model):
        found = scorer.score(query, candidates)
        assert torch.isfinite(found).all()
        # Rounding of scores of thousands moves the weights
        torch.testing.assert_close(found, plain(model, query, candidates), rtol=1e-3, atol=1e-3)


def test_keys_that_differ_by_a_constant_give_the_same():
    """Biases of the keys: they change no weight, and the last layer leaves them out."""
    model, query, candidates = transformer(), images(1, 9, 1), images(5, 12, 2)
    before = PairScorer(model).score(query, candidates)
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attn.in_proj_bias[16:32] += 3 * torch.randn(16)
    same(PairScorer(model).score(query, candidates), before)
    same(plain(model, query, candidates), before)


@pytest.mark.parametrize("batch", [0, 1, 2, 5, 50])
def test_any_batch(batch):
    model, query, candidates = transformer(), images(1, 9, 1), images(11, 12, 2)
    expected = plain(model, query, candidates)
    for scorer in scorers(model, batch=batch):
        same(scorer.score(query, candidates), expected)


def test_candidates_that_have_no_padding_and_none_at_all():
    model, query = transformer(), images(1, 9, 1)
    for scorer in scorers(model):
        candidates = images(4, 12, 2, padded=0.0)
        candidates["mask"][:], candidates["local"][-1] = False, 1.0
        same(scorer.score(query, candidates), plain(model, query, candidates))
        assert scorer.score(query, {name: value[:0] for name, value in candidates.items()}).shape == (0,)


def test_inputs_and_weights_stay_as_they_are():
    model, query, candidates = transformer(), images(1, 9, 1), images(5, 12, 2)
    tensors = [*query.values(), *candidates.values(), *model.state_dict().values()]
    before = [tensor.clone() for tensor in tensors]
    for scorer in scorers(model):
        first = scorer.score(query, candidates)
        assert torch.equal(scorer.score(query, candidates), first)
    for tensor, old in zip(tensors, before):
        torch.testing.assert_close(tensor, old, rtol=0, atol=0, equal_nan=True)


def test_bf16_is_near():
    model, query, candidates = transformer(), images(1, 9, 1), images(40, 12, 2)
    expected = plain(model, query, candidates)
    found = PairScorer(model, torch.bfloat16).score(query, candidates)
    assert found.dtype == torch.float32
    error = (found - expected).abs().max() / expected.abs().max()
    assert 1e-5 < error < 0.05
    assert len(found.unique()) > 35, "logits rounded to bf16 tie"


@pytest.mark.gpu
@pytest.mark.parametrize("precision, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 0.05),
                                                  (torch.float16, 0.01)])
def test_on_a_gpu(precision, tolerance):
    torch.manual_seed(3)
    model = RerankingTransformer(10, SCALES).eval()
    query, candidates = images(1, 200, 1, dim=128), images(9, 300, 2, dim=128)
    expected = plain(model, query, candidates)
    query, candidates = ({name: value.cuda() for name, value in side.items()}
                         for side in (query, candidates))
    found = PairScorer(model.cuda(), precision, batch=4).score(query, candidates)
    assert found.is_cuda and found.dtype == torch.float32
    torch.testing.assert_close(found.cpu(), expected, rtol=tolerance, atol=tolerance)
