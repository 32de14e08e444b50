"""Bytes from web servers: continued where they broke off, with patience that ends."""
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Self

import requests
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from dolg.prepare.answers import (Failed, Interrupted, check_body, check_status, offset_of, range_header,
                                  total_of, validator_of)
from dolg.prepare.guards import check_stop
from dolg.prepare.part import Origin, Part

_AGENT = "dolg (data set preparation)"
# A server that compressed what it sends would make other bytes and other ranges of it
_HEADERS = {"User-Agent": _AGENT, "Accept-Encoding": "identity"}
_BLOCK = 2 ** 18
_UNUSABLE = (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema,
             requests.exceptions.MissingSchema, requests.TooManyRedirects)


@dataclass(frozen=True)
class Patience:
    """With servers; times in seconds.

    Attributes:
        attempts: in a row that bring nothing new, after which an address is given up.
        pause: before the second attempt; doubled for each further one, with jitter.
        longest: of the pauses, also of those that a server asks for.
        connect, silence: until a server answers the call, and between two of its bytes.
    """

    attempts: int = 6
    pause: float = 1.0
    longest: float = 120.0
    connect: float = 15.0
    silence: float = 30.0


class Web:
    """A connection to web servers, for one thread; http and https, redirects and proxies as usual.

    Args:
        stop: once set, all ends with Stopped.
    """

    def __init__(self, patience: Patience, stop: Event):
        self.patience, self._stop = patience, stop
        self._session = requests.Session()
        self._session.headers.update(_HEADERS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_) -> None:
        self._session.close()

    def download(self, url: str, part: Part, *, size: int | None, verifiable: bool) -> None:
        """Append to `part` until all of `url` is there, or raise Failed.

        Args:
            size: bytes of the file as published; another length is refused.
            verifiable: its digest will be checked, so that a part from elsewhere may be continued.
        """
        if part.origin is not None and part.origin.url != url and not verifiable:
            part.delete()
        reached, idle = part.size, 0
        while True:
            try:
                return self._continue(url, part, size, verifiable)
            except Interrupted as interruption:
                # A server that starts anew each time, and breaks off at the same place, makes no progress
                idle = 0 if part.size > reached else idle + 1
                reached = max(reached, part.size)
                self._pause(interruption, idle)

    def text(self, url: str, most: int) -> str:
        """A small file, of at most `most` bytes, or raise Failed."""
        idle = 0
        while True:
            try:
                with self._get(url) as response:
                    check_status(response)
                    content = response.raw.read(most + 1, decode_content=True)
                if len(content) > most:
                    raise Failed(f"has more than {most} bytes")
                return content.decode("utf-8", errors="replace")
            except Interrupted as interruption:
                idle += 1
                self._pause(interruption, idle)

    def _pause(self, interruption: Interrupted, idle: int) -> None:
        if idle >= self.patience.attempts:
            raise Failed(f"{interruption} (tried {idle} times)") from None
        # Jitter, so that many do not come back at the same moment
        seconds = self.patience.pause * 2 ** max(0, idle - 1) * random.uniform(0.5, 1)
        if interruption.wait is not None:
            seconds = max(seconds, interruption.wait)
        self._stop.wait(min(seconds, self.patience.longest))
        check_stop(self._stop)

    @contextmanager
    def _get(self, url: str, headers: dict[str, str] | None = None) -> Iterator[requests.Response]:
        """The server's answer; what breaks while it is read becomes Interrupted, or Failed."""
        check_stop(self._stop)
        try:
            with self._session.get(url, headers=headers, stream=True,
                                   timeout=(self.patience.connect, self.patience.silence)) as response:
                yield response
        except _UNUSABLE as error:
            raise Failed(f"cannot be followed: {_line(error)}") from None
        except (requests.RequestException, HTTPError) as error:
            raise Interrupted(f"broke off: {_line(error)}") from None

    def _continue(self, url: str, part: Part, size: int | None, verifiable: bool) -> None:
        """One attempt: ask for what is missing, and append it."""
        total = part.origin.total if part.origin and size is None else size
        if part.size and total is not None and part.size >= total:
            if part.size == total:
                return
            part.delete()
        with self._get(url, range_header(url, part)) as response:
            offset = offset_of(response, part)
            total = total_of(response, offset, total if offset else size)
            check_body(response, part.path.name, total, verifiable)
            part.reserve((total or 0) - part.size)
            if not offset:
                part.begin(Origin(url, validator_of(response), total))
            self._append(response, part, total)

    def _append(self, response: requests.Response, part: Part, total: int | None) -> None:
        with tqdm(total=total, initial=part.size, desc=part.path.name, unit="B", unit_scale=True,
                  leave=False, disable=None) as bar:
            # What a slow server has sent is kept even where it then falls silent: so read1
            while block := response.raw.read1(_BLOCK, decode_content=False):
                check_stop(self._stop)
                if total is None:
                    part.reserve(len(block))
                elif part.size + len(block) > total:
                    part.delete()       # or a later run might take it for the whole file
                    raise Failed(f"sends more than {total} bytes")
                part.write(block)
                bar.update(len(block))
        if total is not None and part.size < total:
            raise Interrupted(f"broke off after {part.size} of {total} bytes")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
