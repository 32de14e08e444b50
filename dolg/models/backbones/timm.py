"""Any timm model as a backbone."""
import torch
from torch import nn
from torch.nn import functional as F

from dolg.errors import UserError, closest
from dolg.models.backbones.input_spec import InputSpec

# What lets transformers take images of any size, tried in turn: timm's vision transformers
# know the first, Swin the second, convolutional networks need none
_ANY_SIZE = ({"dynamic_img_size": True, "dynamic_img_pad": True}, {"strict_img_size": False}, {})


class TimmBackbone(nn.Module):
    """The last two maps of the timm model `name`, randomly initialised (no hub is asked).

    `forward(images (B,3,H,W))` gives {"stage3": (B,C3,h3,w3), "stage4": (B,C4,h4,w4)}: the deepest
    map and the one before it, as timm's `features_only` announces them. Plain vision transformers
    have one resolution: theirs are the maps after three quarters of the blocks and after the
    last. A network with a single map has no "stage3".

    Args:
        name: in `timm.list_models()`.
        recompute: do not keep activations for the backward pass (timm's gradient checkpointing).

    Raises UserError where timm has no such model or cannot give maps of it.
    """

    def __init__(self, name: str, recompute: bool = False):
        super().__init__()
        import timm     # takes a second to import: only those who use it wait

        if not timm.is_model(name):
            near = closest(name, timm.list_models())
            raise UserError(f"TIMM.NAME is '{name}', which timm {timm.__version__} does not have"
                            f"{near}; timm.list_models() lists them")
        try:
            info = _create(name).feature_info
            # Of every map: `reduction()` leaves out those that are not asked for
            strides = [entry["reduction"] for entry in info.info]
            self.body = _create(name, out_indices=_last_two(strides))
            if recompute:
                # Transformers are wrapped: the network is inside
                getattr(self.body, "model", self.body).set_grad_checkpointing(True)
        except (RuntimeError, NotImplementedError, AttributeError) as error:
            raise UserError(f"timm cannot give the maps of {name}: {error}. Networks that have them "
                            "are, for example, tf_efficientnet_b5, densenet121, convnext_base, "
                            "swin_base_patch4_window7_224 and vit_base_patch14_dinov2") from None
        info = self.body.feature_info
        self.name = name
        self.names = ("stage3", "stage4")[-len(info.channels()):]
        self.channels = dict(zip(self.names, info.channels()))
        self.strides = dict(zip(self.names, info.reduction()))
        self._channels_last = "NHWC" in str(getattr(self.body, "output_fmt", ""))
        data = timm.data.resolve_data_config({}, model=self.body)
        self.input_spec = InputSpec("rgb", tuple(data["mean"]), tuple(data["std"]))

    def classifier_keys(self) -> set[str]:
        """Keys of the full timm model that are not of its maps: a weights file may hold them."""
        import timm

        with torch.device("meta"):
            full = timm.create_model(self.name, pretrained=False)
        own = {flat_key(key) for key in self.body.state_dict()}
        return {key for key in full.state_dict() if flat_key(key) not in own}

    def forward(self, images: torch.Tensor, last: str = "stage4") -> dict[str, torch.Tensor]:
        # timm computes all stages, whatever the `last` that is needed
        if self._channels_last:
            # Swin takes whole patches of 4 pixels; zero is the mean colour
            images = F.pad(images, (0, -images.shape[3] % 4, 0, -images.shape[2] % 4))
        maps = self.body(images)
        if self._channels_last:
            maps = [map_.permute(0, 3, 1, 2) for map_ in maps]
        return dict(zip(self.names, maps))


def _create(name: str, **options) -> nn.Module:
    import timm

    for any_size in _ANY_SIZE:
        try:
            return timm.create_model(name, pretrained=False, features_only=True, **any_size,
                                     **options)
        except TypeError as error:      # "unexpected keyword argument"
            if not any_size or not any(key in str(error) for key in any_size):
                raise
    raise AssertionError("the last of _ANY_SIZE asks for nothing")


def _last_two(strides: list[int]) -> tuple[int, ...]:
    """Indexes of the maps to take of all that a network announces by their strides."""
    last = len(strides) - 1
    if last < 1:
        return (0,)
    one_resolution = len(set(strides)) == 1
    return (len(strides) * 3 // 4 - 1 if one_resolution else last - 1, last)


def flat_key(key: str) -> str:
    """A timm key without the punctuation that `features_only` changes: it flattens
    `features.denseblock1` to `features_denseblock1`, and may wrap the network as `model.`."""
    return key.removeprefix("model.").replace(".", "_")
