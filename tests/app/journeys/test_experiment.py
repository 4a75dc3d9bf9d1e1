"""A class experiment with three browsers: a lecturer and two students, one on the server and one on a laptop."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.app.journeys.conftest import SIZES, settled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
expect.set_options(timeout=60_000)  # this machine may be training
NAME = "<b onclick=alert(1)>*Ada*</b>"


def fits(page: Page) -> None:
    """Nothing is wider than the window, and no figure's text is cut."""
    assert (
        page.evaluate(
            "[...document.querySelectorAll('.stMain *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1)"
            ".map(e => e.className.toString())"
        )
        == []
    )
    assert (
        page.evaluate(
            """[...document.querySelectorAll('.js-plotly-plot')].flatMap(p => {
            const b = p.getBoundingClientRect();
            return [...p.querySelectorAll('text')].filter(t => {
                const r = t.getBoundingClientRect();
                return r.width && (r.right > b.right + 2 || r.left < b.left - 2 || r.bottom > b.bottom + 2);
            }).map(t => t.textContent);
        })"""
        )
        == []
    )


def beside(page: Page, link: str, size: str = "projector", *, dark: bool = False) -> Page:
    """A link opened by somebody else, whose browser shares nothing with that of `page`."""
    browser = page.context.browser
    assert browser is not None
    width, height = SIZES[size]
    other = browser.new_page(viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light")
    other.goto(link)
    settled(other)
    return other


def join(page: Page, nickname: str, guess: str) -> None:
    page.get_by_label("Nickname", exact=True).fill(nickname)
    page.get_by_role("button", name="Join", exact=True).click()
    box = page.get_by_label("Your guess, points", exact=True)
    expect(box).to_be_visible()
    expect(page.locator(".js-plotly-plot")).to_have_count(0)  # hidden until the guess is made
    box.fill(guess)
    box.press("Enter")
    expect(page.get_by_text("Your guess:")).to_be_visible()


def test_a_class_runs_an_experiment(
    visit: Callable[..., Page], picture: Callable[[Page, str], Path], address: str, tmp_path: Path
) -> None:
    first = visit()
    lecturer = beside(first, f"{address}/experiment?left_steps=10&right_steps=10&setup=true")
    expect(lecturer.get_by_text("Recorded, 5 seeds")).to_be_visible()
    lecturer.get_by_label("Title", exact=True).fill("Do more negatives hurt?")
    picture(lecturer, "experiment-open")
    lecturer.get_by_role("button", name="Open it").click()
    shown = lecturer.locator(".class-code")
    expect(shown).to_have_text(re.compile(r"[A-Z]{4}-[A-Z]{4}"))
    expect(lecturer.get_by_text("Do more negatives hurt?")).to_be_visible()
    link = f"experiment?code={shown.inner_text()}"
    expect(lecturer.get_by_text(f"{address}/{link}")).to_be_visible()
    expect(lecturer.get_by_text("Nobody has joined yet.")).to_be_visible()

    here, laptop = beside(lecturer, f"{address}/{link}", "phone"), beside(lecturer, f"{address}/{link}", dark=True)
    picture(here, "experiment-join-phone")
    join(here, NAME, "-2")
    join(laptop, "Grace", "40")
    expect(laptop.get_by_role("button", name="Close", exact=True)).to_have_count(0)
    expect(lecturer.get_by_text("2 students joined, 2 guessed")).to_be_visible()

    here.get_by_role("button", name="Run it here").click()
    expect(here.get_by_role("progressbar")).to_be_visible()

    laptop.get_by_text("On your own laptop").click()
    command = laptop.locator("[data-testid=stCode]").inner_text().strip()
    assert command.startswith("minipo pair --left ")
    arguments = shlex.split(command)[1:]
    home = tmp_path / "home"  # that of the laptop
    subprocess.run(
        [sys.executable, "-m", "minipo", *arguments, "--quiet"], cwd=tmp_path, check=True, capture_output=True,
        timeout=200, env={**os.environ, "MINIPO_HOME": str(home), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    result = tmp_path / arguments[-1]
    assert result.stat().st_size < 20_000

    chooser = laptop.locator("input[type=file]")
    other = json.loads(result.read_text())
    other["seed"] = other["left"]["settings"]["seed"] = other["right"]["settings"]["seed"] = 7
    wrong = {
        "other-seed.json": (json.dumps(other), "This result is of seed 7, not of seed 102"),
        "page.json": ("<html>", "Invalid JSON"),
        "deep.json": ("[" * 100_000, "Invalid JSON"),
        "big.json": (" " * 2_000_000, re.compile("must be .* or smaller|larger than")),
    }
    for name, (content, said) in wrong.items():
        chooser.set_input_files({"name": name, "mimeType": "application/json", "buffer": content.encode()})
        expect(laptop.get_by_text(said)).to_be_visible()
        laptop.get_by_role("button", name=f"Remove {name}").click()
        expect(laptop.get_by_text(said)).to_have_count(0)
    chooser.set_input_files(result)
    expect(laptop.get_by_text("Your pair:")).to_be_visible()
    expect(here.get_by_text("Your pair:")).to_be_visible(timeout=200_000)
    expect(lecturer.get_by_text("2 of 2 students in.")).to_be_visible()
    expect(lecturer.locator(".js-plotly-plot")).to_have_count(2)

    expect(laptop.get_by_text("2 of 2 students in.")).to_be_visible()

    for page, name in ((lecturer, "light"), (laptop, "dark"), (here, "phone")):
        settled(page)
        fits(page)
        assert page.locator("[onclick]").count() == 0  # a nickname is text
        picture(page, f"experiment-{name}")
    lecturer.get_by_role("button", name="Close", exact=True).click()
    expect(laptop.get_by_text("This experiment is closed.")).to_be_visible()
    late = beside(lecturer, f"{address}/{link}&wibble=1")
    expect(late.get_by_text("wibble")).to_be_visible()
    expect(late.get_by_text("This experiment is closed.")).to_be_visible()
    expect(late.get_by_role("button", name="Join", exact=True)).to_have_count(0)
