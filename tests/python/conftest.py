"""What the tests of Python as users write it share: a small benchmark, and networks with weights."""
from pathlib import Path

import pytest
import torch

import dolg
from dolg.config import load_cfg
from dolg.data.landmarks import LandmarkParams, make_landmarks
from dolg.features.describer import Describer
from dolg.models import build_model
from tests.conftest import ROOT

SMALL = LandmarkParams(train_landmarks=1, train_photos=1, val_photos=0, test_landmarks=3, easy=3, hard=2,
                       junk=1, distractors=6, train_size=32, size=160)
# A network that takes no time
TINY = ["MODEL.DEPTH", "18", "RESNET.STEM_WIDTH", "8", "MODEL.HEADS.REDUCTION_DIM", "16",
        "MODEL.DELG.LOCAL_DIM", "12", "MODEL.CGD.FEATURE_DIM", "16", "DEVICE", "cpu"]


@pytest.fixture(scope="session")
def landmarks(tmp_path_factory) -> Path:
    """A data root with `synthetic`, in the Revisited format: 3 queries with boxes, about 18 images."""
    root = tmp_path_factory.mktemp("landmarks")
    make_landmarks(root, SMALL, workers=1, progress=False)
    return root


@pytest.fixture(scope="session")
def photos(landmarks) -> list[Path]:
    return sorted((landmarks / "synthetic" / "jpg").glob("*.jpg"))


def write_weights(path: Path, cfg) -> Path:
    """Random weights, and norms as after training: other means and variances than 0 and 1."""
    torch.manual_seed(3)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.3, 0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """`tiny_model(KEY, VALUE, ...)` gives the Describer of a tiny network, by default DOLG's."""
    folder, made = tmp_path_factory.mktemp("weights"), {}

    def load(*options: object) -> Describer:
        options = tuple(map(str, options))
        if options not in made:
            cfg = load_cfg(None, [*TINY, *options])
            made[options] = dolg.load(cfg, write_weights(folder / f"{len(made)}.pth", cfg))
        return made[options]

    return load


@pytest.fixture(scope="session")
def quickstart(landmarks, tmp_path_factory) -> Path:
    """A folder like the repository's, with what scripts/quickstart.sh leaves, but for smaller data and
    random weights."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "configs").symlink_to(ROOT / "configs")
    output = folder / "output" / "quickstart"
    write_weights(output / "train" / "checkpoints" / "model_epoch_0012.pyth",
                  load_cfg(str(folder / "configs" / "quickstart.yaml")))
    (output / "data").symlink_to(landmarks)
    return folder
