"""Every page in light, in the dark and on a phone: a picture is kept, and everything on it can be read."""

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.app.conftest import MAIN
from tests.app.journeys.conftest import settled
from tests.browser import served_app

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
PAGES = sorted(path.stem for path in MAIN.parent.glob("views/*.py"))
WIDE = """() => [...document.querySelectorAll('.stMain *')]
    .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.checkVisibility({opacityProperty: true})
        && getComputedStyle(e).clip === 'auto' && !e.closest('svg, [data-testid=stDataFrame], [type=range]'))
    .map(e => `${e.tagName} ${e.className}`.slice(0, 80)).slice(0, 5)"""
CUT = """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
    const box = plot.getBoundingClientRect();
    return [...plot.querySelectorAll('text')].filter(text => {
        const at = text.getBoundingClientRect();
        return at.width && (at.right > box.right + 2 || at.left < box.left - 2 || at.top < box.top - 2
            || at.bottom > box.bottom + 2);
    }).map(text => text.textContent);
})"""
# WCAG's contrast of a figure's text with what is behind the figure; text on a bar or in a cell has another ground.
FAINT = """() => {
    const channels = colour => colour.match(/[\\d.]+/g).map(Number);
    const luminance = colour => {
        const [r, g, b] = channels(colour).map(c => c / 255).map(
            c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
        const ground = luminance(getComputedStyle(plot.querySelector('.main-svg')).backgroundColor);
        const painted = [...plot.querySelectorAll('.barlayer path, .heatmaplayer image')]
            .map(e => e.getBoundingClientRect());
        const apart = text => {
            const at = text.getBoundingClientRect(), [x, y] = [(at.left + at.right) / 2, (at.top + at.bottom) / 2];
            return at.width && !painted.some(p => p.left <= x && x <= p.right && p.top <= y && y <= p.bottom);
        };
        return [...plot.querySelectorAll('text')].filter(apart)
            .map(t => {
                const ink = luminance(getComputedStyle(t).fill);
                const ratio = (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
                return [ratio, `${t.textContent.slice(0, 40)} ${getComputedStyle(t).fill} ${ratio.toFixed(1)}`];
            }).filter(([ratio]) => ratio < 4.5).map(([, told]) => told);
    });
}"""


@pytest.mark.parametrize(
    ("look", "size", "dark"), [("light", "projector", False), ("dark", "projector", True), ("phone", "phone", False)]
)
def test_it_can_be_read(
    visit: Callable[..., Page], picture: Callable[[Page, str], Path], look: str, size: str, dark: bool
) -> None:
    page = visit("", size, dark=dark)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    address, faults = page.url, {}
    for name in PAGES:
        page.goto(f"{address}{name}")
        settled(page)
        expect(page.get_by_test_id("stSkeleton")).to_have_count(0)
        expect(page.get_by_test_id("stException")).to_have_count(0)
        picture(page, f"every-{name}-{look}")
        found = {check: page.evaluate(script) for check, script in (("wide", WIDE), ("cut", CUT), ("faint", FAINT))}
        found["errors"] = list(errors)
        errors.clear()
        faults |= {(name, check): said for check, said in found.items() if said}
    assert faults == {}, faults


def test_the_first_visitor_of_a_new_server_may_come_by_a_link(tmp_path: Path, browser: Browser) -> None:
    with (
        served_app(tmp_path) as address,
        browser.new_context(viewport={"width": 1280, "height": 720}) as context,
    ):
        page = context.new_page()
        page.goto(f"{address}/suppression?K=5&nothing=1")
        settled(page)
        expect(page.get_by_text("At K = 5, from before training")).to_be_visible()
        expect(page.get_by_text("were not recognised and were ignored: nothing.")).to_be_visible()
        expect(page.get_by_role("link", name="Live lab")).to_be_visible()
