"""Figures of notebook 03: titles follow the data, traces hold the numbers."""

import numpy as np
import pandas as pd
import pytest
from figures import collapse as page

from minipo.course.figures import collapse
from minipo.evaluation import Interval

FALLS, FLAT, OPEN = Interval(-0.02, -0.03, -0.01), Interval(0.001, -0.005, 0.006), Interval(-0.01, -0.03, 0.01)


def runs(hits, objective="dmpo", train_loss=(0.3, 0.2, 0.1), pair_loss=(0.2, 0.3, 0.4)):
    """Two seeds at K = 1, 5, 19, a point of HR@1 apart."""
    rows = zip((1, 5, 19), hits, train_loss, pair_loss, strict=True)
    return pd.DataFrame(
        [
            {"objective": objective, "negatives": k, "seed": seed, "train_loss": loss, "pair_loss": pair}
            | {"hr@1": hit + 0.01 * seed}
            for k, hit, loss, pair in rows
            for seed in (0, 1)
        ]
    )


def test_guessed_curve_says_what_happens_and_draws_guesses_where_there_are_any():
    plain = collapse.guessed_curve(runs([0.6, 0.55, 0.5]), sft=0.58)
    assert "DMPO's HR@1 falls by 10.0 points" in plain.layout.title.text
    assert "2 of 3 means are below the SFT model" in plain.layout.title.text
    np.testing.assert_allclose(plain.data[1].y, [60.5, 55.5, 50.5])
    assert len(plain.data) == 2
    guessed = collapse.guessed_curve(runs([0.5, 0.55, 0.6]), 0.58, {1: 58, 5: 60, 19: 70})
    assert "rises by 10.0 points" in guessed.layout.title.text
    assert guessed.data[2].name == "your guesses"
    assert list(guessed.data[2].y) == [58, 60, 70]


def test_a_live_curve_is_drawn_over_the_bands_as_far_as_it_goes_and_the_axes_stay():
    recorded = pd.concat([runs([0.6, 0.55, 0.5]).assign(variant=variant) for variant in ("plain", "dynamic")])
    live = pd.DataFrame(
        {"variant": ["plain", "dynamic", "plain"], "negatives": [5, 1, 1], "train_loss": 0.2, "hr@1": [0.55, 0.6, 0.58]}
    )
    none, some = (collapse.live_curve(table, recorded, "dmpo", 0.62) for table in (live[:0], live))
    lines = {trace.name: trace for trace in some.data if trace.name and trace.yaxis == "y2"}
    assert {name: (list(line.x), np.round(line.y, 9).tolist()) for name, line in lines.items()} == {
        "plain DMPO": ([1, 5], [58, 55]),
        "DynamicPO": ([1], [60]),
    }
    bands = [trace for trace in some.data if trace.fill]
    assert list(bands[2].y) == pytest.approx([61, 56, 51, 50, 55, 60])  # plain, HR@1
    for axis in ("xaxis", "xaxis2", "yaxis", "yaxis2"):
        assert none.layout[axis].range == some.layout[axis].range
    assert none.layout.yaxis2.range[1] > 62  # SFT's level is in the panel


def test_what_a_live_curve_shows_is_told_of_one_seed():
    table = pd.DataFrame(
        {"variant": ["plain", "plain", "dynamic"], "negatives": [1, 19, 19], "hr@1": [0.68, 0.66, 0.7]}
    )

    def said(rows, differences):
        return collapse.live_curve_sentence(table[:rows], [1, 5, 19], differences, "dmpo", 2000)

    assert said(0, {}) == "**0 of 6 runs trained.**"
    assert said(1, {}) == "**1 of 6 runs trained.** HR@1: at K = 1 plain DMPO 68.0 %."
    for interval, word in ((FALLS, "**collapse**"), (FLAT, "**stable**"), (OPEN, "**undecided**")):
        text = said(3, {"plain": interval})
        assert "at K = 1 plain DMPO 68.0 %; at K = 19 plain DMPO 66.0 % and DynamicPO 70.0 %." in text
        assert "Plain, K = 19 minus K = 1: " in text
        assert word in text
        assert "over 2,000 test users, of one seed" in text
    assert "At K = 19, DynamicPO minus plain: −2.0 points (95 % interval −3.0 to −1.0)." in said(3, {"dynamic": FALLS})


@pytest.mark.parametrize(("objective", "said"), [("dmpo", "falls: 0.30 → 0.20"), ("dpo", "stays: 0.30 → 0.30")])
def test_unchanged_model_reads_the_picked_objective(objective, said):
    losses = pd.DataFrame({"dpo": [0.3, 0.3], "dmpo": [0.3, 0.2]}, index=[1, 19])
    figure = collapse.unchanged_model(losses, objective)
    assert said in figure.layout.title.text
    widths = {trace.name: trace.line.width for trace in figure.data}
    assert max(widths, key=widths.get).lower() == objective


def test_within_runs_takes_each_panel_from_its_own_lines():
    curves = pd.DataFrame(
        [
            {"negatives": k, "step": step, "kind": kind, "loss": loss if kind == "metrics" else np.nan}
            | {"pair_loss": yardstick if kind == "evaluation" else 99}
            for k in (1, 5, 19)
            for step, loss, yardstick in ((0, 0.7, 0.7), (100, 0.4, 0.3), (300, 0.1, 0.2 if k == 1 else 0.5))
            for kind in ("metrics", "evaluation")
        ]
    )
    figure = collapse.within_runs(curves, "dmpo")
    assert "K = 1 falls: 0.30 → 0.20; K = 19 rises: 0.30 → 0.50" in figure.layout.title.text
    assert [list(trace.y) for trace in figure.data[:2]] == [[0.7, 0.4, 0.1]] * 2
    assert list(figure.data[5].y) == [0.7, 0.3, 0.5]


def test_loss_and_ranking_names_the_objectives_whose_losses_mislead():
    table = pd.concat([runs([0.6, 0.55, 0.5]), runs([0.5, 0.55, 0.6], "dpo", pair_loss=(0.4, 0.3, 0.2))])
    title = collapse.loss_and_ranking(table).layout.title.text
    assert "a lower training loss goes with a lower HR@1 in DMPO;" in title
    assert "a lower pair_loss with a higher one in DMPO, DPO" in title


def test_verdicts_are_listed():
    said = collapse.verdicts({"DMPO": FALLS, "DPO": FLAT, "MPPO": OPEN})
    assert said == "DMPO collapses, DPO stable, MPPO undecided"


def test_settings_map_counts_what_leaves_zero_out():
    first = {(5, 1e-4): FALLS, (5, 1e-3): OPEN}
    second = {(5, 1e-4): OPEN, (5, 1e-3): Interval(0.02, 0.01, 0.03)}
    figure = collapse.settings_map({"A": first, "B": second}, seeds=3)
    assert "A is below zero in 1 of 2 settings, B above in 1" in figure.layout.title.text
    assert figure.data[0].text[0][0].startswith("<b>−2.0</b>")
    assert "<b>" not in figure.data[0].text[0][1]
    np.testing.assert_allclose(figure.data[1].z, [[-1, 2]])


def test_a_settings_panel_frames_the_chosen_setting_and_leaves_holes():
    cells = {(5, 1e-4): FALLS, (5, 1e-3): OPEN, (10, 1e-3): FALLS}
    figure = page.settings_panel("A", cells, {5: "SFT 60.0 %", 10: "SFT 65.0 %"}, (10, 1e-3))
    (panel,) = figure.data
    assert list(panel.y) == ["5 epochs<br>SFT 60.0 %", "10 epochs<br>SFT 65.0 %"]
    assert panel.text[1][0] == ""
    (frame,) = figure.layout.shapes
    assert (round(frame.x0), round(frame.y0)) == (1, 1)
    said = page.settings_sentence({"A": cells}, "mrr")
    assert said == "MRR: A is **below zero in 2** of 3 settings and **above in 0**."


PLAIN = pd.DataFrame({"negatives": [1, 1, 5, 5], "hr@1": [0.6, 0.62, 0.5, 0.52], "train_loss": [0.2, 0.2, 0.1, 0.1]})


def test_a_guess_is_measured_against_the_mean_over_seeds():
    assert page.guess_sentence(PLAIN, {5: 54.0}).startswith("Your guesses were **3.0 points** off on average: 1 of 1")
    assert "**1.0 points**" in page.guess_sentence(PLAIN, {1: 61.0, 5: 49.0})
    assert "**3.0 points**" in page.guess_sentence(PLAIN.rename(columns={"hr@1": "mrr"}), {5: 0.54}, "mrr")
    said = page.guess_sentence(PLAIN, {1: 61.0, 5: 54.0})
    assert said == "Your guesses were **1.5 points** off on average: 1 of 2 too high, 0 too low."


def test_before_a_guess_only_the_loss_and_the_first_point_are_told():
    said = page.expect_sentence(PLAIN, "dmpo")
    assert "training loss falls 50 %" in said
    assert "HR@1 is 61.0 % at K = 1" in said
    assert "51" not in said


def test_every_user_has_a_square_in_the_group_of_what_became_of_them():
    before, after = np.array([0, 0, 1, 3, 0]), np.array([0, 2, 0, 3, 1])
    groups = {name: inside.tolist() for name, inside in page.user_groups(before, after).items()}
    assert groups == {"right in both": [0], "gained": [2], "lost": [1, 4], "wrong in both": [3]}
    figure = page.user_grid([10, 11, 12, 13, 14], before, after, ("A", "B"), shown=14)
    *traces, ring = figure.data
    assert [trace.name for trace in traces] == ["right in both: 1", "gained: 1", "lost: 2", "wrong in both: 1"]
    assert [list(trace.customdata) for trace in traces] == [[10], [12], [11, 14], [13]]
    places = [(x, y) for trace in traces for x, y in zip(trace.x, trace.y, strict=True)]
    assert len(set(places)) == 5
    assert (ring.x[0], ring.y[0]) == (traces[2].x[1], traces[2].y[1])
    said = page.user_sentence(before, after, ("A", "B"), Interval(-0.2, -0.6, 0.2))
    assert "**1 users are gained**" in said
    assert "**2 are lost**: net −1 of 5, −20.0 points (95 % interval −60.0 to +20.0)." in said


def test_repeated_sentence_counts_users_ranked_differently():
    assert "all 4 test users are ranked exactly" in collapse.repeated_sentence([0, 1, 0, 3], [0, 1, 0, 3])
    told = collapse.repeated_sentence([0, 1, 0, 3], [0, 1, 2, 3])
    assert "**50.00 %**, recorded **25.00 %**" in told
    assert "1 of 4 test users" in told
