"""minipo.course.figures.language: what the figures of notebooks 00 and 01 say and hold."""

import numpy as np
import pandas as pd
import pytest

from minipo.course.figures import language
from minipo.evaluation import Interval


def runs(losses: dict[int, float], hits: dict[int, float]) -> tuple[dict[int, pd.DataFrame], dict[int, pd.DataFrame]]:
    metrics = {k: pd.DataFrame({"step": [10, 20], "loss": [0.7, loss]}) for k, loss in losses.items()}
    evaluations = {
        k: pd.DataFrame({"step": [0, 20], "pair_loss": [0.69, 0.3], "hr@1": [0.7, hit]}) for k, hit in hits.items()
    }
    return metrics, evaluations


def titles(figure) -> str:
    return " ".join(note.text for note in figure.layout.annotations)


def test_two_runs_says_which_is_lower_as_the_numbers_are():
    said = titles(language.two_runs(*runs({1: 0.2, 19: 0.1}, {1: 0.71, 19: 0.68})))
    assert "Training loss<br><b>lower at K = 19" in said
    assert "pair_loss, validation<br><b>the same at K = 19:<br>0.30" in said
    assert "HR@1, validation<br><b>lower at K = 19:<br>68.0 %, not 71.0 %" in said
    assert "HR@1, validation<br><b>higher at K = 19" in titles(
        language.two_runs(*runs({1: 0.1, 19: 0.2}, {1: 0.68, 19: 0.71}))
    )


def test_two_runs_draws_the_level_they_start_from():
    figure = language.two_runs(*runs({1: 0.2, 19: 0.1}, {1: 0.71, 19: 0.68}))
    assert "SFT 70.0 %" in titles(figure)
    assert figure.layout.shapes[0].y0 == pytest.approx(70)


def test_sft_growth_says_whether_the_ranking_got_better():
    shipped = pd.DataFrame({"epochs": [10], "loss": [1.1], "hr@1": [0.66]})
    levels = {"Markov": 0.664, "oracle": 0.792}
    for last, word in ((0.6, "rises"), (0.01, "does not rise")):
        looks = pd.DataFrame({"epochs": [0.5, 5], "loss": [4.4, 1.3], "hr@1": [0.06, last]})
        said = titles(language.sft_growth(looks, shipped, levels))
        assert f"HR@1 {word}: 6.0 % → {100 * last:.1f} %" in said
        assert "4.4 → 1.3 nats" in said
        assert "oracle 79.2 %" in said


def test_ranking_levels_says_on_which_side_of_markov_sft_is():
    levels = {
        "Markov": Interval(0.64, 0.62, 0.66),
        "SFT": Interval(0.68, 0.66, 0.7),
        "oracle": Interval(0.78, 0.76, 0.8),
    }
    title = language.ranking_levels(levels).layout.title.text
    assert "68.0 %" in title
    assert "4.0 points above Markov, 10.0 below the oracle" in title
    levels["SFT"] = Interval(0.6, 0.58, 0.62)
    assert "4.0 points below Markov" in language.ranking_levels(levels).layout.title.text


def test_gaps_to_chosen_counts_what_stands_at_or_above():
    gaps = np.array([[0.0, 4.0], [-1.0, 6.0]])  # a tie counts as above
    same = np.array([[True, False], [False, False]])
    figure = language.gaps_to_chosen(gaps, same)
    assert figure.layout.title.text.startswith("50.0 % of random negatives")
    assert "50.0 % of these share its genre" in titles(figure)
    assert sum(sum(trace.y) for trace in figure.data) == pytest.approx(100)


def test_candidates_are_sorted_by_the_model_and_numbered_by_the_oracle():
    model, oracle = np.array([-3.0, -1.0, -5.0]), np.array([-1.0, -2.0, -np.inf])
    figure = language.candidates(["chosen", "above", "below"], model, oracle)
    left, right = figure.data
    assert list(left.y) == ["above", "<b>chosen</b>", "below"]
    assert list(left.x) == [-1, -3, -5]
    assert list(right.text) == ["2", "1", "3"]
    assert right.marker.color[2] == "white"  # impossible for the oracle
    assert np.isfinite(right.x).all()
    assert "Model: chosen item at place 2" in titles(figure)
    assert "Oracle: chosen item at place 1" in titles(figure)
