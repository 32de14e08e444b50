"""What servers answer who are asked for a file, or the rest of one: used, waited for, or refused."""
import re

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from dolg.prepare.part import Part

_FOR_A_WHILE = {408, 425, 429}      # and 5xx
_PAGES = (".html", ".htm")
# Some servers call the compression of the archives themselves a coding
_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz")


class Failed(Exception):
    """An address does not give the file: why, to stand after the address."""


class Interrupted(Exception):
    """An attempt failed, the next one may not; `wait` is how long the server asks to wait, if it does."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def range_header(url: str, part: Part) -> dict[str, str]:
    """The headers that ask for what `part` lacks, as long as the file is still the same."""
    if not part.size:
        return {}
    validator = part.origin.validator if part.origin.url == url else ""
    return {"Range": f"bytes={part.size}-", **({"If-Range": validator} if validator else {})}


def offset_of(response: requests.Response, part: Part) -> int:
    """Where in the file the answer begins: after the part, or at 0 where the server sends it all.

    Raises Interrupted, the part deleted, where what is sent does not continue it.
    """
    if part.size and response.status_code in (206, 416):
        if response.status_code == 206 and _continues(response, part):
            return part.size
        part.delete()
        raise Interrupted("does not continue what it began")
    check_status(response)
    return 0


def _continues(response: requests.Response, part: Part) -> bool:
    given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
    if given is None or int(given[1]) != part.size:
        return False
    return part.origin.total is None or given[2] in ("*", str(part.origin.total))


def validator_of(response: requests.Response) -> str:
    """What changes when the file does, as If-Range wants it; "": the server has nothing such."""
    etag = response.headers.get("ETag", "")
    return response.headers.get("Last-Modified", "") if not etag or etag.startswith("W/") else etag


def total_of(response: requests.Response, offset: int, size: int | None) -> int | None:
    """Bytes of the whole file, if known. Raises Failed where the server has another size than `size`."""
    # The length of a part may be less than all the rest
    said = response.headers.get("Content-Range" if offset else "Content-Length", "").rpartition("/")[2]
    total = int(said) if re.fullmatch("[0-9]+", said) else None
    if size is not None and total not in (None, size):
        raise Failed(f"has {total} bytes, and {size} are published")
    return size if total is None else total


def check_body(response: requests.Response, name: str, total: int | None, verifiable: bool) -> None:
    """Raises Failed for what is not the file `name` as it is, and where nobody could tell its end."""
    if response.headers.get("Content-Type", "").startswith("text/html") and not name.endswith(_PAGES):
        raise Failed("answers with a web page instead of the file")
    coding = response.headers.get("Content-Encoding") or "identity"
    if coding != "identity" and not name.endswith(_COMPRESSED):
        raise Failed(f"sends it in another coding ({coding}), though asked for none")
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "")
    if total is None and not chunked and not verifiable:
        raise Failed("does not say how long the file is")


def check_status(response: requests.Response) -> None:
    """Raises Interrupted for a server that is in trouble, and Failed for all else but 200."""
    status = response.status_code
    if status == 200:
        return
    answer = f"answers {status} {response.reason or ''}".rstrip()
    if status in _FOR_A_WHILE or status >= 500:
        raise Interrupted(answer, _retry_after(response))
    raise Failed(answer)


def _retry_after(response: requests.Response) -> float | None:
    try:
        return Retry().get_retry_after(response.raw)
    except InvalidHeader:
        return None
