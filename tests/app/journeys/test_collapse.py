"""The page Collapse in a browser, with the repository's recorded runs."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.app.journeys.conftest import settled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
Visit, Picture = Callable[..., Page], Callable[[Page, str], Path]
VIEWS = {"k": "Against+K", "settings": "Where+it+collapses", "users": "Who+gained%2C+who+lost"}
SLOW = 30_000  # milliseconds: the machine may be busy
TOO_WIDE = """[...document.querySelectorAll('.stMain *')].filter(
    e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.className.toString())"""
CUT = """[...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
    const box = plot.getBoundingClientRect()
    return [...plot.querySelectorAll('text')].filter(t => {
        const r = t.getBoundingClientRect()
        return r.width && (r.right > box.right + 2 || r.left < box.left - 2 || r.bottom > box.bottom + 2)
    }).map(t => t.textContent)})"""


def test_the_first_screen_has_controls_sentence_and_the_whole_figure(visit: Visit, picture: Picture):
    page = visit("collapse")
    expect(page.get_by_text("DMPO's training loss falls")).to_be_visible(timeout=SLOW)
    expect(page.locator(".main-svg").first).to_be_visible(timeout=SLOW)
    figure = page.locator("[data-testid=stPlotlyChart]").bounding_box()
    assert figure is not None
    assert figure["y"] + figure["height"] <= 720
    picture(page, "collapse-light")


def test_it_is_read_in_the_dark(visit: Visit, picture: Picture):
    page = visit("collapse?dynamicpo=its+parts", dark=True)
    expect(page.get_by_text("Its parts, in points against plain")).to_be_visible(timeout=SLOW)
    expect(page.locator(".main-svg").first).to_be_visible(timeout=SLOW)
    assert page.evaluate(CUT) == []
    picture(page, "collapse-dark")


@pytest.mark.parametrize("view", VIEWS)
def test_nothing_overflows_on_a_phone(visit: Visit, picture: Picture, view: str):
    page = visit(f"collapse?view={VIEWS[view]}", "phone")
    expect(page.locator(".main-svg").first).to_be_visible(timeout=SLOW)
    assert page.evaluate(TOO_WIDE) == []
    assert page.evaluate(CUT) == []
    picture(page, f"collapse-{view}-phone")


def test_a_guess_is_revealed_and_its_link_shows_the_same(visit: Visit, picture: Picture):
    page = visit("collapse?curve=DPO")
    page.locator("label", has_text="Predict first").click()
    expect(page.get_by_text("What will it be with more negatives?")).to_be_visible(timeout=SLOW)
    guess = page.get_by_role("spinbutton", name="K = 19, %")
    guess.fill("71")
    guess.press("Enter")
    page.wait_for_url(re.compile("guess19=71"))
    page.locator("label", has_text="Reveal").click()
    said = page.get_by_text("Your guesses were")
    expect(said).to_be_visible(timeout=SLOW)
    picture(page, "collapse-guessed")
    sentence = said.inner_text()
    page.goto(page.url)
    settled(page)
    assert page.get_by_text("Your guesses were").inner_text() == sentence


def test_a_link_of_nonsense_says_which_part_of_it_means_nothing(visit: Visit):
    page = visit("collapse?curve=GPO&metric=MRR&foo=1")
    expect(page.get_by_text("were not recognised and were ignored: foo, curve.")).to_be_visible(timeout=SLOW)
    expect(page.get_by_text("its MRR changes by")).to_be_visible(timeout=SLOW)


def test_a_square_opens_its_user_in_the_microscope(visit: Visit, picture: Picture):
    page = visit(f"collapse?view={VIEWS['users']}")
    expect(page.get_by_text(re.compile(r"^\d+ users are gained$"))).to_be_visible(timeout=SLOW)
    opens_on = page.get_by_role("spinbutton", name="Test user").input_value()
    squares = page.locator(".trace.scatter").nth(1).locator("path.point")  # the gained
    squares.nth(3).click(force=True)
    expect(page.get_by_role("spinbutton", name="Test user")).not_to_have_value(opens_on, timeout=SLOW)
    user = page.get_by_role("spinbutton", name="Test user").input_value()
    page.wait_for_url(re.compile(f"who={user}"))
    expect(page.get_by_text(f"User {user}: the chosen item is in place")).to_be_visible(timeout=SLOW)
    picture(page, "collapse-users")
    page.get_by_role("link", name="after B").click()
    page.wait_for_url(re.compile(r"/microscope\?.*split=test"))
    settled(page)
    assert f"user={user}" in page.url


def test_the_curve_is_trained_beside_the_recorded_one(visit: Visit, picture: Picture):
    page = visit("collapse?strength=3&curve_seed=6")  # three K
    page.get_by_role("button", name="Train this curve here").click()
    expect(page.get_by_text("0 of 6 runs trained.")).to_be_visible(timeout=SLOW)
    expect(page.get_by_text(re.compile("^[12] of 6 runs trained"))).to_be_visible(timeout=10 * SLOW)
    page.locator(".st-key-live").scroll_into_view_if_needed()
    picture(page, "collapse-live")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Stopped; its results so far are shown.")).to_be_visible(timeout=SLOW)
    page.goto(page.url)
    settled(page)
    expect(page.get_by_text(re.compile("of 6 runs trained"))).to_be_visible(timeout=SLOW)


def test_what_is_not_recorded_is_trained_in_the_lab(visit: Visit):
    page = visit("collapse?curve=S-DPO&strength=3")
    page.get_by_role("link", name="Train it in the Live lab").click()
    page.wait_for_url(re.compile(r"/lab\?.*objective=S-DPO"))
    settled(page)
    assert "beta=3" in page.url
