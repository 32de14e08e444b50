"""One at a time, a few in line, and the others sent away."""
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class BusyError(Exception):
    """There is no place in the line, or it did not come to its turn in time."""


class Turns:
    """A job at a time.

    Args:
        waiting: that may wait for it.
        patience: seconds that each of them waits.
    """

    def __init__(self, waiting: int = 2, patience: float = 30.0):
        self._patience = patience
        self._places, self._turn = threading.BoundedSemaphore(waiting + 1), threading.Lock()

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for the turn, and keep it. Raises BusyError."""
        if not self._places.acquire(blocking=False):
            raise BusyError
        try:
            if not self._turn.acquire(timeout=self._patience):
                raise BusyError
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._places.release()
