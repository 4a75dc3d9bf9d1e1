"""Time the page as a viewer sees it: `python benchmarks/page.py` (needs chromium on the PATH; about two minutes).

Starts the real app on this machine, opens it in headless Chromium at a projector's size, and measures first paint on a
warm server, the slider from key to new sentence, and a live run of 300 steps at K = 15 from the shipped checkpoint.
Prints a table, writes page.json beside this file, and keeps the picture that README.md shows in docs/first-page.png.
"""

import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measure import Report, check_installed, run

check_installed("dev", "playwright")
from playwright.sync_api import Page, expect  # noqa: E402

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.browser import chromium, served_app  # noqa: E402

SIZE = {"width": 1280, "height": 720}
DRAWN = "document.querySelectorAll('.js-plotly-plot .main-svg').length >= 6"  # two figures of three layers
CHANGED = """before => [...document.querySelectorAll('p')].some(
    p => p.innerText.startsWith('The loss fell') && p.innerText !== before)"""


def paint(page: Page, address: str) -> float:
    """Seconds until both figures are drawn."""
    start = time.perf_counter()
    page.goto(address)
    expect(page.get_by_text("600-fold")).to_be_visible(timeout=60_000)
    page.wait_for_function(DRAWN, timeout=60_000)
    return time.perf_counter() - start


def slide(page: Page, key: str = "ArrowLeft") -> float:
    """Seconds from a key on the first slider to the new sentence."""
    page.get_by_role("slider").first.focus()
    before = page.locator("p", has_text="The loss fell").first.inner_text()
    start = time.perf_counter()
    page.keyboard.press(key)
    page.wait_for_function(CHANGED, arg=before, polling=10)
    seconds = time.perf_counter() - start
    page.wait_for_timeout(400)
    return seconds


def train(page: Page, number: int) -> float:
    """Seconds from the button to the result of a run of 300 steps at K = 15, number `number` on this page."""
    start = time.perf_counter()
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.get_by_text(re.compile(r"HR@1 on the test users: [\d.]+ %"))).to_have_count(number, timeout=300_000)
    return time.perf_counter() - start


def benchmark(quick: bool) -> Report:
    """Open, slide and train. A smoke run takes as long and writes nothing."""
    with tempfile.TemporaryDirectory() as folder, served_app(Path(folder)) as address, chromium() as browser:
        page = browser.new_page(viewport=SIZE)
        cold = paint(page, address)
        warm = [paint(page, address) for _ in range(5)]
        page.wait_for_timeout(1000)
        if not quick:
            page.screenshot(path=ROOT / "docs" / "first-page.png")
        answers = [slide(page) for _ in range(12)]
        page.goto(f"{address}/lab")
        runs = [train(page, number) for number in (1, 2)]
    seconds = {
        "first paint, first session of the server": cold,
        "first paint, warm server, median of 5": statistics.median(warm),
        "slider to new sentence, median of 12": statistics.median(answers),
        "slider to new sentence, slowest of 12": max(answers),
        "live run, 300 steps at K = 15, the server's first, which computes the reference": runs[0],
        "live run, 300 steps at K = 15, reference in the cache": runs[1],
    }
    return {"seconds": {name: round(value, 3) for name, value in seconds.items()}}


if __name__ == "__main__":
    run(__file__, __doc__, benchmark, packages=["streamlit"])
