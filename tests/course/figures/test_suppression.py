"""Figures and sentences of notebook 04 and of the app's page follow the numbers they are given."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from figures.suppression import (
    TRAINING,
    logged_pushes,
    negatives_sentence,
    probed_pushes,
    reading_sentence,
    training_sentence,
)

from minipo import preference_loss, preference_push
from minipo.course.diagnostics import by_group, pushes
from minipo.course.figures.suppression import (
    alone_sentence,
    answers_over_training,
    boundary_shares,
    gaps_opening,
    one_user,
    push_parts,
    ranks_better,
    swap_intervals,
    swap_sentence,
)
from minipo.evaluation import Interval
from minipo.experiments.records import Recorded
from minipo.trainers import measure

BETTER, WORSE, NOTHING, WIDE = (
    Interval(mean, low, high)
    for mean, low, high in ((0.02, 0.01, 0.03), (-0.02, -0.03, -0.01), (0.0, -0.005, 0.005), (0.0, -0.05, 0.05))
)


@pytest.fixture
def probe() -> pd.DataFrame:
    """One user with four negatives, the first a mistake; at step 10 the easy ones are three nats further behind."""
    reference = [-5.0, -4.0, -9.0, -9.5, -10.0]
    start = pd.DataFrame(
        {"step": 0, "user": 1, "candidate": range(5), "item": list("wabcd"), "reference": reference}
    ).assign(policy=reference)
    return pd.concat([start, start.assign(step=10, policy=[-5.0, -4.0, -12.0, -12.5, -13.0])], ignore_index=True)


def test_the_gaps_and_their_title(probe):
    figure = gaps_opening(by_group(pushes(probe), "boundary_at_start"))
    lines = {trace.name: list(trace.y) for trace in figure.data}
    assert lines == {"boundary negatives": [0, 0], "easy negatives": [0, 3]}
    assert figure.layout.title.text == "From 0, the easy negatives' gap opens to 3.0 nats, the boundary's to 0"


def test_the_push_is_the_product_of_its_parts(probe):
    shared, own = (by_group(pushes(probe, objective), "boundary_at_start") for objective in ("dmpo", "dpo"))
    figure = push_parts(shared, own)
    lines = {}
    for trace in figure.data:
        lines.setdefault(trace.name, []).append(list(trace.y))
    for dilution, saturation, push in lines.values():
        assert push == pytest.approx([left * right for left, right in zip(dilution, saturation, strict=True)])
    assert lines["boundary, DMPO"][1] == lines["easy, DMPO"][1]
    assert lines["boundary, a sigmoid of its own"][1] == [0.5, 0.5]  # its own gap is 0 still
    fall = 0.5 / lines["boundary, DMPO"][1][-1]
    assert f"falls {fall:.1f}-fold on boundary negatives" in figure.layout.title.text


def test_one_users_negatives_by_margin(probe):
    later = probe[probe.step == 10]
    alike, apart = (one_user(pushes(later, objective), objective, 1.0) for objective in ("dmpo", "dpo"))
    assert alike.layout.title.text.startswith("DMPO pushes every negative alike: 0.0")
    assert apart.layout.title.text.startswith("DPO's pushes run from ")
    boundary, pushed, easy, _ = apart.data
    assert list(boundary.y) == ["<b>a</b>"]  # the mistake
    assert (list(boundary.x), list(easy.x)) == ([0], [3, 3, 3])
    assert list(pushed.x) == pytest.approx([0.5 / 4])
    assert list(apart.layout.yaxis.categoryarray)[-1] == "<b>a</b>"


def test_the_boundarys_shares():
    parts = {
        step: pd.DataFrame(
            {
                "group": ["boundary", "discriminative"],
                "negatives": [1, 3],
                "push_share": [push, 1 - push],
                "share": [share, 1 - share],
            }
        )
        for step, push, share in ((0, 0.25, 0.2), (10, 0.4, 0.6))
    }
    figure = boundary_shares(parts)
    assert [list(trace.y) for trace in figure.data] == [[25, 25], [25, 40], [20, 60]]
    assert figure.layout.title.text == (
        "The boundary at step 10: 25 % of the negatives, 40 % of the pushes, 60 % of the gradient"
    )


def test_log_probs_are_drawn_since_sft_for_each_objective():
    steps = {"step": [0, 50], "logp_boundary": [-6.0, -8.0], "logp_discriminative": [-9.0, -13.0]}
    runs = pd.concat(
        pd.DataFrame({**steps, "logp_chosen": [-3.0, end], "objective": name, "dynamic": dynamic})
        for name, dynamic, end in (("sdpo", "off", -3.5), ("sdpo", "on", -3.25), ("mppo", "off", -2.0))
    )
    figure = answers_over_training(runs)
    moved = [list(trace.y) for trace in figure.data]
    assert moved == [[0, -0.5], [0, -2], [0, -4], [0, -0.25], [0, -2], [0, -4], [0, 1], [0, -2], [0, -4]]
    assert [trace.line.dash for trace in figure.data[::3]] == ["solid", "dash", "solid"]
    assert [trace.name for trace in figure.data if trace.showlegend] == ["chosen", "boundary", "easy"]
    assert figure.layout.title.text == "S-DPO: chosen −0.50, boundary −2.0, easy −4.0 nats (dashed: under DynamicPO)"


def test_the_swap_is_drawn_with_its_intervals():
    figure = swap_intervals({"DPO: all": BETTER, "swap: boundary": WORSE}, "DMPO", "swap: boundary")
    assert [dot.x[0] for dot in figure.data] == [2, -2]
    assert [dot.error_x.array[0] for dot in figure.data] == pytest.approx([1, 1])
    assert figure.layout.title.text == "swap: boundary: −2.0 points (95 % interval −3.0 to −1.0)"


def test_what_an_interval_says():
    assert [ranks_better(each) for each in (BETTER, WORSE, NOTHING)] == [
        "ranks better", "ranks worse", "no difference that can be told from zero",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("intervals", "conclusion"),
    [
        ((BETTER, NOTHING, BETTER), "does not hold DMPO back. The pushes on the easy negatives beside it do."),
        ((BETTER, WIDE, BETTER), "is not shown to hold DMPO back, but may. The pushes on the easy negatives beside"),
        ((NOTHING, BETTER, BETTER), "small weight holds the ranking down"),
        ((BETTER, BETTER, NOTHING), "both count"),
        ((NOTHING, NOTHING, WORSE), "do not show which of the two"),
    ],
)
def test_the_swaps_conclusion_follows_from_the_intervals(intervals, conclusion):
    assert conclusion in swap_sentence(*intervals)


def test_without_recorded_runs_the_swap_says_only_its_own():
    assert swap_sentence(NOTHING).endswith(
        "there is **no difference that can be told from zero**, +0.0 points (95 % interval −0.5 to +0.5)."
    )
    assert "a point at most either way" in swap_sentence(BETTER, NOTHING, BETTER)
    assert "a point at most" not in swap_sentence(BETTER, WIDE, BETTER)


def test_the_easy_negatives_alone():
    assert "harm of their own: with nobody" in alone_sentence(WORSE, WORSE)
    assert alone_sentence(WORSE, WORSE).endswith("do some good.")
    assert alone_sentence(WIDE, NOTHING).endswith("Harm of their own is not shown.")
    assert "improve the ranking" in alone_sentence(BETTER, BETTER)


def logged(objectives: list[str], negatives: int = 4, dynamic: str = "off") -> tuple[Recorded, dict[str, float]]:
    """A grid whose runs logged one batch of random log-probs each, and that batch's mean saturation by objective."""
    generator = torch.Generator().manual_seed(0)
    reference = -8 + torch.randn(6, 1 + negatives, generator=generator, dtype=torch.float64)
    policy = (reference + torch.randn(reference.shape, generator=generator, dtype=torch.float64)).requires_grad_()
    rows, lines, saturation = [], [], {}
    for run, name in enumerate(objectives):
        output = preference_loss(name, policy, reference, beta=0.7)
        sums = measure(output, policy, reference, torch.ones(6, negatives, dtype=torch.bool))
        lines.append(
            {"run": run, "kind": "metrics", "step": 10, **{key: total / n for key, (total, n) in sums.items()}}
        )
        rows.append({"objective": name, "negatives": negatives, "dynamic": dynamic, "seed": 0, "beta": 0.7})
        saturation[name] = preference_push(name, policy, reference, beta=0.7).saturation.mean().item()
    return Recorded(pd.DataFrame(rows), None, {}, pd.DataFrame(lines), {}, Path("grid")), saturation


def test_the_logged_pushes_tell_what_the_sigmoid_leaves():
    objectives = ["dpo", "dmpo", "sdpo"]
    grid, saturation = logged(objectives)
    table = logged_pushes(grid).set_index("objective")
    for objective in objectives:
        assert table.loc[objective, "saturation"] == pytest.approx(saturation[objective])
    row = table.loc["dmpo"]
    assert row["push_share"] == pytest.approx(
        row["boundary_share"] * row["push_boundary"] / (0.7 * saturation["dmpo"] / 4)
    )
    assert logged_pushes(logged(["mppo"])[0])["saturation"].isna().all()
    assert logged_pushes(logged(["dmpo"], dynamic="on")[0])["saturation"].isna().all()


def test_a_grid_without_pushes_is_refused():
    grid, _ = logged(["dmpo"])
    with pytest.raises(ValueError, match=r"^The recorded grid 'grid' holds no pushes; make it again"):
        logged_pushes(replace(grid, curves=grid.curves.drop(columns="push_boundary")))


def test_probed_pushes_agree_with_the_groups(probe):
    pushed = pushes(probe)
    table = probed_pushes(pushed, "boundary_at_start")
    groups = by_group(pushed, "boundary_at_start").set_index(["step", "group"])
    assert list(table["alike"]) == [True, True]
    assert list(table["boundary_share"]) == [0.25, 0.25]
    assert list(table["push_boundary"]) == pytest.approx(groups.xs("boundary", level="group")["push"].tolist())
    assert list(table["saturation"]) == pytest.approx(groups.xs("boundary", level="group")["saturation"].tolist())
    alone = probed_pushes(pushes(probe, negatives=1))
    assert alone["push_discriminative"].isna().all()


def test_sentences_of_pushes_follow_the_numbers():
    runs = pd.DataFrame({
        "objective": "dmpo", "negatives": 19, "dynamic": "off", "seed": 0, "step": [0, 300], "users": TRAINING,
        "push_boundary": [0.1, 0.2], "push_discriminative": [0.1, 0.01], "boundary_share": 0.25,
        "push_share": [0.25, 0.87], "saturation": [0.5, 0.4],
    })  # fmt: skip
    said = training_sentence(runs)
    assert "push on a boundary negative **grows 2.0-fold**, on an easy one it falls 10-fold" in said
    assert "goes from 25 % to **87 %**; it ends as 25 % of the negatives" in said
    few = runs.assign(negatives=3, push_boundary=[0.1, 0.4], push_share=0.5)
    against = negatives_sentence(pd.concat([few, runs]))
    assert "From K = 3 to 19, at the end of training, DMPO's push on a boundary negative **falls 2.0-fold**" in against
    assert "goes from 50 % to **87 %**" in against
    begin = probed_pushes(pushes(pd.DataFrame({
        "step": 0, "user": 1, "candidate": range(5), "item": list("wabcd"), "reference": -5.0, "policy": -5.0,
    })))  # fmt: skip
    assert reading_sentence(begin, runs).startswith("Before training every push is the same, 0.12")
    later = begin.assign(push_boundary=0.4)
    assert "the push is smaller on the users" in reading_sentence(begin, runs, later)
