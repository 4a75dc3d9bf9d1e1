"""Journeys on *Microscope* in a real browser: it is drawn at once, follows its controls, plays, and is a link."""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from playwright.sync_api import Page, expect

from tests.app.journeys.conftest import settled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
Visit = Callable[..., Page]
SENTENCE = "[data-testid=stMarkdown] >> text=/User \\d+ after step/"
# Milliseconds from now until the push chart shows other numbers.
WATCH = """() => {
    const shown = () => [...document.querySelectorAll('.stPlotlyChart')].at(-1)?.textContent ?? '';
    const [before, began] = [shown(), performance.now()];
    window.took = new Promise(done => {
        const look = () => {
            const now = shown();
            now && now !== before ? done(performance.now() - began) : requestAnimationFrame(look);
        };
        look();
    });
}"""
WIDE = """[...document.querySelectorAll('.stMain .js-plotly-plot, .stMain [data-testid^=st]')]
    .filter(part => part.getBoundingClientRect().right > innerWidth + 1).map(part => part.dataset.testid)"""
CUT = """[...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
    const box = plot.getBoundingClientRect();
    return [...plot.querySelectorAll('text')].filter(text => {
        const at = text.getBoundingClientRect();
        return at.width && (at.right > box.right + 2 || at.left < box.left - 2 || at.bottom > box.bottom + 2);
    }).map(text => text.textContent);
})"""


def slide(page: Page, name: str, key: str) -> float:
    """Move a slider by a key; milliseconds until the picture is another one."""
    page.get_by_role("slider", name=name).focus()
    page.evaluate(WATCH)
    page.keyboard.press(key)
    return page.evaluate("window.took")


@pytest.mark.parametrize(
    ("name", "size", "dark"), [("light", "projector", False), ("dark", "projector", True), ("phone", "phone", False)]
)
def test_it_opens_drawn(visit: Visit, picture: Callable[[Page, str], Path], name: str, size: str, dark: bool) -> None:
    page = visit("microscope", size, dark=dark)
    expect(page.locator(SENTENCE)).to_be_visible()
    assert page.evaluate(WIDE) == []
    assert page.evaluate(CUT) == []
    charts = [chart.bounding_box() for chart in page.locator(".stPlotlyChart").all()]
    assert len(charts) == 2
    first, second = (box for box in charts if box)
    if size == "projector":
        assert second["y"] == pytest.approx(first["y"], abs=1)  # so that the rows stand side by side
        assert first["y"] + first["height"] <= 720
    else:
        assert second["y"] >= first["y"] + first["height"]
    picture(page, f"microscope-{name}")


def test_the_picture_follows_the_controls_at_once(visit: Visit) -> None:
    page = visit("microscope?rule=the+boundary&adjust_beta=true")
    took = []
    for name, keys in (("β, strength", "ArrowRight ArrowLeft" * 1), ("γ, margin of β", "ArrowRight ArrowLeft")):
        for key in 2 * keys.split():
            took.append(slide(page, name, key))
            page.wait_for_timeout(300)
    for key in ("ArrowLeft", "ArrowLeft", "ArrowRight"):
        took.append(slide(page, "Training step", key))
        page.wait_for_timeout(300)
    print(f"control to picture: median {median(took):.0f} ms, smallest {min(took):.0f} ms, largest {max(took):.0f} ms")
    assert min(took) < 300


def test_playing_moves_the_candidates_and_ends_where_it_began(visit: Visit) -> None:
    page = visit("microscope?user=4000")
    where = "[...document.querySelector('.js-plotly-plot').querySelectorAll('.point')].map(p => p.getAttribute('transform'))"

    def places() -> list[list[float]]:
        return [[float(number) for number in re.findall(r"-?[\d.]+", at)[:2]] for at in page.evaluate(where) if at]

    began = places()
    page.locator(".updatemenu-button").click()
    page.wait_for_timeout(700)
    middle = places()
    assert max(abs(a - b) for before, after in zip(began, middle, strict=True) for a, b in zip(before, after)) > 5
    page.wait_for_timeout(5000)
    ended = places()
    assert max(abs(a - b) for before, after in zip(began, ended, strict=True) for a, b in zip(before, after)) < 1


def test_what_is_seen_is_a_link(visit: Visit) -> None:
    page = visit("microscope")
    page.get_by_role("button", name="chevron_right").click()
    slide(page, "Training step", "ArrowLeft")
    page.get_by_text("Dual-margin β").click()
    expect(page.locator(SENTENCE)).to_contain_text("plain DMPO would push it")
    page.wait_for_timeout(500)
    told = page.locator(SENTENCE).inner_text()
    assert {"user", "step", "adjust_beta"} <= set(re.findall(r"[?&](\w+)=", page.url))
    again = visit(page.url.split("/", 3)[3])
    settled(again)
    expect(again.locator(SENTENCE)).to_have_text(told)
    expect(again.get_by_text("means nothing here")).to_have_count(0)
