"""The HTML report of 70 queries x 400 results x 4 methods: how long it takes to make and to open.

    python benchmarks/report.py [--images 2000] [--size 1024x768] [--queries 70] [--top 400]
        [--methods 4] [--rounds 5] [--folder FOLDER]

Photographs are synthetic, results are drawn by chance. Made twice: the second report reuses the
thumbnails. Opened in headless Chromium (Playwright) from file://; the median of several rounds:

first paint     the browser's own first-contentful-paint
interactive     the script has run: the tools answer
results shown   the first queries are scrolled to, and all their pictures in view are decoded
jump            from there to the last query
"""
import argparse
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image as Photograph

from dolg.errors import UserError
from dolg.report.page import write_report
from dolg.report.results import Hit, Image, Method, Query, Report

PROTOCOLS = ("easy", "medium", "hard")
LABELS = ("easy", "hard", "junk", "negative")
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking")
SHOWN = """async () => {
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    await frame();
    await frame();
    const seen = [...document.images].filter((image) => {
        const box = image.getBoundingClientRect();
        return box.bottom > 0 && box.top < innerHeight;
    });
    await Promise.all(seen.map((image) => image.decode()));
    return [performance.now(), seen.length];
}"""


def write_photograph(path: Path, number: int, size: tuple[int, int]) -> None:
    """Blocks of colour under noise: about as hard to decode and as large as a photograph."""
    rng = np.random.default_rng(number)
    coarse = Photograph.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize(size, Photograph.Resampling.BICUBIC), np.int16)
    noisy = pixels + rng.integers(-12, 12, pixels.shape, dtype=np.int16)
    Photograph.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def make_photographs(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"synthetic_landmark_{number:06}.jpg" for number in range(count)]
    missing = [(number, path) for number, path in enumerate(paths) if not path.exists()]
    with ProcessPoolExecutor() as pool:
        list(pool.map(write_photograph, [path for _, path in missing], [number for number, _ in missing],
                      [size] * len(missing), chunksize=16))
    return paths


def draw_report(paths: list[Path], queries: int, top: int, methods: int, size: tuple[int, int]) -> Report:
    """Results drawn by chance; each query has 150 positives among a million images."""
    rng = np.random.default_rng(0)
    images = [Image(path.stem, path) for path in paths]
    names = [f"method {number}" for number in range(methods)]
    box = (0.1 * size[0], 0.1 * size[1], 0.8 * size[0], 0.9 * size[1])
    drawn = []
    for number in range(queries):
        hits = {name: [Hit(images[row], score, label) for row, score, label in zip(
            rng.choice(len(images), top, replace=False), -np.sort(-rng.random(top)),
            rng.choice(LABELS, top))] for name in names}
        drawn.append(Query(f"query {number}", paths[number], box, {"easy": 75, "hard": 75}, hits))
    evaluations = [{"protocols": {
        protocol: {"mAP": 0.5, "ap": rng.random(queries).tolist(),
                   "ranks": [np.sort(rng.choice(10**6, 150, replace=False)).tolist() for _ in drawn]}
        for protocol in PROTOCOLS}} for _ in names]
    return Report("synthetic", [Method(*pair) for pair in zip(names, evaluations)], drawn)


def time_making(report: Report, output: Path) -> Path:
    """Print how long it takes and how large it is."""
    start = time.perf_counter()
    page = write_report(report, output)
    seconds = time.perf_counter() - start
    thumbnails = list((page.parent / "thumbnails").glob("*.jpg"))
    total = sum(path.stat().st_size for path in thumbnails)
    print(f"made in {seconds:6.1f} s: HTML {page.stat().st_size / 2**20:.2f} MiB, {len(thumbnails)} "
          f"thumbnails of {total / 2**20:.1f} MiB")
    return page


def time_opening(page: Path, rounds: int) -> None:
    """Print medians over rounds, each in a window of its own."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("opening the page needs Playwright: pip install playwright") from None
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(ARGUMENTS))
        found = [open_once(browser, page) for _ in range(rounds)]
        browser.close()
    for step in found[0]:
        values = [figures[step] for figures in found]
        print(f"{step:16}{statistics.median(values):8.0f} ms   ({min(values):.0f} to {max(values):.0f})")


def open_once(browser, path: Path) -> dict[str, float]:
    """Milliseconds from the start of the navigation on, and of a jump to the last query."""
    window = browser.new_page(viewport={"width": 1280, "height": 900})
    window.goto(path.as_uri(), wait_until="load")
    interactive = window.evaluate(
        "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert window.locator("article").count() and window.locator(".tools").is_visible()
    paint = window.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    before = window.evaluate("document.getElementById('queries').scrollIntoView(), performance.now()")
    shown, pictures = window.evaluate(SHOWN)
    assert pictures > 10, pictures
    start = window.evaluate("""() => {
        const start = performance.now();
        [...document.querySelectorAll('article')].at(-1).scrollIntoView();
        return start;
    }""")
    end, _ = window.evaluate(SHOWN)
    window.close()
    return {"first paint": paint, "interactive": interactive,
            "results shown": interactive + shown - before, "jump": end - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in (("images", 2000), ("queries", 70), ("top", 400), ("methods", 4), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--size", default="1024x768", help="of the photographs (default: 1024x768)")
    parser.add_argument("--folder", type=Path, help="kept between runs (default: a temporary one)")
    args = parser.parse_args()
    size = tuple(map(int, args.size.split("x")))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        paths = make_photographs(folder / f"photographs-{args.size}", args.images, size)
        print(f"{args.queries} queries x {args.top} results x {args.methods} methods of {args.images} "
              f"photographs of {args.size} pixels; {os.cpu_count()} CPU cores")
        report = draw_report(paths, args.queries, args.top, args.methods, size)
        for _ in range(2):
            page = time_making(report, folder / "report")
        time_opening(page, args.rounds)


if __name__ == "__main__":
    main()
