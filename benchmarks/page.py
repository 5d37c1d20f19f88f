"""python benchmarks/page.py: how fast the page of 2,300 samples x 4 models opens in Chromium.

Target: about 2 s from the address to the drawn page, and under 5 MB apart from the samples (issue
"Leaderboards, honest comparisons, and a page people like to look at"). Runs are made up, not
generated; the length of an answer is that of a benchmark's.
"""

import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from evalkit.leaderboard.board import build_board  # noqa: E402
from evalkit.leaderboard.page import PageOptions, page_html  # noqa: E402
from tests.leaderboard.made import Made, make_run, write_data  # noqa: E402

TARGET_SECONDS = 2.0
TARGET_BYTES = 5_000_000
MODELS, SAMPLES, OPENINGS = 4, 100, 5
READY = "return document.documentElement.dataset.ready === 'true'"


def main() -> int:
    """Prints the times of making and opening the page; 1 when a target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = write_data(root / "data", SAMPLES)
        for number in range(MODELS):
            model = Made(f"model-{number}", 0.3 + 0.15 * number, number, also_wrong="答えは不明です。" * 20)
            make_run(model, data, root / "results")
        start = time.perf_counter()
        text = page_html(build_board([root / "results"]), PageOptions())
        made = time.perf_counter() - start
        path = root / "leaderboard.html"
        path.write_text(text, encoding="utf-8")
        blocks = re.findall(r'(?s)<script type="application/\w+" id="samples-[^"]+">(.*?)</script>', text)
        samples = sum(len(block.encode()) for block in blocks)
        rest = len(text.encode()) - samples
        print(
            f"page: {MODELS} models x {23 * SAMPLES} samples made in {made:.1f} s; "
            f"{samples / 1e6:.1f} MB of samples and {rest / 1e6:.2f} MB besides (target under 5)"
        )
        opened = opening_seconds(path)
    if opened is None:
        print("page: opening it was not measured, no Chromium here")
        return 0 if rest < TARGET_BYTES else 1
    print(f"page: opens in {opened:.2f} s (median of {OPENINGS}, target about {TARGET_SECONDS:.0f})")
    return 0 if opened <= TARGET_SECONDS and rest < TARGET_BYTES else 1


def opening_seconds(path: Path) -> float | None:
    """The median time until the page is drawn; None where there is no browser."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        return None
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(word)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        seconds = []
        for _ in range(OPENINGS):
            browser.get("about:blank")
            start = time.perf_counter()
            browser.get(path.as_uri())
            while not browser.execute_script(READY):
                time.sleep(0.01)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)
    finally:
        browser.quit()


if __name__ == "__main__":
    sys.exit(main())
