"""Any timm model as a backbone."""
import torch
from torch import nn

from dolg.errors import UserError, closest
from dolg.models.backbones.input_spec import InputSpec


class TimmBackbone(nn.Module):
    """The last two maps of the timm model `name`, randomly initialised (no hub is asked).

    `forward(images (B,3,H,W))` gives {"stage3": (B,C3,h3,w3), "stage4": (B,C4,h4,w4)}: the
    deepest map and the one before it, as timm's `features_only` announces them.
    Raises UserError where timm has no such model or cannot give two maps of it.
    """

    def __init__(self, name: str):
        super().__init__()
        import timm     # takes a second to import: only those who use it wait

        if not timm.is_model(name):
            near = closest(name, timm.list_models())
            raise UserError(f"TIMM.NAME is '{name}', which timm {timm.__version__} does not have"
                            f"{near}; timm.list_models() lists them")
        try:
            self.body = timm.create_model(name, pretrained=False, features_only=True)
            info = self.body.feature_info
            if len(info) < 2:
                raise UserError(f"timm's {name} gives one map, and a backbone needs two")
            self.body = timm.create_model(name, pretrained=False, features_only=True,
                                          out_indices=(len(info) - 2, len(info) - 1))
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            raise UserError(f"timm cannot give the maps of {name}: {error}") from None
        info = self.body.feature_info
        self.name = name
        self.channels = dict(zip(("stage3", "stage4"), info.channels()))
        self.strides = dict(zip(("stage3", "stage4"), info.reduction()))
        data = timm.data.resolve_data_config({}, model=self.body)
        self.input_spec = InputSpec("rgb", tuple(data["mean"]), tuple(data["std"]))

    def classifier_keys(self) -> set[str]:
        """Keys of the full timm model that are not of its maps: a weights file may hold them."""
        import timm

        with torch.device("meta"):
            full = timm.create_model(self.name, pretrained=False)
        own = {flat_key(key) for key in self.body.state_dict()}
        return {key for key in full.state_dict() if flat_key(key) not in own}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        stage3, stage4 = self.body(images)
        return {"stage3": stage3, "stage4": stage4}


def flat_key(key: str) -> str:
    """A timm key without the punctuation that `features_only` changes: it flattens
    `features.denseblock1` to `features_denseblock1`, and may wrap the network as `model.`."""
    return key.removeprefix("model.").replace(".", "_")
