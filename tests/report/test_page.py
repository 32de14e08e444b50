"""The results page: what it shows, what it embeds, and that nothing hostile gets through."""
import base64
import hashlib
import io
import json
import pickle
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image as Photograph

from dolg.errors import UserError
from dolg.features.store import StoreWriter
from dolg.report.data import LABELS, script_json
from dolg.report.page import render_page, write_report
from dolg.report.results import Hit, Image, Method, Query, Report
from dolg.report.training import TrainingLog

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = "a\"b'<script>alert(1)</script><!--&amp;é漢\u2028"


class Page(HTMLParser):
    """Collects the elements of a page; fails on tags that are not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.html, self.elements, self.open, self.texts, self.contents = html, [], [], [], {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))       # as SVG has them

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self):
        visible = " ".join(text for tag, text in self.texts
                           if tag not in ("style", "title", "script"))
        return re.sub(r"\s+", " ", visible).replace(" , ", ", ")

    def of(self, tag):
        """The contents of elements that hold text alone."""
        return [text for found, text in self.texts if found == tag]

    def data(self):
        """What the script reads."""
        return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', self.html,
                                    re.DOTALL).group(1))

    def tiles(self):
        """The embedded thumbnails."""
        found = re.findall(r'<script type="text/plain" id="tiles-(\d+)">(.*?)</script>', self.html)
        assert [int(number) for number, _ in found] == list(range(len(found)))
        return [base64.b64decode(tile) for _, block in found for tile in block.split(" ")]


def evaluation(easy, medium, hard, **more):
    return {"dataset": "toy", "queries": len(medium), "database": 4, "distractors": 0, **more,
            "protocols": {name: {"mAP": 0.5, "mP@1": 0.1, "mP@5": 0.2, "mP@10": 0.25, "ap": ap}
                          for name, ap in (("easy", easy), ("medium", medium), ("hard", hard))}}


def save_image(path, colour, size=(64, 48), **options):
    Photograph.new("RGB", size, colour).save(path, **options)
    return path


@pytest.fixture
def report(tmp_path):
    """Three queries, two methods; images: two queries, one per label, one that is missing."""
    paths = {name: save_image(tmp_path / f"{name}.jpg", colour) for name, colour in [
        ("q0", "red"), ("q1", "blue"), ("A", "green"), ("B", "yellow"), ("C", "black")]}
    paths["q2"] = paths["A"]
    images = {name: Image(name, tmp_path / f"{name}.jpg", name == "E") for name in "ABCDE"}
    before = [Hit(images["A"], 0.9, "easy"), Hit(images["B"], 0.87654321, "hard"),
              Hit(images["C"], 0.7, "junk"), Hit(images["D"], 0.6, "negative")]
    after = [Hit(images["B"], 0.5, "hard"), Hit(images["E"], 0.25, "negative")]
    counts = {"easy": 1, "hard": 1, "junk": 1}
    queries = [Query("q0", paths["q0"], (16, 12, 48, 36), counts, {"before": before, "after": after}),
               Query("q1", paths["q1"], None, counts, {"before": [], "after": after}),
               Query("q2", paths["q2"], None, counts, {"before": before, "after": after})]
    easy, hard = [1.0, None, 0.0], [None, None, 0.5]
    methods = [Method("before", evaluation(easy, [0.25, None, 0.125], hard)),
               Method("after", evaluation(easy, [0.75, None, 0.125], hard,
                                          failed={"query": ["q1"], "database": [], "distractors": 2}))]
    methods[1].evaluation["protocols"]["medium"].update(mAP=0.4375, ranks=[[0, 3], None, [9]])
    methods[1].evaluation["protocols"]["hard"]["mAP"] = None
    return Report("toy", methods, queries)


def test_the_script_gets_every_query_and_result(report):
    data = Page(render_page(report)).data()
    assert data["protocols"] == ["easy", "medium", "hard"]
    assert [query["name"] for query in data["queries"]] == ["q0", "q1", "q2"]
    images = data["images"]
    assert images["names"] == ["A", "B", "C", "D", "E"] and images["distractors"] == [4]
    assert images["tiles"][3:] == ["no such file", "no such file"]
    assert all(isinstance(tile, int) for tile in images["tiles"][:3])
    q0, q1, q2 = data["queries"]
    row = {"images": [0, 1, 2, 3], "scores": [0.9, 0.87654, 0.7, 0.6], "labels": "ehjn"}
    other = {"images": [1, 4], "scores": [0.5, 0.25], "labels": "hn"}
    assert q0["hits"] == q2["hits"] == [row, other]
    assert q1["hits"] == [{"images": [], "scores": [], "labels": ""}, other]
    assert q0["ap"] == [[1.0, 0.25, None], [1.0, 0.75, None]]
    assert q1["ap"] == [[None] * 3] * 2 and q1["failed"] == [False, True]
    assert q0["ranks"] == [[None] * 3, [None, [0, 3], None]]
    assert q0["box"] == [0.25, 0.25, 0.5, 0.5] and q1["box"] is None and q1["crop"] is None
    assert isinstance(q0["crop"], int) and q0["crop"] != q0["tile"]
    assert data["positives"] == {"easy": "e", "medium": "eh", "hard": "h"}
    assert data["skipped"] == {"easy": "jh", "medium": "j", "hard": "je"}
    assert LABELS == {"easy": "e", "hard": "h", "ok": "o", "junk": "j", "negative": "n"}


def test_table_and_changes(report):
    page = Page(render_page(report))
    text = page.text()
    # mAP and its interval of each protocol, then mP@10
    assert "before 4 images 50.00 0.0–100.0 50.00 12.5–25.0 50.00 25.00 25.00 25.00" in text
    assert ("after 4 images 50.00 0.0–100.0 ±0.00 ±0.0 to ±0.0 43.75 12.5–75.0 +25.00 ±0.0 to +50.0 "
            "– ±0.00 25.00 25.00 25.00") in text
    assert "3 queries, 2 methods. after reaches 43.8 % Medium" in text
    assert "+25.0 points from before" in text
    assert ("html", {"lang": "en"}) in page.elements
    headings = [tag for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert headings == ["h1", "h2", "h2", "h3", "h2", "h3", "h2", "h2"]


@pytest.mark.parametrize("cropped, heading", [
    ([True, True], "mAP, %"), ([False, False], "mAP (queries not cropped), %"),
    ([None, None], "mAP (cropping unknown), %"), ([True, False], "mAP (cropping differs), %")])
def test_map_says_whether_queries_were_cropped(cropped, heading):
    methods = [Method(str(number), evaluation([1.0], [0.5], [None], protocol={"query": {"cropped": value}}))
               for number, value in enumerate(cropped)]
    page = Page(render_page(Report("toy", methods)))
    assert heading in page.of("th")
    assert methods[1].detail() == "4 images" + (", queries not cropped" if cropped[1] is False else "")


def test_uncropped_queries_are_shown_whole(report):
    assert Page(render_page(report)).data()["cropped"] == [True, True]
    report.methods[1].evaluation["protocol"] = {"query": {"cropped": False}}
    assert Page(render_page(report)).data()["cropped"] == [True, False]


def test_plain_labels_have_a_protocol_of_their_own(tmp_path):
    hits = [Hit(Image(label, tmp_path / label), 0.5, label) for label in ("ok", "junk", "negative")]
    query = Query("q", tmp_path / "q", None, {"ok": 1, "junk": 1}, {"a": hits})
    method = Method("a", {"protocols": {"plain": {"mAP": 0.5, "ap": [0.5], "ranks": [[1]]}}})
    page = Page(render_page(Report("toy", [method], [query])))
    data = page.data()
    assert data["protocols"] == ["plain"]
    assert (data["positives"], data["skipped"]) == ({"plain": "o"}, {"plain": "j"})
    assert data["queries"][0]["hits"][0]["labels"] == "ojn"
    assert "1 query, 1 method. a reaches" in page.text()
    assert "a 50.00 –" in page.text() and "a reaches 50.0 % Plain" in page.text()


def test_each_distinct_thumbnail_is_embedded_once(report):
    page = Page(render_page(report))
    tiles = page.tiles()
    # q0 whole and cut, q1, A (also q2), B, C
    assert len(tiles) == len(set(tiles)) == 6
    assert sorted(Photograph.open(io.BytesIO(tile)).size for tile in tiles) == [(32, 24)] + [(64, 48)] * 5
    data = page.data()
    used = [data["queries"][0]["crop"], *(query["tile"] for query in data["queries"]),
            *data["images"]["tiles"][:3]]
    assert sorted(set(used)) == list(range(6)) and data["queries"][2]["tile"] == data["images"]["tiles"][0]
    assert Photograph.open(io.BytesIO(tiles[data["queries"][1]["tile"]])).getpixel((9, 9))[2] > 200


def test_many_thumbnails_come_in_blocks(tmp_path):
    colours = [(n % 10 * 25, n // 10 % 10 * 25, n // 100 * 80) for n in range(300)]
    paths = [save_image(tmp_path / f"{n}.png", colour, (8, 8)) for n, colour in enumerate(colours)]
    hits = [Hit(Image(path.name, path), 0.5, "negative") for path in paths]
    query = Query("q", paths[0], None, {}, {"a": hits})
    page = Page(render_page(Report("toy", [Method("a", evaluation([1.0], [1.0], [1.0]))], [query])))
    data, tiles = page.data(), page.tiles()
    blocks = re.findall(r'id="tiles-\d+">([^<]+)<', page.html)
    assert [len(block.split(" ")) for block in blocks[:-1]] == [data["block"]] * (len(blocks) - 1)
    assert len(blocks) == 2
    for number in (0, 255, 256, 299):
        pixel = Photograph.open(io.BytesIO(tiles[data["images"]["tiles"][number]])).getpixel((4, 4))
        assert pixel == pytest.approx(colours[number], abs=9)


def test_a_folder_has_the_thumbnails_beside_the_page(report, tmp_path):
    page = write_report(report, tmp_path / "out")
    assert page == tmp_path / "out" / "index.html"
    found = Page(page.read_text(encoding="utf-8"))
    data = found.data()
    assert found.tiles() == [] and len(data["files"]) == 7      # A twice: named after its height, too
    assert {f"thumbnails/{file.name}" for file in (tmp_path / "out" / "thumbnails").iterdir()} == set(
        data["files"])
    query = tmp_path / "out" / data["files"][data["queries"][0]["crop"]]
    assert Photograph.open(query).size == (32, 24)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "thumbnails").iterdir()}
    write_report(report, tmp_path / "out")
    assert times == {file: file.stat().st_mtime_ns for file in (tmp_path / "out" / "thumbnails").iterdir()}
    assert write_report(report, tmp_path / "alone.html").stat().st_size > 6 * 600


def policy(page):
    return next(attributes["content"] for tag, attributes in page.elements
                if attributes.get("http-equiv") == "Content-Security-Policy")


def test_the_policy_admits_the_pages_own_script_and_style_alone(report, tmp_path):
    html = write_report(report, tmp_path / "a.html").read_text(encoding="utf-8")
    page = Page(html)
    for tag, pattern in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        content, = re.findall(pattern, html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy(page)
    assert "default-src 'none'" in policy(page) and "unsafe" not in policy(page)
    assert "img-src data:;" in policy(page)
    folder = Page(write_report(report, tmp_path / "b").read_text(encoding="utf-8"))
    assert "img-src 'self' file:;" in policy(folder)
    for _, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("style", "srcset")]
        assert not attributes.get("href", "#").removeprefix("#").count("/") and "src" not in attributes
    outside = re.sub(r"http://www.w3.org/2000/svg", "", html)       # the name of SVG, which nobody asks
    assert "http:" not in outside and "https:" not in outside
    assert not {"link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}


def test_hostile_names_are_text(tmp_path):
    hit = Hit(Image(HOSTILE, tmp_path / "none.jpg"), 0.5, "negative")
    query = Query(HOSTILE, tmp_path / "none.jpg", (0, 0, 1, 1), {}, {HOSTILE: [hit]})
    failed = {"query": [HOSTILE], "database": [], "distractors": 0}
    method = Method(HOSTILE, evaluation([None], [0.5], [None], failed=failed, protocol={
        HOSTILE: HOSTILE, "query": {HOSTILE: [HOSTILE]}}), reasons={HOSTILE: HOSTILE})
    log = TrainingLog(HOSTILE, {HOSTILE: {"train": [(1, 2.0)]}})
    html = render_page(Report(HOSTILE, [method], [query], [log], [HOSTILE]))
    page = Page(html)
    assert len([tag for tag, _ in page.elements if tag == "script"]) == 2       # data and script
    shown = re.sub(r"\s+", " ", HOSTILE)
    assert f"Retrieval results on {shown}" in page.text() and page.text().count(shown) >= 8
    data = page.data()
    assert data["images"]["names"] == [HOSTILE] and data["methods"][0]["name"] == HOSTILE
    assert not [key for _, attributes in page.elements for key in attributes if key[:2] == "on"]


def test_names_that_are_no_text_become_visible(tmp_path):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    path = save_image(tmp_path / "a.jpg", "red")
    query = Query(name, path, None, {}, {name: [Hit(Image(name, path), 0.5, "easy")]})
    method = Method(name, evaluation([1.0], [1.0], [1.0]))
    page = write_report(Report(name, [method], [query]), tmp_path / "page.html")
    found = Page(page.read_text(encoding="utf-8"))
    assert r"Retrieval results on caf\udce9" in found.text()
    assert found.data()["images"]["names"] == [r"caf\udce9"]


def test_scores_that_are_no_numbers_are_left_out(report):
    for number, value in enumerate([float("nan"), float("inf"), -float("inf")]):
        hit = report.queries[0].hits["before"][number]
        report.queries[0].hits["before"][number] = Hit(hit.image, value, hit.label)
    data = Page(render_page(report)).data()
    assert data["queries"][0]["hits"][0]["scores"] == [None, None, None, 0.6]


def test_photographs_that_may_not_be_looked_for_are_missing(report):
    query = Query("../q", None, (0, 0, 1, 1), {}, {"after": [Hit(Image("/x", None), 0.5, "easy")]})
    data = Page(render_page(Report("toy", report.methods[1:], [query]))).data()
    assert data["images"]["tiles"] == ["no such file"]
    assert data["queries"][0]["tile"] == data["queries"][0]["crop"] == "no such file"


@pytest.mark.parametrize("name, message", [
    ("file/sub", "file is a file: give FILE.html"), ("file/sub/a.html", "file is a file"),
    ("x.json", "x.json is a file"), ("dir.html", "dir.html is a folder: give the page another name")])
def test_output_that_cannot_be_written_is_refused(report, tmp_path, name, message):
    (tmp_path / "file").touch()
    (tmp_path / "x.json").touch()
    (tmp_path / "dir.html").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        write_report(report, tmp_path / name)
    assert "\n" not in str(caught.value)


def test_json_cannot_end_its_element():
    text = script_json({"a": ["</script>", "<!--<script>", "\u2028&"]})
    assert not re.search("[<>&\u2028]", text) and text.isascii()
    assert json.loads(text) == {"a": ["</script>", "<!--<script>", "\u2028&"]}


def test_failures_and_training_are_shown(report):
    log = TrainingLog("run", {"loss": {"train": [(1, 2.0), (2, 1.0)], "test": [(1, 3.0)]}})
    page = Page(render_page(Report("toy", report.methods, report.queries, [log], ["something is amiss"])))
    text = page.text()
    assert "Failed images of after 1 query, 0 database, 2 distractors" in text
    assert "Failed images of before" not in text
    assert "something is amiss." in text
    assert "loss" in page.of("figcaption")
    assert "Training" in page.of("h2") and "Training" not in Page(render_page(report)).of("h2")


FAILED_QUERY, FAILED_IMAGE = 3, 34


@pytest.fixture
def benchmark(shared, tmp_path):
    """Options for the small real benchmark with stores of its reference descriptors, in which
    one query and one database image have failed; its ground truth; and the descriptors."""
    folder = shared / "data" / "minilandmarks"
    arrays = np.load(folder / "expected.npz")
    gnd = pickle.loads((folder / "gnd_minilandmarks.pkl").read_bytes())
    distractors = (folder / "distractors.txt").read_text().split()
    parts = {"query": (gnd["qimlist"], arrays["query_crop"], {FAILED_QUERY}),
             "database": (gnd["imlist"], arrays["database"], {FAILED_IMAGE}),
             "distractors": (distractors, arrays["distractor"], set())}
    for name, (names, descriptors, failed) in parts.items():
        writer = StoreWriter(tmp_path / name, names, 320, 20, {})
        for chunk in writer.missing_chunks():
            rows = writer.rows(chunk)
            errors = {i - rows.start: "damaged" for i in failed & set(rows)}
            writer.write_chunk(chunk, descriptors[list(rows)], errors)
    results = json.loads((folder / "expected.json").read_text())["results"]
    for name, distance in [("near", "without_distractors"), ("far", "with_distractors")]:
        protocols = {protocol: {"mAP": figures["mAP"], "mP@10": figures["mP"]["10"],
                                "ap": figures["AP"]}
                     for protocol, figures in results[distance]["crop"].items()}
        (tmp_path / f"{name}.json").write_text(json.dumps({"protocols": protocols}))
    stores = [tmp_path / name for name in parts]
    options = ["--gnd", folder / "gnd_minilandmarks.pkl",
               "--result", "near", tmp_path / "near.json", "--stores", "near", *stores[:2],
               "--result", "far", tmp_path / "far.json", "--stores", "far", *stores,
               "--json", tmp_path / "results.json", "-o", tmp_path / "new" / "report.html"]
    names = gnd["imlist"] + distractors
    return options, gnd, names, np.concatenate([arrays["database"], arrays["distractor"]]), arrays


def slow_rows(gnd, names, descriptors, query):
    """(label, name) of the first ten results, by sorting everything."""
    scores = descriptors @ query
    scores[FAILED_IMAGE] = -np.inf
    order = np.argsort(-scores, kind="stable")[:10]
    return [(next((label for label in ("easy", "hard", "junk") if i in gnd[label]), "negative"),
             names[i]) for i in order.tolist()]


def test_command_on_the_small_benchmark(run_tool, benchmark, tmp_path):
    options, gnd, names, descriptors, arrays = benchmark
    done = run_tool("tools/report.py", *options, fresh=True)
    assert done.returncode == 0, done.stderr
    page = Page((tmp_path / "new" / "report.html").read_text(encoding="utf-8"))
    data = page.data()
    assert all(isinstance(tile, int) for tile in data["images"]["tiles"])
    letters = {letter: label for label, letter in LABELS.items()}
    for q, query in enumerate(data["queries"]):
        assert query["name"] == gnd["qimlist"][q] and isinstance(query["crop"], int)
        for hits, count in zip(query["hits"], (len(gnd["imlist"]), len(names))):
            found = [(letters[letter], data["images"]["names"][image])
                     for letter, image in zip(hits["labels"], hits["images"])]
            rows = slow_rows(gnd["gnd"][q], names, descriptors[:count], arrays["query_crop"][q])
            assert found == ([] if q == FAILED_QUERY else rows)
    assert len(data["queries"]) == 22
    assert len(page.tiles()) == len(set(page.tiles()))
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["near", "far"]
    assert results["far"] == json.loads((tmp_path / "far.json").read_text())


def test_command_without_ground_truth_makes_the_table(run_tool, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(evaluation([1.0], [0.5], [None])))
    done = run_tool("tools/report.py", f"alone={tmp_path / 'a.json'}", "-o", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert "Queries are not shown: no result says where its ground truth lies" in done.stdout
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "alone 4 images 50.00 50.00 50.00 25.00 25.00 25.00" in page.text()
    assert "Queries" not in page.of("h2") and page.data()["queries"] == []


def test_command_says_mistakes_in_one_line(run_tool, benchmark, tmp_path):
    done = run_tool("tools/report.py", *benchmark[0], "--stores", "other", "q", "d")
    assert done.returncode == 1
    assert re.fullmatch("error: stores are given for 'other'.*near, far\n", done.stderr)
    assert not (tmp_path / "new").exists()
