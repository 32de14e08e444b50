"""tools/serve.py as a process: 200 hostile uploads, slow ones, ports, and its end."""
import json
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from dolg.errors import UserError
from dolg.serve.server import WAITED, serve

ROOT = Path(__file__).resolve().parents[2]
DEADLINE, MOST = 1.0, 1000
# Seconds within which all must be over: the deadline, and the looks at what is slow
PATIENCE = 30
_REFUSALS = {400, 403, 404, 405, 411, 413, 415, 431, 501}


def _address(process) -> tuple[str, int]:
    """Where a server that has just been started says that it is."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for line in process._out.read_text().splitlines() if process._out.exists() else ():
            if line.startswith("ready: http://"):
                host, _, port = line.split("/")[2].rpartition(":")
                return host, int(port)
        assert process.poll() is None, process.communicate(1)
        time.sleep(0.05)
    pytest.fail("the server is not ready")


def exchange(address: tuple[str, int], raw: bytes, timeout: float = PATIENCE) -> bytes:
    """All that is answered to these bytes."""
    answer = b""
    with socket.create_connection(address, timeout=timeout) as connection:
        with suppress(OSError):        # an upload that is refused before it is read
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
        with suppress(ConnectionError):     # a timeout is none
            while part := connection.recv(1 << 16):
                answer += part
    return answer


def upload(body: bytes, query: str = "", host: str = "127.0.0.1", length: int | None = None,
           **headers: str) -> bytes:
    lines = {"Host": host, "Content-Type": "image/jpeg",
             "Content-Length": str(len(body) if length is None else length),
             "Connection": "close", **{name.replace("_", "-"): value for name, value in headers.items()}}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"POST /api/search{query} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def status_of(answer: bytes) -> int:
    answer = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.") else 0


@pytest.fixture(scope="module")
def served(asked, start_command, tmp_path_factory) -> SimpleNamespace:
    """A running server: its `address`, `process` and `temporary` folder."""
    temporary = tmp_path_factory.mktemp("temporary")
    process = start_command(
        ["tools/serve.py", "--cfg", asked.cfg, "--weights", asked.weights, "--port", 0, "--max-mb", 4,
         "--index", asked.database, asked.distractors, "--images", asked.jpg, asked.others, *asked.keys],
        env={"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"})
    yield SimpleNamespace(address=_address(process), process=process, temporary=temporary)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(60)
    assert (process.returncode, output.splitlines()[-1]) == (0, "ended")
    # What libraries say of damaged images, and nothing else
    expected = ("libpng ", "Corrupt JPEG", "Premature end")
    assert [line for line in errors.splitlines() if not line.startswith(expected)] == []


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, rows: bytes, *more: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *more, _chunk(b"IDAT", rows), _chunk(b"IEND", b"")])


def _bombs() -> list[bytes]:
    """Files that are small, and would be large."""
    zeros = zlib.compress(bytes(50_000_000), 9)
    gif = b"".join([b"GIF89a\xff\xff\xff\xff\xf0\x00\x00", bytes(6), b"\x2c", bytes(4),
                    b"\xff\xff\xff\xff\x00\x02\x02\x44\x01\x00\x3b"])
    text = _chunk(b"zTXt", b"x\0\0" + zeros)
    profile = _chunk(b"iCCP", b"x\0\0" + zeros)
    bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    webp = b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0" + b"\x10\0\0\0" + b"\xfe\xff\xff" * 2
    frame = b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    jpeg = b"\xff\xd8" + frame + bytes(50) + b"\xff\xd9"
    return [_png(60_000, 60_000, zeros), _png(2**31 - 1, 2**31 - 1, zeros), _png(0, 0, zeros),
            _png(1, 40_000_000, zeros), _png(40_000_000, 1, zeros), _png(9000, 5000, zeros),
            _png(64, 64, zeros),
            *[_png(6000, 6000, zlib.compress(bytes(6000 * 18_001), 1))] * 2, _png(64, 64, b"x", text),
            _png(64, 64, b"x", profile), gif, bmp, webp, jpeg, zlib.compress(bytes(10_000_000)),
            b"PK\x03\x04" + zeros[:5000], b"\x1f\x8b" + zeros[:5000]]


def _no_images() -> list[bytes]:
    return [b"", b"\0", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\xff\xff\xff\xffWEBP", b"BM",
            b"MZ" + bytes(100), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file",
            b"<svg xmlns='x'><script/></svg>", b"<?php system($_GET[0]);", b"%PDF-1.7",
            b"push graphic-context\nfill 'url(|id)'", b"{}", b"\xff" * 5000, bytes(5000),
            b"cos\nsystem\n(S'id'\ntR.", b"II*\0\x08\0\0\0" + b"\xff" * 200, b"MM\0*" + bytes(200)]


def _heads(photo: bytes) -> list[bytes]:
    """Broken HTTP, other people's hosts and origins, path tricks, impossible boxes."""
    large = bytes(5_000_000)
    chunked = (b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
               b"Transfer-Encoding: chunked\r\n\r\n")
    queries = ["?box=nan,nan,nan,nan", "?box=-1e9,-1e9,1e9,1e9", "?box=0,0,1e400,5", "?box=5,5,1,1",
               "?box=0,0,0,0", "?box=,,,", "?box=1,2", "?box=" + "9," * 3000, "?box=-5,-5,-1,-1",
               "?box=0x1,1,2,3", "?top=-1", "?top=99999999999", "?top=%00", "?reranker=%2e%2e/x",
               "?reranker=rrt", "?name=../../etc/passwd", "?file=%2fetc%2fpasswd", "?image=/etc/passwd",
               "?%ff=%fe"]
    headers = [{"host": "evil.example"}, {"host": ""}, {"host": "127.0.0.1, evil.example"},
               {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://[bad"},
               {"Sec_Fetch_Site": "cross-site"}, {"Content_Type": "text/html"}, {"Content_Type": ""},
               {"Content_Type": "multipart/form-data; boundary=../../x"}, {"Content_Encoding": "gzip"},
               {"Content_Disposition": 'attachment; filename="../../../../tmp/x.jpg"'},
               {"X_File_Name": "/etc/passwd"}, {"Cookie": "a" * 20_000}, {"Range": "bytes=0-"},
               {"Expect": "100-continue"}, {"X": "y" * 9_000}]
    paths = ["/image/../../etc/passwd", "/image/%2e%2e%2f%2e%2e%2fetc/passwd", "/..%5c..%5cx", "/image/-1",
             "/image/99999999999999999999", "/image/1%00.jpg", "/image/0?size=%2e%2e", "/image/NaN",
             "/%00", "//", "*", "http://evil.example/", "/api/search/../../x"]
    return [*(upload(photo, query) for query in queries), *(upload(photo, **header) for header in headers),
            *(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
              for path in paths),
            upload(large), upload(b"", length=10**12), upload(b"", length=-1),
            upload(photo, length=len(photo) + 50), upload(photo[:100], length=len(photo)),
            upload(photo, Content_Length="abc"), upload(photo, Content_Length="5, 6"),
            chunked + b"%x\r\n" % len(large) + large + b"\r\n0\r\n\r\n", chunked + b"zz\r\n",
            chunked + b"ffffffffffffffff\r\nx", chunked + b"5\r\nabcdefgh\r\n0\r\n\r\n",
            b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(200), b"GET\r\n\r\n", b"\r\n" * 500,
            b"POST /api/search HTTP/9.9\r\nHost: localhost\r\n\r\n", b"A" * 100_000,
            b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 5000 + b"\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"DELETE / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"]


def _mutated(photos: list[bytes], count: int) -> list[bytes]:
    """Copies of photographs with some bytes changed, left out or doubled."""
    rng, mutated = np.random.default_rng(1), []
    for number in range(count):
        data = bytearray(photos[number % len(photos)])
        for _ in range(int(rng.integers(1, 12))):
            place = int(rng.integers(2, len(data)))
            change = rng.integers(4)
            if change == 0:
                data[place] = int(rng.integers(256))
            elif change == 1:
                del data[place:place + int(rng.integers(1, 60))]
            elif change == 2:
                data[place:place] = data[max(0, place - 40):place]
            else:
                del data[max(20, place):]
        mutated.append(bytes(data))
    return mutated


def _photos(asked) -> list[bytes]:
    pixels = cv2.imread(str(asked.queries / "0.jpg"))
    progressive = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    return [(asked.queries / "0.jpg").read_bytes(), progressive,
            *(cv2.imencode(ending, pixels)[1].tobytes() for ending in (".png", ".webp", ".bmp"))]


def _memory(pid: int, field: str) -> int:
    """Bytes, of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field + ":")))


def _good(served, photo: bytes) -> dict:
    answer = exchange(served.address, upload(photo, "?top=16&reranker=spatial&box=8,4,100,90"))
    assert status_of(answer) == 200, answer[:500]
    return json.loads(answer.partition(b"\r\n\r\n")[2])


def test_200_hostile_uploads(asked, served):
    photos = _photos(asked)
    before = _good(served, photos[0])
    calm = _memory(served.process.pid, "VmRSS")
    bodies = [*_bombs(), *_no_images(), *_mutated(photos, 110)]
    bodies += [photo[:share * len(photo) // 5] for photo in photos[:3] for share in (1, 2, 3, 4)]
    hostile = [*map(upload, bodies), *_heads(photos[0])]
    assert len(hostile) >= 200
    statuses: dict[int, int] = {}
    for raw in hostile:
        answer = exchange(served.address, raw)
        status = status_of(answer)
        statuses[status] = statuses.get(status, 0) + 1
        assert status in _REFUSALS | {0, 200, 308}, (raw[:300], answer[:500])
        assert b"Traceback" not in answer and str(ROOT).encode() not in answer and b"root:" not in answer
        assert str(served.temporary).encode() not in answer
        assert status or not answer
    assert statuses.get(0, 0) < 20, statuses
    # Damaged ones that a decoder reads are answered; most are not
    assert statuses[400] > 100 and statuses[200] < 90, statuses
    assert statuses[403] >= 5 and statuses[413] >= 1, statuses
    after = _good(served, photos[0])
    assert after["results"] == before["results"]
    # 36 million pixels take 100 MB a copy; what is freed is kept for the next
    assert _memory(served.process.pid, "VmRSS") < calm + 800e6
    assert _memory(served.process.pid, "VmHWM") < calm + 1200e6
    left = [file.name for file in served.temporary.iterdir() if not file.name.startswith("torchinductor")]
    assert left == [] and served.process.poll() is None


def _seconds_until_closed(connections: list[socket.socket], meanwhile: Callable = lambda: None) -> float:
    """How long the server keeps connections on which a byte comes now and then; PATIENCE at most."""
    began, kept = time.monotonic(), list(connections)
    while kept and time.monotonic() < began + PATIENCE:
        time.sleep(0.2)
        for connection in list(kept):
            try:
                connection.sendall(b"0")
            except OSError:
                kept.remove(connection)
        meanwhile()
    return time.monotonic() - began


def _ask(address: tuple[str, int], photo: bytes, times: int) -> list[int]:
    """The statuses of so many searches, one after another."""
    return [status_of(exchange(address, upload(photo, "?reranker=spatial"))) for _ in range(times)]


def test_many_at_once(asked, served):
    """All wait for their turn, and get it, also clients who ask again and again."""
    photo = (asked.queries / "0.jpg").read_bytes()
    with ThreadPoolExecutor(24) as pool:
        asking = [pool.submit(_ask, served.address, photo, 5 if number < 4 else 1) for number in range(24)]
        statuses = [status for asked_for in asking for status in asked_for.result()]
    assert statuses == 40 * [200]


def test_200_slow_connections_keep_nobody_waiting(asked, served):
    """Each sends a byte of its head now and then, and would hold its place for ever."""
    photo = (asked.queries / "0.jpg").read_bytes()
    slow = [socket.create_connection(served.address, timeout=PATIENCE) for _ in range(200)]
    for connection in slow:
        connection.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nX: ")
    began = time.monotonic()
    _good(served, photo)
    assert time.monotonic() - began < 5
    assert _seconds_until_closed(slow) < 10
    _good(served, photo)


def test_a_port_that_is_taken(asked, served, run_tool):
    done = run_tool("tools/serve.py", "--cfg", asked.cfg, "--weights", asked.weights, "--port",
                    served.address[1], "--index", asked.database, *asked.keys)
    assert done.returncode == 1
    assert done.stderr == (f"error: port {served.address[1]} of 127.0.0.1 is taken: give another --port, "
                           "or 0 for any that is free\n")


def test_the_command_as_a_user_runs_it(asked, run_tool, tmp_path):
    """Mistakes are one line, before any port is opened."""
    given = ["--cfg", asked.cfg, "--weights", asked.weights]
    done = run_tool("tools/serve.py", *given, "--index", tmp_path / "none", fresh=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (f"error: {tmp_path}/none does not exist: give what tools/search.py build or "
                           "tools/infer.py made\n")
    for option, value, message in (("--side", -1, "--side is -1"), ("--max-mb", 0, "--max-mb is 0")):
        done = run_tool("tools/serve.py", *given, option, value, "--index", asked.database, *asked.keys)
        assert done.returncode == 1 and done.stderr == f"error: {message}: give more\n"


@pytest.mark.parametrize("host, port, message", [
    ("127.0.0.1", 70_000, "--port is 70000: give 0"), ("127.0.0.1", -1, "--port is -1"),
    ("no.such.host.invalid", 0, "cannot serve on no.such.host.invalid port 0")])
def test_addresses_that_cannot_be_had(host, port, message):
    with pytest.raises(UserError, match=message) as caught:
        serve(_echo, host, port, MOST)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def echo(start_command):
    """The server with an application that says how many bytes it got, and a short deadline."""
    process = start_command([__file__])
    yield _address(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0 and "Traceback" not in process._err.read_text()
    assert "WARNING" not in process._out.read_text()


def test_bodies_of_any_form_and_no_larger(echo):
    for size in (0, 1, MOST):
        assert exchange(echo, upload(bytes(size))).endswith(b"\r\n\r\n%d" % size)
    assert status_of(exchange(echo, upload(bytes(MOST + 1)))) == 413
    # Told before a byte of it is sent
    assert status_of(exchange(echo, upload(b"", length=MOST + 1))) == 413
    head = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    # What is around chunks counts as well
    chunk, end = b"%x\r\n%s\r\n" % (100, bytes(100)), b"0\r\n\r\n"
    assert exchange(echo, head + 9 * chunk + end).endswith(b"\r\n\r\n900")
    assert status_of(exchange(echo, head + 10 * chunk + end)) == 413
    assert status_of(exchange(echo, head + b"1\r\nx\r\n" * 5000)) == 413


def test_slow_uploads_end(echo):
    """A byte now and then keeps a connection from being silent, and not from being late; others are
    answered."""
    starts = [b"POST / HTTP/1.1\r\nHost: x\r\n", upload(b"", length=900), b"G",
              b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3"]
    slow = [socket.create_connection(echo, timeout=PATIENCE) for _ in starts]
    for connection, start in zip(slow, starts):
        connection.sendall(start)
    seconds = _seconds_until_closed(
        slow, lambda: exchange(echo, upload(b"abc")).endswith(b"\r\n\r\n3") or pytest.fail("not answered"))
    assert DEADLINE < seconds < PATIENCE
    for connection in slow:
        connection.close()


def test_an_address_that_others_reach_is_warned_of(start_command):
    process = start_command([__file__, "0.0.0.0"])
    _address(process)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(30)
    assert process.returncode == 0 and "WARNING: 0.0.0.0 can be reached from other machines" in output
    assert errors == "" and output.splitlines()[-1] == "ended"


def test_turns_are_taken_in_order(echo):
    """While one is answered, the others wait, as they came; what takes no turn does not."""
    asking = [socket.create_connection(echo, timeout=PATIENCE) for _ in range(12)]
    for connection in asking:
        connection.sendall(b"GET /turn HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        time.sleep(0.01)
    assert exchange(echo, upload(b"abc")).endswith(b"\r\n\r\n3")
    answers = []
    for connection in asking:
        with connection, connection.makefile("rb") as file:
            answers.append(file.read().rpartition(b"\r\n\r\n")[2].split())
    numbers, waited = ([float(answer[part]) for answer in answers] for part in (0, 1))
    assert numbers == list(range(12))
    assert waited == sorted(waited) and waited[0] < 0.05 < 11 * 0.02 <= waited[-1] < 10


_turns = count()


def _echo(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] != "/turn":
        return [b"%d" % len(body)]
    time.sleep(0.05)
    return [b"%d %f" % (next(_turns), environ[WAITED])]


if __name__ == "__main__":
    serve(_echo, *(sys.argv[1:] or ["127.0.0.1"]), 0, MOST, "/turn", DEADLINE)
