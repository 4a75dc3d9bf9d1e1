"""The page Why, driven without a browser."""

import time
from pathlib import Path
from typing import Any

import pytest

from minipo.experiments import files
from tests.app.conftest import charts, opened, text

pytestmark = pytest.mark.usefixtures("recorded")
STORY = (
    "The loss fell **98 %**, the mistake is as it was, and its push fell **600-fold**: 19 by averaging, "
    "31 by the shared sigmoid."
)


def notes(figure: dict[str, Any]) -> str:
    texts = [note["text"] for note in figure["layout"].get("annotations", ())]
    return " ".join([*texts, *(text for trace in figure["data"] for text in trace.get("text", ()))])


def test_it_opens_drawn_and_read_aloud_and_says_what_the_picture_is_not():
    page = opened()
    assert set(charts(page)) == {"why_line", "why_loss", "why_push"}
    assert STORY in text(page)
    assert "DMPO's push 0.0012 = 0.053 (averaging: dilution) × 0.023 (shared sigmoid: saturation)." in text(page)
    assert "This is arithmetic on one user" in text(page)
    assert "[Suppression](suppression)" in text(page)


def test_slider_and_switch_move_the_sentence():
    page = opened()
    page.slider(key="easy").set_value(0).run()
    assert "The mistake is alone: DMPO's loss is 1.3 and its push on the mistake 0.73" in text(page)
    page.slider(key="easy").set_value(1).run()
    assert "its push fell **8.0-fold**: 2.0 by averaging, 4.0 by the shared sigmoid" in text(page)
    page.slider(key="easy").set_value(18).run()
    page.toggle(key="boundary").set_value(True).run()
    assert "18 easy negatives are left out, and the push on the mistake is **0.73**, **600 times**" in text(page)
    assert "the average is now: <b>−1.00</b>" in notes(charts(page)["why_line"])


def test_margins_and_beta_can_be_set():
    page = opened()
    page.slider(key="margin").set_value(0.0).run()
    assert "The loss fell **45 %**" in text(page)  # −log σ(−1/19) against −log σ(−1)
    page.slider(key="mistake").set_value(3.0).run()
    page.slider(key="beta").set_value(2.0).run()
    page.slider(key="easy").set_value(5).run()
    assert not page.exception
    assert "× 2.0 (β)" in text(page)


def test_a_move_of_the_slider_costs_little():
    page = opened()
    seconds = []
    for easy in (3, 9, 14):
        page.slider(key="easy").set_value(easy)
        start = time.process_time()
        page.run()  # the whole page: a fragment alone is less
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.4  # generous; the journey measures what a viewer waits for


def test_a_recorded_user_fills_the_line_and_margins_are_theirs():
    page = opened()
    page.number_input(key="user").set_value(1).run()
    assert "Validation user 900 after step 300 of a recorded run (DMPO, K = 19, seed 0)" in text(page)
    assert "The chosen item: Real Sparrows. User 1 of 3 with one mistake." in text(page)
    assert page.slider(key="mistake").disabled
    assert "Rejected 7" in notes(charts(page)["why_line"])
    page.number_input(key="user").set_value(2).run()
    assert "Validation user 901" in text(page)
    page.toggle(key="boundary").set_value(True).run()
    assert "18 easy negatives are left out" in text(page)
    page.number_input(key="user").set_value(None).run()
    assert "An illustration" in text(page)


def test_names_are_text(recorded: Path):
    path = recorded / "objectives" / "probes" / "110.parquet"
    probe = files.read_parquet(path)
    probe["item"] = probe["item"].replace({"Real Sparrows": "*a* [b](c)", "Rejected 7": "<img src=x>"})
    probe.to_parquet(path)
    page = opened(user="1")
    assert r"\*a\* \[b\]\(c\)" in text(page)
    assert "&lt;img src=x&gt;" in notes(charts(page)["why_line"])


def test_a_user_who_is_not_recorded_is_one_sentence(recorded: Path):
    page = opened(user="4")
    assert [warning.value for warning in page.warning] == [
        "There are 3 recorded users with one mistake: choose a number up to 3."
    ]
    assert STORY in text(page)


def test_without_a_probe_the_page_says_so(recorded: Path):
    (recorded / "objectives" / "probes" / "110.parquet").unlink()
    page = opened()
    assert not page.warning
    page.number_input(key="user").set_value(1).run()
    assert [warning.value for warning in page.warning] == [
        "No recorded user is available: no readable probe of a recorded run has a user with one mistake."
    ]
    assert STORY in text(page)


def test_predict_first_hides_the_answer_until_a_guess_is_revealed():
    page = opened()
    page.toggle(key="predict").set_value(True).run()
    assert "**Add 18 easy negatives: by how many times does DMPO's push on the mistake fall" in text(page)
    hidden = text(page) + notes(charts(page)["why_line"]) + notes(charts(page)["why_push"])
    assert all(told not in hidden for told in ("600-fold", "0.0012", "98 %", "and 17 more"))
    assert page.toggle(key="reveal").disabled
    assert page.toggle(key="boundary").disabled
    page.number_input(key="guess").set_value(50.0).run()
    assert page.toggle(key="reveal").disabled
    page.button_group(key="loss").set_value("rises").run()
    page.toggle(key="reveal").set_value(True).run()
    assert "The push falls **600-fold** (19 by averaging, 31 by the shared sigmoid); you said 50-fold: " in text(page)
    assert "**12 times too little**. The loss **falls** 98 %; you said it rises: **wrong**." in text(page)
    assert "your guess" in {trace.get("name") for trace in charts(page)["why_push"]["data"]}
    assert "and 17 more" in notes(charts(page)["why_line"])


def test_another_question_hides_the_answer_again():
    page = opened(predict="true", guess="50", loss="falls", reveal="true")
    assert "you said 50-fold" in text(page)
    page.slider(key="easy").set_value(5).run()
    assert "**Add 5 easy negatives" in text(page)
    assert "you said" not in text(page)
    page.toggle(key="reveal").set_value(True).run()
    assert "you said 50-fold" in text(page)
    page.slider(key="easy").set_value(0).run()
    assert "with the slider" in text(page)
    page.toggle(key="predict").set_value(False).run()
    assert "The mistake is alone" in text(page)


def test_a_link_brings_back_every_control():
    page = opened(
        easy="12", boundary="true", mistake="-2.0", margin="3.0", beta="0.5", predict="true", guess="7", loss="rises",
        reveal="true",
    )  # fmt: skip
    assert not page.info
    assert [page.slider(key=key).value for key in ("easy", "mistake", "margin", "beta")] == [12, -2.0, 3.0, 0.5]
    assert "you said 7.0-fold" in text(page)
    assert "Boundary only: 12 easy negatives are left out" in text(page)
    page = opened(user="3", easy="4")
    assert "Validation user 902" in text(page)
    assert not page.info


@pytest.mark.parametrize(
    ("link", "named"),
    [({"easy": "99"}, "easy"), ({"beta": "much"}, "beta"), ({"<b>x": "1"}, r"\<b\>x"),
     ({"predict": "true", "loss": "sideways"}, "loss")],
)  # fmt: skip
def test_what_means_nothing_in_a_link_is_named(link: dict[str, str], named: str):
    page = opened(**link)
    said = f"Some parameters of this link were not recognised and were ignored: {named}."
    assert [note.value for note in page.info] == [said]
    assert "the mistake" in text(page)
