"""Your data in a browser: a file of hostile names becomes a report and a run, and stays text wherever it is shown."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.app.journeys.conftest import settled
from tests.app.test_safety import HOSTILE, hostile_csv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
OVERFLOWS = "document.querySelector('.stMain').scrollWidth > innerWidth + 1"
NAMES = [*HOSTILE, ":material/delete:", ":smile:"]


def bring(page: Page, name: str, content: bytes) -> None:
    page.locator("input[type=file]").set_input_files({"name": name, "mimeType": "text/csv", "buffer": content})


def test_a_file_of_hostile_names_becomes_a_report_and_a_run(
    visit: Callable[..., Page], picture: Callable[[Page, str], Path]
):
    page = visit("")
    page.goto(f"{page.url}data")
    settled(page)
    expect(page.get_by_text("An example, not yours:")).to_be_visible()
    assert not page.evaluate(OVERFLOWS)
    last = page.locator(".js-plotly-plot").last.bounding_box()
    assert last is not None
    assert last["y"] + last["height"] <= 720  # the figures are on the first screen
    picture(page, "data-light")

    bring(page, "<img src=x onerror=window.hacked=1>.csv", hostile_csv(NAMES))
    train = page.get_by_role("button", name="Train", exact=True)
    expect(train).to_be_visible(timeout=60_000)
    settled(page)
    said = " ".join(page.locator(".stMain").inner_text().replace("\u2060", "").split())  # which parts addresses, unseen
    for name in ("<img src=x onerror=window.hacked=1>.csv", *NAMES):
        assert " ".join(name.split()) in said
    link = page.url
    assert "data?data=" in link

    page.get_by_role("spinbutton", name="Steps").fill("10")
    page.keyboard.press("Enter")
    page.get_by_role("spinbutton", name="Epochs of SFT").fill("1")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 epoch of 420 lines")).to_be_visible()
    train.click()
    expect(page.get_by_text("HR@1 on the test users").first).to_be_visible(timeout=120_000)
    picture(page, "data-trained")
    page.locator("[data-testid=stMain]").get_by_role("link", name="Microscope").click()
    settled(page)
    assert page.evaluate("window.hacked") is None

    assert page.context.browser is not None
    other = page.context.browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    other.goto(link)  # which was taken down before there was a run
    settled(other)
    expect(other.locator(".js-plotly-plot")).to_have_count(3)
    expect(other.get_by_text("Train a pocket model on it")).to_be_visible()
    expect(other.get_by_text("Runs on these data")).to_have_count(0)  # the link does not name the run
    assert not other.evaluate(OVERFLOWS)
    assert other.evaluate("window.hacked") is None
    picture(other, "data-phone-dark")

    page.goto(link)
    settled(page)
    page.get_by_role("button", name="This upload").click()
    page.get_by_role("button", name="Remove my data").click()
    expect(page.get_by_text("were removed.")).to_be_visible()
    page.goto(link)
    expect(page.get_by_text("not on this server")).to_be_visible()


def test_files_that_are_too_large_or_broken_are_one_sentence_and_the_app_stays_up(
    visit: Callable[..., Page], tmp_path: Path
):
    page = visit("")
    page.goto(f"{page.url}data?data=../../etc/passwd&colour=red")
    settled(page)
    expect(page.get_by_text("The upload of this link is not on this server")).to_be_visible()
    expect(page.get_by_text("were not recognised and were ignored: colour.")).to_be_visible()
    for megabytes in (25, 200):
        path = tmp_path / f"{megabytes}.csv"
        with path.open("wb") as file:
            file.truncate(megabytes * 2**20)
        page.locator("input[type=file]").set_input_files(path)
        expect(page.get_by_text("20.0MB or smaller").or_(page.get_by_text("20MB or smaller")).last).to_be_visible()
        page.reload()
        settled(page)
    bring(page, "zipped.csv", b"PK\x03\x04" + bytes(100))
    expect(page.get_by_text("zipped.csv holds NUL bytes, so it is not text in UTF-8")).to_be_visible(timeout=30_000)
    expect(page.get_by_text("An example, not yours:")).to_be_visible()
    assert "/" not in page.locator("[data-testid=stAlertContentError]").inner_text()
