"""Batch norms folded into convolutions: the same descriptors, without the norms."""
import pytest
import torch
from torch import nn

from dolg.config import load_cfg
from dolg.models import build_model
from dolg.models.folding import fold_norms

SMALL = ["RESNET.STEM_WIDTH", "8", "MODEL.DEPTH", "18", "MODEL.CGD.FEATURE_DIM", "12",
         "MODEL.HEADS.REDUCTION_DIM", "16", "MODEL.DELG.LOCAL_DIM", "12"]


def _model(*options):
    torch.manual_seed(0)
    model = build_model(load_cfg(None, [*SMALL, *options])).eval()
    for module in model.modules():      # norms that do something
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def _norms(model):
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("options, left", [
    (["MODEL.ARCH", "dolg"], 0), (["MODEL.ARCH", "delg"], 0), (["MODEL.ARCH", "gem"], 0),
    (["MODEL.ARCH", "cgd"], 0), (["MODEL.ARCH", "dolg", "MODEL.DEPTH", "50"], 0),
    (["MODEL.TYPE", "timm", "TIMM.NAME", "tf_efficientnet_lite0"], 0),
    # Norms before convolutions, as in DenseNet, stay: 62 of its 63 - 1 pairs are conv, then norm
    (["MODEL.TYPE", "timm", "TIMM.NAME", "densenet121"], None),
    (["MODEL.TYPE", "timm", "TIMM.NAME", "convnext_atto"], None)])
def test_the_same_outputs(options, left):
    model = _model(*options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_norms(model, torch.rand(1, 3, 64, 64))
    images = torch.randn(2, 3, 70, 95)
    with torch.no_grad():
        expected, found = model(images), folded(images)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3,
                                   atol=2e-5 * float(value.abs().max()))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    if left is not None:
        assert _norms(model) > 5 and _norms(folded) == left


class _Awkward(nn.Module):
    """Convolutions whose norms must not be folded."""

    def __init__(self):
        super().__init__()
        self.twice, self.norm_a, self.norm_b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.seen, self.norm_c = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.fine, self.norm_d = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.norm_a(self.twice(x)) + self.norm_b(self.twice(x.flip(2)))
        y = self.seen(x)
        y = self.norm_c(y) + y
        return {"global": self.norm_d(self.fine(y)).mean(dim=(2, 3))}


def test_norms_of_what_is_used_elsewhere_stay():
    model = _Awkward().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
    folded = fold_norms(model, torch.rand(1, 3, 8, 8))
    x = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(folded(x)["global"], model(x)["global"])
    assert [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)] \
        == ["norm_a", "norm_b", "norm_c"]
