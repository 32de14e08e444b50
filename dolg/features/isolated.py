"""Files whose readers may crash, hang or take all memory, read in a process that may: see containers.py."""
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import dolg
from dolg.errors import UserError


class Reader:
    """A process that reads .mat and HDF5 files; a context manager."""

    def __init__(self):
        root = str(Path(dolg.__file__).resolve().parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [
            root, os.environ.get("PYTHONPATH")])), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
            # libhdf5 loads shared libraries that a file's filters name; "::": none
            "HDF5_PLUGIN_PRELOAD": "::"}
        self._process = subprocess.Popen([sys.executable, "-P", "-m", "dolg.features.containers"],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, env=environment)

    def read(self, path: Path, key: str = "") -> dict[str, np.ndarray]:
        """The arrays that containers.py finds in a file. Raises UserError; after that of a file that ended
        the process, `alive` is False."""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"path": str(path.absolute()), "key": key}).encode() + b"\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise UserError(f"{path} is damaged, or not a file of its kind (its reader, a process of its own, was "
                            f"ended by {_name(self._process.wait())})")
        found = json.loads(answer)
        if "error" in found:
            raise UserError(" ".join(found["error"].replace(str(path.absolute()), str(path)).split()))
        # NumPy reads what it takes for a file with calls that a pipe does not know
        pipe = SimpleNamespace(read=self._process.stdout.read)
        try:
            return {name: np.lib.format.read_array(pipe, allow_pickle=False) for name in found["arrays"]}
        except ValueError as error:
            raise UserError(f"{path} could not be read: its reader, a process of its own, ended "
                            f"({error})") from None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _name(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"status {status}"
