"""Why and About in a real browser: what a viewer sees, and how long they wait."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
FIRST_SCREEN = ("why_line", "why_loss", "why_push")


def nothing_overflows(page: Page) -> None:
    width = page.evaluate("innerWidth")
    assert page.evaluate("document.querySelector('.stMain').scrollWidth") <= width
    cut = page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot')].flatMap(p => {const b = p.getBoundingClientRect();"
        " return [...p.querySelectorAll('text')].filter(t => {const r = t.getBoundingClientRect(); return r.width &&"
        " (r.right > b.right + 2 || r.left < b.left - 2)}).map(t => t.textContent)})"
    )
    assert cut == []


def test_a_link_may_call_it_by_its_name(visit: Callable[..., Page]):
    page = visit("why?easy=3")
    expect(page.locator("p", has_text="The loss fell")).to_be_visible(timeout=30_000)
    expect(page.get_by_role("slider").first).to_have_value("3")
    expect(page.get_by_text("Page not found")).to_have_count(0)


def test_the_slider_answers_at_once_and_the_first_screen_holds_the_picture(
    visit: Callable[..., Page], picture: Callable[[Page, str], Any]
):
    page = visit()
    expect(page.get_by_text("600-fold")).to_be_visible()
    for key in FIRST_SCREEN:
        box = page.locator(f".st-key-{key}").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 720
    nothing_overflows(page)
    picture(page, "why-light")
    answers = []
    page.get_by_role("slider").first.focus()
    for _ in range(8):
        before = page.locator("p", has_text="The loss fell").inner_text()
        start = time.perf_counter()
        page.keyboard.press("ArrowLeft")
        page.wait_for_function(
            "before => [...document.querySelectorAll('p')].some(p => p.innerText.startsWith('The loss fell')"
            " && p.innerText !== before)",
            arg=before, polling=10,
        )  # fmt: skip
        answers.append(time.perf_counter() - start)
        page.wait_for_timeout(250)
    print(f"slider {min(answers):.3f} s, median {statistics.median(answers):.3f} s")
    assert min(answers) < 0.3  # the quickest: what else the machine does is not the page's doing


def test_a_guess_is_revealed_and_its_link_shows_the_same(
    visit: Callable[..., Page], picture: Callable[[Page, str], Any]
):
    page = visit("?predict=true&easy=12", dark=True)
    expect(page.get_by_text("Add 12 easy negatives")).to_be_visible()
    assert page.get_by_text("-fold").count() == 0
    page.get_by_role("spinbutton", name="The push falls, times").fill("50")
    page.keyboard.press("Enter")
    page.get_by_role("radio", name="rises").or_(page.get_by_role("button", name="rises")).first.click()
    page.get_by_text("Reveal", exact=True).click()
    answer = page.locator("p", has_text="you said 50-fold")
    expect(answer).to_be_visible()
    expect(answer).to_contain_text("you said it rises: wrong")
    page.wait_for_url(lambda url: all(part in url for part in ("guess=50", "loss=rises", "reveal=true", "easy=12")))
    picture(page, "why-dark")
    told = answer.inner_text()
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(page.url)
    expect(page.locator("p", has_text="you said 50-fold")).to_have_text(told)
    expect(page.locator(".st-key-why_push .main-svg").first).to_be_visible()
    nothing_overflows(page)
    picture(page, "why-phone")


@pytest.mark.parametrize(
    ("size", "dark", "name"), [("projector", False, "light"), ("projector", True, "dark"), ("phone", False, "phone")]
)
def test_about_opens_drawn_and_finds_a_word(
    visit: Callable[..., Page], picture: Callable[[Page, str], Any], size: str, dark: bool, name: str
):
    page = visit("about", size, dark=dark)
    expect(page.get_by_text("recorded runs").first).to_be_visible()
    expect(page.locator(".st-key-about_runs .main-svg").first).to_be_visible()
    nothing_overflows(page)
    picture(page, f"about-{name}")
    page.get_by_role("tab", name="Words").click()
    page.get_by_role("textbox", name="Find a word").fill("saturation")
    expect(page.get_by_text("the sigmoid leaves").first).to_be_visible()
    expect(page.get_by_text("ValidRatio")).to_have_count(0)
