"""The last notebook's figures say what their numbers say."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from minipo.course.figures.real import intervals, levels, packed_row, seed_by_seed
from minipo.course.figures.style import DYNAMIC_COLOUR, OBJECTIVE_COLOURS

SEGMENTS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
POSITIONS = torch.tensor([0, 1, 2, 3, 4, 3, 4, 5])


def allowed(segments: torch.Tensor) -> torch.Tensor:
    return ((segments == 0) | (segments == segments[:, None])).tril()


def titles(figure) -> list[str]:
    return [annotation.text for annotation in figure.layout.annotations]


def test_a_packed_row_shows_prompt_and_own_answer_and_no_sibling():
    figure = packed_row(SEGMENTS, POSITIONS, allowed(SEGMENTS), tokens_alone=11)
    json.loads(figure.to_json())
    z = np.array(figure.data[0].z)
    assert z[7].tolist() == [1, 1, 1, 0, 0, 2, 2, 2]  # the second answer's last token
    assert z[1].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]
    assert titles(figure)[0] == "8 tokens instead of 11: an answer sees the prompt and itself, never a sibling"
    assert "2 answers" in titles(figure)
    assert list(figure.data[-1].y) == POSITIONS.tolist()


def test_a_wrong_mask_does_not_get_the_right_title():
    figure = packed_row(SEGMENTS, POSITIONS, torch.ones(8, 8, dtype=torch.bool).tril(), tokens_alone=11)
    assert titles(figure)[0].endswith("a sibling too")


def test_levels_are_in_order_and_the_title_names_the_place():
    figure = levels({"popularity": 0.259, "SFT": 0.237, "Markov": 0.345}, "SFT")
    assert list(figure.data[0].y) == ["SFT", "popularity", "Markov"]
    assert list(figure.data[0].x) == pytest.approx([23.7, 25.9, 34.5])
    assert figure.layout.title.text == "SFT: place 3 of 3 by HR@1"


def differences() -> pd.DataFrame:
    columns = ["name", "world", "objective", "variant", "mean", "low", "high"]
    lines = [
        ("DMPO", "catalogue", "dmpo", "plain", -1.1, -1.9, -0.3),
        ("MPPO", "catalogue", "mppo", "plain", 0.5, -0.4, 1.2),
        ("DMPO", "ml-100k", "dmpo", "dynamic", 2.1, 0.3, 4.0),
    ]
    return pd.DataFrame(lines, columns=columns)


def test_intervals_stand_by_name_and_world_and_are_counted_in_the_title():
    figure = intervals(differences(), ["unused", "catalogue", "ml-100k"], "K = 19 minus K = 1")
    assert figure.layout.title.text == "K = 19 minus K = 1: 1 below zero, 1 above, 1 undecided"
    assert list(figure.layout.yaxis.ticktext) == [
        "<b>DMPO</b><br>catalogue", "<b>DMPO</b><br>ml-100k", "<b>MPPO</b><br>catalogue",
    ]  # fmt: skip
    assert [trace.x[0] for trace in figure.data] == pytest.approx([-1.1, 2.1, 0.5])
    colours = [OBJECTIVE_COLOURS["dmpo"], DYNAMIC_COLOUR, OBJECTIVE_COLOURS["mppo"]]
    assert [trace.marker.color for trace in figure.data] == colours
    assert "−1.1 [−1.9, −0.3]" in titles(figure)


def test_seed_by_seed_says_in_how_many_seeds_a_number_rises():
    rows = [
        (negatives, dynamic, seed, 0.4 + (0.1 if seed else -0.1) * (negatives > 1), 0.5 + negatives / 50, 0.24)
        for negatives in (15, 1)
        for dynamic in ("off", "on")
        for seed in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=["negatives", "dynamic", "seed", "train_loss", "pair_loss", "hr@1"])
    figure = seed_by_seed(table.assign(objective="dmpo"), sft=0.237)
    assert titles(figure)[:3] == [
        "Training loss, plain:<br>rises in 1, falls in 1 of 2 seeds",
        "pair_loss, plain:<br>rises in 2, falls in 0 of 2 seeds",
        "HR@1, plain:<br>rises in 0, falls in 0 of 2 seeds",
    ]
    assert list(figure.data[0].x) == [1, 15]
    assert list(figure.data[0].y) == pytest.approx([0.4, 0.3])
    assert {trace.line.color for trace in figure.data} == {OBJECTIVE_COLOURS["dmpo"], DYNAMIC_COLOUR}
    assert "SFT, 23.7 %" in titles(figure)
