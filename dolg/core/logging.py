"""What a run says: lines on the console, JSON lines and TensorBoard scalars in OUT_DIR."""
import math
import sys
from pathlib import Path

import simplejson
from tqdm import tqdm

from dolg.core.distributed import is_main
from dolg.files import append_record
from revisitop.printing import one_line


def say(message: str) -> None:
    """One line on the console, from the main process only, clear of any progress bar."""
    if is_main():
        tqdm.write(one_line(message), file=sys.stdout)
        sys.stdout.flush()


class RunLog:
    """`OUT_DIR/log.jsonl`, one JSON object per line, and `OUT_DIR/tensorboard`.

    A resumed run appends; where an epoch was repeated, the later lines count. A record that a full
    disk has torn stays, and the next starts on a new line. Silent in all processes but the main one.
    """

    def __init__(self, out_dir: str | Path):
        self._file = self._board = None
        self._failed = False
        if is_main():
            from torch.utils.tensorboard import SummaryWriter

            out_dir = Path(out_dir)
            out_dir.mkdir(parents=True, exist_ok=True)
            self._file = out_dir / "log.jsonl"
            self._board = SummaryWriter(str(out_dir / "tensorboard"))

    def write(self, kind: str, step: int, figures: dict) -> None:
        """Record `figures` at `step` (counted over the whole run) under `kind`."""
        if self._file is None:
            return
        rounded = {key: _rounded(value) for key, value in figures.items()}
        try:
            append_record(self._file, simplejson.dumps({"kind": kind, "step": step, **rounded}))
            for key, value in figures.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{kind}/{key}", value, step)
        except OSError as error:        # a full disk takes the log, not the training
            if not self._failed:
                say(f"WARNING: figures are not logged: {error.strerror or error}")
            self._failed = True

    def close(self) -> None:
        if self._board is None:
            return
        try:
            self._board.close()
        except OSError as error:
            say(f"WARNING: the last figures are not logged: {error.strerror or error}")


def _rounded(value):
    """Eight significant digits: all that float32 has."""
    if isinstance(value, float) and math.isfinite(value):
        return float(f"{value:.8g}")
    return value if not isinstance(value, float) else str(value)
