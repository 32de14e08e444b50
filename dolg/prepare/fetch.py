"""Files from the web: whole and verified under their own names, or not there."""
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event

from dolg.errors import UserError
from dolg.prepare.answers import Failed
from dolg.prepare.part import Part, md5_of
from dolg.prepare.transfer import Patience, Web

_ADVICE = "get it by hand and go on with --from DIR"
_LARGEST_MD5_TEXT = 2 ** 20


@dataclass(frozen=True)
class RemoteFile:
    """A file that somebody publishes.

    Attributes:
        name: as it is called on disk.
        urls: addresses, tried in order; none: nobody offers it for download without a form.
        size: in bytes, where published.
        md5: its MD5 in hexadecimal, where published; or
        md5_url: where a text file with it is ("<md5>  <name>" lines, or the MD5 alone).
    """

    name: str
    urls: tuple[str, ...] = ()
    size: int | None = None
    md5: str = ""
    md5_url: str = ""


@dataclass(frozen=True)
class Fetched:
    """A file on disk: its size in bytes, its MD5, and whether that was held against a published one."""

    path: Path
    size: int
    md5: str
    published: bool


def fetch(file: RemoteFile, folder: Path, *, advice: str = _ADVICE, patience: Patience = Patience(),
          stop: Event | None = None) -> Fetched:
    """Have `file` in `folder`, which is made where it is absent.

    It is written to NAME.part, which a later call continues, and gets its name when it is whole and its
    size and MD5 are as published. A file that is there already is only verified. Threads may fetch
    different files at once.

    Args:
        advice: what one may do instead, the end of the message where no address serves.
        patience: how long to wait for a server, and how often to try again.
        stop: once set, the call ends with Stopped, at the latest when the server has been silent for
            `patience.silence` seconds, and leaves the part.

    Raises UserError, one line, where no address gives the file, what they give is not what was published,
    the disk has no room, or a wrong file has its name.
    """
    assert Path(file.name).name == file.name, file.name
    stop = stop or Event()
    path = folder / file.name
    if path.exists():
        there = verify(file, path, stop=stop, patience=patience)
        Part.forget(path)
        return there
    if not file.urls:
        raise UserError(f"{file.name} is not offered for direct download: {advice}")
    with Web(patience, stop) as web:
        try:
            md5 = file.md5.lower() or (_published_md5(file, web) if file.md5_url else "")
        except Failed as failure:
            raise UserError(f"cannot fetch the MD5 of {file.name}: {file.md5_url} {failure}; "
                            f"{advice}") from None
        with Part(path, stop) as part:
            _fill(part, file, md5, web, advice)
            return Fetched(path, part.size, part.finish(), bool(md5))


def verify(file: RemoteFile, path: Path, *, stop: Event | None = None, patience: Patience = Patience(),
           advice: str = "delete it, so that it is fetched again") -> Fetched:
    """The file at `path`, which is taken for `file`: its size and MD5 are as far as published.

    An MD5 that has to be read from the web is asked for once; without it the file counts as not verified
    (`published`), so that machines without a network can use what was brought to them. `advice` ends the
    message.
    Raises UserError for another size or MD5.
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: move it away")
    size, expected = path.stat().st_size, file.md5.lower()
    if file.size is not None and size != file.size:
        raise UserError(f"{path} has {size} bytes, and {file.size} are published: {advice}")
    if file.md5_url and not expected:
        with Web(replace(patience, attempts=1), stop or Event()) as web:
            try:
                expected = _published_md5(file, web)
            except Failed:
                expected = ""
    md5 = md5_of(path, stop)
    if expected and md5 != expected:
        raise UserError(f"{path} has the MD5 {md5}, and {expected} is published: {advice}")
    return Fetched(path, size, md5, bool(expected))


def _fill(part: Part, file: RemoteFile, md5: str, web: Web, advice: str) -> None:
    """Make the part whole and right, from the first address that can; or raise UserError."""
    urls, failures, wrong = list(file.urls), [], 0
    while urls:
        url = urls.pop(0)
        try:
            web.download(url, part, size=file.size, verifiable=bool(md5))
        except Failed as failure:
            failures.append(f"{url} {failure}")
            continue
        found = part.md5()
        if found == md5 or not md5:
            return
        failures.append(f"{url} gave a file of MD5 {found}, and {md5} is published")
        part.delete()
        wrong += 1
        if wrong == 1 and not urls:     # what was there before may have been the damaged part
            urls.append(url)
    raise UserError(f"cannot fetch {file.name}: {'; '.join(dict.fromkeys(failures))}; {advice}")


def _published_md5(file: RemoteFile, web: Web) -> str:
    """The MD5 at `file.md5_url`. Raises Failed where it cannot be read, UserError where it is none."""
    text = web.text(file.md5_url, _LARGEST_MD5_TEXT)
    lines = [line.split() for line in text.splitlines()]
    sums = [(words[0].lower(), words[1:]) for words in lines
            if words and re.fullmatch("[0-9a-fA-F]{32}", words[0])]
    named = [md5 for md5, name in sums if name and os.path.basename(name[-1].lstrip("*")) == file.name]
    if not named and len(sums) == 1:
        named = [sums[0][0]]
    if not named:
        raise UserError(f"{file.md5_url} has no MD5 of {file.name}")
    return named[0]
