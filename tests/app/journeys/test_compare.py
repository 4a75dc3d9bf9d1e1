"""Compare, as a researcher walks through it: choose runs, change the baseline, take the table and the command home."""

import io
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from minipo.course.figures.style import in_points
from minipo.experiments import comparison
from minipo.experiments.records import RESULTS, difference, load_recorded
from tests.app.journeys.conftest import settled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
expect.set_options(timeout=60_000)  # this machine may be training
Visit = Callable[..., Page]
Picture = Callable[[Page, str], Path]
OUTSIDE = """() => [...document.querySelectorAll('.stMain *')]
    .filter(e => !e.closest('[data-testid=stDataFrame]') && e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.className.toString())"""
CUT = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
    const box = plot.getBoundingClientRect();
    return [...plot.querySelectorAll('text')].filter(text => {
        const at = text.getBoundingClientRect();
        return at.width && (at.right > box.right + 2 || at.left < box.left - 2 || at.bottom > box.bottom + 2);
    }).map(text => text.textContent);
})"""


def fits(page: Page) -> None:
    """Nothing is wider than the window, and no figure's text is cut."""
    assert page.evaluate(OUTSIDE) == []
    assert page.evaluate(CUT) == []


def taken(page: Page, button: str) -> bytes:
    """What a download button hands out."""
    with page.expect_download() as caught:
        page.get_by_role("button", name=button, exact=True).click()
    return caught.value.path().read_bytes()


def test_choose_runs_change_the_baseline_and_take_the_table_home(visit: Visit, picture: Picture) -> None:
    page = visit("compare")
    expect(page.get_by_text("Against DMPO, K = 1")).to_be_visible()
    bottom = page.get_by_test_id("stPlotlyChart").bounding_box()
    assert bottom is not None
    assert bottom["y"] + bottom["height"] < 720  # sentence and figure without scrolling
    picture(page, "compare-light")
    fits(page)
    page.get_by_test_id("stDataFrame").hover()
    expect(page.get_by_role("button", name="Search: The chosen runs")).to_be_visible()
    expect(page.get_by_role("button", name="Download as CSV")).to_be_hidden()  # it would hand out names as formulas

    box = page.get_by_role("combobox", name="Recorded runs")
    box.click()
    box.fill("S-DPO, K = 19, seed 3")
    page.get_by_role("option", name="S-DPO, K = 19, seed 3").click()
    page.keyboard.press("Escape")
    expect(page.get_by_text("S-DPO, K = 19, seed 3 (")).to_be_visible()
    page.get_by_role("combobox", name="Baseline").click()
    page.get_by_role("option", name="SFT", exact=True).click()
    grid = load_recorded("objectives")
    change = difference(grid.outcomes(objective="dmpo", dynamic="off", negatives=19), grid.baseline("sft"))
    sentence = page.get_by_text("Against SFT (")
    expect(sentence).to_contain_text(f"DMPO, K = 19 ({in_points(change)} points)")
    assert "baseline=SFT" in page.url

    csv = pd.read_csv(io.BytesIO(taken(page, "CSV"))).set_index("name")
    parquet = pd.read_parquet(io.BytesIO(taken(page, "Parquet"))).set_index("name")
    names = ["DMPO, K = 1", "DMPO, K = 19", "DMPO, DynamicPO, K = 19", "SFT", "S-DPO, K = 19, seed 3"]
    for table in (csv, parquet):
        assert list(table.index) == names
        row = table.loc["DMPO, K = 19"]
        assert (row["difference"], row["low"], row["high"]) == pytest.approx((change.mean, change.low, change.high))
        assert (row["baseline"], row["metric"], row["negatives"]) == ("SFT", "hr@1", 19)
        assert table.loc[names[-1], "paired_over"] == "users, seed 3"
        assert {*comparison.COMPARED, *RESULTS} <= {*table.columns}
    assert b"minipo sweep --dataset catalog" in taken(page, "Commands")
    assert b"minipo.sweep(" in taken(page, "Notebook")

    said = sentence.inner_text()
    browser = page.context.browser
    assert browser is not None
    other = browser.new_page(viewport={"width": 1280, "height": 720})  # the link restores it for somebody else
    other.goto(page.url)
    expect(other.get_by_text("Against SFT (")).to_have_text(said)


def test_copy_the_command_and_the_cell(visit: Visit) -> None:
    page = visit("compare")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    code = page.get_by_test_id("stCode")
    for way, begin in (("command", "minipo sweep --dataset catalog"), ("notebook cell", "import minipo")):
        page.get_by_role("radio", name=way).click()
        expect(code.first).to_contain_text(begin)
        code.first.hover()
        code.first.get_by_role("button", name="Copy to clipboard").click()
        assert page.evaluate("navigator.clipboard.readText()").startswith(begin)
    assert "repeat=notebook" in page.url


def test_nonsense_in_the_link_is_told(visit: Visit) -> None:
    page = visit("compare?metric=beauty&colour=red&run=nobody")
    expect(
        page.get_by_text("Some parameters of this link were not recognised and were ignored: colour, metric.")
    ).to_be_visible()
    expect(page.get_by_text("A run of this link is not on this server")).to_be_visible()
    expect(page.get_by_text("Against DMPO, K = 1")).to_be_visible()


@pytest.mark.parametrize(("size", "dark"), [("projector", True), ("phone", False)])
def test_in_the_dark_and_on_a_phone(visit: Visit, picture: Picture, size: str, dark: bool) -> None:
    page = visit("compare?metric=MRR", size, dark=dark)
    expect(page.get_by_text("MRR is")).to_be_visible()
    settled(page)
    fits(page)
    picture(page, "compare-dark" if dark else "compare-phone")
