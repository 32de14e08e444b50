"""The one way from decoded pixels to what a network takes, in training and extraction."""
import torch
from torch.nn import functional as F

from dolg.data.boxes import pixels_inside


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(height, width) at `scale`: rounded half to even, as the originals' Python does."""
    return max(1, round(height * scale)), max(1, round(width * scale))


def crop_to_box(image: torch.Tensor, box: tuple[float, float, float, float]) -> torch.Tensor:
    """`image` (3,H,W) inside the box (x1, y1, x2, y2) in pixels, corners truncated to integers.

    What of the box lies outside the image is cut off. Raises ValueError if nothing remains.
    """
    top, left, height, width = pixels_inside(box, *image.shape[1:])
    return image[:, top:top + height, left:left + width]


def preprocess(images: torch.Tensor, size: tuple[int, int], colour: str,
               mean: tuple[float, ...], sd: tuple[float, ...],
               shift: torch.Tensor | None = None, antialias: bool = False) -> torch.Tensor:
    """Resize, scale to 0..1, shift and normalise a batch.

    Args:
        images: uint8 or float (B,3,H,W), RGB, 0..255.
        size: (height, width) of the result. Bilinear with half-pixel centres, on float pixels,
            as cv2.resize does in the original codes of DOLG and DELG.
        colour: "rgb" or "bgr", the order of the result's channels and of `mean` and `sd`.
        shift: (B,3) in RGB, added to pixels of 0..1 (the lighting of training).
        antialias: smooth when shrinking, as Pillow does (the original code of CGD).

    Returns float32 (B,3,h,w), channels last in memory.
    """
    x = images.to(torch.float32, memory_format=torch.channels_last)
    if tuple(x.shape[2:]) != tuple(size):
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=antialias)
        x = x.contiguous(memory_format=torch.channels_last)
    x = x.permute(0, 2, 3, 1)       # (B,h,w,3), as it is in memory
    if colour == "bgr":
        x = torch.stack(x.unbind(3)[::-1], 3)
        shift = None if shift is None else shift.flip(1)
    # One pass each over whole rows of h x 3w, several times as fast as over three strided channels;
    # in place, but for the first, whose result is new
    rows = (x / 255).flatten(2)
    width = x.shape[2]
    if shift is not None:
        rows += shift.to(rows).repeat(1, width)[:, None]
    # Made on the CPU and sent: made on a GPU, they would have the CPU wait for it
    mean_, sd_ = (torch.tensor(v).to(rows.device, non_blocking=True).repeat(width)
                  for v in (mean, sd))
    rows.sub_(mean_).div_(sd_)
    return rows.view(x.shape).permute(0, 3, 1, 2)
