"""The figures of notebooks 02 and 05: titles follow the numbers, and traces hold them."""

import numpy as np
import pandas as pd
import pytest

from minipo.course.figures import preferences
from minipo.evaluation import Interval


def test_the_leash_shows_both_policies_sorted_and_tells_what_they_gain():
    reference, reward = np.array([0.2, 0.5, 0.3]), np.array([2.0, 0.0, 1.0])
    figure = preferences.leash(("a", "b", "c"), reference, np.array([0.6, 0.1, 0.3]), reward, 0.5)
    assert [*figure.data[0].y] == [0.5, 0.3, 0.2]
    assert [*figure.data[1].y] == [0.1, 0.3, 0.6]
    assert [*figure.data[0].x] == ["b (0)", "c (1)", "a (2)"]
    assert figure.layout.title.text.startswith("β = 0.5: most on a, 60 %; mean reward 0.70 → 1.50, KL 0.50 nats")
    assert "KL 0.00 nats" in preferences.leash(("a", "b", "c"), reference, reference, reward, 20).layout.title.text
    certain = preferences.leash(("a", "b", "c"), reference, np.array([1.0, 0.0, 0.0]), reward, 0.01)  # underflow
    assert f"KL {-np.log(0.2):.2f} nats" in certain.layout.title.text


def test_pair_curves_hold_loss_and_push():
    figure = preferences.pair_curves([0.5, 1.0, 2.0])
    loss, push = figure.data[2], figure.data[3]  # of β = 1
    middle = list(loss.x).index(0)
    assert loss.y[middle] == pytest.approx(np.log(2))
    assert push.y[middle] == pytest.approx(0.5)
    assert "0.047" in figure.layout.title.text


def test_jensen_compares_the_mean_of_heights_with_the_height_at_the_mean():
    margins = np.array([-1.0, 5.0])
    figure = preferences.jensen(margins)
    dpo, dmpo = figure.data[2].y[0], figure.data[3].y[0]
    assert dpo == pytest.approx(np.log1p(np.exp(-margins)).mean())
    assert dmpo == pytest.approx(np.log1p(np.exp(-2.0)))
    assert "DMPO's loss is 0.53 nats below DPO's" in figure.layout.title.text
    assert figure.layout.title.text.startswith("Margins from −1 to 5")
    assert "the same loss" in preferences.jensen(np.full(5, 2.0)).layout.title.text


def test_pushes_stand_at_their_margins_in_order():
    pushes = {"dpo": np.array([0.1, 0.4, 0.2]), "dmpo": np.full(3, 0.3)}
    figure = preferences.push_by_margin(np.array([3.0, -1.0, 1.0]), pushes, ("a", "b", "c"))
    assert [*figure.data[0].x] == [-1, 1, 3]
    assert [*figure.data[0].y] == [0.4, 0.2, 0.1]
    assert [*figure.data[0].text] == ["b", "c", "a"]
    assert figure.layout.title.text.endswith("DPO 4.0, DMPO 1")


@pytest.mark.parametrize("easy", [0.01, float("nan")])
def test_the_anatomy_names_the_objectives_at_both_ends_and_every_factor(easy):
    parts = {"easy": easy, "beta": 1.0, "dilution": 0.5, "slope": 1.0}
    table = pd.DataFrame.from_dict(
        {
            "dpo": {"mistake": 0.4, "saturation": 0.8, **parts},
            "mppo": {"mistake": 1e-9, "saturation": 2e-9, **parts},  # far left of the axis
        },
        orient="index",
    )
    figure = preferences.push_anatomy(table)
    assert figure.layout.title.text == "DPO pushes the mistake hardest, 0.40; MPPO least, 1e-09"
    bars = figure.data[0]
    assert list(bars.x) == pytest.approx([0.4, 1e-6])
    assert bars.y[0] == "<b>DPO</b><br>0.40 = 1 × 0.5 × 0.8 × 1"


def test_who_resists_says_what_the_intervals_allow():
    changes = {"dpo": Interval(0.002, -0.003, 0.008), "dmpo": Interval(-0.011, -0.019, -0.003)}
    figure = preferences.who_resists(changes, 1, 19)
    assert figure.layout.title.text == "K = 1 → 19: DPO stable, DMPO collapses"
    dmpo = figure.data[1]
    assert dmpo.x[0] == pytest.approx(-1.1)
    assert dmpo.error_x.array[0] == pytest.approx(0.8)
    assert dmpo.error_x.arrayminus[0] == pytest.approx(0.8)
    assert any("−1.1 [−1.9, −0.3]" in note.text for note in figure.layout.annotations)


def test_losses_against_k_name_the_objectives_whose_loss_misleads():
    table = pd.DataFrame(
        [
            ("sdpo", 1, 0.2, 0.3), ("sdpo", 1, 0.4, 0.3), ("sdpo", 19, 1.0, 0.2),
            ("dpo", 1, 0.2, 0.3), ("dpo", 19, 0.1, 0.2),
        ],
        columns=["objective", "negatives", "train_loss", "pair_loss"],
    )  # fmt: skip
    figure = preferences.losses_against_k(table, {"dpo": {1: 0.69, 19: 0.69}, "sdpo": {1: 0.69, 19: 3.0}})
    assert figure.layout.title.text == "More negatives: the training loss moves against pair_loss for S-DPO"
    trained = next(trace for trace in figure.data if trace.name == "S-DPO" and trace.showlegend)
    assert [*trained.x] == [1, 19]
    assert [*trained.y] == pytest.approx([0.3, 1.0])
    only = preferences.losses_against_k(table, {"dpo": {1: 0.69, 19: 0.69}})
    assert only.layout.title.text.endswith("moves as pair_loss does")
