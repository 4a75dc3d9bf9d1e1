"""Guesses and controls, moved from their Python side as a reader's hand moves them."""

from collections.abc import Iterator

import ipywidgets
import plotly.graph_objects as go
import pytest
from traitlets import TraitError

from minipo.course import widgets


def draw(easy: int, rule: str) -> tuple[go.Figure, str]:
    if easy == 13:
        raise ValueError("Thirteen is not drawn: choose another number.")
    return go.Figure(data=[{"type": "bar", "y": [easy]}]), f"{easy} easy ones under {rule}"


@pytest.fixture
def explorer() -> widgets.Explorer:
    return widgets.Explorer(
        draw,
        easy=ipywidgets.IntSlider(value=3, min=0, max=18, description="easy negatives"),
        rule=ipywidgets.Dropdown(options=[("S-DPO", "sdpo"), ("DMPO", "dmpo")]),
    )


def test_an_explorer_draws_at_once_and_whenever_a_control_moves(explorer) -> None:
    assert explorer.sentence == "3 easy ones under sdpo"
    assert explorer.figure.data[0].y == (3,)
    explorer.controls["easy"].value = 7
    explorer.controls["rule"].value = "dmpo"
    assert explorer.sentence == "7 easy ones under dmpo"
    assert explorer.figure.data[0].y == (7,)


def test_an_error_while_drawing_is_told_and_the_figure_stays(explorer) -> None:
    explorer.controls["easy"].value = 13
    assert explorer.sentence == "Thirteen is not drawn: choose another number."
    assert explorer.figure.data[0].y == (3,)
    explorer.controls["easy"].value = 4
    assert explorer.sentence == "4 easy ones under sdpo"


def test_controls_move_no_further_than_a_hand_could(explorer) -> None:
    explorer.controls["easy"].value = 99
    assert explorer.sentence == "18 easy ones under sdpo"
    with pytest.raises(TraitError):
        explorer.controls["rule"].value = "ppo"
    assert explorer.sentence == "18 easy ones under sdpo"


def test_pressing_draws_each_as_it_comes_and_an_error_or_an_interrupt_follows_what_was_drawn() -> None:
    seen: list[tuple[str, bool]] = []

    def train(easy: int) -> Iterator[tuple[go.Figure, str]]:
        for number in range(easy):
            seen.append((training.sentence, training.button.disabled))
            yield go.Figure(data=[{"type": "bar", "y": [number]}]), f"{number + 1} of {easy}."
        if easy == 4:
            raise OSError("The disk is full.")
        if easy == 5:
            raise KeyboardInterrupt

    slider = ipywidgets.IntSlider(value=2, min=0, max=18, description="easy negatives")
    training = widgets.Training(lambda easy: draw(easy, "none"), train, "Train", easy=slider)
    assert training.sentence == "2 easy ones under none"  # nothing is trained before it is asked for
    training.button.click()
    assert seen == [("2 easy ones under none", True), ("1 of 2.", True)]
    assert (training.sentence, training.figure.data[0].y) == ("2 of 2.", (1,))
    assert not training.button.disabled
    slider.value = 4
    assert training.sentence == "4 easy ones under none"
    training.button.click()
    assert training.sentence == "4 of 4. The disk is full."
    slider.value = 5
    training.button.click()
    assert training.sentence == "5 of 5. Stopped; press the button to go on from here."
    assert not training.button.disabled


def test_a_choice_compares_the_guess_with_the_truth() -> None:
    choice = widgets.Choice("The push: rises, stays, falls?", ["rises", "stays", "falls"])
    assert choice.guess is None
    assert choice.result("falls") == "No guess was made. The answer: **falls**."
    choice.buttons.value = "rises"
    assert choice.result("falls") == "You guessed *rises*; it is **falls**."
    assert choice.result("rises") == "Your guess was right: **rises**."
    with pytest.raises(ValueError, match="'sinks' is not one of the options: rises, stays, falls"):
        choice.reveal("sinks")


def test_numbers_tell_how_far_the_guesses_are_off() -> None:
    numbers = widgets.Numbers("HR@1?", ["K = 1", "K = 19"], low=60, high=75, step=0.5, begin=68, unit="points")
    assert not numbers.made
    assert numbers.result({"K = 1": 67, "K = 19": 66}) == "No guess was made: the sliders are where they began."
    numbers.sliders["K = 1"].value = 70
    assert numbers.guesses == {"K = 1": 70, "K = 19": 68}
    assert numbers.result({"K = 1": 67, "K = 19": 66}) == "Your guesses are off by **2.5 points** on average."
    with pytest.raises(ValueError, match="no truth for K = 19"):
        numbers.reveal({"K = 1": 67})
