"""A data set under preparation: its lock, its room on the disk, its links and its marks."""
import errno
import fcntl
import io
import shutil
import tarfile
from collections import namedtuple

import pytest

from dolg.errors import UserError
from dolg.prepare import work as module
from dolg.prepare.catalogue import DataSet, Item
from dolg.prepare.work import Unit, Work, as_it_is

SET = DataSet("birds", "Birds", "https://birds.example/", "")
Usage = namedtuple("Usage", "total used free")


def _archive(name: str, size: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        member = tarfile.TarInfo(name)
        member.size = size
        tar.addfile(member, io.BytesIO(b"x" * size))
    return content.getvalue()


@pytest.fixture
def units(web):
    """Four archives of 20 KB on the server."""
    for number in range(4):
        web.publish(f"{number}.tar", _archive(f"{number}.jpg", 9_000))
    return [Unit(Item(f"{number}.tar", (web.url,)), "images", as_it_is) for number in range(4)]


def _free(monkeypatch, count: int) -> None:
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: Usage(0, 0, count + module._MARGIN))


@pytest.mark.parametrize("remove, needed", [(False, 8), (True, 6)])
def test_the_disk_needs_room_for_archives_and_images(tmp_path, web, units, monkeypatch, remove, needed):
    """With two at a time, and archives removed, two archives are there at once beside all images."""
    size = len(web.page("0.tar").content)
    work = Work(SET, tmp_path, jobs=2, remove_archives=remove)
    _free(monkeypatch, needed * size - 1)
    with pytest.raises(UserError, match="birds has .* GB free, and birds takes about .* GB: make room"):
        work.obtain(units)
    assert not web.requests
    _free(monkeypatch, needed * size)
    work.obtain(units)
    assert len(list((tmp_path / "birds" / "images").iterdir())) == 4


def test_the_room_of_what_is_left(tmp_path, web, units, monkeypatch):
    """Archives that are unpacked and kept take nothing off the room that the others need."""
    size = len(web.page("0.tar").content)
    work = Work(SET, tmp_path)
    work.obtain(units[:2])
    _free(monkeypatch, 4 * size - 1)
    with pytest.raises(UserError, match="make room"):
        work.obtain(units)
    # Half of an archive is there
    part = tmp_path / "birds" / "downloads" / "2.tar.part"
    part.write_bytes(web.page("2.tar").content[:size // 2])
    work.obtain(units)
    assert len(list((tmp_path / "birds" / "images").iterdir())) == 4


def test_given_archives_need_room_for_the_images_alone(tmp_path, web, units, monkeypatch):
    size, given = len(web.page("0.tar").content), tmp_path / "given"
    given.mkdir()
    for number in range(4):
        (given / f"{number}.tar").write_bytes(web.page(f"{number}.tar").content)
    _free(monkeypatch, 4 * size - 1)
    with pytest.raises(UserError, match="make room$"):
        Work(SET, tmp_path, given).obtain(units)
    _free(monkeypatch, 4 * size)
    Work(SET, tmp_path, given).obtain(units)
    assert not web.requests


def test_locks(tmp_path, monkeypatch):
    first, second = Work(SET, tmp_path), Work(SET, tmp_path)
    with first.locked(), pytest.raises(UserError, match="another command prepares .*birds at this moment"):
        with second.locked():
            pass
    with second.locked():
        pass

    def unknown(*_):
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with pytest.raises(UserError, match="cannot lock .*birds against other commands .not implemented.: ch"):
        with second.locked():
            pass


def test_leftovers_of_killed_commands_go(tmp_path):
    work = Work(SET, tmp_path)
    keep = work.folder / "images" / ".mine.tmp"
    for file in (work.folder / ".train_list.txt.host.7.tmp",
                 work.downloads / "a" / ".x.tar.part.json.host.7.tmp",
                 work.folder / ".images.0.tar.unpacking" / "0.jpg", keep):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
    with work.locked():
        files = [file for file in work.folder.rglob("*") if file.is_file()]
        left = {file.relative_to(work.folder).as_posix() for file in files}
    assert left == {".prepared/lock", "images/.mine.tmp"}


def test_adopted_folders(tmp_path):
    mine, work = tmp_path / "mine", None
    (mine / "images" / "a").mkdir(parents=True)

    def adopts(given, **options) -> bool:
        nonlocal work
        work = Work(SET, tmp_path / "data", given)
        return work.adopt("images", "a", "Img/images", **options)

    assert not adopts(None) and not adopts(tmp_path)
    assert adopts(mine) and adopts(None) and (work.folder / "images").readlink() == mine / "images"
    assert adopts(work.folder)
    assert (work.folder / "images").readlink() == mine / "images"      # not to itself
    shutil.copytree(mine / "images", tmp_path / "official" / "Img" / "images")
    assert adopts(tmp_path / "official")        # another one takes its place
    assert (work.folder / "images").readlink() == tmp_path / "official" / "Img" / "images"
    assert adopts(mine / "images") and (work.folder / "images").readlink() == mine / "images"
    assert adopts(tmp_path / "official" / "Img" / "images", bare=False)     # left as it was
    assert (work.folder / "images").readlink() == mine / "images"
    (work.folder / "images").unlink()
    shutil.copytree(mine / "images", work.folder / "images")
    assert not adopts(None) and not adopts(mine)        # half an unpacked archive looks the same
    assert adopts(work.folder) and adopts(None) and not (work.folder / "images").is_symlink()


def test_a_table_that_is_gone_is_taken_again(tmp_path, web):
    web.publish("list.txt", b"a 0\n")
    unit, work = Unit(Item("list.txt", (web.url,)), "published"), Work(SET, tmp_path, remove_archives=True)
    for _ in range(2):
        work.obtain([unit])
        assert (work.folder / "published" / "list.txt").read_bytes() == b"a 0\n"
        assert not (work.downloads / "list.txt").exists()
        (work.folder / "published" / "list.txt").unlink()
    assert len(web.requests) == 2


def test_a_server_that_does_not_answer_is_asked_once(tmp_path, web, monkeypatch):
    asked = []

    def head(url, **_):
        asked.append(url)
        raise module.requests.ConnectionError

    monkeypatch.setattr(module.requests, "head", head)
    sizes = module.Sizes()
    assert [sizes.of([f"http://silent/{i}"]) for i in range(5)] == [0] * 5 and len(asked) == 1
    monkeypatch.undo()
    web.publish("a", b"12345")
    assert module.Sizes().of([f"{web.url}/none", f"{web.url}/a"]) == 5
    assert module.Sizes().of([f"{web.url}/none"]) == module.ABSENT
