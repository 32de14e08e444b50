"""Files from the web: continued, verified, whole or absent, and given up at last."""
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dolg.errors import UserError
from dolg.prepare import guards
from dolg.prepare.fetch import Fetched, RemoteFile, fetch, verify
from dolg.prepare.guards import Stopped
from dolg.prepare.transfer import Patience

QUICK = Patience(attempts=3, pause=0.001, longest=0.01, connect=5, silence=0.3)
CONTENT = bytes(range(256)) * 2000 + b"the end"
MD5 = hashlib.md5(CONTENT).hexdigest()


class Recording(threading.Event):
    """An event on which waiting takes no time; `waits` has how long it would have taken."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, timeout=None):
        self.waits.append(timeout)
        return self.is_set()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _get(web, folder, *names, patience=QUICK, **facts) -> Fetched:
    remote = RemoteFile("a.tar", tuple(f"{web.url}/{name}" for name in names or ("a.tar",)), **facts)
    return fetch(remote, folder, patience=patience)


def _interrupt(web, folder, bytes_there: int, name="a.tar", **facts) -> None:
    """Have a part as an earlier run leaves it that lost its server; forget the requests for it."""
    page = web.page(name)
    page.next = [bytes_there, *[(503, {})] * 3]
    with pytest.raises(UserError, match="503"):
        _get(web, folder, name, **facts)
    assert (folder / "a.tar.part").read_bytes() == page.content[:bytes_there]
    web.requests.clear()


def _assert_whole(fetched: Fetched, folder: Path, content: bytes = CONTENT,
                  published: bool = False) -> None:
    assert fetched == Fetched(folder / "a.tar", len(content), hashlib.md5(content).hexdigest(), published)
    assert (folder / "a.tar").read_bytes() == content
    assert _names(folder) == ["a.tar"]


def test_a_file_is_fetched_once(web, tmp_path):
    web.publish("a.tar", CONTENT)
    folder = tmp_path / "deep" / "er"
    _assert_whole(_get(web, folder), folder)
    _assert_whole(_get(web, folder), folder)
    assert web.ranges == [""]
    assert web.headers["User-Agent"].startswith("dolg (")
    assert web.headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("content", [b"", b"x"])
def test_the_smallest_files(web, tmp_path, content):
    web.publish("a.tar", content)
    _assert_whole(_get(web, tmp_path), tmp_path, content)


@pytest.mark.parametrize("there", [1, 65536, 300_001, len(CONTENT) - 1])
def test_a_later_run_asks_for_the_rest_only(web, tmp_path, there):
    web.publish("a.tar", CONTENT)
    _interrupt(web, tmp_path, there)
    _assert_whole(_get(web, tmp_path), tmp_path)
    assert [(r.range, r.if_range) for r in web.requests] == [(f"bytes={there}-", '"1"')]


@pytest.mark.parametrize("etag, modified, sent", [
    ("", "Sat, 01 Jan 2022 00:00:00 GMT", "Sat, 01 Jan 2022 00:00:00 GMT"),
    ('W/"1"', "Sat, 01 Jan 2022 00:00:00 GMT", "Sat, 01 Jan 2022 00:00:00 GMT"),   # weak: not for ranges
    ('W/"1"', "", ""), ("", "", "")])
def test_what_tells_that_the_file_is_the_same(web, tmp_path, etag, modified, sent):
    web.publish("a.tar", CONTENT, etag=etag, modified=modified)
    _interrupt(web, tmp_path, 100)
    _assert_whole(_get(web, tmp_path), tmp_path)
    assert [(r.range, r.if_range) for r in web.requests] == [("bytes=100-", sent)]


@pytest.mark.parametrize("etag, requests", [('"2"', ["bytes=1000-"]), ("", ["bytes=1000-", ""])])
def test_a_file_that_changed_starts_anew(web, tmp_path, etag, requests):
    """By its tag; and where there is none, by its length."""
    web.publish("a.tar", CONTENT, etag='"1"' if etag else "")
    _interrupt(web, tmp_path, 1000)
    other = b"other" * 70_000
    web.publish("a.tar", other, etag=etag)
    _assert_whole(_get(web, tmp_path), tmp_path, other)
    assert web.ranges == requests


def test_a_server_without_ranges_sends_all_again(web, tmp_path):
    web.publish("a.tar", CONTENT, ranges=False)
    _interrupt(web, tmp_path, 200_000)
    _assert_whole(_get(web, tmp_path, md5=MD5), tmp_path, published=True)
    assert web.ranges == ["bytes=200000-"]


@pytest.mark.parametrize("wrong", ["bytes 999-512006/512007", "bytes 1000-512006/512008", "bytes */7",
                                   "nonsense"])
def test_another_range_than_asked_for_starts_anew(web, tmp_path, wrong):
    web.publish("a.tar", CONTENT)
    _interrupt(web, tmp_path, 1000)
    web.page("a.tar").content_range = wrong
    _assert_whole(_get(web, tmp_path), tmp_path)
    assert web.ranges == ["bytes=1000-", ""]


def test_a_range_that_cannot_be_had_starts_anew(web, tmp_path):
    web.publish("a.tar", CONTENT, chunked=True)      # so that the length is not known
    _interrupt(web, tmp_path, 1000)
    web.page("a.tar").next = [(416, {})]
    _assert_whole(_get(web, tmp_path), tmp_path)
    assert web.ranges == ["bytes=1000-", ""]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_server_that_sends_less_than_the_rest_is_asked_for_more(web, tmp_path, size):
    web.publish("a.tar", CONTENT, most=200_000)
    _interrupt(web, tmp_path, 1000)
    _assert_whole(_get(web, tmp_path, size=size), tmp_path)
    assert web.ranges == ["bytes=1000-", "bytes=201000-", "bytes=401000-"]


def test_a_rest_of_unsaid_length_is_as_long_as_the_file_was(web, tmp_path):
    web.publish("a.tar", CONTENT, most=200_000, content_range="bytes 1000-200999/*")
    _interrupt(web, tmp_path, 1000)
    web.page("a.tar").next = [len(CONTENT), (404, {})]
    with pytest.raises(UserError, match="a.tar answers 404"):
        _get(web, tmp_path)
    assert (tmp_path / "a.tar.part").read_bytes() == CONTENT[:201_000]


def test_a_part_longer_than_the_file_starts_anew(web, tmp_path):
    web.publish("a.tar", CONTENT)
    _interrupt(web, tmp_path, 1000)
    with open(tmp_path / "a.tar.part", "ab") as part:
        part.write(bytes(len(CONTENT)))
    _assert_whole(_get(web, tmp_path), tmp_path)
    assert web.ranges == [""]


def test_a_part_that_is_whole_needs_no_request(web, tmp_path):
    web.publish("a.tar", CONTENT)
    _interrupt(web, tmp_path, 1000)
    (tmp_path / "a.tar.part").write_bytes(CONTENT)
    _assert_whole(_get(web, tmp_path, md5=MD5.upper()), tmp_path, published=True)
    assert web.requests == []


@pytest.mark.parametrize("note", [None, "", "{", "[]", '{"url": "x"}'])
def test_a_part_of_unknown_origin_starts_anew(web, tmp_path, note):
    web.publish("a.tar", CONTENT)
    (tmp_path / "a.tar.part").write_bytes(b"who knows")
    if note is not None:
        (tmp_path / "a.tar.part.json").write_text(note)
    _assert_whole(_get(web, tmp_path), tmp_path)
    assert web.ranges == [""]


def test_breaks_are_continued_as_long_as_there_is_progress(web, tmp_path):
    """Far more breaks than attempts."""
    web.publish("a.tar", CONTENT, next=[50_000] * 8)
    _assert_whole(_get(web, tmp_path, md5=MD5), tmp_path, published=True)
    assert web.ranges == [""] + [f"bytes={50_000 * i}-" for i in range(1, 9)]


@pytest.mark.parametrize("breaks", [[50_000], [50_000, 30_000]])
def test_breaks_at_the_same_place_come_to_an_end(web, tmp_path, breaks):
    """A server that starts anew each time makes no progress, whatever it sends."""
    web.publish("a.tar", CONTENT, ranges=False, next=breaks * 50)
    with pytest.raises(UserError, match="a.tar broke off.*tried 3 times"):
        _get(web, tmp_path)
    assert len(web.requests) == 4       # the first brought something
    assert _names(tmp_path) == ["a.tar.part", "a.tar.part.json"]


def test_a_stalled_server_is_asked_again(web, tmp_path):
    done = threading.Event()
    web.publish("a.tar", CONTENT, block=100_000, after=lambda: len(web.requests) > 1 or done.wait(2))
    _assert_whole(_get(web, tmp_path), tmp_path)
    done.set()
    assert web.requests[0].range == "" and web.requests[1].range == "bytes=100000-"
    assert len(web.requests) == 2


def test_a_body_shorter_than_claimed_is_not_taken(web, tmp_path):
    web.publish("a.tar", CONTENT, length=len(CONTENT) + 10, ranges=False)
    with pytest.raises(UserError, match="broke off"):
        _get(web, tmp_path)
    assert "a.tar" not in _names(tmp_path)


def test_chunks_without_a_length(web, tmp_path):
    web.publish("a.tar", CONTENT, chunked=True, next=[131072])
    _assert_whole(_get(web, tmp_path), tmp_path)
    assert web.ranges == ["", "bytes=131072-"]


def test_without_any_length_only_a_digest_can_tell(web, tmp_path):
    web.publish("a.tar", CONTENT, length="")
    with pytest.raises(UserError, match="does not say how long the file is"):
        _get(web, tmp_path)
    assert _names(tmp_path) == []
    _assert_whole(_get(web, tmp_path, md5=MD5), tmp_path, published=True)


def test_more_than_the_published_size_is_refused(web, tmp_path):
    web.publish("a.tar", CONTENT, length="")
    with pytest.raises(UserError, match="sends more than 1000 bytes"):
        _get(web, tmp_path, size=1000)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("status", [404, 403, 410, 204])
def test_an_address_without_the_file_is_left_at_once(web, tmp_path, status):
    web.publish("old", next=[(status, {})])
    web.publish("new", CONTENT)
    _assert_whole(_get(web, tmp_path, "old", "new"), tmp_path)
    assert [request.path for request in web.requests] == ["/old", "/new"]


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_server_in_trouble_is_asked_again(web, tmp_path, status):
    web.publish("a.tar", CONTENT, next=[(status, {})] * 2)
    _assert_whole(_get(web, tmp_path), tmp_path)
    assert len(web.requests) == 3


def test_all_failures_are_told_in_one_line(web, tmp_path):
    web.publish("b", next=[(503, {})] * 99)
    web.publish("c", b"short")
    urls = tuple(f"{web.url}/{name}" for name in "abc") + ("http://127.0.0.1:9/d", "ftp://127.0.0.1/e")
    with pytest.raises(UserError) as caught:
        fetch(RemoteFile("a.tar", urls, size=6), tmp_path, patience=QUICK, advice="see PAGE, --from DIR")
    message = str(caught.value)
    assert message.startswith("cannot fetch a.tar: ") and "\n" not in message
    for said in ("/a answers 404", "/b answers 503", "(tried 3 times)",
                 "/c has 5 bytes, and 6 are published", "http://127.0.0.1:9/d broke off",
                 "ftp://127.0.0.1/e cannot be followed"):
        assert said in message
    assert message.endswith("; see PAGE, --from DIR")
    assert [request.path for request in web.requests] == ["/a", "/b", "/b", "/b", "/c"]
    with pytest.raises(UserError, match="404.*; get it by hand and go on with --from DIR$"):
        _get(web, tmp_path, "a")


def test_a_file_that_nobody_offers(tmp_path):
    with pytest.raises(UserError, match="a.tar is not offered for direct download: fill in the form"):
        fetch(RemoteFile("a.tar"), tmp_path, advice="fill in the form")


def test_pauses_grow_and_end(web, tmp_path):
    web.publish("a.tar", next=[(503, {})] * 99)
    stop = Recording()
    with pytest.raises(UserError, match="tried 6 times"):
        fetch(RemoteFile("a.tar", (f"{web.url}/a.tar",)), tmp_path, stop=stop,
              patience=Patience(attempts=6, pause=1, longest=6))
    assert len(stop.waits) == 5 and len(web.requests) == 6
    for wait, most in zip(stop.waits, (1, 2, 4, 6, 6)):
        assert most / 2 <= wait <= most


def test_jitter_differs(web, tmp_path):
    web.publish("a.tar", next=[(503, {})] * 99)
    stop = Recording()
    with pytest.raises(UserError):
        fetch(RemoteFile("a.tar", (f"{web.url}/a.tar",) * 5), tmp_path, stop=stop,
              patience=Patience(attempts=2, pause=1))
    assert len(set(stop.waits)) == 5


@pytest.mark.parametrize("header, least, most", [
    ("7", 7, 7), ("5000", 100, 100), ("Fri, 01 Jan 2100 00:00:00 GMT", 100, 100),
    ("Sat, 01 Jan 2000 00:00:00 GMT", 0, 0.001), ("nonsense", 0, 0.001)])
def test_a_server_may_say_when_to_come_back(web, tmp_path, header, least, most):
    web.publish("a.tar", CONTENT, next=[(503, {"Retry-After": header})])
    stop = Recording()
    fetch(RemoteFile("a.tar", (f"{web.url}/a.tar",)), tmp_path, stop=stop,
          patience=Patience(pause=0.001, longest=100))
    assert len(stop.waits) == 1 and least <= stop.waits[0] <= most


def test_redirects_are_followed_with_the_range(web, tmp_path):
    """Also to another host; `localhost` and 127.0.0.1 count as two."""
    web.publish("a.tar", redirect=f"{web.url.replace('127.0.0.1', 'localhost')}/there")
    web.publish("there", CONTENT, next=[1000])
    _assert_whole(_get(web, tmp_path), tmp_path)
    assert [(r.path, r.range) for r in web.requests] == [
        ("/a.tar", ""), ("/there", ""), ("/a.tar", "bytes=1000-"), ("/there", "bytes=1000-")]


def test_redirects_to_files_and_in_circles_are_not_followed(web, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    web.publish("file", redirect=secret.as_uri())
    web.publish("circle", redirect=f"{web.url}/circle")
    with pytest.raises(UserError, match="/file cannot be followed.*/circle cannot be followed"):
        _get(web, tmp_path, "file", "circle")
    assert _names(tmp_path) == ["secret"]


def test_proxies_of_the_environment_are_used(web, tmp_path, monkeypatch):
    web.pages["http://elsewhere.invalid/a.tar"] = web.pages[web.publish("a.tar", CONTENT)[len(web.url):]]
    monkeypatch.setenv("http_proxy", web.url)
    fetched = fetch(RemoteFile("a.tar", ("http://elsewhere.invalid/a.tar",)), tmp_path, patience=QUICK)
    _assert_whole(fetched, tmp_path)
    assert [request.path for request in web.requests] == ["http://elsewhere.invalid/a.tar"]


def test_bytes_are_taken_as_they_are(web, tmp_path):
    """A server that calls an archive's own compression a coding, and one that compresses unasked."""
    url = web.publish("a", CONTENT, headers={"Content-Encoding": "x-gzip"})
    with pytest.raises(UserError, match=r"sends it in another coding \(x-gzip\)"):
        _get(web, tmp_path, "a")
    assert fetch(RemoteFile("a.tgz", (url,)), tmp_path).md5 == MD5
    assert (tmp_path / "a.tgz").read_bytes() == CONTENT


def test_a_page_that_says_something_is_not_the_file(web, tmp_path):
    """And does not take the place of what was there."""
    url = web.publish("a.tar", CONTENT)
    _interrupt(web, tmp_path, 1000)
    web.publish("a.tar", b"<html>Down for maintenance</html>", etag='"2"',
                headers={"Content-Type": "text/html; charset=utf-8"})
    with pytest.raises(UserError, match="a.tar answers with a web page instead of the file"):
        _get(web, tmp_path)
    assert (tmp_path / "a.tar.part").read_bytes() == CONTENT[:1000]
    assert fetch(RemoteFile("a.html", (url,)), tmp_path).size == 33


def test_folders_that_cannot_be_written(web, tmp_path):
    web.publish("a.tar", CONTENT)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write .*/file/a.tar.part: "):
        _get(web, tmp_path / "file")
    (tmp_path / "a.tar.part.json").mkdir()
    with pytest.raises(UserError, match="cannot write .*/a.tar.part"):
        _get(web, tmp_path)


def test_a_wrong_digest_is_tried_once_more_and_told(web, tmp_path):
    web.publish("a.tar", b"wrong")
    with pytest.raises(UserError, match=f"MD5 {hashlib.md5(b'wrong').hexdigest()}, and {MD5} is published"):
        _get(web, tmp_path, md5=MD5)
    assert web.ranges == ["", ""]
    assert _names(tmp_path) == []


def test_a_damaged_part_is_found_and_fetched_again(web, tmp_path):
    web.publish("a.tar", CONTENT)
    _interrupt(web, tmp_path, 1000)
    (tmp_path / "a.tar.part").write_bytes(bytes(1000))
    _assert_whole(_get(web, tmp_path, md5=MD5), tmp_path, published=True)
    assert web.ranges == ["bytes=1000-", ""]


def test_after_a_wrong_digest_the_next_address_is_asked(web, tmp_path):
    web.publish("stale", b"stale")
    web.publish("right", CONTENT)
    _assert_whole(_get(web, tmp_path, "stale", "right", md5=MD5), tmp_path, published=True)
    assert [(r.path, r.range) for r in web.requests] == [("/stale", ""), ("/right", "")]


@pytest.mark.parametrize("known", [True, False])
def test_a_part_from_another_address_is_continued_if_the_digest_will_tell(web, tmp_path, known):
    web.publish("one", CONTENT)
    web.publish("two", CONTENT, etag='"b"')
    _interrupt(web, tmp_path, 1000, name="one")
    facts = {"md5": MD5} if known else {}
    _assert_whole(_get(web, tmp_path, "two", **facts), tmp_path, published=known)
    assert [(r.range, r.if_range) for r in web.requests] == [("bytes=1000-" if known else "", "")]


@pytest.mark.parametrize("text", [
    f"{MD5}", f"{MD5.upper()}\n", f"{MD5}  a.tar\n", f"{MD5} *train/a.tar\n",
    f"{'0' * 32}  b.tar\n\n{MD5}  a.tar\n# comment\n", f"{MD5}  renamed.tar\n"])
def test_digests_published_in_a_file(web, tmp_path, text):
    web.publish("a.tar", CONTENT)
    sums = web.publish("md5.txt", text.encode(), next=[(503, {})])
    _assert_whole(_get(web, tmp_path, md5_url=sums), tmp_path, published=True)
    web.page("a.tar").content = b"wrong"
    (tmp_path / "a.tar").unlink()
    with pytest.raises(UserError, match=f"and {MD5} is published"):
        _get(web, tmp_path, md5_url=sums)


@pytest.mark.parametrize("text, match", [
    (b"", "md5.txt has no MD5 of a.tar"), (b"<html>" + MD5.encode(), "has no MD5"),
    (MD5.encode() + b" b.tar\n" + MD5.encode() + b" c.tar", "has no MD5 of a.tar"),
    (b"x" * (2 ** 20 + 1), "cannot fetch the MD5 of a.tar: .*has more than 1048576 bytes; get it by hand")])
def test_files_without_the_digest(web, tmp_path, text, match):
    web.publish("a.tar", CONTENT)
    sums = web.publish("md5.txt", text)
    with pytest.raises(UserError, match=match):
        _get(web, tmp_path, md5_url=sums)
    assert [request.path for request in web.requests] == ["/md5.txt"]


def test_a_file_that_is_there_is_verified(web, tmp_path):
    file = tmp_path / "a.tar"
    file.write_bytes(CONTENT)
    (tmp_path / "a.tar.part.json").write_text("left by a run that was killed at its very end")
    assert verify(RemoteFile("other name"), file) == Fetched(file, len(CONTENT), MD5, False)
    assert _names(tmp_path) == ["a.tar", "a.tar.part.json"]     # which may be of somebody else
    _assert_whole(_get(web, tmp_path, size=len(CONTENT), md5=MD5), tmp_path, published=True)
    with pytest.raises(UserError, match="512007 bytes, and 5 are published: delete it"):
        _get(web, tmp_path, size=5)
    with pytest.raises(UserError, match=f"has the MD5 {MD5}, and {'0' * 32} is published: delete it"):
        _get(web, tmp_path, md5="0" * 32)
    with pytest.raises(UserError, match="and 1{32} is published: delete it"):
        _get(web, tmp_path, md5_url=web.publish("sums", b"1" * 32))
    assert file.read_bytes() == CONTENT and [r.path for r in web.requests] == ["/sums"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder is no file"):
        fetch(RemoteFile("folder"), tmp_path)


def test_a_file_that_is_there_can_be_used_without_a_network(web, tmp_path):
    (tmp_path / "a.tar").write_bytes(CONTENT)
    _assert_whole(_get(web, tmp_path, md5_url=f"{web.url}/absent"), tmp_path)
    sums = web.publish("sums", next=[(503, {})] * 99)
    _assert_whole(_get(web, tmp_path, md5_url=sums), tmp_path)
    assert [r.path for r in web.requests] == ["/absent", "/sums"]       # asked once, without pauses


def test_a_disk_without_room_is_found_before_writing(web, tmp_path, monkeypatch):
    web.publish("a.tar", CONTENT)
    monkeypatch.setattr(guards, "free_bytes", lambda folder: len(CONTENT) - 1)
    with pytest.raises(UserError, match="a.tar needs 0.001 GB more, and .* has 0.001 GB to spare"):
        _get(web, tmp_path)
    assert _names(tmp_path) == []
    monkeypatch.setattr(guards, "free_bytes", lambda folder: len(CONTENT))
    _interrupt(web, tmp_path, 1000)
    monkeypatch.setattr(guards, "free_bytes", lambda folder: len(CONTENT) - 1000)     # room for the rest
    _assert_whole(_get(web, tmp_path), tmp_path)


def test_room_is_looked_for_on_the_way_where_the_length_is_not_known(web, tmp_path, monkeypatch):
    web.publish("a.tar", CONTENT, chunked=True)
    monkeypatch.setattr(guards, "free_bytes",
                        lambda folder: 200_000 - sum(file.stat().st_size for file in folder.glob("*.part")))
    with pytest.raises(UserError, match="needs .* GB more"):
        _get(web, tmp_path)
    assert 100_000 < (tmp_path / "a.tar.part").stat().st_size <= 200_000


def test_stopping_keeps_what_is_there(web, tmp_path):
    stop, part, sent = threading.Event(), tmp_path / "a.tar.part", []

    def blocks():
        sent.append(1)
        while len(sent) <= 2 and not (part.exists() and part.stat().st_size >= 65536 * len(sent)):
            time.sleep(0.001)
        if len(sent) == 2:
            stop.set()

    web.publish("a.tar", CONTENT, block=65536, after=blocks)
    remote = RemoteFile("a.tar", (f"{web.url}/a.tar",))
    with pytest.raises(Stopped):
        fetch(remote, tmp_path, patience=QUICK, stop=stop)
    there = part.stat().st_size
    assert 65536 <= there < len(CONTENT) / 2
    with pytest.raises(Stopped):
        fetch(remote, tmp_path, patience=QUICK, stop=stop)
    stop.clear()
    web.requests.clear()
    web.page("a.tar").after = lambda: None
    _assert_whole(fetch(remote, tmp_path, patience=QUICK, stop=stop), tmp_path)
    assert web.ranges == [f"bytes={there}-"]


def test_stopping_ends_a_pause(web, tmp_path):
    web.publish("a.tar", next=[(503, {"Retry-After": "50"})] * 9)
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Stopped):
        fetch(RemoteFile("a.tar", (f"{web.url}/a.tar",)), tmp_path, stop=stop)
    assert len(web.requests) == 1


def test_stopping_ends_a_check(tmp_path):
    (tmp_path / "a.tar").write_bytes(CONTENT)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        verify(RemoteFile("a.tar", md5=MD5), tmp_path / "a.tar", stop=stop)


def test_a_killed_run_is_continued(web, tmp_path):
    gate, sent = threading.Event(), []
    web.publish("a.tar", CONTENT, block=20_000,
                after=lambda: sent.append(1) or len(sent) < 6 or gate.wait(20))
    code = ("import sys; from pathlib import Path; from dolg.prepare.fetch import RemoteFile, fetch; "
            "fetch(RemoteFile('a.tar', (sys.argv[1],)), Path(sys.argv[2]))")
    process = subprocess.Popen([sys.executable, "-c", code, f"{web.url}/a.tar", str(tmp_path)],
                               cwd=Path(__file__).parents[2])
    part = tmp_path / "a.tar.part"
    while not part.exists() or part.stat().st_size < 100_000:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    gate.set()
    there = part.stat().st_size
    assert 100_000 <= there < len(CONTENT)
    web.requests.clear()
    _assert_whole(_get(web, tmp_path, md5=MD5), tmp_path, published=True)
    assert web.ranges == [f"bytes={there}-"]


def test_threads_fetch_into_one_folder(web, tmp_path):
    contents = {f"{i}.tar": os.urandom(300_000) for i in range(12)}
    for name, content in contents.items():
        web.publish(name, content, next=[100_000])
    results = {}

    def work(name):
        md5 = hashlib.md5(contents[name]).hexdigest()
        results[name] = fetch(RemoteFile(name, (f"{web.url}/{name}",), md5=md5), tmp_path, patience=QUICK)

    threads = [threading.Thread(target=work, args=(name,)) for name in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) == set(contents) == set(_names(tmp_path))
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents


def test_the_note_beside_a_part(web, tmp_path):
    url = web.publish("a.tar", CONTENT)
    _interrupt(web, tmp_path, 10)
    assert json.loads((tmp_path / "a.tar.part.json").read_text()) == {
        "url": url, "validator": '"1"', "total": len(CONTENT)}


def test_a_bar_shows_what_was_there_before(web, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    web.publish("a.tar", CONTENT)
    _interrupt(web, tmp_path, 400_000)
    capsys.readouterr()
    _get(web, tmp_path)
    shown = capsys.readouterr().err
    assert "a.tar" in shown and "400k/512k" in shown
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    (tmp_path / "a.tar").unlink()
    _get(web, tmp_path)
    assert capsys.readouterr().err == ""
