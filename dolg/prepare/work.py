"""A data set under preparation: files are found or fetched, unpacked, and each step marked when it is done.

A run that is killed is started again and does what is left; nothing is ever half done under its own name.
"""
import fcntl
import json
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from dolg.core.logging import say
from dolg.data.manifest import FILE
from dolg.errors import UserError
from dolg.files import atomic_file, write_atomically
from dolg.prepare.catalogue import DataSet, Item
from dolg.prepare.fetch import Fetched, RemoteFile, fetch, verify
from dolg.prepare.part import md5_of
from dolg.prepare.unpack import unpack

_SECONDS = 20       # that a server has to say how large a file is
_MARGIN = 2 ** 30   # bytes of the disk that stay free
_NAMED = 5


@dataclass(frozen=True)
class Unit:
    """A file of a data set, and where it goes: an archive is unpacked, another file put there itself.

    Attributes:
        item: the file.
        tree: the folder under the data set's that the archive's files go to, or the file's own folder.
        place: of an archive: see `unpack`; None: the file is put there as it is.
        optional: a folder given by hand may lack it.
        also: other names that it goes by in a folder given by hand, by the image variant that they are.
    """

    item: Item
    tree: str = "."
    place: Callable[[str], str | None] | None = None
    optional: bool = False
    also: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return self.item.path.replace("/", "__")


def as_it_is(name: str) -> str:
    """For `Unit.place`: a member goes where its name says."""
    return name


class Work:
    """A data set's folder, and what is known of the steps that made it.

    Args:
        dataset: which.
        root: the data set's folder lies in it.
        given: a folder with the files that were fetched by hand; None: they are downloaded.
        mirror: address of a folder to download from instead of the published ones.
        jobs: files that are fetched and unpacked at once.
        remove_archives: delete what was downloaded once it is unpacked.
        partial: take what is there of the archives and of the images that lists name.
        unverified: take files of other digests than the published ones.
    """

    def __init__(self, dataset: DataSet, root: Path, given: Path | None = None, mirror: str = "",
                 jobs: int = 4, remove_archives: bool = False, partial: bool = False,
                 unverified: bool = False):
        if given is not None and not given.is_dir():
            raise UserError(f"--from {given} is no folder")
        self.dataset, self.folder, self.given = dataset, root / dataset.name, given
        self.mirror, self.jobs = mirror, jobs
        self.remove_archives, self.partial, self.unverified = remove_archives, partial, unverified
        self.downloads = self.folder / "downloads"
        self._marks = self.folder / ".prepared"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else prepares this folder meanwhile. Raises UserError where somebody does."""
        self._marks.mkdir(parents=True, exist_ok=True)
        with open(self._marks / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another command prepares {self.folder} at this moment") from None
            except OSError as error:
                raise UserError(f"cannot lock {self.folder} against other commands ({error.strerror}): "
                                "choose a --root on a file system with locks") from None
            self._remove_leftovers()
            yield

    def _remove_leftovers(self) -> None:
        """Remove what killed commands left half-written; nobody else writes here now."""
        for place in (self.folder, self._marks, self.downloads, *self.downloads.rglob("*/")):
            for file in place.glob(".*.tmp"):
                file.unlink()
        for folder in self.folder.glob(".*.unpacking"):
            shutil.rmtree(folder)

    def obtain(self, units: Sequence[Unit]) -> dict[str, dict]:
        """Have all units in their places; what is known of each, by its item's path.

        Raises UserError for what can be neither found nor fetched, is damaged, or does not fit the disk;
        the other units that are under way stop soon, and what they have is used the next time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        done = [unit for unit in units if self._is_done(unit)]
        left = self._offered([unit for unit in units if unit not in done])
        if left:
            self._check_disk(left)
        if done and left:
            say(f"{len(done)} of {len(units)} files are in place already")
        self._obtain_all(left)
        for unit in done if self.remove_archives else ():
            (self.downloads / unit.item.path).unlink(missing_ok=True)
        marks = {unit.item.path: self.mark(unit.key) for unit in units}
        marks = {path: mark for path, mark in marks.items() if mark is not None}
        unknown = sum(not mark["md5_published"] for mark in marks.values())
        if left and unknown:
            say(f"{unknown} of {len(marks)} files were held against no published MD5; {FILE} has what they "
                "are")
        return marks

    def adopt(self, tree: str, marker: str, *others: str, bare: bool = True) -> bool:
        """Whether the folder `tree` of the data set is one that was unpacked by hand: a link to it, or the
        folder itself where --from says so.

        The link is made, or leads elsewhere, where --from has the file or folder `marker` in its folder
        `tree`, in one of `others`, or, if `bare`, in itself. Nothing is ever unpacked through a link.
        Raises UserError where a link leads to nothing.
        """
        target, key = self.folder / tree, f"given__{tree}"
        found = self._unpacked(tree, marker, others, bare) if self.given else None
        if found is not None and target.exists() and found.samefile(target):
            if not target.is_symlink():
                self.finish(key, {"given": True})
        elif found is not None and (target.is_symlink() or not target.exists()):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.symlink_to(found.absolute(), target_is_directory=True)
            say(f"{target} is a link to {found}")
        if target.is_symlink() and not (target / marker).exists():
            raise UserError(f"{target} is a link to {target.readlink()}, where no {marker} is: mount that "
                            "disk, say where it is now with --from, or delete the link")
        return target.is_symlink() or (self.mark(key) is not None and (target / marker).exists())

    def _unpacked(self, tree: str, marker: str, others: Sequence[str], bare: bool) -> Path | None:
        """The folder below --from that holds `marker`."""
        places = [self.given / name for name in (tree, *others)] + ([self.given] if bare else [])
        return next((place for place in places if (place / marker).exists()), None)

    def mark(self, key: str) -> dict | None:
        """What a finished step left; None where it is not done."""
        file = self._marks / f"{key}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    def files(self) -> dict[str, dict]:
        """What is known of each file that was taken, by its key."""
        marks = {file.stem: json.loads(file.read_text(encoding="utf-8"))
                 for file in sorted(self._marks.glob("*.json"))}
        return {key: mark for key, mark in marks.items() if "md5" in mark}

    def finish(self, key: str, facts: dict) -> None:
        """Mark a step as done."""
        write_atomically(self._marks / f"{key}.json", json.dumps(facts, indent=1) + "\n")

    def _is_done(self, unit: Unit) -> bool:
        """Whether a unit is in its place; a table that has changed in --from, or is gone, is not."""
        mark = self.mark(unit.key)
        if mark is None or unit.place is not None:
            return mark is not None
        found = self._given_file(unit) if self.given else None
        return (self.folder / unit.tree / unit.item.name).is_file() and (
            found is None or md5_of(found[0]) == mark["md5"])

    def _obtain_all(self, units: Sequence[Unit]) -> None:
        stop = Event()
        bar = tqdm(total=len(units), desc=self.dataset.name, unit="file",
                   disable=None if len(units) > 1 else True)
        with bar, ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._obtain, unit, stop) for unit in units]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.update()
            except BaseException:       # a failure, or Ctrl-C: the others leave what they have
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _obtain(self, unit: Unit, stop: Event) -> None:
        source, variant = self._find(unit, stop)
        facts = {"file": source.path.name, "bytes": source.size, "md5": source.md5,
                 "md5_published": source.published}
        if variant:
            facts["variant"] = variant
        tree = self.folder / unit.tree
        if unit.place is None:
            _copy(source.path, tree / unit.item.name)
        else:
            unpacked = unpack(source.path, tree, place=unit.place, stop=stop)
            facts.update(files=unpacked.files, unpacked_bytes=unpacked.bytes)
        self.finish(unit.key, facts)
        if self.remove_archives and source.path.is_relative_to(self.downloads):
            source.path.unlink()

    def _find(self, unit: Unit, stop: Event) -> tuple[Fetched, str]:
        """The unit's file, verified, and its variant where the name tells."""
        if self.given is None:
            folder = (self.downloads / unit.item.path).parent
            advice = f"{self._by_hand()} and go on with --from DIR"
            return fetch(self._remote(unit.item), folder, advice=advice, stop=stop), ""
        file, variant = self._given_file(unit)
        # An older variant has another digest than the one published for the newer
        remote = RemoteFile(file.name) if variant else self._brought(unit.item)
        return verify(remote, file, stop=stop, advice=f"{self._by_hand()}, or give --unverified"), variant

    def _given_file(self, unit: Unit) -> tuple[Path, str] | None:
        """The file below --from that a unit asks for, and its variant."""
        for name, variant in {unit.item.path: "", unit.item.name: "", **unit.also}.items():
            if (self.given / name).is_file():
                return self.given / name, variant
        return None

    def _is_offered(self, unit: Unit) -> bool:
        if self.given is not None:
            return self._given_file(unit) is not None
        urls = self._remote(unit.item).urls
        return bool(urls) and not (unit.optional and Sizes().of(urls) == ABSENT)

    def _offered(self, units: Sequence[Unit]) -> list[Unit]:
        """Those that can be had. Raises UserError, which names them all, where some cannot but have to."""
        absent = [unit for unit in units if not self._is_offered(unit)]
        names = [" or ".join([unit.item.path, *unit.also]) for unit in absent
                 if not unit.optional and not self.partial]
        if names:
            more = f" and {len(names) - _NAMED} more" if names[_NAMED:] else ""
            some = ", ".join(names[:_NAMED]) + more
            if self.given is None:
                raise UserError(f"not offered for direct download: {some}; {self._by_hand()} and give "
                                "their folder with --from DIR")
            raise UserError(f"--from {self.given} has no {some}; {self._by_hand()}")
        return [unit for unit in units if unit not in absent]

    def _remote(self, item: Item) -> RemoteFile:
        remote = item.remote(self.mirror)
        return replace(remote, md5="", md5_url="") if self.unverified else remote

    def _brought(self, item: Item) -> RemoteFile:
        """As `_remote`, without a network: a text file with the MD5 is looked for in --from."""
        remote = replace(self._remote(item), md5_url="")
        texts = [self.given / item.md5_path, self.given / Path(item.md5_path).name] if item.md5_path else []
        for text in texts:
            if text.is_file() and not self.unverified:
                found = re.match(r"[0-9a-fA-F]{32}\b", text.read_text(encoding="utf-8", errors="replace"))
                if found is None:
                    raise UserError(f"{text} does not begin with an MD5: delete it")
                return replace(remote, md5=found[0].lower())
        return remote

    def _by_hand(self) -> str:
        return f"get it by hand from {self.dataset.page}"

    def _check_disk(self, units: Sequence[Unit]) -> None:
        """Ask how large the files are, and raise UserError where they do not fit the disk."""
        sizes, there = self._sizes(units)
        total, largest = sum(sizes), sum(sorted(sizes)[-self.jobs:])
        # Photographs do not shrink in archives: unpacked they take as much again
        archives = 0 if self.given else largest if self.remove_archives else total
        needed, free = total + archives - there, shutil.disk_usage(self.folder).free
        say(f"{self.dataset.title}: {len(units)} files to take, {total / 1e9:.1f} GB; that needs about "
            f"{max(needed, 0) / 1e9:.1f} GB of disk, and {free / 1e9:.1f} GB are free")
        if needed + _MARGIN > free:
            halved = not (self.remove_archives or self.given)
            hint = ", or give --remove-archives, which halves it" if halved else ""
            raise UserError(f"{self.folder} has {free / 1e9:.1f} GB free, and {self.dataset.name} takes "
                            f"about {needed / 1e9:.1f} GB: make room{hint}")

    def _sizes(self, units: Sequence[Unit]) -> tuple[list[int], int]:
        """Bytes of each file, 0 where nobody knows; and how many of them are downloaded already."""
        if self.given is not None:
            return [self._given_file(unit)[0].stat().st_size for unit in units], 0
        sizes = Sizes()
        with ThreadPoolExecutor(16) as pool:
            found = pool.map(lambda unit: max(sizes.of(self._remote(unit.item).urls), 0), units)
            parts = [self.downloads / f"{unit.item.path}{end}" for unit in units for end in ("", ".part")]
            return list(found), sum(part.stat().st_size for part in parts if part.is_file())


ABSENT = -1


class Sizes:
    """Asks servers for the sizes of files; one that does not answer is not asked again."""

    def __init__(self):
        self._silent = set()

    def of(self, urls: Sequence[str]) -> int:
        """Bytes of a file as the first server that has it says; 0 where nobody says, ABSENT where all that
        answer say that they have none."""
        answers = []
        for url in urls:
            host = urlsplit(url).netloc
            if host in self._silent:
                continue
            try:
                answer = requests.head(url, allow_redirects=True, timeout=_SECONDS)
            except requests.RequestException:
                self._silent.add(host)      # fetching it says what is wrong
                continue
            if answer.ok:
                return int(answer.headers.get("Content-Length", 0))
            answers.append(answer.status_code in (403, 404, 410))
        return ABSENT if answers and all(answers) else 0


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as content, atomic_file(target) as file:
        shutil.copyfileobj(content, file, 2 ** 20)
