"""Descriptors of images in Python: what tools/infer.py does, without a store."""
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm
from yacs.config import CfgNode

from dolg.config import load_cfg
from dolg.data.boxes import Box
from dolg.data.decode import ImageError, read_image
from dolg.data.preprocess import crop_to_box
from dolg.errors import UserError
from dolg.features.builders import build_extractor
from dolg.features.decoding import Decoded
from dolg.features.extract import ChunkResult, Extractor
from dolg.features.resuming import open_writer
from dolg.features.sources import ImageSource
from dolg.features.store import FeatureStore, LocalTable

# A path, a PIL image, uint8 (H,W,3) or (H,W) as NumPy has it, uint8 (3,H,W) as PyTorch has it; RGB
AnyImage = str | PathLike | Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class Describer:
    """A network with its weights, and the settings by which tools/infer.py describes images.

    Attributes:
        cfg: the configuration, frozen.
        extractor: what describes.
        settings: what a store records of how its descriptors were made.
    """

    cfg: CfgNode
    extractor: Extractor
    settings: dict

    @property
    def network(self) -> torch.nn.Module:
        """The network in eval mode, batch norms folded into convolutions."""
        return self.extractor.model

    @property
    def device(self) -> torch.device:
        return self.extractor.device

    @property
    def dim(self) -> int:
        """Dimensions of a descriptor."""
        return self.extractor.dim

    def describe(self, images: AnyImage | Sequence[AnyImage],
                 boxes: Sequence[Box | None] | None = None) -> np.ndarray:
        """Descriptors (N,dim) float32 of unit length; inner products are cosine similarities.

        images: one or several. Files and PIL images are turned upright as their EXIF says; of what
        has no colour, or is transparent, see `dolg.data.decode.read_image`.
        boxes: per image the (x1, y1, x2, y2), in its pixels, that it is cut to, or None.

        Raises ImageError for an image that cannot be read or described, UserError for what is no
        image, and for boxes that do not fit.
        """
        return self._result(images, boxes).global_table(self.dim)

    def describe_local(self, image: AnyImage, box: Box | None = None) -> LocalTable:
        """The local features of an image, as `FeatureStore.local` gives them: positions are those in
        the whole image. Needs INFER.LOCAL True."""
        if not self.extractor.local:
            raise UserError("local features are asked for, but INFER.LOCAL is False: load the model with "
                            "INFER.LOCAL True")
        return self._result(image, None if box is None else [box]).local_table(self.extractor.local_dim)

    def extract(self, folder: str | Path, source: ImageSource) -> FeatureStore:
        """A store in `folder` of the images of `source`, with local features where INFER.LOCAL says so;
        what is in there already is kept, and images that it lacks come after those that it has. Images that
        fail are marked in the store. Raises UserError where files have changed since they were described."""
        settings = {**self.settings, "cropped": bool(source.boxes)}
        writer, source = open_writer(Path(folder), source, self.dim, self.cfg.INFER.CHUNK_SIZE, settings,
                                     self.extractor.local_dim, self.cfg.INFER.LOCAL_DTYPE)
        writer.create()
        self.extractor.fill(writer, source, writer.missing_chunks())
        return FeatureStore(folder)

    def _result(self, images: AnyImage | Sequence[AnyImage],
                boxes: Sequence[Box | None] | None) -> ChunkResult:
        several = isinstance(images, Iterable) and not isinstance(images, AnyImage)
        images = list(images) if several else [images]
        boxes = [None] * len(images) if boxes is None else list(boxes)
        if len(boxes) != len(images):
            raise UserError(f"{len(boxes)} boxes are given for {len(images)} images: give one for each, "
                            "None for a whole one")
        with tqdm(total=len(images), unit="image", leave=False,
                  disable=None if len(images) > 1 else True) as bar:
            result = self.extractor.next_result(self._decoded(images, boxes), len(images), bar.update)
        result.global_table(self.dim)       # finds those without a finite descriptor
        for row, reason in sorted(result.errors.items()):
            raise ImageError(_name(images[row], row), reason)
        return result

    def _decoded(self, images: Sequence[AnyImage], boxes: Sequence[Box | None]) -> Iterator[Decoded]:
        for row, (image, box) in enumerate(zip(images, boxes)):
            pixels, corner = _pixels(image, row, self.extractor), (0, 0)
            if box is not None:
                try:
                    pixels = crop_to_box(pixels, box)
                except ValueError as error:
                    raise UserError(f"box {tuple(box)} of {_name(image, row)}: {error}") from None
                corner = max(0, int(box[0])), max(0, int(box[1]))
            yield Decoded(pixels.contiguous(), corner, 0.0)


def load(cfg: str | PathLike | CfgNode, weights: str | PathLike = "",
         opts: Sequence[object] = ()) -> Describer:
    """A network that describes images: `load("configs/dolg/r50_gldv2_8gpu.yaml", "dolg_r50.pyth")`.

    cfg: a YAML file, or a configuration. weights: a file that TEST.WEIGHTS may name; empty: what
    TEST.WEIGHTS says, or the newest checkpoint in OUT_DIR. opts: KEY, VALUE, ... as on a command line.
    Raises UserError for what is wrong with them.
    """
    if isinstance(cfg, CfgNode):
        if opts:
            raise UserError("opts go with the path of a YAML file: set the configuration's keys instead")
        cfg = cfg.clone()
    else:
        cfg = load_cfg(str(cfg), list(map(str, opts))).clone()
    cfg.defrost()
    cfg.DATA_LOADER.NUM_WORKERS = 0     # a few images are sooner decoded than processes started
    if weights:
        cfg.TEST.WEIGHTS = str(weights)
    cfg.freeze()
    return Describer(cfg, *build_extractor(cfg))


def _pixels(image: AnyImage, row: int, extractor: Extractor) -> torch.Tensor:
    """uint8 (3,H,W), RGB, upright."""
    if isinstance(image, (str, PathLike)):
        return read_image(image, extractor.max_pixels, extractor.lenient)
    if isinstance(image, Image.Image):
        image = _pixels_of_pillow(ImageOps.exif_transpose(image), row)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        if image.ndim == 2:
            image = np.repeat(image[:, :, None], 3, 2)
        # A copy: PyTorch warns of arrays that may not be written to, such as Pillow's
        image = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)
    fits = isinstance(image, torch.Tensor) and (image.dtype, image.ndim) == (torch.uint8, 3)
    if not fits or len(image) != 3 or not image.numel():
        raise UserError(f"image {row} is no image of RGB pixels in uint8: give NumPy's (height, width, 3) "
                        "or PyTorch's (3, height, width), 0 to 255")
    return image


def _pixels_of_pillow(image: Image.Image, row: int) -> np.ndarray:
    """uint8 (H,W,3) or (H,W), as the image's file would be read."""
    if image.mode.startswith("I;16"):
        return (np.array(image) >> 8).astype(np.uint8)      # Pillow's own conversion makes all of it white
    if image.mode in ("I", "F"):
        raise UserError(f"image {row} has Pillow's mode {image.mode}, which does not say what is white: "
                        "give NumPy's array in uint8")
    return np.array(image.convert("RGB"))


def _name(image: AnyImage, row: int) -> str:
    return str(image) if isinstance(image, (str, PathLike)) else f"number {row}"
