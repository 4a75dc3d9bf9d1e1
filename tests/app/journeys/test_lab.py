"""Live lab in real browsers: a run is trained, watched, left alone, found again and shared; long ones are stopped."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.app.conftest import MAIN

from .conftest import settled

sys.path.insert(0, str(MAIN.parent))
import limits  # isort: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
Visit = Callable[..., Page]
Picture = Callable[[Page, str], Path]
RESULT = re.compile(r"HR@1 on the test users: [\d.]+ %.*SFT's [\d.]+ % \(95 % interval")
LINES = ".st-key-lab_runs .scatterlayer .trace path.js-line"


def train(page: Page) -> None:
    """Press the button; the run's card appears."""
    cards = page.locator("[class*=st-key-card_]")
    before = cards.count()
    page.get_by_role("button", name="Train", exact=True).click()
    expect(cards).to_have_count(before + 1, timeout=30_000)


def fits(page: Page) -> None:
    """Nothing is wider than the screen."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("document.querySelector('.stMain').scrollWidth <= innerWidth")


def test_it_opens_with_recorded_runs_and_fits_a_projector_and_a_phone(visit: Visit, picture: Picture):
    page = visit("lab?train_objective=S-DPO&train_steps=40&ranking=MRR")
    expect(page.get_by_text("Recorded, not live.")).to_be_visible()
    expect(page.locator(".st-key-train_objective input")).to_have_value("S-DPO")
    expect(page.locator(".st-key-train_steps input")).to_have_value("40")
    expect(page.get_by_text("Highest MRR")).to_be_visible()
    for key in ("lab_runs", "train"):
        box = page.locator(f".st-key-{key}").first.bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 720
    fits(page)
    picture(page, "lab-light")
    for name, options in (("lab-dark", {"dark": True}), ("lab-phone", {"size": "phone"})):
        page = visit("lab", **options)
        expect(page.get_by_text("Recorded, not live.")).to_be_visible()
        fits(page)
        picture(page, name)


def test_a_run_is_watched_left_found_again_shared_and_removed(visit: Visit, picture: Picture):
    page = visit("lab?train_steps=20&train_dynamic=off")
    train(page)
    link = page.url
    expect(page.locator(LINES).first).to_be_visible(timeout=120_000)
    expect(page.get_by_text(RESULT)).to_be_visible(timeout=120_000)
    picture(page, "lab-done")

    page.reload()
    settled(page)
    expect(page.get_by_text(RESULT)).to_be_visible()
    page.goto(link.split("?")[0])  # without its link: by the browser's own name
    settled(page)
    expect(page.get_by_text(RESULT)).to_be_visible()

    page.get_by_role("button", name="more_vert").click()
    page.get_by_label("Name", exact=True).fill("Mine, <b>renamed</b> *so*")
    page.get_by_label("Name", exact=True).press("Enter")
    expect(page.locator("[class*=st-key-card_] strong").first).to_have_text("Mine, <b>renamed</b> *so*")
    page.get_by_text("Keep it", exact=True).click()

    other = visit(link.split("/", 3)[3])
    expect(other.get_by_text(RESULT)).to_be_visible()
    expect(other.locator("[class*=st-key-card_] strong").first).to_have_text("Mine, <b>renamed</b> *so*")
    fits(other)

    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("Recorded, not live.")).to_be_visible(timeout=20_000)
    other.reload()
    settled(other)
    expect(other.get_by_text("One run of this link is no longer on this server")).to_be_visible()


def test_long_runs_wait_in_line_and_are_stopped_from_two_tabs(visit: Visit, picture: Picture):
    page = visit("lab?train_steps=1000")
    for _ in range(min(limits.SLOTS + 1, limits.RUNS_AT_ONCE)):
        train(page)
    if limits.SLOTS < limits.RUNS_AT_ONCE:
        expect(page.get_by_text("In the queue, place 1: next in line.")).to_be_visible(timeout=30_000)
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text("Stopped before it started.")).to_be_visible(timeout=20_000)
    expect(page.get_by_text(re.compile(r"Step \d+ of 1000, about"))).not_to_have_count(0, timeout=120_000)
    picture(page, "lab-training")

    tab = page.context.new_page()
    tab.goto(page.url)
    settled(tab)
    stops = page.get_by_role("button", name="Stop", exact=True)
    while stops.count():
        before = stops.count()
        others = tab.get_by_role("button", name="Stop", exact=True)
        stops.first.click()
        others.first.click()
        expect(stops).not_to_have_count(before, timeout=20_000)
        expect(others).to_have_count(stops.count(), timeout=20_000)
    for each in (page, tab):
        expect(each.get_by_text(re.compile("It had reached step"))).not_to_have_count(0)
        expect(each.get_by_role("button", name="Resume")).not_to_have_count(0)
        expect(each.get_by_role("button", name="Train", exact=True)).to_be_enabled()
