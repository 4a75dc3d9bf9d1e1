"""The boundary microscope: its numbers are the losses' own, and its figures and sentence say what they say."""

import numpy as np
import pandas as pd
import pytest
import torch
from figures import microscope

from minipo import DynamicPO, preference_loss
from minipo.course import microscope as course
from minipo.course.diagnostics import moments
from minipo.dynamic import boundary
from minipo.preference import preference_push

NAMES = ["chosen", "near", "middle", "far"]


def probe(*rows, names=NAMES, user=7):
    """A user's log-probs, a row a step; the first is the reference."""
    return pd.concat(
        [
            pd.DataFrame(
                {"step": 100 * place, "user": user, "candidate": range(len(names)), "item": names,
                 "reference": rows[0], "policy": row}
            )
            for place, row in enumerate(rows)
        ]
    )  # fmt: skip


@pytest.fixture
def followed():
    rows = [[-2.0, -1.0, -5.0, -9.0], [-2.0, -3.0, -7.0, -12.0]]
    return course.follow(moments(probe(*map(np.array, rows))), 7)


def test_a_user_is_followed_through_the_steps(followed):
    assert followed.steps == (0, 100)
    assert followed.names == tuple(NAMES)
    assert followed.policy[1].tolist() == [-2, -3, -7, -12]
    assert followed.reference[1].tolist() == [-2, -1, -5, -9]
    with pytest.raises(ValueError, match=r"no record of user 8: its users are numbered 7 to 7"):
        course.follow(moments(probe([-2.0, -1.0, -5.0, -9.0])), 8)
    assert course.violations(moments(probe([-2.0, -1.0, -2.0, -9.0]))[0]) == {7: 2}


@pytest.mark.parametrize("objective", ["dpo", "dmpo", "sdpo", "mppo"])
@pytest.mark.parametrize(("select", "adjust_beta"), [("off", False), ("on", True), ("on", False), ("off", True)])
def test_every_number_is_the_loss_own_and_the_parts_multiply_to_the_push(followed, objective, select, adjust_beta):
    table = course.examine(
        followed, objective, beta=0.7, margin=2.0, select=select, adjust_beta=adjust_beta, lengths=3.0
    )
    arguments = (
        objective, followed.policy, followed.reference, 0.7, None, torch.full_like(followed.policy, 3.0),
        DynamicPO(2.0, 3, select == "on", adjust_beta),
    )  # fmt: skip
    output, push = preference_loss(*arguments), preference_push(*arguments)
    negatives = table[table["candidate"] > 0]
    assert np.allclose(negatives["push"], push.push.flatten())
    assert np.allclose(negatives["beta"], output.beta.flatten())
    assert (negatives["used"] == output.used.flatten().numpy()).all()
    parts = negatives[["dilution", "saturation", "beta", "slope"]].prod(axis=1)
    assert np.allclose(parts, negatives["push"])


def test_kinds_and_places(followed):
    table = course.examine(followed)
    assert table["kind"].tolist() == ["chosen", "above", "rest", "rest", "chosen", "top", "rest", "rest"]
    assert table["place"].tolist() == [2, 1, 3, 4, 1, 2, 3, 4]
    assert table["group"].tolist() == [-1, -1, -1, -1, -1, 0, 1, 2]
    fewer = course.examine(followed, negatives=2, clusters=2)
    assert fewer["kind"].tolist()[:4] == ["chosen", "above", "rest", "absent"]
    assert fewer["push"].tolist()[3] == 0
    assert fewer["dilution"].tolist()[1] == 0.5


def test_a_tie_counts_against_the_chosen_item():
    tied = course.follow(moments(probe([-2.0, -2.0, -5.0, -9.0])), 7)
    assert course.examine(tied)["place"].tolist() == [2, 1, 3, 4]


def test_controls_keep_as_many_and_the_draw_stays():
    logps = np.r_[-1.0, -(np.linspace(2, 30, 19) ** 1.2)]
    user = course.follow(moments(probe(logps, names=[str(number) for number in range(20)])), 7)
    kept = {rule: course.examine(user, select=rule)["used"].to_numpy() for rule in ("on", "random", "hardest", "off")}
    assert kept["on"].sum() == kept["random"].sum() < kept["off"].sum() == 19
    assert (kept["on"] == kept["hardest"]).all()
    assert not (kept["on"] == kept["random"]).all()
    assert (kept["random"] == course.examine(user, select="random")["used"]).all()
    with pytest.raises(ValueError, match="hardest"):
        course.examine(user, select="hardes")


def test_the_highest_group_is_the_boundary_whatever_the_number_of_groups():
    logps = torch.cat([torch.zeros(40, 1), -1 - 9 * torch.rand(40, 12, generator=torch.Generator().manual_seed(1))], 1)
    for clusters in (2, 3, 5):
        groups = course.groups(logps.double(), clusters)
        assert ((groups == 0) == boundary(logps.double(), clusters=clusters).numpy()).all()
        assert set(groups.ravel()) == set(range(clusters))
    same = torch.tensor([[0.0, -1, -1, -1]]).double()
    assert course.groups(same).tolist() == [[0, 0, 0]]


def test_the_figures_rows_stand_side_by_side(followed):
    table = course.examine(followed, select="on")
    line, bars = microscope.candidates(table, 100), microscope.pushes(table, 100)
    assert line.layout.height == bars.layout.height
    assert (line.layout.margin.t, line.layout.margin.b) == (bars.layout.margin.t, bars.layout.margin.b)
    for name in ("range", "tickvals", "ticktext"):
        assert list(line.layout.yaxis[name]) == list(bars.layout.yaxis[name])
    assert list(line.layout.yaxis.ticktext) == ["<b>chosen</b>", "near", "middle", "far"]
    dots = {trace.name: trace for trace in line.data if trace.mode == "markers" and len(trace.x)}
    assert {name: (list(dot.x), list(dot.y)) for name, dot in dots.items()} == {
        "chosen": ([-2], [1]), "top group": ([-3], [2]), "discriminative": ([-7, -12], [3, 4]),
    }  # fmt: skip
    assert list(dots["discriminative"].marker.color) == ["white", "white"]  # left out
    assert len(line.layout.shapes) == 3 + 1  # the groups, and the chosen item's row
    pushed = bars.data[-1]
    assert list(pushed.y) == [1, 2, 3, 4]
    assert pushed.x[1] > 0
    assert list(pushed.x)[2:] == [0, 0]
    headings = [axis.title.text for axis in bars.select_xaxes()]
    assert headings == ["dilution", "× saturation", "× β", "<b>= push</b>"]


def test_playing_ends_at_the_step_that_is_shown(followed):
    table = course.examine(followed)
    last, first = microscope.candidates(table, 100), microscope.candidates(table, 0)
    assert [frame.name for frame in last.frames] == ["0", "100"]
    assert len(last.layout.updatemenus) == 1
    began, ended = ([list(trace.x) for trace in frame.data] for frame in last.frames)
    assert began == [[-2, -2], [-2], [], [-1], [-5, -9], []]  # the line, and each kind
    assert ended == [list(trace.x) for trace in last.data]
    assert not first.frames
    assert not first.layout.updatemenus
    assert first.layout.xaxis.range == last.layout.xaxis.range


def test_mppo_shows_the_slope_too(followed):
    bars = microscope.pushes(course.examine(followed, "mppo", lengths=3.0), 100)
    assert "× du/ds" in [axis.title.text for axis in bars.select_xaxes()]


def test_names_are_text():
    names = ["<b>x</b><script>", "$a$", "*m*", "& more"]
    user = course.follow(moments(probe([-2.0, -1.0, -5.0, -9.0], names=names)), 7)
    table = course.examine(user)
    for figure in (microscope.candidates(table, 0), microscope.pushes(table, 0)):
        assert "<script>" not in figure.to_json().replace("\\u003c", "<")
    told = microscope.sentence(table, 0, 7, "dmpo", table, lambda name: f"[{len(name)}]")
    assert "*[16]*" in told
    assert "<script>" not in told


def test_the_sentence_reads_the_numbers(followed):
    plain = course.examine(followed)
    told = microscope.sentence(plain, 0, 7, "dmpo", plain)
    assert "User 7 after step 0: *chosen*, the chosen item, is in **place 2** of 4." in told
    assert "**1** of 3 negatives is at the boundary, ranked above it; it gets **33 %** of the push." in told
    assert "Each of 3 is pushed with **0.17**." in told
    later = microscope.sentence(plain, 100, 7, "dmpo", plain)
    assert "No negative is ranked above it, so the boundary is the top group, **1** of 3" in later
    assert "less than the biggest at step 0" in later
    kept = course.examine(followed, select="on")
    told = microscope.sentence(kept, 0, 7, "dmpo", plain)
    assert (
        "gets **100 %** of the push. The biggest push, **0.50**, is on *near*; plain DMPO would push it with 0.17."
        in told
    )
