"""What a backbone's weights expect of an image."""
from dataclasses import dataclass


@dataclass(frozen=True)
class InputSpec:
    """Colour order ("bgr" or "rgb"), and mean and sd per channel in that order, for pixels in 0..1."""

    colour: str
    mean: tuple[float, float, float]
    sd: tuple[float, float, float]


# ImageNet statistics in BGR, as pycls and the original DOLG code feed their ResNets
PYCLS = InputSpec("bgr", (0.406, 0.456, 0.485), (0.225, 0.224, 0.229))
