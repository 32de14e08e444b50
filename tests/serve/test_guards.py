"""Who is answered, and what of an image is shown."""

import cv2
import numpy as np
import pytest

from dolg.data.decode import ImageError
from dolg.features.store import StoreWriter
from dolg.serve.database import Database, ImageFiles
from dolg.serve.guards import host_is_ours, is_from_elsewhere, is_loopback
from dolg.serve.views import Views

LOCAL = ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:99", "[::1]:8000", "127.8.9.1:1",
         "localhost.", "Localhost.:8000"]
STRANGE = ["", "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example",
           "a@localhost", "localhost/x", "localhost:port", "localhost:99999999", "[::1", "0.0.0.0",
           "169.254.169.254", "10.0.0.7", "2130706433", "localhost\x00", "localhost?x", "localhost#x",
           "[::ffff:10.0.0.7]", "localhost..", ".localhost", ".", "evil.example.",
           "[::1].evil.example", "[::1]evil.example:80", "[::1]:80.evil.example", "x[::1]", "[127.0.0.1]",
           "[[::1]]", "[::1%lo]", "::1",
           "localhost:80:80", "localhost:65536", "localhost:", "localhost:\u0661",
           "localhost,evil.example", " localhost", "localhost\n", "127.1", "0x7f000001", "a:b@localhost"]


@pytest.mark.parametrize("header", LOCAL)
def test_hosts_that_are_this_machine(header):
    assert host_is_ours(header, "127.0.0.1") and host_is_ours(header, "0.0.0.0")


@pytest.mark.parametrize("header", STRANGE)
def test_hosts_that_are_not(header):
    assert not host_is_ours(header, "127.0.0.1") and not host_is_ours(header, "localhost")


def test_hosts_of_an_open_address():
    """Numbers cannot be turned elsewhere by a name server; names can, but for the one that was given."""
    assert host_is_ours("10.0.0.7:8000", "0.0.0.0") and host_is_ours("[fe80::1]", "::")
    assert host_is_ours("box.lan:8000", "Box.lan")
    assert not host_is_ours("evil.example", "0.0.0.0") and not host_is_ours("evil.example", "box.lan")


def test_loopback():
    for host in ("127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.com", ""):
        assert not is_loopback(host)


@pytest.mark.parametrize("headers, elsewhere", [
    ({}, False), ({"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8000"}, False),
    ({"Sec-Fetch-Site": "none"}, False), ({"Sec-Fetch-Site": "cross-site"}, True),
    ({"Sec-Fetch-Site": "same-site"}, True), ({"Origin": "http://localhost:8000"}, False),
    ({"Origin": "http://localhost:8001"}, True), ({"Origin": "http://evil.example"}, True),
    ({"Origin": "null"}, True), ({"Origin": ""}, True),
    ({"Origin": "http://localhost:8000.evil.example"}, True),
    ({"Origin": "http://[bad"}, True), ({"Origin": "https://localhost:8000"}, False),
    ({"Origin": "http://evil.example@localhost:8000"}, True), ({"Origin": "localhost:8000"}, True),
    ({"Origin": "http://localhost:8000/"}, True), ({"Origin": "file://localhost:8000"}, True),
    ({"Origin": "http://[localhost:8000]"}, True),
    ({"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"}, True)])
def test_pages_of_other_sites(headers, elsewhere):
    assert is_from_elsewhere({"Host": "localhost:8000", **headers}) == elsewhere


@pytest.fixture
def files(tmp_path) -> ImageFiles:
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(60, 90), (900, 1800), (3, 2000)]):
        cv2.imwrite(str(tmp_path / f"{number}.png"),
                    rng.integers(0, 255, (height, width, 3), dtype=np.uint8) // 8 + 99)
    (tmp_path / "3.png").write_text("no image")
    writer = StoreWriter(tmp_path / "store", [f"{number}.png" for number in range(5)], 2, 10, {})
    writer.write_chunk(0, np.eye(5, 2, dtype=np.float32), {})
    return ImageFiles(Database([tmp_path / "store"]), [tmp_path])


def test_views(files):
    """Shrunk to the longer side, never enlarged, the colours in their order."""
    views = Views(files, 10_000_000)
    for row, size, shape in ((0, "small", (60, 90)), (0, "large", (60, 90)), (1, "small", (240, 480)),
                             (1, "large", (800, 1600)), (2, "small", (1, 480))):
        jpeg = views.view(row, size)
        assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (*shape, 3)
    red = np.zeros((40, 40, 3), np.uint8)
    red[:, :, 2] = 200
    cv2.imwrite(str(files.folders[0] / "4.png"), red)
    seen = cv2.imdecode(np.frombuffer(views.view(4, "small"), np.uint8), cv2.IMREAD_COLOR)[20, 20]
    np.testing.assert_allclose(seen, [0, 0, 200], atol=3)


def test_views_that_there_are_not(files):
    views = Views(files, 100_000)
    for row, message in ((3, "not an image"), (4, "its file is in none of the given"),
                         (1, "claims 1800 x 900 pixels")):
        with pytest.raises(ImageError, match=message):
            views.view(row, "small")


def test_views_are_kept_within_bounds(files, monkeypatch):
    views, made = Views(files, 10_000_000,
                        cache_bytes=len(Views(files, 10_000_000).view(1, "small")) + 10), []
    make = views._made
    monkeypatch.setattr(views, "_made", lambda row, side: made.append(row) or make(row, side))
    for row in (1, 1, 0, 0, 1, 1):      # 0 takes the place of 1, and 1 that of 0
        views.view(row, "small")
    assert made == [1, 0, 1] and views._bytes == sum(map(len, views._kept.values()))
