"""Archives: honest ones come out as they went in, others leave the target as it was."""
import gzip
import io
import os
import random
import shutil
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import pytest

from dolg.errors import UserError
from dolg.prepare import guards, streams
from dolg.prepare.guards import Stopped
from dolg.prepare.unpack import Unpacked, unpack

KINDS = ["tar", "gz", "bz2", "xz", "zip"]
THERE = {"kept.txt": b"kept", "folder/kept too.txt": b"kept too"}


def _pack(path: Path, files: dict[str, bytes | None], kind: str) -> Path:
    """An archive of files by name; None: a folder."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name + "/" if content is None else name, content or b"")
        return path
    with tarfile.open(path, "w" if kind == "tar" else f"w:{kind}") as archive:
        for name, content in files.items():
            archive.addfile(_header(name, content), io.BytesIO(content or b""))
    return path


def _header(name: str, content: bytes | None = b"", **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = len(content or b""), tarfile.DIRTYPE if content is None else tarfile.REGTYPE
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def _tar(path: Path, *parts: bytes | tarfile.TarInfo) -> Path:
    """A tar of headers and raw blocks, with its end."""
    blocks = [part.tobuf() if isinstance(part, tarfile.TarInfo) else part + bytes(-len(part) % 512)
              for part in parts]
    path.write_bytes(b"".join(blocks) + bytes(1024))
    return path


def _fill(folder: Path, files: dict[str, bytes] = THERE) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _tree(folder: Path) -> dict[str, bytes | None | str]:
    """All that is under a folder: contents by path, None for folders, where links lead."""
    return {str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else
            None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def _refused(archive: Path, tmp_path: Path, match: str, **arguments) -> None:
    """`unpack` raises UserError that names the archive; nothing at all has changed."""
    target = _fill(tmp_path / "target")
    before = _tree(tmp_path)
    with pytest.raises(UserError, match=match) as caught:
        unpack(archive, target, **arguments)
    assert str(archive) in str(caught.value) and "\n" not in str(caught.value)
    assert _tree(tmp_path) == before


def _random_files(rng: random.Random) -> dict[str, bytes | None]:
    """Nested folders, empty ones, names in several scripts, long names, empty and larger files."""
    words = ["a", "Äpfel", "日本語", "with blank", "x" * 120, "🗼", "-dash", "dot.", ".hidden",
             "q'uo\"te"]
    folders, files = [""], {}
    for i in range(12):
        folders.append(f"{rng.choice(folders)}{rng.choice(words)}{i}/")
    for i in range(40):
        size = rng.choice([0, 1, 511, 512, 513, 5000, 300_000 if i < 3 else 100])
        files[f"{rng.choice(folders)}{rng.choice(words)} {i}.jpg"] = rng.randbytes(size)
    return {folder.rstrip("/"): None for folder in folders if folder} | files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_honest_archives(tmp_path, kind, seed):
    files = _random_files(random.Random(seed))
    archive = _pack(tmp_path / "named.like.nothing", files, kind)
    done = unpack(archive, tmp_path / "target")
    contents = [content for content in files.values() if content is not None]
    assert done == Unpacked(len(contents), sum(map(len, contents)))
    assert _tree(tmp_path / "target") == files
    assert sorted(os.listdir(tmp_path)) == ["named.like.nothing", "target"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_all_formats_of_headers(tmp_path, format):
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as archive:
        name = "long/" * 25 + "n" * 90
        archive.addfile(_header(name, b"content"), io.BytesIO(b"content"))
    assert unpack(tmp_path / "a.tar", tmp_path / "target") == Unpacked(1, 7)
    assert (tmp_path / "target" / name).read_bytes() == b"content"


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_archive(tmp_path, kind):
    assert unpack(_pack(tmp_path / "a", {}, kind), tmp_path / "deep" / "target") == Unpacked(0, 0)
    assert _tree(tmp_path / "deep") == {"target": None}


def test_folders_are_merged_and_files_replaced(tmp_path):
    target = _fill(tmp_path / "target")
    files = {"folder/new": b"n", "kept.txt": b"replaced", "other/x": b"x"}
    unpack(_pack(tmp_path / "a.tar", files, "tar"), target)
    assert _tree(target) == {"folder": None, "folder/kept too.txt": b"kept too", "folder/new": b"n",
                             "kept.txt": b"replaced", "other": None, "other/x": b"x"}


def test_idle_parts_of_names_do_not_count(tmp_path):
    archive = _tar(tmp_path / "a.tar", _header("./", None), _header("./a//b/./c", b"1"), b"1",
                   _header("a/b/", None))
    unpack(archive, tmp_path / "target")
    assert _tree(tmp_path / "target") == {"a": None, "a/b": None, "a/b/c": b"1"}


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_last_of_two_members_of_one_name_stays(tmp_path, kind):
    if kind == "tar":
        archive = _tar(tmp_path / "a", _header("x", b"first"), b"first", _header("x", b"2nd"), b"2nd")
    else:
        archive = tmp_path / "a"
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("x", b"first")
            file.writestr("x", b"2nd")
    assert unpack(archive, tmp_path / "target") == Unpacked(1, 3)
    assert _tree(tmp_path / "target") == {"x": b"2nd"}


@pytest.mark.parametrize("kind", KINDS)
def test_members_are_picked_and_placed(tmp_path, kind):
    files = {"top/jpg": None, "top/jpg/1.jpg": b"1", "top/jpg/2.jpg": b"22", "top/readme": bytes(3_000_000)}
    archive, asked = _pack(tmp_path / "a", files, kind), []

    def place(name):
        asked.append(name)
        return f"images/{Path(name).name}" if name.endswith(".jpg") else None

    assert unpack(archive, tmp_path / "target", place=place) == Unpacked(2, 3)
    assert _tree(tmp_path / "target") == {"images": None, "images/1.jpg": b"1", "images/2.jpg": b"22"}
    assert asked == ["top/jpg/1.jpg", "top/jpg/2.jpg", "top/readme"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_two_names_may_not_become_one(tmp_path, kind):
    archive = _pack(tmp_path / "a", {"one/x": b"1", "two/x": b"2"}, kind)
    _refused(archive, tmp_path, "'one/x' and 'two/x' would both become 'x'",
             place=lambda name: Path(name).name)


@pytest.mark.parametrize("placed", ["../out", "/out", ""])
def test_a_place_outside_is_refused(tmp_path, placed):
    _refused(_pack(tmp_path / "a", {"x": b"1"}, "tar"), tmp_path, "'x'", place=lambda name: placed)


def test_what_macos_adds_is_left_out(tmp_path):
    files = {"a.jpg": b"a", "__MACOSX/._a.jpg": b"x", "d/._b.jpg": b"x", "d/.DS_Store": b"x", "d/b": b"b",
             "d/__MACOSX": None}
    for kind in KINDS:
        unpack(_pack(tmp_path / kind, files, kind), tmp_path / f"to {kind}")
        assert _tree(tmp_path / f"to {kind}") == {"a.jpg": b"a", "d": None, "d/b": b"b"}


def test_files_have_ordinary_rights(tmp_path):
    archive = _tar(tmp_path / "a.tar", _header("d", None, mode=0), _header("d/x", b"1", mode=0o7777), b"1",
                   _header("unreadable", b"", mode=0))
    mask = os.umask(0o022)
    try:
        unpack(archive, tmp_path / "target")
    finally:
        os.umask(mask)
    modes = {name: stat.S_IMODE((tmp_path / "target" / name).stat().st_mode)
             for name in ("d", "d/x", "unreadable")}
    assert modes == {"d": 0o755, "d/x": 0o644, "unreadable": 0o644}


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", [
    "../evil", "/evil", "a/../../evil", "a/..", "..", "\\evil", "..\\evil", "a\\..\\evil", "C:\\evil",
    "c:evil", "//host/evil", "__MACOSX/../../evil"])
def test_names_that_lead_out_are_refused(tmp_path, kind, name):
    archive = _pack(tmp_path / "bad", {"fine": b"1", name: b"evil"}, kind)
    _refused(archive, tmp_path, "would lead out of the folder")
    _refused(archive, tmp_path, "would lead out of the folder", place=lambda name: None)


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000 + "x", "long/" * 2000])
def test_names_that_no_file_can_have(tmp_path, name):
    for kind in KINDS:
        _refused(_pack(tmp_path / kind, {"fine": b"1", name: b"x"}, kind), tmp_path,
                 "cannot write member|no file can have")


def test_names_that_are_no_text(tmp_path):
    raw = _header("NAME", b"1").tobuf().replace(b"NAME", b"\xff\xfea", 1)
    checksum = sum(raw[:148]) + sum(raw[156:]) + 8 * 32
    raw = raw[:148] + b"%06o\0 " % checksum + raw[156:]
    _refused(_tar(tmp_path / "latin.tar", raw, b"1"), tmp_path, "is no UTF-8")
    with zipfile.ZipFile(tmp_path / "plain.zip", "w") as archive:
        archive.writestr("ä-name", b"1")
    content = (tmp_path / "plain.zip").read_bytes()
    (tmp_path / "latin.zip").write_bytes(content.replace("ä".encode(), b"\xff\xfe"))
    (tmp_path / "nul.zip").write_bytes(content.replace("ä-".encode(), b"\0..").replace(b"\0..", b"a\0b"))
    _refused(tmp_path / "latin.zip", tmp_path, "damaged.*utf-8")
    _refused(tmp_path / "nul.zip", tmp_path, "no file can have|damaged")
    pax = b"17 path=nul\0name\n"
    nul = _tar(tmp_path / "nul.tar", _header("p", pax, type=tarfile.XHDTYPE), pax, _header("n"))
    _refused(nul, tmp_path, r"'nul\\x00name' has a name that no file can have")


@pytest.mark.parametrize("type, link, match", [
    (tarfile.SYMTYPE, "/etc/passwd", "'x' is a symbolic link"),
    (tarfile.SYMTYPE, "kept.txt", "symbolic link"),
    (tarfile.LNKTYPE, "first", "'x' is a hard link"), (tarfile.LNKTYPE, "../out", "hard link"),
    (tarfile.CHRTYPE, "", "a device"), (tarfile.BLKTYPE, "", "a device"),
    (tarfile.FIFOTYPE, "", "a device"),
    (b"Z", "", "of an unknown kind"), (tarfile.GNUTYPE_SPARSE, "", "a sparse file")])
def test_only_files_and_folders_are_taken_from_tars(tmp_path, type, link, match):
    archive = _tar(tmp_path / "a.tar", _header("first", b"1"), b"1", _header("x", type=type, linkname=link))
    _refused(archive, tmp_path, match)
    _refused(archive, tmp_path, match, place=lambda name: None)


@pytest.mark.parametrize("kind, match", [
    (stat.S_IFLNK, "'x' is a symbolic link"), (stat.S_IFIFO, "a device"), (stat.S_IFCHR, "a device")])
def test_only_files_and_folders_are_taken_from_zips(tmp_path, kind, match):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr("first", b"1")
        archive.writestr(info, b"/etc/passwd")
    _refused(tmp_path / "a.zip", tmp_path, match)


def test_a_link_in_the_archive_is_no_way_out(tmp_path):
    (tmp_path / "outside").mkdir()
    archive = _tar(tmp_path / "a.tar", _header("l", type=tarfile.SYMTYPE, linkname="../outside"),
                   _header("l/evil", b"1"), b"1")
    _refused(archive, tmp_path, "'l' is a symbolic link")


@pytest.mark.parametrize("name, link", [
    ("l/evil", "l"), ("l/deep/evil", "l"), ("folder/l/evil", "folder/l"), ("l", "l"), ("broken", "broken")])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_links_in_the_target_are_not_followed(tmp_path, name, link, kind):
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    target = _fill(tmp_path / "target")
    (target / link).symlink_to(tmp_path / ("nowhere" if link == "broken" else "outside"))
    archive = _pack(tmp_path / "a", {"fine": b"1", name: b"evil"}, kind)
    _refused(archive, tmp_path, f"would write through .*/target/{link}, which is a symbolic link")


def test_the_target_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "target").symlink_to(tmp_path / "disk")
    unpack(_pack(tmp_path / "a", {"x": b"1"}, "tar"), tmp_path / "target")
    assert _tree(tmp_path / "disk") == {"x": b"1"} and (tmp_path / "target").is_symlink()


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_files_and_folders_do_not_take_each_others_place(tmp_path, kind):
    _refused(_pack(tmp_path / "a", {"x": b"1", "folder": b"1"}, kind), tmp_path,
             "has a file where there is a folder, .*/target/folder")
    _refused(_pack(tmp_path / "b", {"x": b"1", "kept.txt/y": b"1"}, kind), tmp_path,
             "has a folder where there is a file, .*/target/kept.txt")
    _refused(_pack(tmp_path / "c", {"n": b"1", "n/x": b"1"}, kind), tmp_path, "'n/x' is a file where ano")
    _refused(_pack(tmp_path / "d", {"n/x": b"1", "n": b"1"}, kind), tmp_path, "'n' is a file where another")
    with pytest.raises(UserError, match="kept.txt, where .* shall be unpacked, is no folder"):
        unpack(tmp_path / "a", tmp_path / "target" / "kept.txt")
    with pytest.raises(UserError, match="cannot make the folder .*/kept.txt/.x.a.unpacking"):
        unpack(tmp_path / "a", tmp_path / "target" / "kept.txt" / "x")


def _encrypted(path: Path) -> Path:
    _pack(path, {"x": b"secret"}, "zip")
    content = bytearray(path.read_bytes())
    content[6] |= 1                                     # the flag in the file's header
    content[content.index(b"PK\x01\x02") + 8] |= 1      # and in the directory
    path.write_bytes(content)
    return path


def test_zips_that_are_not_read(tmp_path):
    _refused(_encrypted(tmp_path / "a.zip"), tmp_path, "'x' is encrypted")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x", b"1")
    _refused(tmp_path / "b.zip", tmp_path, "'x' is compressed by method 14")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_cut_archives(tmp_path, kind, seed):
    rng = random.Random(seed)
    files = {f"{i}.jpg": rng.randbytes(rng.randrange(3000)) for i in range(30)}
    whole = _pack(tmp_path / "whole", files, kind).read_bytes()
    # A tar ends in zeros, the first 512 of which are its end
    end = len(whole.rstrip(b"\0")) + 512 if kind == "tar" else len(whole) - 1
    cuts = [0, 1, 511, end] + [rng.randrange(end) for _ in range(8)]
    cuts += [rng.randrange(end // 512) * 512 for _ in range(4)]     # where tars are cut between members
    for cut in cuts:
        (tmp_path / "cut").write_bytes(whole[:cut])
        _refused(tmp_path / "cut", tmp_path, "is damaged or cut.*: fetch it again")


def test_a_tar_without_its_end_between_members(tmp_path):
    """tarfile takes it for whole."""
    whole = _tar(tmp_path / "a.tar", _header("x", b"1"), b"1", _header("y", b"2"), b"2").read_bytes()
    for size in (1024, 2048):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        _refused(tmp_path / "a.tar", tmp_path, "damaged or cut")


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archives(tmp_path, kind):
    """Bytes changed at random: refused, unless no checksum covers them."""
    rng = random.Random(5)
    files = {f"folder/{i}.jpg": rng.randbytes(400) for i in range(10)}
    whole = _pack(tmp_path / "a", files, kind).read_bytes()
    refused = 0
    for trial in range(40):
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 5])):
            content[rng.randrange(len(whole) if kind != "tar" else 10 * 1024)] ^= 1 << rng.randrange(8)
        (tmp_path / "a").write_bytes(content)
        try:
            unpack(tmp_path / "a", tmp_path / "target")
            assert kind in ("tar", "zip", "gz")     # without a checksum of the contents, of dates
        except UserError:
            refused += 1
            assert not (tmp_path / "target").exists()
        else:
            shutil.rmtree(tmp_path / "target")
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert refused > 10


def test_wrong_checksums(tmp_path):
    for kind in ("gz", "zip"):
        content = bytearray(_pack(tmp_path / kind, {"x": b"1" * 100}, kind).read_bytes())
        at = len(content) - 8 if kind == "gz" else content.index(b"PK\x01\x02") + 16
        content[at] ^= 1
        (tmp_path / kind).write_bytes(content)
        _refused(tmp_path / kind, tmp_path, "damaged or cut.*CRC")


def test_a_damaged_header_is_not_the_end(tmp_path):
    """tarfile takes it for the end, and leaves out what follows."""
    archive = _tar(tmp_path / "a.tar", _header("x", b"1"), b"1", _header("y", b"2"), b"2")
    whole = bytearray(archive.read_bytes())
    whole[1024 + 5] ^= 1
    (tmp_path / "a.tar").write_bytes(whole)
    _refused(tmp_path / "a.tar", tmp_path, "damaged or cut.*checksum")


@pytest.mark.parametrize("content", [
    b"<html>Sign in</html>" * 100, b"PK\x03\x04", b"\x1f\x8b", b"BZh9" + b"x" * 99, b"\xfd7zXZ\x00\x00"])
def test_what_is_no_archive(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    _refused(tmp_path / "a.tar", tmp_path, "is damaged or cut, or is no tar or zip archive")


def test_an_archive_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot read .*a.tar: No such file"):
        unpack(tmp_path / "a.tar", tmp_path / "target")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_bombs(tmp_path, kind):
    """Much from little: refused by what is declared, before it is written."""
    archive = _pack(tmp_path / "a", {"small": b"1", "bomb": bytes(3_000_000)}, kind)
    _refused(archive, tmp_path, "unpacks to 0.003 GB or more, and may to 0.001 GB", max_bytes=1_000_000)
    assert unpack(archive, tmp_path / "to", max_bytes=3_000_001).bytes == 3_000_001


def test_the_bound_is_on_all_members(tmp_path):
    for kind in KINDS:
        archive = _pack(tmp_path / kind, {str(i): bytes(1000) for i in range(10)}, kind)
        _refused(archive, tmp_path, "may to 0.000 GB", max_bytes=9_999)
        _refused(archive, tmp_path, "may to 0.000 GB", max_bytes=9_999, place=lambda name: None)


@pytest.mark.parametrize("bound", [{"max_bytes": 99_999}, {"max_files": 1}, {}])
def test_a_zips_directory_is_looked_at_before_anything_is_written(tmp_path, monkeypatch, bound):
    archive, asked = _pack(tmp_path / "a", {"x": b"1", "y": bytes(100_000)}, "zip"), []
    if not bound:
        monkeypatch.setattr(guards, "free_bytes", lambda folder: 100_000)
    _refused(archive, tmp_path, "unpacks to|members|make room", place=asked.append, **bound)
    assert asked == []


def test_the_usual_bound(tmp_path):
    """20 times the archive's size and 1 GB."""
    declared = [_header("x", b"", size=10 ** 9 + 60_000), _header("x", b"", size=10 ** 9)]
    archives = [_tar(tmp_path / f"{i}.tar", header) for i, header in enumerate(declared)]
    assert archives[0].stat().st_size == 1536
    _refused(archives[0], tmp_path, "unpacks to 1.000 GB or more, and may to 1.000 GB")
    _refused(archives[1], tmp_path, "damaged or cut")


def _lying_zip(path: Path, content: bytes, claimed: int) -> Path:
    """A member that unpacks to `content` and claims to have fewer bytes, with the checksum of those."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = deflate.compress(content) + deflate.flush()
    crc = zlib.crc32(content[:claimed])
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, crc, len(body), claimed, 1, 0)
    local = b"PK\x03\x04" + fields + b"x" + body
    directory = b"PK\x01\x02" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, 0) + b"x"
    path.write_bytes(local + directory + b"PK\x05\x06" + struct.pack(
        "<HHHHIIH", 0, 0, 1, 1, len(directory), len(local), 0))
    return path


def test_bombs_that_lie_about_their_size(tmp_path):
    """No more comes out than was said, whatever is in them."""
    honest = _lying_zip(tmp_path / "honest.zip", b"1234", 4)
    assert unpack(honest, tmp_path / "to") == Unpacked(1, 4)
    small = _lying_zip(tmp_path / "small.zip", bytes(50_000_000), 10)
    assert unpack(small, tmp_path / "to") == Unpacked(1, 10)
    assert (tmp_path / "to" / "x").read_bytes() == bytes(10)
    _refused(_lying_zip(tmp_path / "large.zip", b"1234", 5000), tmp_path, "damaged or cut.*'x'")
    short = gzip.compress(_header("x", b"", size=5000).tobuf() + bytes(1024))
    (tmp_path / "large.tgz").write_bytes(short)
    _refused(tmp_path / "large.tgz", tmp_path, "damaged or cut")


@pytest.mark.parametrize("type", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE,
                                  tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE])
def test_headers_that_claim_gigabytes_are_not_read(tmp_path, type, monkeypatch):
    """A gigabyte in 1 MB of gzip, as a name; also after an honest member."""
    taken = []
    read = streams.Bounded.read

    def counted(self, size=-1):
        block = read(self, size)
        taken.append(len(block))
        return block

    monkeypatch.setattr(streams.Bounded, "read", counted)
    with gzip.open(tmp_path / "a.tgz", "wb", compresslevel=1) as file:
        file.write(_header("x", b"1").tobuf() + b"1".ljust(512, b"\0"))
        file.write(_header("bomb", b"", size=2 ** 33, type=type).tobuf(tarfile.GNU_FORMAT))
        for _ in range(50):
            file.write(b"x" * 2 ** 20)
    _refused(tmp_path / "a.tgz", tmp_path, "headers that claim to be of an absurd length")
    assert sum(taken) < 2 ** 21


def test_members_are_not_gathered_in_memory(tmp_path, monkeypatch):
    seen, following = [], tarfile.TarFile.next

    def looked_at(self):
        seen.append(len(self.members))
        return following(self)

    monkeypatch.setattr(tarfile.TarFile, "next", looked_at)
    unpack(_pack(tmp_path / "a", {str(i): b"" for i in range(20)}, "tar"), tmp_path / "target")
    assert len(seen) > 20 and max(seen) <= 1


def test_many_headers_before_one_member(tmp_path):
    """Each small, one within the other."""
    name = _header("n", b"", size=512, type=tarfile.GNUTYPE_LONGNAME)
    _refused(_tar(tmp_path / "a.tar", *[name, b"x"] * 900, _header("x")), tmp_path, "damaged or cut")
    record = b"30 comment=shared by all xyz.\n"
    assert len(record) == 30
    shared = [part for i in range(200) for part in (
        _header("g", record, type=tarfile.XGLTYPE), record.replace(b"comment", b"key%04d" % i),
        _header(f"x{i}"))]
    _refused(_tar(tmp_path / "b.tar", *shared), tmp_path, "more than 100 shared headers")


def test_sparse_files_of_later_formats(tmp_path):
    for keys in ("GNU.sparse.size=99999999999", "GNU.sparse.map=0,1", "GNU.sparse.map=" + "9" * 5000):
        record = f"{len(keys) + 6:04d} {keys}\n".encode()
        archive = _tar(tmp_path / "a.tar", _header("p", record, type=tarfile.XHDTYPE), record,
                       _header("x", b"1"), b"1")
        _refused(archive, tmp_path, "sparse|damaged")


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_members_is_bounded(tmp_path, kind):
    files = {f"{i}": b"" for i in range(50)}
    archive = _pack(tmp_path / "a", files, kind)
    _refused(archive, tmp_path, "has more than 49 members", max_files=49)
    assert unpack(archive, tmp_path / "to", max_files=50).files == 50
    # Folders that are made for files count too
    deep = _pack(tmp_path / "b", {f"{i}/" + "x/" * 100 + "y": b"" for i in range(3)}, kind)
    _refused(deep, tmp_path, "has more than 300 members", max_files=300)


def test_a_zips_directory_is_bounded_before_it_is_read(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + bytes(3_000_000) + b"PK\x05\x06" + struct.pack(
        "<HHHHIIH", 0, 0, 1, 1, 3_000_000, 4, 0))
    _refused(tmp_path / "a.zip", tmp_path, "headers that claim to be of an absurd length", max_files=1000)


def test_a_disk_without_room(tmp_path, monkeypatch):
    for kind in KINDS:
        archive = _pack(tmp_path / kind, {"x": b"1", "y": bytes(100_000)}, kind)
        monkeypatch.setattr(guards, "free_bytes", lambda folder: 99_999)
        _refused(archive, tmp_path, "needs 0.000 GB more, and .* has 0.000 GB to spare: make room")


def test_stopping_leaves_nothing(tmp_path):
    stop = threading.Event()
    for kind in KINDS:
        archive = _pack(tmp_path / kind, {"x": b"1", "y": os.urandom(600_000), "z": b"3"}, kind)
        stop.clear()
        with pytest.raises(Stopped):
            unpack(archive, tmp_path / "target", stop=stop, place=lambda name: stop.set() or name)
        assert not [name for name in os.listdir(tmp_path) if name not in KINDS]


def test_what_a_killed_run_left_is_removed(tmp_path):
    hidden = tmp_path / ".target.a.tar.unpacking"
    _fill(hidden, {"deep/rest": b"half", "x": b"half"})
    unpack(_pack(tmp_path / "a.tar", {"x": b"1"}, "tar"), tmp_path / "target")
    assert _tree(tmp_path / "target") == {"x": b"1"} and not hidden.exists()


def test_a_run_that_was_killed_while_moving_is_repeated(tmp_path, monkeypatch):
    files = _random_files(random.Random(9))
    archive, moved, replace = _pack(tmp_path / "a.tar", files, "tar"), [], os.replace

    def killed(source, target):
        moved.append(target)
        if len(moved) == 20:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "target")
    monkeypatch.undo()
    unpack(archive, tmp_path / "target")
    assert _tree(tmp_path / "target") == files
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "target"]


def test_files_get_their_names_only_when_all_was_read(tmp_path, monkeypatch):
    """And when all is on disk."""
    target, events = tmp_path / "target", []
    archive = _pack(tmp_path / "a.gz", {str(i): b"1" for i in range(5)}, "gz")
    sync, replace = os.sync, os.replace
    monkeypatch.setattr(os, "sync", lambda: events.append("sync") or sync())
    monkeypatch.setattr(os, "replace", lambda *paths: events.append("move") or replace(*paths))
    unpack(archive, target, place=lambda name: events.append("read") or name)
    assert events == ["read"] * 5 + ["sync"] + ["move"] * 5


def test_threads_unpack_into_one_target(tmp_path):
    archives = [_pack(tmp_path / f"{i}.zip", {f"shared/{j}/{i}.jpg": b"%d %d" % (i, j) for j in range(30)},
                      KINDS[i % 5]) for i in range(10)]
    threads = [threading.Thread(target=unpack, args=(archive, tmp_path / "target")) for archive in archives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = {name: content for name, content in _tree(tmp_path / "target").items() if content is not None}
    assert files == {f"shared/{j}/{i}.jpg": b"%d %d" % (i, j) for i in range(10) for j in range(30)}
    assert sorted(os.listdir(tmp_path)) == sorted([archive.name for archive in archives] + ["target"])
