"""The results page: what it shows, what it embeds, and that nothing hostile gets through."""
import base64
import io
import json
import pickle
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dolg.errors import UserError
from dolg.features.store import StoreWriter
from dolg.report.page import render_page
from dolg.report.results import (
    Hit, ImageFolders, Method, Query, Report, gather_report, load_evaluation, load_evaluations,
    open_ground_truth, open_stores,
)
from dolg.report.thumbnails import find_image, make_thumbnail

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = 'a"b\'<script>alert(1)</script>&amp;é漢'


class Page(HTMLParser):
    """Collects the elements of a page; fails on tags that are not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self):
        visible = " ".join(text for tag, text in self.texts if tag not in ("style", "title"))
        return re.sub(r"\s+", " ", visible)

    def with_class(self, name):
        return [attributes for _, attributes in self.elements
                if name in (attributes.get("class") or "").split()]


def evaluation(easy, medium, hard):
    return {"dataset": "toy", "queries": len(medium), "database": 4, "distractors": 0,
            "protocols": {name: {"mAP": 0.5, "mP@1": 0.1, "mP@5": 0.2, "mP@10": 0.25, "ap": ap}
                          for name, ap in (("easy", easy), ("medium", medium), ("hard", hard))}}


def save_image(path, colour, size=(64, 48), **options):
    Image.new("RGB", size, colour).save(path, **options)
    return path


@pytest.fixture
def report(tmp_path):
    """Three queries, two methods; images: two queries, one per label, one that is missing."""
    paths = {name: save_image(tmp_path / f"{name}.jpg", colour) for name, colour in [
        ("q0", "red"), ("q1", "blue"), ("A", "green"), ("B", "yellow"), ("C", "black")]}
    paths["D"], paths["q2"] = tmp_path / "D.jpg", tmp_path / "A.jpg"
    before = [Hit("A", paths["A"], 0.9, "easy"), Hit("B", paths["B"], 0.8, "hard"),
              Hit("C", paths["C"], 0.7, "junk"), Hit("D", paths["D"], 0.6, "negative")]
    after = [Hit("B", paths["B"], 0.5, "hard"), Hit("A", paths["A"], 0.25, "negative", True)]
    both = {"before": {"easy": 1.0, "medium": 0.25, "hard": None},
            "after": {"easy": 1.0, "medium": 0.75, "hard": None}}
    none = {name: {"easy": None, "medium": None, "hard": None} for name in ("before", "after")}
    low = {name: {"easy": 0.0, "medium": 0.125, "hard": 0.5} for name in ("before", "after")}
    counts = {"easy": 1, "hard": 1, "junk": 1}
    queries = [
        Query(0, "q0", paths["q0"], (16, 12, 48, 36), counts, both,
              {"before": before, "after": after}),
        Query(1, "q1", paths["q1"], None, counts, none, {"before": [], "after": after}),
        Query(2, "q2", paths["q2"], None, counts, low, {"before": before, "after": after}),
    ]
    easy, hard = [1.0, None, 0.0], [None, None, 0.5]
    methods = [Method("before", evaluation(easy, [0.25, None, 0.125], hard)),
               Method("after", evaluation(easy, [0.75, None, 0.125], hard))]
    methods[1].evaluation["protocols"]["medium"]["mAP"] = 0.5625
    methods[1].evaluation["protocols"]["hard"]["mAP"] = None
    return Report("toy", methods, queries)


def test_every_query_is_there_worst_first(report):
    page = Page(render_page(report))
    articles = [attributes["id"] for tag, attributes in page.elements if tag == "article"]
    assert articles == ["query-2", "query-0", "query-1"]
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links[:3] == ["#query-2", "#query-0", "#query-1"]
    assert ("html", {"lang": "en"}) in page.elements
    headings = [tag for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert headings == ["h1", "h2", "h2", "h2"] + 3 * ["h3", "h4", "h4"]


def test_frames_and_labels(report):
    page = Page(render_page(report))
    results = [attributes["class"] for attributes in page.with_class("result")]
    rows = ["result easy", "result hard", "result junk", "result negative"]
    after = ["result hard", "result negative"]
    assert results == rows + after + rows + after + after  # q2, q0, and q1 with one row empty
    alts = [attributes["aria-label"] for _, attributes in page.elements
            if attributes.get("role") == "img"]
    assert alts[:7] == [
        "Query q2", "Result 1, easy: A", "Result 2, hard: B", "Result 3, junk: C",
        "Result 4, negative: D: not shown, no such file", "Result 1, hard: B",
        "Result 2, negative: A"]
    text = page.text()
    assert "✓ easy 1 0.900 A" in text and "✓✓ hard 2 0.800 B" in text
    assert "○ junk 3 0.700 C" in text and "✕ negative 4 0.600 D" in text
    assert "0.250 distractor A" in text
    assert "No results" in text


def test_table_and_changes(report):
    text = Page(render_page(report)).text()
    assert "before 4 images 50.00 50.00 50.00 25.00 25.00 25.00" in text
    assert "after 4 images 50.00 ±0.00 56.25 +6.25 – 25.00 ±0.00" in text
    assert "3 queries. after reaches a Medium mAP of 56.2 % , +6.2 points from before." in text
    assert "Easy 100.0 ±0.0 Medium 75.0 +50.0 Hard –" in text


def test_box_is_drawn_in_shares_of_the_image(report):
    boxes = Page(render_page(report)).with_class("crop")
    assert [box["style"] for box in boxes] == [
        "left:25.00%;top:25.00%;width:50.00%;height:50.00%"]


def test_each_distinct_image_is_embedded_once(report):
    html = render_page(report)
    data = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html)
    assert len(data) == len(set(data)) == 5
    for jpeg in data:
        assert Image.open(io.BytesIO(base64.b64decode(jpeg))).size == (64, 48)
    page = Page(html)
    shown = [attributes["class"] for attributes in page.with_class("picture")]
    assert shown.count("picture missing") == 2
    for name in {value for classes in shown for value in classes.split()} - {"picture", "missing"}:
        assert f".{name} {{" in html


def test_page_refers_to_nothing_outside(report):
    html = render_page(report)
    assert "http:" not in html and "https:" not in html and "//" not in re.sub(
        r"base64,[A-Za-z0-9+/=]+", "", html)
    assert not {"script", "link", "iframe", "img"} & {tag for tag, _ in Page(html).elements}


def test_hostile_names_are_shown_as_they_are(report, tmp_path):
    hit = Hit(HOSTILE, tmp_path / "none.jpg", 0.5, "negative")
    ap = {HOSTILE: {"easy": None, "medium": 0.5, "hard": None}}
    query = Query(0, HOSTILE, tmp_path / "none.jpg", (0, 0, 1, 1), {}, ap, {HOSTILE: [hit]})
    method = Method(HOSTILE, evaluation([None], [0.5], [None]))
    html = render_page(Report(HOSTILE, [method], [query]))
    page = Page(html)
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert f"Retrieval results on {HOSTILE}" in page.text()
    assert [attributes["title"] for attributes in page.with_class("name")] == [HOSTILE]
    assert not [key for _, attributes in page.elements for key in attributes if key[:2] == "on"]


def test_thumbnails_are_small_and_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by a quarter to show"
    photo = Image.new("RGB", (800, 400), "blue")
    photo.paste("red", (0, 0, 400, 400))  # the left half as stored, the upper half as shown
    photo.save(tmp_path / "a.jpg", exif=exif)
    thumbnail = make_thumbnail(tmp_path / "a.jpg", 120)
    small = Image.open(io.BytesIO(thumbnail.jpeg))
    assert small.size == (thumbnail.width, thumbnail.height) == (60, 120)
    assert (thumbnail.source_width, thumbnail.source_height) == (400, 800)
    assert small.getpixel((30, 20))[0] > 200 and small.getpixel((30, 100))[2] > 200
    for mode in ("L", "P", "CMYK", "RGBA", "1", "I;16"):
        Image.new(mode, (30, 20)).save(tmp_path / "mode.tif")
        assert make_thumbnail(tmp_path / "mode.tif", 120).width == 30


def test_unreadable_images_give_a_reason(tmp_path):
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.jpg").touch()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:1500])
    (tmp_path / "folder.jpg").mkdir()
    # A BMP header that claims 60000 x 60000 pixels.
    size = (60000).to_bytes(4, "little")
    (tmp_path / "huge.bmp").write_bytes(
        b"BM" + bytes(8) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little") + size + size
        + (1).to_bytes(2, "little") + (24).to_bytes(2, "little") + bytes(24))
    problems = {path.name: make_thumbnail(path, 120).problem for path in tmp_path.iterdir()}
    assert problems["text.jpg"] == problems["empty.jpg"] == "not an image file"
    assert "truncated" in problems["cut.jpg"] and "directory" in problems["folder.jpg"]
    assert problems["huge.bmp"] == "absurdly large image" and problems["whole.jpg"] == ""
    assert make_thumbnail(tmp_path / "nul\0.jpg", 120).problem


def test_images_are_found_by_name(tmp_path):
    assert find_image(tmp_path, "st.peter_1") == tmp_path / "st.peter_1.jpg"
    assert find_image(tmp_path, "0/12.JPG") == tmp_path / "0/12.JPG"
    assert find_image(tmp_path, "x.png") == tmp_path / "x.png"


@pytest.mark.parametrize("content, message", [
    ("{", "is not JSON"),
    ("[1]", 'no "protocols"'),
    ('{"protocols": {"easy": {"mAP": 0.5, "ap": [1]}}}', '"medium" has no list "ap"'),
    (json.dumps(evaluation([1.0], [87.0], [None])), "not in 0..1"),
    (json.dumps(evaluation([1.0], [float("nan")], [None])), "not in 0..1"),
    (json.dumps(evaluation([1.0, 0.5], [1.0, 0.5], [None, 0.5])), "2 queries.* has 1"),
])
def test_files_that_are_no_evaluation_are_refused(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        load_evaluation(path, queries=1)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_results_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_evaluation(tmp_path / "absent.json")
    first, other = evaluation([1.0], [1.0 + 2e-16], [None]), evaluation([1.0], [1.0], [None])
    other["dataset"] = "elsewhere"
    (tmp_path / "a.json").write_text(json.dumps(first))
    (tmp_path / "b.json").write_text(json.dumps(other))
    assert load_evaluations([("a", tmp_path / "a.json")], 1) == {"a": first}
    with pytest.raises(UserError, match="two results are called 'a'"):
        load_evaluations([("a", tmp_path / "a.json"), ("a", tmp_path / "b.json")], 1)
    with pytest.raises(UserError, match="a is of toy, b is of elsewhere"):
        load_evaluations([("a", tmp_path / "a.json"), ("b", tmp_path / "b.json")], 1)


def recorded(cropped, distractors=0, **changes):
    """An evaluation that says by which protocol it was made."""
    record = {"ground_truth_sha256": "a" * 64, "query": {"cropped": cropped}, **changes}
    return {**evaluation([1.0], [0.5], [None]), "distractors": distractors, "protocol": record}


def write_pairs(folder, **evaluations):
    """[name, file] of each evaluation."""
    for name, content in evaluations.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return [(name, folder / f"{name}.json") for name in evaluations]


@pytest.mark.parametrize("other, words", [
    (recorded(True, 30), "number of distractors: 0 and 30"),
    (recorded(False), "queries cropped: yes and no"),
    (recorded(True, ground_truth_sha256="b" * 64), "aaaaaaaaaaaa and bbbbbbbbbbbb"),
    (evaluation([1.0], [0.5], [None]), "queries cropped: yes and unknown")])
def test_results_of_different_protocols_are_refused(tmp_path, other, words):
    pairs = write_pairs(tmp_path, a=recorded(True), b=recorded(True), c=other)
    assert list(load_evaluations(pairs[:2])) == ["a", "b"]
    with pytest.raises(UserError, match=f"a and c cannot be compared, they differ in .*{words}"):
        load_evaluations(pairs)
    assert load_evaluations(pairs, across=True)["c"] == other


def test_results_without_a_record_are_loaded(tmp_path):
    pairs = write_pairs(tmp_path, a=evaluation([1.0], [0.5], [None]),
                        b=evaluation([1.0], [0.75], [None]))
    assert list(load_evaluations(pairs)) == ["a", "b"]


def test_methods_say_what_is_unusual_in_their_protocol():
    assert Method("a", recorded(True)).detail() == "4 images"
    assert Method("a", recorded(False)).detail() == "4 images, mAP (queries not cropped)"
    assert Method("a", recorded(None)).detail() == "4 images, mAP (cropping unknown)"
    assert Method("a", evaluation([1.0], [0.5], [None])).detail() == "4 images"


def test_command_shows_different_protocols_only_where_asked(run_tool, tmp_path):
    pairs = write_pairs(tmp_path, a=recorded(True), b=recorded(True, 30))
    options = [option for pair in pairs for option in ("--result", *pair)]
    page = tmp_path / "page.html"
    done = run_tool("tools/report.py", *options, "-o", page)
    assert done.returncode == 1 and not page.exists()
    assert done.stderr == ("error: a and b cannot be compared, they differ in number of "
                           "distractors: 0 and 30 (--across compares them all the same)\n")
    done = run_tool("tools/report.py", *options, "-o", page, "--across")
    assert done.returncode == 0, done.stderr
    text = Page(page.read_text(encoding="utf-8")).text()
    assert "a 4 images 50.00" in text
    assert ("b 4 images, 30 distractors, differs from the first in number of distractors: 0 and 30"
            in text)


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
               "--distractor-images", folder / "distractors",
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
    html = (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert not page.with_class("missing")
    alts = [attributes["aria-label"] for _, attributes in page.elements
            if attributes.get("role") == "img"]
    shown = " | ".join(alts) + " | "
    for q, name in enumerate(gnd["qimlist"]):
        expected = f"Query {name} | "
        for count in (len(gnd["imlist"]), len(names)):
            rows = slow_rows(gnd["gnd"][q], names, descriptors[:count], arrays["query_crop"][q])
            if q != FAILED_QUERY:
                expected += "".join(f"Result {rank}, {label}: {hit} | "
                                    for rank, (label, hit) in enumerate(rows, 1))
        assert expected in shown
    assert len(alts) == 22 + 21 * 20
    data = re.findall(r"data:image/jpeg;base64,([^)]+)", html)
    assert len(data) == len(set(data)) == len(set(re.findall(r"picture (image-\d+)", html)))
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["near", "far"]
    assert results["far"] == json.loads((tmp_path / "far.json").read_text())


def test_command_without_ground_truth_makes_the_table(run_tool, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(evaluation([1.0], [0.5], [None])))
    done = run_tool("tools/report.py", "--result", "alone", tmp_path / "a.json",
                    "-o", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    page = Page((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "alone 4 images 50.00 50.00 50.00 25.00 25.00 25.00" in page.text()
    assert not [tag for tag, _ in page.elements if tag == "article"]


def test_command_says_mistakes_in_one_line(run_tool, benchmark, tmp_path):
    done = run_tool("tools/report.py", *benchmark[0], "--stores", "other", "q", "d")
    assert done.returncode == 1
    assert re.fullmatch("error: stores are given for 'other'.*near, far\n", done.stderr)
    assert not (tmp_path / "new").exists()


def test_stores_that_do_not_fit_are_refused(benchmark, tmp_path):
    query, database = tmp_path / "query", tmp_path / "database"
    for group, message in [(["a", query], "need a QUERY and a DATABASE store"),
                           (["a", query, tmp_path], str(tmp_path))]:
        with pytest.raises(UserError, match=message):
            open_stores([list(map(str, group))], ["a"])
    with pytest.raises(UserError, match="given twice for 'a'"):
        open_stores([["a", query, database]] * 2, ["a"])
    truth = open_ground_truth(benchmark[0][1])
    evaluations = load_evaluations([("a", tmp_path / "near.json")], len(truth.queries))
    folders = ImageFolders(tmp_path)
    with pytest.raises(UserError, match="absent is not a folder of images"):
        gather_report(evaluations, truth, {}, ImageFolders(tmp_path, tmp_path / "absent"))
    with pytest.raises(UserError, match="absent.pkl"):
        open_ground_truth(tmp_path / "absent.pkl")
    for group, message in [(["a", database, database], "holds 55 images.* has 22 queries"),
                           (["a", query, query], "holds 22 images.* has 55 database images")]:
        with pytest.raises(UserError, match=message):
            gather_report(evaluations, truth, open_stores([group], ["a"]), folders)
    stores = open_stores([["a", query, database]], ["a"])
    truth.images[7], truth.images[8] = truth.images[8], truth.images[7]
    with pytest.raises(UserError, match="as image 7"):
        gather_report(evaluations, truth, stores, folders)
