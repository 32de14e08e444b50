"""Descriptor networks as files that run without this package: torch.export (.pt2) and ONNX (.onnx).

    input   images       float32 (B,3,H,W), RGB, 0 to 255, any B, H and W
    output  descriptors  float32 (B,D), of unit length

Colour order, mean, standard deviation and lengths are inside, so that nobody gets them wrong. A file sees
images at one scale; who wants several resizes them, and averages (docs/python.md shows how).
"""
import copy
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dolg.errors import UserError
from dolg.features.describer import Describer
from dolg.features.extract import describe
from dolg.files import write_atomically
from dolg.search.whitening import Whitening

# What a file says of itself is JSON: in an ONNX file under this key of its metadata, in a .pt2 archive
# under this name of its extra files
ONNX_KEY, PT2_NAME = "dolg", "dolg.json"
# How far a file's descriptors, of unit length, may be from the network's, in any entry
TOLERANCE = 1e-4
# Batch, height and width of what the network is followed with, and of what the file is tried on
_TRACED = (2, 160, 192)
_TRIED = ((1, 160, 192), (3, 131, 97), (1, 224, 225), (2, 97, 211), (1, 74, 333))
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MOST_BYTES = 2 ** 31       # of an ONNX file: what its encoding (protobuf) can hold


class DescriptorNetwork(nn.Module):
    """Pixels in, unit descriptors out.

    Args:
        network: a retrieval model in eval mode, on the CPU.
        whitening: applied to the unit descriptors, where there is one.

    `forward(images)`, float32 (B,3,H,W), RGB, 0 to 255, gives (B,D) float32.
    """

    def __init__(self, network: nn.Module, whitening: Whitening | None = None):
        super().__init__()
        spec = network.input_spec
        self.network = network
        self.whitened = whitening is not None
        order = [2, 1, 0] if spec.colour == "bgr" else [0, 1, 2]
        # Not "mean": in a graph, buffers and operations share their names
        self.register_buffer("channel_order", torch.tensor(order))
        self.register_buffer("pixel_mean", torch.tensor(spec.mean).view(1, 3, 1, 1))
        self.register_buffer("pixel_sd", torch.tensor(spec.sd).view(1, 3, 1, 1))
        if self.whitened:
            self.register_buffer("whitening_mean", whitening.mean)
            self.register_buffer("whitening_projection", whitening.projection)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        inputs = (images.index_select(1, self.channel_order) / 255 - self.pixel_mean) / self.pixel_sd
        with nullcontext() if torch.__version__ >= (2, 15) else _PoolingOfAnySize():
            units = F.normalize(self.network(inputs)["global"], dim=1)
        if self.whitened:
            units = F.normalize((units - self.whitening_mean) @ self.whitening_projection, dim=1)
        return units


def export(describer: Describer, file: str | Path, size: tuple[int, int] | None = None) -> float:
    """Write the network of a describer to `file`, once it is seen to give the same descriptors.

    The ending says which format: .pt2 or .onnx. With a `size`, (height, width) in pixels, the file takes
    images of that size alone, which transformers need.

    Returns the largest difference to the network's descriptors, in any entry, over several sizes of images
    and batches. Raises UserError where the network cannot be written, a package is missing, or the
    difference is above `TOLERANCE`; then `file` is as it was.
    """
    file = Path(file)
    formats = {".pt2": (_write_pt2, _run_pt2), ".onnx": (_write_onnx, _run_onnx)}
    if file.suffix not in formats:
        raise UserError(f"{file} ends neither in .pt2 (PyTorch) nor in .onnx: that says what to write")
    _check(describer, file, size)
    write, run = formats[file.suffix]
    network, whitening = _on_cpu(describer)
    with tempfile.TemporaryDirectory(prefix="dolg-export-") as folder:
        draft = Path(folder) / f"network{file.suffix}"
        try:
            program = _follow(DescriptorNetwork(network, whitening), size)
            write(program, draft, metadata(describer, size))
            outputs = run(draft)
            difference = largest_difference(outputs, network, whitening, size)
        except Exception as error:      # PyTorch and onnxruntime have a dozen kinds
            raise UserError(f"{file} cannot be made of {describer.settings['model']}: "
                            f"{_reason(error)}") from error
        if not difference <= TOLERANCE:     # NaN is no success either
            raise UserError(f"{file} is not written: its descriptors are off by {difference:.2g}, more "
                            f"than {TOLERANCE:g}")
        write_atomically(file, draft.read_bytes())
    return difference


def metadata(describer: Describer, size: tuple[int, int] | None = None) -> dict:
    """What a file says of itself: what a store's manifest does, and how the file is to be used."""
    spec = describer.network.input_spec
    return {**describer.settings, "precision": "fp32", "dim": describer.dim,
            "input": "images: float32 (B,3,H,W), RGB, 0 to 255",
            "output": f"descriptors: float32 (B,{describer.dim}), of unit length",
            "scale_pooling": describer.cfg.INFER.SCALE_POOLING, "resize_first": describer.cfg.INFER.SIZE,
            "resize": "bilinear, half-pixel centres" + (", antialiased" if spec.antialias else ""),
            "image_size": list(size) if size else None}


def read_metadata(file: str | Path) -> dict:
    """What an exported file says of itself (see `metadata`)."""
    file = Path(file)
    if file.suffix == ".onnx":
        import onnx

        text = {entry.key: entry.value for entry in onnx.load(file).metadata_props}.get(ONNX_KEY)
    else:
        found = {PT2_NAME: ""}
        torch.export.load(file, extra_files=found)
        text = found[PT2_NAME]
    if not text:
        raise UserError(f"{file} was not written by tools/export.py")
    return json.loads(text)


@torch.no_grad()
def largest_difference(outputs: Callable[[torch.Tensor], torch.Tensor], network: nn.Module,
                       whitening: Whitening | None, size: tuple[int, int] | None = None) -> float:
    """The largest difference, in any entry, between what `outputs` makes of images, float32 (B,3,H,W) of
    0 to 255, and the descriptors that `network` has of them as extraction computes them."""
    generator, found = torch.Generator().manual_seed(0), []
    for batch, *usual in _TRIED:
        # Patches of colour, other ones in each image, which scales and colour orders change
        patches = torch.randint(0, 256, (batch, 3, 5, 4), generator=generator).float()
        images = F.interpolate(patches, size or usual, mode="bilinear").to(torch.uint8)
        expected = describe(network, images, [1.0])
        if whitening:
            expected = whitening(expected)
        found.append((outputs(images.float()) - expected).abs().max())
    return torch.stack(found).max().item()      # NaN if any is


def _check(describer: Describer, file: Path, size: tuple[int, int] | None) -> None:
    """Raise UserError for what cannot be exported, before any work is done."""
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
    if file.suffix == ".onnx" and missing:
        raise UserError(f"an ONNX file needs {', '.join(missing)}: pip install {' '.join(missing)}, or "
                        "write a .pt2 file, which needs nothing but PyTorch")
    if size and min(size) < 1:
        raise UserError(f"--size is {size[0]} {size[1]}: give pixels, at least 1")
    if describer.extractor.whitening and len(describer.extractor.scales) > 1:
        raise UserError("INFER.WHITENING acts on the average over INFER.SCALES, and a file sees one scale: "
                        "give INFER.SCALES [1.0], or INFER.WHITENING '' and whiten the averages")
    if not size and _sizes_are_fixed(describer.network):
        raise UserError(f"{describer.cfg.TIMM.NAME} is a transformer, which can be exported for images of "
                        "one size alone: give --size HEIGHT WIDTH")


def _sizes_are_fixed(network: nn.Module) -> bool:
    """Transformers compute with the numbers of their patches in ways that export cannot follow."""
    return any(name.rpartition(".")[2] == "patch_embed" for name, _ in network.named_modules())


def _on_cpu(describer: Describer) -> tuple[nn.Module, Whitening | None]:
    """A copy of the network and of the whitening."""
    whitening = describer.extractor.whitening
    network = copy.deepcopy(describer.network).to("cpu", memory_format=torch.contiguous_format)
    return network, whitening and whitening.to(torch.device("cpu"))


def _follow(module: DescriptorNetwork, size: tuple[int, int] | None) -> torch.export.ExportedProgram:
    """The program that the module is, for batches of any size, of images of any size or of one."""
    module = copy.deepcopy(module).eval()
    for name, part in list(module.named_modules()):
        if _is_same_padded(part):
            module.set_submodule(name, _SamePadded(part))
    batch, *usual = _TRACED
    images = torch.rand(batch, 3, *(size or usual)) * 255
    free = torch.export.Dim.DYNAMIC
    dims = {0: free} if size else {0: free, 2: free, 3: free}
    with torch.no_grad():
        return torch.export.export(module, (images,), dynamic_shapes=(dims,), strict=False)


def _is_same_padded(module: nn.Module) -> bool:
    """TensorFlow's padding, which timm computes of the image's size (its Conv2dSame)."""
    return (type(module).__name__ == "Conv2dSame" and module.stride == (2, 2) and module.dilation == (1, 1)
            and all(side % 2 and side > 1 for side in module.kernel_size))


class _SamePadded(nn.Module):
    """A convolution of stride 2 and odd kernel, padded as TensorFlow does, without a look at the size.

    That padding is (k - 1) / 2 at the end, always, and at the start one less where the side is even.
    Turned by 180 degrees the end comes first, and an ordinary padding of (k - 1) / 2 on both sides does:
    what it has too much at the other end, no step of 2 reaches.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        self.weight = nn.Parameter(convolution.weight.detach().flip(2, 3))
        self.bias = convolution.bias
        self.padding = tuple((side - 1) // 2 for side in convolution.kernel_size)
        self.groups = convolution.groups

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        turned = F.conv2d(maps.flip(2, 3), self.weight, self.bias, 2, self.padding, 1, self.groups)
        return turned.flip(2, 3)


class _PoolingOfAnySize(TorchFunctionMode):
    """Maximum pooling of stride 2, padded, as every second value of stride 1: the same numbers. Of the
    former PyTorch 2.11 notes conditions on the image's size that there are none of."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.max_pool2d and isinstance(args[1], int) and args[1] % 2:
            ordinary = {"stride": 2, "padding": args[1] // 2, "dilation": 1, "ceil_mode": False,
                        "return_indices": False}
            if kwargs == ordinary:
                return F.max_pool2d(*args, stride=1, padding=args[1] // 2)[:, :, ::2, ::2]
        return function(*args, **kwargs)


def _write_pt2(program: torch.export.ExportedProgram, file: Path, about: dict) -> None:
    torch.export.save(program, file, extra_files={PT2_NAME: json.dumps(about)})


def _run_pt2(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    return torch.export.load(file).module()


def _write_onnx(program: torch.export.ExportedProgram, file: Path, about: dict) -> None:
    size = sum(tensor.nbytes for tensor in program.state_dict.values())
    if size >= _MOST_BYTES:
        raise UserError(f"its weights have {size / 1e9:.1f} GB and an ONNX file holds 2: write a .pt2 file")
    from onnxscript import ir

    result = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False,
                               input_names=["images"], output_names=["descriptors"])
    graph = result.model.graph
    graph.inputs[0].shape = ir.Shape(["batch", 3, *(about["image_size"] or ["height", "width"])])
    graph.outputs[0].shape = ir.Shape(["batch", about["dim"]])
    result.model.metadata_props[ONNX_KEY] = json.dumps(about)
    result.save(file, external_data=False)


def _run_onnx(file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _reason(error: Exception) -> str:
    """The first line of a long message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
