"""Reading pickles of plain data without executing anything that they name."""
import pickle
from pathlib import Path

import numpy as np


class PickleError(ValueError):
    """The file is no pickle of plain data; one line says why."""


def _encode(text: str, encoding: str) -> bytes:
    """Stands for `_codecs.encode`: pickle protocols 0 to 2 write bytes as Latin-1 text."""
    if encoding != "latin1":
        raise PickleError(f"it wants bytes in {encoding!r}, where pickle writes 'latin1'")
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """Stands for `bytes`, which protocols 0 to 2 call, without arguments, for b"" alone."""
    return b""


def _array_makers() -> dict[tuple[str, str], object]:
    """What pickled NumPy arrays and scalars name, by module and name, old and new."""
    makers = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
              ("_codecs", "encode"): _encode, ("__builtin__", "bytes"): _empty_bytes}
    for core in ("numpy.core", "numpy._core"):
        makers[f"{core}.multiarray", "_reconstruct"] = np.empty(0).__reduce__()[0]
        makers[f"{core}.multiarray", "scalar"] = np.float64(0).__reduce__()[0]
        makers[f"{core}.numeric", "_frombuffer"] = np.empty(1).__reduce_ex__(5)[0]
    return makers


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str):
        maker = _array_makers().get((module, name))
        if maker is None:
            asked = f"{module}.{name}"
            raise PickleError(f"it asks for {asked!r}, which is not plain data; nothing was "
                              "executed")
        return maker


def load_plain_pickle(path: str | Path):
    """The object in a pickle of containers, numbers, text and NumPy arrays.

    Raises PickleError, in one line and before anything is executed, for a file that names any
    other class or function, and for one that is damaged; OSError where it cannot be read.
    """
    with open(path, "rb") as file:
        try:
            # Latin-1 is what array data written by Python 2 needs
            return _PlainUnpickler(file, encoding="latin1").load()
        except PickleError as error:
            raise PickleError(f"{path} was refused: {error}") from None
        except OSError:
            raise
        except Exception as error:      # damaged bytes make unpickling raise almost anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise PickleError(f"{path} is not a whole pickle ({reason})") from None
