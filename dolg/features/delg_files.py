"""Files of TensorFlow's DELG: NAME.delg_global, and NAME.delg_local where they are."""
import math
from pathlib import Path

import numpy as np

from dolg.errors import UserError
from dolg.features.imported import Imported, joined, local_features, stacked


def import_delg(folder: Path) -> Imported:
    """The images of a folder. Raises UserError."""
    files = sorted(folder.rglob("*.delg_global"))
    if not files:
        raise UserError(f"the folder {folder} holds no .delg_global files")
    datum, features = _delf_messages()
    names = [file.relative_to(folder).with_suffix("").as_posix() for file in files]
    table = stacked(folder, names, [_array(_parsed(datum, file), file).reshape(-1) for file in files])
    locals_ = [file.with_suffix(".delg_local") for file in files]
    if not all(file.exists() for file in locals_):
        return Imported(names, table)
    parts = []
    for file in locals_:
        found = _parsed(features, file).feature
        rows = [_array(f.descriptor, file).reshape(-1) for f in found]
        labels = [f"feature {number}" for number in range(len(rows))]
        parts.append(local_features(
            str(file), stacked(file, labels, rows) if rows else np.empty((0, 0)),
            np.array([(f.x, f.y) for f in found]).reshape(-1, 2), np.array([f.scale for f in found]),
            np.array([f.strength for f in found])))
    return Imported(names, table, joined(folder, parts))


def _array(datum, file: Path) -> np.ndarray:
    shape, values = tuple(datum.shape.dim), datum.float_list.value
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise UserError(f"{file} is damaged: it claims an array of shape {shape}, and has {len(values)} "
                        "numbers")
    return np.array(values, np.float32).reshape(shape)


def _parsed(message, file: Path):
    from google.protobuf.message import DecodeError

    if not file.is_file():
        raise UserError(f"{file} is not a regular file")
    try:
        return message.FromString(file.read_bytes())
    except DecodeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not a file of TensorFlow's DELG: {reason}") from None


def _delf_messages() -> tuple:
    """The classes of a tensor and of an image's features, after tensorflow/models,
    research/delf/delf/protos (datum.proto and feature.proto)."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    except ImportError:
        raise UserError("files of TensorFlow's DELG need the package protobuf: pip install "
                        "protobuf") from None
    kinds = descriptor_pb2.FieldDescriptorProto
    layout = {
        "Shape": [("dim", kinds.TYPE_INT64, "", True)],
        "Floats": [("value", kinds.TYPE_FLOAT, "", True)],
        "Datum": [("shape", kinds.TYPE_MESSAGE, ".delf.Shape", False),
                  ("float_list", kinds.TYPE_MESSAGE, ".delf.Floats", False)],
        "Feature": [("descriptor", kinds.TYPE_MESSAGE, ".delf.Datum", False),
                    *((name, kinds.TYPE_FLOAT, "", False)
                      for name in ("x", "y", "scale", "orientation", "strength"))],
        "Features": [("feature", kinds.TYPE_MESSAGE, ".delf.Feature", True)]}
    file = descriptor_pb2.FileDescriptorProto(name="delf.proto", package="delf", syntax="proto2")
    for message, fields in layout.items():
        added = file.message_type.add(name=message)
        for number, (name, kind, type_name, repeated) in enumerate(fields, 1):
            added.field.add(name=name, number=number, type=kind, type_name=type_name or None,
                            label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(message_factory.GetMessageClass(pool.FindMessageTypeByName(f"delf.{name}"))
                 for name in ("Datum", "Features"))
