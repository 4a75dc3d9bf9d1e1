"""Figures of notebook 07: the titles say what the numbers say, and the traces hold them."""

import numpy as np
import pandas as pd

from minipo.course.figures.beta import beta_against_margin, beta_map, beta_over_training, push_against_gap, push_by_rule


def test_the_map_holds_beta_and_only_the_dots_inside_it():
    plus, minus = np.linspace(-4, 4, 9), np.linspace(0, 4, 5)
    table = np.full((5, 9), 0.8)
    dots = np.array([-1.0, 2.0, 9.0]), np.array([1.0, 1.0, 1.0]), np.array([True, False, False])
    figure = beta_map(plus, minus, table, "said", dots)
    assert figure.layout.title.text == "said"
    assert np.array_equal(figure.data[0].z, table)
    assert (figure.data[0].zmin, figure.data[0].zmid, figure.data[0].zmax) == (0.5, 1, 1.5)
    shown = {trace.name: list(trace.x) for trace in figure.data if trace.name}
    assert shown == {"violations": [-1.0], "top groups": [2.0]}
    assert len(beta_map(plus, minus, table, "said").data) == 2


def test_push_by_rule_compares_the_last_two_rules():
    pushes = pd.DataFrame(
        {"violations": [0.03, 0.1, 0.06], "top groups": [0.03, 0.05, 0.05], "left out": [0.01, 0, 0]},
        index=["plain DMPO", "selection alone", "DynamicPO"],
    )
    figure = push_by_rule(pushes)
    assert figure.layout.title.text == "Violations over top groups: selection alone 2.0 times, DynamicPO 1.2 times"
    assert [list(trace.y) for trace in figure.data] == pushes.T.to_numpy().tolist()


def test_push_against_gap_names_the_crossing():
    gap = np.array([0.0, 1, 2])
    figure = push_against_gap(gap, {0.62: gap, 1.0: 2 * gap}, crossing=1.64)
    assert "up to a gap of 1.6 nats" in figure.layout.title.text
    assert [trace.name for trace in figure.data] == ["β<sub>k</sub> = 1.00", "β<sub>k</sub> = 0.62"]


def test_beta_against_margin_tells_both_ends():
    table = pd.DataFrame({"violations": [0.6, 0.5], "top groups": [1.0, 0.51]}, index=[0.0, 40.0])
    figure = beta_against_margin(table, marked=(2, 6))
    assert figure.layout.title.text == "The groups' β are 0.40 apart at γ = 0, 0.010 at γ = 40"
    assert [note.text for note in figure.layout.annotations] == ["γ = 2", "γ = 6"]


def test_beta_over_training_tells_the_mean():
    table = pd.DataFrame({"violations": [0.5, 0.52], "top groups": [0.7, 0.8], "mean": [0.65, 0.7]}, index=[0, 300])
    figure = beta_over_training(table)
    assert figure.layout.title.text == "The boundary's mean β<sub>k</sub>/β: 0.65 at step 0, 0.70 at step 300"
    assert [list(trace.y) for trace in figure.data] == table.T.to_numpy().tolist()
