"""One real server for all journeys, with the repository's recorded runs and a folder of its own; and its visitors."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.app.conftest import MAIN
from tests.browser import chromium, served_app

SIZES = {"projector": (1280, 720), "phone": (390, 844)}


@pytest.fixture(scope="package")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the app is served, as `make app` serves it."""
    with served_app(tmp_path_factory.mktemp("served")) as address:
        yield address


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(address: str, browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page of the app as a visitor who was never here: visit("collapse?objective=DPO", "phone", dark=True)."""
    with ExitStack() as stack:

        def visit(link: str = "", size: str = "projector", *, dark: bool = False) -> Page:
            width, height = SIZES[size]
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
            )
            stack.callback(context.close)
            page = context.new_page()
            page.goto(f"{address}/{link}")
            settled(page)
            return page

        yield visit


def settled(page: Page) -> None:
    """Wait until the page's script has run and every figure that it has is drawn."""
    expect(page.locator("[data-testid=stMainBlockContainer] h2").first).to_be_visible(timeout=60_000)
    page.wait_for_function("!document.querySelector('[data-testid=stStatusWidget]')", timeout=60_000)
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')", timeout=60_000)
    page.wait_for_function(
        "[...document.querySelectorAll('[data-testid=stPlotlyChart]')].every(c => c.querySelector('.main-svg'))",
        timeout=60_000,
    )


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Page, str], Path]:
    """Keeps a picture of a page among the tests' output, build/screenshots."""
    folder = MAIN.parents[1] / "build" / "screenshots"

    def keep(page: Page, name: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{re.sub(r'[^a-z0-9-]+', '-', name.lower())}.png"
        page.screenshot(path=path)
        return path

    return keep
