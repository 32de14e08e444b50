"""How far an extraction is, how fast it goes, and what it waits for."""
import time
from typing import Self

from tqdm import tqdm

from dolg.features.extract import Extractor, Shares
from dolg.features.store import StoreWriter


class Progress:
    """A bar over a whole store, which several workers may be filling; on a terminal only, and if
    `show`.

    `mine` are the images that this worker has done.
    """

    def __init__(self, writer: StoreWriter, extractor: Extractor, show: bool):
        self.writer, self.extractor, self.mine = writer, extractor, 0
        self._start = time.perf_counter()
        extractor.shares = Shares()
        self._bar = tqdm(total=len(writer.names), initial=writer.count_written(), unit="image",
                         desc=writer.path.name, disable=None if show else True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def advance(self, images: int) -> None:
        """This worker has done more images."""
        self.mine += images
        self._bar.set_postfix_str(self._shares(), refresh=False)
        self._bar.update(images)

    def look(self) -> None:
        """See what all workers have written."""
        if not self._bar.disable:
            self._bar.update(max(0, self.writer.count_written() - self._bar.n))

    def summary(self) -> str:
        """What this worker did, in a line."""
        seconds = time.perf_counter() - self._start
        return (f"{self.writer.path.name}: {self.mine} images in {seconds:.0f} s, "
                f"{self.mine / seconds:.1f} images/s; {self._shares()}")

    def _shares(self) -> str:
        seconds, shares = time.perf_counter() - self._start, self.extractor.shares
        workers = max(1, self.extractor.workers)
        return (f"describing {shares.compute / seconds:.0%}, waiting for images "
                f"{shares.wait / seconds:.0%}, decoders busy {shares.decode / seconds / workers:.0%}")
