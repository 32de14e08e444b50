"""The models against the outputs of the original codes, through the public API."""
from pathlib import Path

import pytest
import torch

from dolg.config import load_cfg
from dolg.core.checkpoint import load_weights
from dolg.data.preprocess import preprocess, scaled_size
from dolg.features.extract import average_scales, describe
from dolg.losses import build_loss
from dolg.models import build_model

CGD = Path(__file__).resolve().parents[2] / "configs" / "cgd" / "r50_cars.yaml"


@pytest.fixture(scope="module")
def cfg():
    return load_cfg(None, ["MODEL.NUM_CLASSES", "100"])


def _original(conformance, shared, case, cfg, folder):
    """(golden, model, loss) with the golden's weights, read from a file in the original layout."""
    golden = conformance.load(shared / "conformance" / case)
    file = folder / f"{case}.pyth"
    state = {key: torch.from_numpy(value) for key, value in conformance.weights(golden).items()}
    torch.save({"epoch": 100, "model_state": state}, file)
    model = build_model(cfg).eval()
    loss = build_loss(cfg, model.dims)
    load_weights(model, file)
    load_weights(loss, file)
    return golden, model, loss


@pytest.mark.parametrize("case", ["a", "b"])
def test_dolg_r50(conformance, shared, tmp_path, cfg, case):
    golden, model, loss = _original(conformance, shared, "dolg_r50", cfg, tmp_path)
    images = torch.from_numpy(conformance.make(golden["inputs"][f"{case}/x"]))
    labels = torch.from_numpy(conformance.make(golden["inputs"][f"{case}/targets"]))
    with torch.no_grad():
        outputs = model(images)
        loss.train()        # the original moves t in eval mode too; it starts at 0
        result = loss(outputs, labels)
    for name, value in {"global_feature": outputs["global"], "attention": outputs["attention"],
                        "local": outputs["local"], "local_slice": outputs["local"],
                        "logits": result["logits"], "t": loss.t}.items():
        conformance.close(golden, f"{case}/{name}", value)
    _same_directions(golden, f"{case}/global_feature", outputs["global"])


@pytest.mark.parametrize("case", ["a", "b"])
def test_delg_r50(conformance, shared, tmp_path, case):
    cfg = load_cfg(None, ["MODEL.ARCH", "delg", "MODEL.NUM_CLASSES", "100"])
    golden, model, loss = _original(conformance, shared, "delg_r50", cfg, tmp_path)
    images = torch.from_numpy(conformance.make(golden["inputs"][f"{case}/x"]))
    labels = torch.from_numpy(conformance.make(golden["inputs"][f"{case}/targets"]))
    head, attention = loss.terms["global"], loss.terms["local"]
    with torch.no_grad():
        outputs, stage3 = model(images), model.backbone(images)["stage3"]
        head.train()        # the original moves t in eval mode too; it starts at 0
        for name, value in {
                "global_feature": outputs["global"], "att_score": outputs["attention"],
                "local_feature": outputs["local"], "local_feature_slice": outputs["local"],
                "f3": stage3, "f3_slice": stage3,
                "global_logits": head(outputs, labels)["logits"], "t": head.t,
                "local_logits": attention(outputs, labels)["logits"]}.items():
            conformance.close(golden, f"{case}/{name}", value)
    _same_directions(golden, f"{case}/global_feature", outputs["global"])


@pytest.mark.parametrize("case", ["a", "b"])
def test_cgd_r50_sg(conformance, shared, tmp_path, case):
    cfg = load_cfg(str(CGD), ["MODEL.NUM_CLASSES", "98"])
    golden, model, loss = _original(conformance, shared, "cgd_r50_sg", cfg, tmp_path)
    images = torch.from_numpy(conformance.make(golden["inputs"][f"{case}/x"]))
    with torch.no_grad():
        outputs, maps = model(images), model.backbone(images)["stage4"]
        classes = loss.terms["auxiliary"].eval()(outputs, torch.zeros(len(images), dtype=int))
        for name, value in {"descriptor": outputs["global"], "classes": classes["logits"],
                            "pooled_S": model.pools[0](maps), "pooled_G": model.pools[1](maps),
                            "shared": maps, "shared_slice": maps}.items():
            conformance.close(golden, f"{case}/{name}", value)
    _same_directions(golden, f"{case}/descriptor", outputs["global"])


def _same_directions(golden, name, descriptors):
    expected = torch.from_numpy(golden["arrays"][name]).double()
    cosine = torch.nn.functional.cosine_similarity(descriptors.double(), expected)
    assert cosine.min() > 1 - 1e-6


def test_five_scales_of_one_image(conformance, shared, tmp_path, cfg):
    golden, model, _ = _original(conformance, shared, "preprocess", cfg, tmp_path)
    bgr = torch.from_numpy(conformance.make(golden["inputs"]["image"]))
    image = bgr.flip(2).permute(2, 0, 1)[None]
    spec, scales = model.input_spec, golden["config"]["scales"]
    raw = []
    for i, scale in enumerate(scales):
        size = scaled_size(*image.shape[2:], scale)
        assert [3, *size] == golden["config"]["shapes_chw"][i]
        pixels = preprocess(image, size, spec.colour, spec.mean, spec.sd)
        with torch.no_grad():
            raw.append(model(pixels)["global"])
        for name, value in {"mean": pixels[0].mean((1, 2)), "pixels": pixels[0],
                            "std": pixels[0].std((1, 2), correction=0),
                            "feature": average_scales(raw[-1:])}.items():
            conformance.close(golden, f"s{i}/{name}", value)
    conformance.close(golden, "descriptor", average_scales(raw))
    conformance.close(golden, "descriptor", describe(model, image, scales))
