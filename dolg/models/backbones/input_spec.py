"""What a network expects of an image."""
from dataclasses import dataclass


@dataclass(frozen=True)
class InputSpec:
    """Colour order ("bgr" or "rgb"), mean and sd per channel in that order, for pixels in 0..1,
    and whether shrinking smooths (Pillow's way) or not (OpenCV's)."""

    colour: str
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    antialias: bool = False


# ImageNet statistics in BGR, as pycls and the original DOLG code feed their ResNets
PYCLS = InputSpec("bgr", (0.406, 0.456, 0.485), (0.225, 0.224, 0.229))
# The same in RGB, as torchvision feeds its own
TORCHVISION = InputSpec("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
