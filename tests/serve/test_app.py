"""What the page asks, and what it is told: by the application alone."""
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from dolg.errors import UserError
from dolg.serve.app import PATIENCE, build_app
from dolg.serve.photo import Limits
from dolg.serve.server import WAITED

BYTES = 200_000
KIND = {"Content-Type": "image/jpeg"}


@pytest.fixture
def client(finder, monkeypatch):
    monkeypatch.setattr(finder, "limits", Limits(1_000_000, 4000, ("JPEG", "PNG", "WebP", "BMP")))
    return build_app(finder, "127.0.0.1", BYTES).test_client()


@pytest.fixture
def photo(asked) -> bytes:
    return (asked.queries / "0.jpg").read_bytes()


@pytest.mark.parametrize("reranker", ["", "spatial", "diffusion"])
@pytest.mark.parametrize("box", [None, (8, 4, 100, 90), (20.7, 10.2, 90.9, 80)])
def test_a_search_is_the_finders(client, finder, photo, box, reranker):
    query = {"top": 5, "reranker": reranker, "box": ",".join(map(str, box or ()))}
    got = client.post("/api/search", query_string=query, data=photo, headers=KIND).get_json()
    want = finder.find(photo, box, 5, reranker)
    assert [entry["name"] for entry in got["results"]] == [result.name for result in want.results]
    for entry, result in zip(got["results"], want.results):
        assert (entry["place"], entry["found_at"]) == (result.place, result.found_at)
        assert entry["reranked"] == bool(reranker)      # the first 6
        np.testing.assert_allclose([entry["score"], entry["similarity"]], [result.score, result.similarity],
                                   atol=1e-6)
        assert entry["image"].startswith(f"/image/{result.row}?v=")
    assert got["size"] == [128, 96] and got["region"] == list(want.region) and got["described_at"] is None
    assert list(got["seconds"]) == ["decode", "describe", "search", *(["rerank"] if reranker else [])]
    assert (got["reranker"], got["reranked"]) == (reranker, 6 if reranker else 0)


def test_what_there_is(client, finder):
    about = client.get("/api/about").get_json()
    assert about["images"] == 16 and about["dimensions"] == 16 and about["database"] == ["jpg", "others"]
    assert about["limits"] == {"bytes": BYTES, "results": 200, "kinds": ["JPEG", "PNG", "WebP", "BMP"]}
    assert {entry["name"]: entry["missing"] for entry in about["rerankers"]} == finder.rerankers.offer()


def test_images_by_row_alone(client, asked):
    for row, file in ((0, asked.jpg / "sub dir/00.jpg"), (9, asked.jpg / "z é.png"),
                      (10, asked.others / "0.jpg")):
        for size in ("small", "large"):
            answer = client.get(f"/image/{row}?size={size}")
            assert answer.status_code == 200 and answer.content_type == "image/jpeg"
            seen, whole = cv2.imdecode(np.frombuffer(answer.data, np.uint8), 1), cv2.imdecode(
                np.frombuffer(file.read_bytes(), np.uint8), 1)
            assert seen.shape == whole.shape and np.abs(seen.astype(int) - whole).mean() < 12
    for path in ("/image/16", "/image/999999999999999999999999", "/image/-1", "/image/0x1", "/image/",
                 "/image/sub%20dir/00.jpg", "/image/0?size=../../etc/passwd",
                 "/image/..%2f..%2fetc%2fpasswd", "/etc/passwd", "/page.html", "/assets/page.js",
                 "/static/page.js"):
        assert client.get(path).status_code in (404, 308), path
    broken = client.get("/image/12")
    assert (broken.status_code, broken.get_json()["error"]) == (404, "2.jpg cannot be shown: not an image")


def test_every_answer_is_hardened(client, photo):
    answers = [client.get(path) for path in (
        "/", "/page.js", "/box.js", "/page.css", "/icon.svg", "/api/about", "/image/0", "/none")]
    answers += [client.post("/api/search", data=photo, headers=KIND), client.post("/api/search", data=b"")]
    for answer in answers:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "frame-ancestors 'none'" in policy and "Access-Control-Allow-Origin" not in answer.headers
    assert [answer.status_code for answer in answers] == [200] * 7 + [404, 200, 415]
    for number in (0, 5, 8):
        assert "no-store" in answers[number].headers["Cache-Control"]


@pytest.mark.parametrize("headers, path, status", [
    ({"Host": "evil.example"}, "/", 403), ({"Host": "evil.example:80"}, "/api/about", 403),
    ({"Host": "127.0.0.1.evil.example"}, "/image/0", 403), ({"Host": ""}, "/", 403),
    ({"Sec-Fetch-Site": "cross-site"}, "/", 200), ({"Sec-Fetch-Site": "cross-site"}, "/image/0", 403),
    ({"Sec-Fetch-Site": "same-site"}, "/api/about", 403),
    ({"Sec-Fetch-Site": "same-origin"}, "/image/0", 200),
    ({"Host": "[::1]:8000"}, "/api/about", 200)])
def test_other_pages_get_nothing(client, headers, path, status):
    answer = client.get(path, headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert "this server answers" in answer.get_json()["error"]


@pytest.mark.parametrize("headers", [
    {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://localhost:1"},
    {"Origin": "http://[bad"}, {"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}])
def test_other_pages_ask_nothing(client, finder, photo, headers, monkeypatch):
    monkeypatch.setattr(finder, "find", lambda *_: pytest.fail("was asked"))
    assert client.post("/api/search", data=photo, headers={**KIND, **headers}).status_code == 403


@pytest.mark.parametrize("kind", [
    "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "text/html",
    "imagejpeg", "application/json"])
def test_forms_of_other_pages_cannot_be_sent(client, photo, kind):
    answer = client.post("/api/search", data=photo, headers={"Content-Type": kind} if kind else {})
    assert answer.status_code == 415 and "send the photograph's bytes" in answer.get_json()["error"]


@pytest.mark.parametrize("query, message", [
    ("box=1,2,3", "the box is not x1,y1,x2,y2"), ("box=a,b,c,d", "the box is not"),
    ("box=nan,0,1,1", "the box is not"), ("box=inf,0,1,1", "the box is not"),
    ("box=9e999,0,1,1", "the box is not"), ("box=1,1,1,1", "leaves nothing of the photo"),
    ("box=-9,-9,-1,-1", "leaves nothing"), ("box=1e300,0,1e301,5", "leaves nothing"),
    ("top=0", "top is no number from 1 to"), ("top=201", "top is no number"),
    ("top=x", "top is no number"), ("top=1e2", "top is no number"),
    ("top=" + "9" * 5000, "top is no number"), ("reranker=none", "reranker is 'none': choose one of"),
    ("reranker=asmk", "choose one of"), ("reranker=spatial@0.5", "choose one of"),
    ("reranker=../../x", "choose one of"), ("file=/etc/passwd", "no such parameter: 'file'"),
    ("photo=x&top=1", "no such parameter: 'photo'")])
def test_queries_that_make_no_sense(client, photo, query, message):
    answer = client.post(f"/api/search?{query}", data=photo, headers=KIND)
    assert answer.status_code == 400 and message in answer.get_json()["error"]
    assert "\n" not in answer.get_json()["error"] and len(answer.get_json()["error"]) < 300


@pytest.mark.parametrize("data, status, message", [
    (b"", 400, "is no JPEG, PNG, WebP or BMP file"), (b"\xff\xd8\xff", 400, "the photo cannot be read: "),
    (b"GIF89a" + bytes(50), 400, "is no JPEG"), (bytes(BYTES + 1), 413, "request entity too large")])
def test_photographs_that_are_none(client, data, status, message):
    answer = client.post("/api/search", data=data, headers=KIND)
    assert answer.status_code == status and message in answer.get_json()["error"]
    assert "tmp" not in answer.get_json()["error"]


def test_methods(client):
    assert client.get("/api/search").status_code == 405
    for path in ("/", "/api/about", "/image/0"):
        for method in ("post", "put", "delete", "patch"):
            assert getattr(client, method)(path).status_code == 405


def test_who_waited_too_long_is_told_when_to_return(client, photo):
    answer = client.post("/api/search", data=photo, headers=KIND, environ_base={WAITED: PATIENCE + 1})
    assert answer.status_code == 503 and int(answer.headers["Retry-After"]) > 0
    assert answer.get_json()["error"].startswith("busy with other photographs")
    answer = client.post("/api/search", data=photo, headers=KIND, environ_base={WAITED: PATIENCE - 1})
    assert answer.status_code == 200


@pytest.mark.parametrize("error, status",
                         [(ValueError("secret of /etc/x"), 500), (MemoryError(), 413),
                          (UserError("why"), 400)])
def test_failures_are_told_without_their_insides(client, finder, photo, error, status, monkeypatch, caplog):
    def fail(*_):
        raise error

    monkeypatch.setattr(finder, "find", fail)
    answer = client.post("/api/search", data=photo, headers=KIND)
    assert answer.status_code == status and "secret" not in answer.text and "Traceback" not in answer.text
    assert ("secret of /etc/x" in caplog.text) == (status == 500)       # the terminal is told


def test_scores_that_are_no_numbers(client, finder, photo, monkeypatch):
    found = finder.find(photo, top=2)
    odd = [replace(found.results[0], score=float("nan"), name="\udcff<b>", image=None), found.results[1]]
    monkeypatch.setattr(finder, "find", lambda *_: replace(found, results=odd))
    answer = client.post("/api/search", data=photo, headers=KIND)
    first = json.loads(answer.data, parse_constant=lambda name: pytest.fail(name))["results"][0]
    assert first["score"] is None and first["name"] == "\udcff<b>" and first["image"] is None
