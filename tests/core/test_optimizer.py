"""Parameter groups, fused updates, and gradient clipping."""
import copy
import io
import multiprocessing

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dolg.config import load_cfg
from dolg.core.optimizer import (backbone_layers, build_optimizer, clip_gradients,
                                 parameter_groups, set_learning_rate)
from dolg.losses import build_loss
from dolg.models import build_model
from dolg.models.backbones.timm import TimmBackbone

SMALL = ["RESNET.STEM_WIDTH", "8", "MODEL.DEPTH", "18", "MODEL.HEADS.REDUCTION_DIM", "16",
         "MODEL.NUM_CLASSES", "5", "OPTIM.WEIGHT_DECAY", "0.01"]


class Both(nn.Module):
    """Model and loss side by side, as training has them."""

    def __init__(self, cfg):
        super().__init__()
        self.model = build_model(cfg)
        self.loss = build_loss(cfg, self.model.dims)


def _cfg(*options):
    return load_cfg(None, [*SMALL, *map(str, options)])


def _both(cfg) -> Both:
    torch.manual_seed(0)
    return Both(cfg)


def _described(cfg, module) -> list[tuple[float, float, list[str]]]:
    """(weight decay, lr_scale, names) of each group."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [(group["weight_decay"], group["lr_scale"], [names[id(p)] for p in group["params"]])
            for group in parameter_groups(cfg, module)]


def _norm_names(module) -> list[str]:
    """In the order of the modules."""
    return [f"{name}.{part}" for name, child in module.named_modules()
            if isinstance(child, nn.BatchNorm2d) for part in ("weight", "bias")]


def _settings(cfg, module) -> dict[str, tuple[float, float]]:
    """Name: (weight decay, lr_scale); every parameter that learns is in one group."""
    groups = _described(cfg, module)
    settings = {name: (decay, scale) for decay, scale, names in groups for name in names}
    assert sum(len(names) for *_, names in groups) == len(settings)
    assert set(settings) == {n for n, p in module.named_parameters() if p.requires_grad}
    return settings


def test_by_default_there_are_the_weights_and_then_the_norms():
    """What checkpoints of old hold: their states go by the number of the parameter."""
    cfg = _cfg()
    module = _both(cfg)
    norms = _norm_names(module)
    # Depth first, a module's own parameters before its children's
    rest = [f"{prefix}.{name}" for prefix, child in module.named_modules()
            for name, _ in child.named_parameters(recurse=False)
            if f"{prefix}.{name}" not in norms]
    assert len(norms) > 40 and "model.pool.p" in rest and "loss.weight" in rest
    assert _described(cfg, module) == [(0.01, 1.0, rest), (0.01, 1.0, norms)]
    cfg = _cfg("BN.USE_CUSTOM_WEIGHT_DECAY", True, "BN.CUSTOM_WEIGHT_DECAY", 0.5)
    assert _described(cfg, module) == [(0.01, 1.0, rest), (0.5, 1.0, norms)]


def test_vectors_without_decay():
    cfg = _cfg("OPTIM.NO_DECAY_NORM_BIAS", True)
    module = _both(cfg)
    assert len(_described(cfg, module)) == 2
    for name, (decay, scale) in _settings(cfg, module).items():
        assert decay == (0.01 if module.get_parameter(name).ndim >= 2 else 0) and scale == 1
    cfg = _cfg("OPTIM.NO_DECAY_NORM_BIAS", True, "BN.USE_CUSTOM_WEIGHT_DECAY", True,
               "BN.CUSTOM_WEIGHT_DECAY", 0.5)
    settings, norms = _settings(cfg, module), set(_norm_names(module))
    assert {settings[name][0] for name in norms} == {0.5}
    assert settings["model.fc.bias"][0] == settings["model.pool.p"][0] == 0


def test_rates_of_layers_and_of_the_head():
    cfg = _cfg("OPTIM.LAYER_DECAY", 0.5, "OPTIM.HEAD_LR_MULT", 10.0)
    module = _both(cfg)
    factors = {"model.backbone.stem": 0.5 ** 5, "model.backbone.s1": 0.5 ** 4,
               "model.backbone.s2": 0.5 ** 3, "model.backbone.s3": 0.5 ** 2,
               "model.backbone.s4": 0.5}
    for name, (_, scale) in _settings(cfg, module).items():
        assert scale == factors.get(".".join(name.split(".")[:3]), 10.0), name
    # Weights and norms of five layers and of the head
    assert len(_described(cfg, module)) == 12
    assert _described(cfg, module) == _described(cfg, _both(cfg))


def test_parameters_that_do_not_learn_are_left_out():
    cfg = _cfg()
    module = _both(cfg)
    module.model.backbone.stem.requires_grad_(False)
    assert not any("stem" in name for name in _settings(cfg, module))


@pytest.mark.parametrize("name, layers, first, last", [
    ("vit_tiny_patch16_224", 13, "patch_embed.proj.weight", "blocks.11.mlp.fc2.weight"),
    ("convnext_atto", 5, "stem_0.weight", "stages_3.blocks.1.mlp.fc2.weight"),
    ("resnet10t", 5, "conv1.0.weight", "layer4.0.conv2.weight"),
    ("efficientnet_lite0", 8, "conv_stem.weight", "blocks.6.0.conv_pwl.weight"),
    ("swin_tiny_patch4_window7_224", 5, "patch_embed.proj.weight",
     "layers_3.blocks.1.mlp.fc2.weight"),
    ("densenet121", 5, "features_conv0.weight",
     "features_denseblock4.denselayer16.conv2.weight"),
])
def test_layers_of_timm_networks(name, layers, first, last):
    with torch.device("meta"):
        backbone = TimmBackbone(name)
    numbers = backbone_layers(backbone)
    assert set(numbers) == {name for name, _ in backbone.named_parameters()}
    assert set(numbers.values()) == set(range(layers))
    assert [key for key in numbers if key.endswith(first) and numbers[key] == 0]
    assert [key for key in numbers if key.endswith(last) and numbers[key] == layers - 1]


def test_the_rate_is_shared_out():
    cfg = _cfg("OPTIM.LAYER_DECAY", 0.5)
    optimizer = build_optimizer(cfg, _both(cfg))
    set_learning_rate(optimizer, 0.4)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[0] == pytest.approx(0.4 / 32) and max(rates) == 0.4


def _steps(optimizer, module, images, count):
    for _ in range(count):
        labels = torch.arange(len(images)) % 5
        total = module.loss(module.model(images), labels)["total"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def _plain(cfg, module):
    """The optimizer of `cfg` in torch's slowest form."""
    optim = cfg.OPTIM
    kinds = {
        "sgd": lambda p: torch.optim.SGD(p, lr=optim.BASE_LR, momentum=optim.MOMENTUM,
                                         nesterov=True, weight_decay=optim.WEIGHT_DECAY,
                                         foreach=False),
        "adam": lambda p: torch.optim.Adam(p, lr=optim.BASE_LR, weight_decay=optim.WEIGHT_DECAY,
                                           foreach=False),
        "adamw": lambda p: torch.optim.AdamW(p, lr=optim.BASE_LR, weight_decay=optim.WEIGHT_DECAY,
                                             foreach=False)}
    norms = set(_norm_names(module))
    named = list(module.named_parameters())
    # Two groups in the order of old
    return kinds[optim.NAME]([{"params": [p for n, p in named if n not in norms]},
                              {"params": [p for n, p in named if n in norms]}])


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_fused_it_does_the_same_and_goes_on_from_one_that_was_not(name):
    cfg = _cfg("OPTIM.NAME", name, "OPTIM.BASE_LR", 0.001)
    images = torch.randn(6, 3, 48, 48)
    slow, fast = _both(cfg), _both(cfg)
    plain, fused = _plain(cfg, slow), build_optimizer(cfg, fast)
    assert all(group["fused"] for group in fused.param_groups)
    for module, optimizer in ((slow, plain), (fast, fused)):
        _steps(optimizer, module, images, 1)
    for (key, a), b in zip(slow.named_parameters(), fast.parameters()):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4, msg=key)
    saved = copy.deepcopy(plain.state_dict())
    for group in saved["param_groups"]:
        assert not group["fused"] and "lr_scale" not in group
    fast.load_state_dict(slow.state_dict())
    fused.load_state_dict(saved)
    assert all(group["fused"] and group["lr_scale"] == 1 for group in fused.param_groups)
    for (key, theirs), ours in zip(plain.state_dict()["state"].items(),
                                   fused.state_dict()["state"].values()):
        assert all(torch.equal(theirs[k], ours[k]) for k in theirs), key
    set_learning_rate(fused, 0.001)
    for module, optimizer in ((slow, plain), (fast, fused)):
        _steps(optimizer, module, images, 1)
    for (key, a), b in zip(slow.named_parameters(), fast.parameters()):
        torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4, msg=key)


def test_a_state_survives_a_file_and_one_of_other_groups_is_refused():
    cfg = _cfg("OPTIM.LAYER_DECAY", 0.5)
    module = _both(cfg)
    optimizer = build_optimizer(cfg, module)
    _steps(optimizer, module, torch.randn(4, 3, 48, 48), 1)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = build_optimizer(cfg, module)
    again.load_state_dict(torch.load(file, weights_only=True))
    scales = [group["lr_scale"] for group in optimizer.param_groups]
    assert [group["lr_scale"] for group in again.param_groups] == scales
    with pytest.raises(ValueError, match="different number of parameter groups"):
        build_optimizer(_cfg(), module).load_state_dict(optimizer.state_dict())


def test_what_cannot_be_fused_is_not():
    cfg = _cfg()
    module = _both(cfg).to("meta")
    assert not any(group["fused"] for group in build_optimizer(cfg, module).param_groups)


class Parts(nn.Module):
    """Two parameters whose gradients a test sets; `rows` may be sharded."""

    def __init__(self, weight: torch.Tensor, rows: torch.Tensor):
        super().__init__()
        self.weight, self.rows = nn.Parameter(weight.clone()), nn.Parameter(rows.clone())
        self.idle = nn.Parameter(torch.ones(2))
        self.weight.grad, self.rows.grad = weight.clone(), rows.clone()


@pytest.mark.parametrize("most", [0.5, 1e3])
@pytest.mark.parametrize("sharded", [set(), {"rows"}])
def test_clipping_is_torchs_own(most, sharded):
    torch.manual_seed(0)
    weight, rows = torch.randn(3, 4), torch.randn(5)
    module, other = Parts(weight, rows), Parts(weight, rows)
    norm = clip_gradients(module, most, sharded)
    expected = nn.utils.clip_grad_norm_(other.parameters(), most)
    assert norm.shape == () and norm.dtype == torch.float32
    torch.testing.assert_close(norm, expected)
    assert module.idle.grad is None
    for mine, theirs in ((module.weight, other.weight), (module.rows, other.rows)):
        torch.testing.assert_close(mine.grad, theirs.grad)


def test_without_any_gradient_nothing_is_clipped():
    assert clip_gradients(nn.Linear(2, 2), 1.0) == 0


def _clip_in_process(rank: int, port_file: str, weight, rows, results) -> None:
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    module = Parts(weight, rows[:2] if rank == 0 else rows[2:])
    norm = clip_gradients(module, 0.5, {"rows"})
    results.put((rank, float(norm), module.weight.grad.tolist(), module.rows.grad.tolist()))
    dist.destroy_process_group()


def test_sharded_rows_count_over_all_processes(tmp_path):
    torch.manual_seed(0)
    weight, rows = torch.randn(3, 4), torch.randn(5, 2)
    whole = Parts(weight, rows)
    expected = nn.utils.clip_grad_norm_(whole.parameters(), 0.5)
    spawn = multiprocessing.get_context("spawn")
    results = spawn.SimpleQueue()
    processes = [spawn.Process(target=_clip_in_process,
                               args=(rank, str(tmp_path / "meet"), weight, rows, results))
                 for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    found = sorted(results.get() for _ in processes)
    assert [rank for rank, *_ in found] == [0, 1]
    for _, norm, weight_grad, _ in found:
        assert norm == pytest.approx(float(expected))
        torch.testing.assert_close(torch.tensor(weight_grad), whole.weight.grad)
    shards = torch.tensor(found[0][3] + found[1][3])
    torch.testing.assert_close(shards, whole.rows.grad)
