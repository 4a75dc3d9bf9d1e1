"""Suppression on the projector and on a phone: from one run to all objectives against K, and the link to it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.app.journeys.conftest import settled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
Visit = Callable[..., Page]
Picture = Callable[[Page, str], Path]


def drawn(page: Page) -> None:
    """All four figures stand."""
    expect(page.locator(".js-plotly-plot .main-svg:first-child")).to_have_count(4)
    settled(page)


def test_from_one_run_to_all_objectives_against_k(visit: Visit, picture: Picture) -> None:
    page = visit("suppression")
    expect(page.get_by_text("At K = 19, from before training to the end, DMPO's push")).to_be_visible()
    first = page.get_by_test_id("stPlotlyChart").first.bounding_box()
    assert first
    assert first["y"] + first["height"] < 720  # controls, sentence and figure without scrolling
    drawn(page)
    picture(page, "suppression-light")
    page.get_by_role("radio", name="against K").click()
    expect(page.get_by_text("at the end of training, DMPO's push on a boundary negative")).to_be_visible()
    page.get_by_role("radio", name="all four").click()
    sentence = page.get_by_text("by objective: DPO falls")
    expect(sentence).to_be_visible()
    settled(page)
    assert "view=against+K" in page.url
    assert "objective=all+four" in page.url
    again = visit(page.url.split("/", 3)[3])
    expect(again.get_by_text("by objective: DPO falls")).to_have_text(sentence.inner_text())
    drawn(again)
    picture(again, "suppression-against-k")


def test_in_the_dark_with_dynamicpo_on_validation_users(visit: Visit, picture: Picture) -> None:
    page = visit("suppression?users=validation&dynamic=true", dark=True)
    expect(page.get_by_text("The easy ones are left out")).to_be_visible()
    expect(page.get_by_text("One seed's run each; 64 validation users")).to_be_visible()
    drawn(page)
    picture(page, "suppression-dark")


def test_on_a_phone(visit: Visit, picture: Picture) -> None:
    page = visit("suppression?objective=S-DPO", "phone")
    expect(page.get_by_text("S-DPO's push on a boundary negative grows")).to_be_visible()
    assert page.evaluate("document.querySelector('.stMain').scrollWidth <= innerWidth")
    drawn(page)
    picture(page, "suppression-phone")
