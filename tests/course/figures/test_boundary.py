"""Figures of notebook 06: the titles say what the numbers say, and the traces hold them."""

import numpy as np
import pytest

from minipo.course.figures.boundary import candidates_line, cost_of_cuts, missed_optimum, truth_by_group

NAMES = ("chosen", "near", "middle", "far")


def traced(figure, name):
    return next(list(trace.x) for trace in figure.data if trace.name == name)


def test_a_violation_is_told_from_a_top_group():
    logps = np.array([-2.0, -1.0, -5.0, -9.0])
    figure = candidates_line(logps, NAMES, logps[1:] >= logps[0])
    assert figure.layout.title.text == "1 of 3 negatives at the boundary, by violation"
    assert traced(figure, "violates: in the boundary") == [-1.0]
    assert traced(figure, "left out") == [-5.0, -9.0]

    figure = candidates_line(logps - [0, 2, 0, 0], NAMES, np.array([True, False, False]), np.array([2, 1, 0]))
    assert figure.layout.title.text == "1 of 3 negatives at the boundary, the top group"
    assert traced(figure, "top group: in the boundary") == [-3.0]
    assert {note.text for note in figure.layout.annotations} == {"chosen: chosen", "near", "middle", "far"}


def test_equal_negatives_stand_in_rows_of_their_own():
    figure = candidates_line(np.array([0.0, -1, -1, -1]), NAMES, np.ones(3, bool), np.zeros(3, int))
    assert sorted(traced(figure, "top group: in the boundary")) == [-1, -1, -1]
    assert sorted(y for trace in figure.data for y in trace.y) == [0, 1, 2]


def test_the_best_pair_of_cuts_is_marked_and_told():
    first, second = np.triu_indices(4, 1)
    figure = cost_of_cuts(np.array([3.0, 2, 5, 1, 4, 6]), first + 1, second + 1, number=5)
    assert "best of 6 pairs of cuts (×) makes groups of 2, 1 and 2" in figure.layout.title.text
    assert (figure.data[1].x[0], figure.data[1].y[0]) == (2, 3)
    assert np.nanmin(figure.data[0].z) == 1


def test_shares_of_missed_optima():
    figure = missed_optimum({5: 0.2, 15: 0.44}, starts=1000)
    assert "up to 44 % of rows (K = 15, 1,000 rows)" in figure.layout.title.text
    assert list(figure.data[0].y) == pytest.approx([20, 44])


def test_truth_by_group_is_told_of_the_first_group():
    figure = truth_by_group({"violations": (40, 100), "top groups": (1, 200), "negatives left out": (3, 300)})
    assert figure.layout.title.text.startswith("Of the violations, 40 %")
    assert list(figure.data[0].x) == pytest.approx([40, 0.5, 1])
    assert figure.data[0].text[0] == "40.0 %: 40 of 100"
