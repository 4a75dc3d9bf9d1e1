"""`make lab` in a real browser: JupyterLab opens at the first notebook, and its picture moves under the hand."""

import html
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser import chromium, served

FOLDER = Path(__file__).parents[2] / "notebooks"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_make_lab_opens_the_first_notebook() -> None:
    dry = subprocess.run(["make", "--dry-run", "lab"], cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    (line,) = (line for line in dry.stdout.splitlines() if "-m jupyterlab" in line)  # make may speak around it
    assert line.endswith("notebooks/00_start_here.ipynb")


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """What a server of JupyterLab, started as `make lab` does but on a copy of the notebook, opens in the browser."""
    shutil.copy(FOLDER / "00_start_here.ipynb", tmp_path)
    browser, told = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{told}"\n')
    browser.chmod(0o755)
    command = [sys.executable, "-m", "jupyterlab", "--allow-root", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.browser={browser} %s", "00_start_here.ipynb"]
    places = {name: str(tmp_path / name.lower()) for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    with served(lambda port: [*command, f"--port={port}"], tmp_path, tmp_path / "log", "/api", places):
        for _ in range(60):
            if told.is_file() and told.read_text().strip():
                break
            time.sleep(0.5)
        page = Path(told.read_text().strip().removeprefix("file://")).read_text()  # it sends the browser on
        yield html.unescape(next(re.finditer(r'href="([^"]+)"', page))[1])


@pytest.fixture
def page() -> Iterator[Page]:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1400})
        yield page


def test_the_first_picture_moves_under_the_hand(page: Page, address: str, tmp_path: Path) -> None:
    page.goto(address)
    title = page.get_by_role("heading", name="0. Start here")
    expect(title).to_be_visible(timeout=90_000)
    # Before anything runs, the committed outputs are there, the picture among them.
    expect(page.locator(".jp-RenderedPlotly").first).to_be_visible(timeout=30_000)
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=90_000)  # keys before that are lost
    title.click()
    for _ in range(2):  # the heading, then the picture's cell
        page.keyboard.press("Shift+Enter")
    guess = page.locator("button.widget-toggle-button", has_text="stays")
    expect(guess).to_be_enabled(timeout=90_000)
    expect(page.get_by_text("First the guess: it unlocks the slider.")).to_be_visible(timeout=60_000)
    guess.click()
    expect(page.get_by_text("Now move the slider to 18.")).to_be_visible(timeout=30_000)
    slider = page.locator(".noUi-handle").first
    slider.focus()
    for _ in range(18):
        page.keyboard.press("ArrowRight")
    expect(page.get_by_text("597 times smaller")).to_be_visible(timeout=30_000)
    moved = re.compile(r"Among\s18\seasy\snegatives.*1\.31\s→\s0\.024")  # plotly writes spaces of its own kind
    expect(page.locator(".gtitle").filter(has_text=moved)).to_be_visible()
    page.screenshot(path=tmp_path / "lab.png")
