"""Small and large JPEG views of a database's images, the newest ones kept in memory."""
import threading
from collections import OrderedDict

import cv2

from dolg.data.decode import ImageError, read_image
from dolg.serve.database import ImageFiles

# Longer side in pixels, by name; results are shown about 300 wide, on dense screens
SIZES = {"small": 480, "large": 1600}
_QUALITY = 85


class Views:
    """Views of images by database row.

    Args:
        files: where they are.
        max_pixels: images that claim more are not shown.
        cache_bytes: what is kept.
    """

    def __init__(self, files: ImageFiles, max_pixels: int, cache_bytes: int = 64 << 20):
        self._files, self._max_pixels, self._cache_bytes = files, max_pixels, cache_bytes
        self._kept: OrderedDict[tuple[int, str], bytes] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def view(self, row: int, size: str) -> bytes:
        """A JPEG of an image, without what else its file says. Raises ImageError where there is none."""
        key = row, size
        with self._lock:        # decoding in all threads at once would take the memory of all
            if key not in self._kept:
                self._keep(key, self._made(row, SIZES[size]))
            self._kept.move_to_end(key)
            return self._kept[key]

    def _made(self, row: int, side: int) -> bytes:
        file = self._files.find(row)
        if file is None:
            raise ImageError(self._files.database.name(row), "its file is in none of the given folders")
        pixels = read_image(file, self._max_pixels).permute(1, 2, 0).flip(2).contiguous().numpy()
        scale = min(1.0, side / max(pixels.shape[:2]))
        if scale < 1:
            size = [max(1, round(length * scale)) for length in pixels.shape[1::-1]]
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()

    def _keep(self, key: tuple[int, str], jpeg: bytes) -> None:
        self._kept[key] = jpeg
        self._bytes += len(jpeg)
        while self._bytes > self._cache_bytes and len(self._kept) > 1:
            self._bytes -= len(self._kept.popitem(last=False)[1])
