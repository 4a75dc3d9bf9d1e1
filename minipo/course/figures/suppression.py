"""Gradient suppression (notebook 04 and the app's page): gaps that open, pushes by group over training and against K,
one user's negatives, and the causal swap. Tables are those of `diagnostics`.
"""

from collections.abc import Mapping
from dataclasses import astuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from minipo.course.figures.style import (
    FAINT,
    INK,
    MARGIN,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    add_line,
    differences,
    lay_out,
    panels,
    percent,
    points,
    short,
)
from minipo.evaluation import Interval

# Label, colour and marker of a group.
GROUPS = {"boundary": ("boundary", INK, "diamond"), "discriminative": ("easy", "#7F8A9A", "circle")}
SAME = 0.01  # of HR@1: an interval within ± this shows that two sides rank alike
# Rows of `swap_intervals` that have a colour elsewhere.
COLOURS = {"DPO": OBJECTIVE_COLOURS["dpo"], "selection alone": "#56B4E9", "SFT": QUIET}


def gaps_opening(groups: pd.DataFrame) -> go.Figure:
    """Each group's mean log-ratio gap over the steps of a run; the title gives both at the end.

    groups: `by_group(..., "boundary_at_start")`, so that a group's members stay the same.
    """
    last = groups[groups["step"] == groups["step"].max()].set_index("group")["gap"].map(short)
    figure = go.Figure()
    for group, (label, colour, symbol) in GROUPS.items():
        lines = groups[groups["group"] == group]
        marker, hover = {"symbol": symbol, "size": 7}, f"{label}, step %{{x}}: %{{y:.2f}} nats"
        add_line(figure, lines["step"], lines["gap"], f"{label} negatives", colour, hover=hover, marker=marker)
    title = (
        f"From 0, the easy negatives' gap opens to {last['discriminative']} nats, the boundary's to {last['boundary']}"
    )
    return lay_out(figure, 330, title, "step", "mean gap ρ<sub>chosen</sub> − ρ<sub>negative</sub>, nats")


def push_parts(shared: pd.DataFrame, own: pd.DataFrame) -> go.Figure:
    """Dilution × saturation = push, by group over the steps: DMPO's shared sigmoid, and dotted, on the same log-probs,
    a sigmoid for each negative (DPO's weights).

    shared, own: `by_group(..., "boundary_at_start")` of the same probe.
    """
    figure = panels(("dilution", "× saturation", "= push on one negative"), horizontal_spacing=0.11)
    for kind, table, dash in (("DMPO", shared, "solid"), ("a sigmoid of its own", own, "dot")):
        for group, (label, colour, _) in GROUPS.items():
            lines = table[table["group"] == group]
            name = f"{label}, {kind}"
            for column, part in enumerate(("dilution", "saturation", "push"), start=1):
                hover = f"{name}, step %{{x}}: %{{y:.4f}}"
                add_line(figure, lines["step"], lines[part], name, colour, dash, hover, panel=column)
    begin, end = (shared[shared["step"] == step].set_index("group")["push"] for step in (0, shared["step"].max()))
    falls = [f"{short(begin[group] / end[group])}-fold on {label} negatives" for group, (label, _, _) in GROUPS.items()]
    figure.update_yaxes(rangemode="tozero", nticks=5)
    axes = ("share of z", "σ(−z), or σ(−d<sub>k</sub>)", "∂loss / ∂s<sub>k</sub>")
    title, legend = f"DMPO's push falls {falls[0]}, {falls[1]}: all of it saturation", {"y": -0.2, "yanchor": "top"}
    return lay_out(figure, 370, title, "step", axes, margin_t=84, legend=legend)


def one_user(negatives: pd.DataFrame, objective: str, beta: float) -> go.Figure:
    """One user's negatives at one step, by margin: the margins on the left, each one's push on the right.

    negatives: rows of `pushes`, with their item, gap, logp_gap, boundary, push, dilution and saturation. A negative
    ranked at or above the chosen item is a mistake, and drawn larger.
    """
    rows = negatives.sort_values("gap", ascending=False)
    mistake = rows["logp_gap"] <= 0
    rows["name"] = rows["item"].where(~mistake, "<b>" + rows["item"] + "</b>")
    figure = panels(("Margin to the chosen item", "Push"), shared_yaxes=True, horizontal_spacing=0.03)
    for group, (label, colour, symbol) in GROUPS.items():
        part = rows[rows["boundary"] == (group == "boundary")]
        size = np.where(mistake[part.index], 14, 9)
        figure.add_scatter(
            x=beta * part["gap"], y=part["name"], mode="markers", name=f"{label} negative", row=1, col=1,
            marker={"color": colour, "size": size, "symbol": symbol, "opacity": 1},
            hovertemplate="%{y}: margin %{x:.2f}<extra></extra>",
        )  # fmt: skip
        figure.add_bar(
            x=part["push"], y=part["name"], orientation="h", marker_color=colour, showlegend=False, row=1, col=2,
            text=[short(value) for value in part["push"]], textposition="outside", cliponaxis=False,
            customdata=part[["dilution", "saturation"]],
            hovertemplate="%{y}: %{x:.4f} = %{customdata[0]:.4f} (dilution) × %{customdata[1]:.4f} (saturation) × β"
            "<extra></extra>",
        )  # fmt: skip
    figure.update_yaxes(categoryorder="array", categoryarray=rows["name"])
    figure.add_vline(x=0, line={"color": FAINT, "width": 1.5}, row=1, col=1)
    low, high = rows["push"].min(), rows["push"].max()
    alike, differ = f" pushes every negative alike: {short(high)}", f"'s pushes run from {short(low)} to {short(high)}"
    title = OBJECTIVE_LABELS[objective] + (alike if high - low <= 1e-9 * high else differ)
    figure.update_xaxes(title_text=MARGIN, row=1, col=1)
    figure.update_xaxes(title_text="∂loss / ∂s<sub>k</sub>", range=[0, 1.28 * high], row=1, col=2)
    return lay_out(
        figure, 150 + 21 * len(rows), title, margin_t=92, barmode="overlay", legend_y=1 + 26 / (21 * len(rows))
    )


def boundary_shares(parts: Mapping[int, pd.DataFrame]) -> go.Figure:
    """The boundary's part over the steps: of the negatives, of the sum of all pushes, and of the parameters' gradient.

    parts: step to `gradient_parts`' table.
    """
    steps = sorted(parts)
    table = pd.concat({step: parts[step].set_index("group") for step in steps}, names=["step"])
    boundary = table.xs("boundary", level="group")
    count = boundary["negatives"] / table.groupby("step")["negatives"].sum()
    shares = {
        "of the negatives": (100 * count, FAINT, "dot"),
        "of the sum of all pushes": (100 * boundary["push_share"], QUIET, "dash"),
        "of the parameters' gradient, projected": (100 * boundary["share"], INK, "solid"),
    }
    figure = go.Figure()
    for name, (values, colour, dash) in shares.items():
        add_line(figure, steps, values, name, colour, dash, f"%{{y:.0f}} % {name}", marker={"size": 7})
    few, push, whole = (percent(values.iloc[-1] / 100) for values, _, _ in shares.values())
    title = f"The boundary at step {steps[-1]}: {few} of the negatives, {push} of the pushes, {whole} of the gradient"
    return lay_out(figure, 340, title, "step", "boundary negatives' part, %", yaxis_range=[0, 100])


def answers_over_training(runs: pd.DataFrame) -> go.Figure:
    """How far the mean log-probs of the chosen item, the boundary and the easy negatives have moved since SFT, over the
    steps: a panel for each objective, and dashed under DynamicPO. The title gives the first objective's plain run.

    runs: columns objective, dynamic, step, logp_chosen, logp_boundary, logp_discriminative; one run of each kind.
    """
    lines = {"chosen": ("chosen", "#0072B2"), **{name: group[:2] for name, group in GROUPS.items()}}
    objectives = list(runs["objective"].unique())
    figure = panels([OBJECTIVE_LABELS[name] for name in objectives], shared_yaxes=True, horizontal_spacing=0.045)
    ends = {}
    for (objective, dynamic), run in runs.groupby(["objective", "dynamic"], sort=False):
        run = run.sort_values("step")
        for name, (label, colour) in lines.items():
            moved = run[f"logp_{name}"] - run[f"logp_{name}"].iloc[0]
            ends[objective, dynamic, name] = moved.iloc[-1]
            text, panel = label + ", DynamicPO" * (dynamic == "on"), 1 + objectives.index(objective)
            add_line(
                figure, run["step"], moved, label, colour, "dash" if dynamic == "on" else "solid",
                f"{text}, step %{{x}}: %{{y:+.2f}} nats", panel, showlegend=panel == 1 and dynamic == "off",
            )  # fmt: skip
    figure.add_hline(y=0, line={"color": FAINT, "width": 1.5}, layer="below")
    moves = [f"{label} {short(ends[objectives[0], 'off', name])}" for name, (label, _) in lines.items()]
    moved = ", ".join(moves).replace("-", "−")
    title = f"{OBJECTIVE_LABELS[objectives[0]]}: {moved} nats (dashed: under DynamicPO)"
    return lay_out(figure, 380, title, "step", ("log-prob since SFT, nats",), margin_t=92, legend_y=1.08)


def swap_intervals(intervals: Mapping[str, Interval], against: str, name: str) -> go.Figure:
    """HR@1 minus that of `against`, with 95 % intervals, one row each; the title gives the row `name`."""
    title, axis = f"{name}: {_points(intervals[name])}", f"test HR@1 minus {against}'s, points"
    return differences(intervals, title, axis, {row: COLOURS.get(row.split(":")[0]) for row in intervals})


def ranks_better(difference: Interval) -> str:
    """What an interval of differences of HR@1 shows about its left side."""
    if difference.low > 0:
        return "ranks better"
    return "ranks worse" if difference.high < 0 else "no difference that can be told from zero"


def swap_sentence(swap: Interval, full_weight: Interval | None = None, pairwise: Interval | None = None) -> str:
    """Describe the causal swap, in Markdown.

    swap: only boundary negatives, with DMPO's weight, minus DMPO. full_weight: only boundary negatives with their full
    weight minus the same with DMPO's. pairwise: all negatives with pairwise weights (DPO) minus DMPO. Without the
    latter two, only the first is described.
    """
    text = (
        "Take the easy negatives' pushes away and leave the boundary's as small as DMPO makes them: "
        f"against DMPO {_described(swap)}."
    )
    if full_weight is None or pairwise is None:
        return text
    added = {
        "ranks better": "The full weight on top adds more",
        "ranks worse": "The full weight on top costs something",
    }.get(ranks_better(full_weight), "The full weight on top adds nothing that can be told from zero")
    if full_weight.low >= -SAME and full_weight.high <= SAME:
        added += ", a point at most either way"
    text += f" {added}: {_points(full_weight)}. With all negatives pushed, by pairwise weights (DPO), against DMPO "
    text += f"{_described(pairwise)}."
    ruled_out = "does not hold DMPO back" if full_weight.high <= SAME else "is not shown to hold DMPO back, but may"
    conclusions = {  # by whether the swap helps, and whether the full weight does
        (True, False): f"in these runs the boundary's small weight by itself {ruled_out}. The pushes on the easy "
        "negatives beside it do.",
        (False, True): "in these runs the boundary's small weight holds the ranking down, with or without the easy "
        "negatives' pushes beside it.",
        (True, True): "in these runs both count: the easy negatives' pushes, and the boundary's small weight.",
        (False, False): "these runs do not show which of the two holds DMPO back.",
    }
    return f"{text} So {conclusions[swap.low > 0, full_weight.low > 0]}"


def alone_sentence(against_sft: Interval, against_dmpo: Interval) -> str:
    """Describe the last experiment, in Markdown: only easy negatives, with DMPO's weight, minus SFT and DMPO."""
    text = f"Easy negatives alone: against SFT {_described(against_sft)}; against DMPO {_described(against_dmpo)}. "
    if against_sft.high < 0:
        text += "They do harm of their own: with nobody to crowd out, they push the ranking below where it began."
    elif against_sft.low > 0:
        text += "They do no harm of their own: they improve the ranking that SFT left."
    else:
        text += "Harm of their own is not shown."
    if against_dmpo.high < 0:
        text += " And DMPO's pushes on the boundary, small as they are, do some good."
    return text


def _described(difference: Interval) -> str:
    words = ranks_better(difference)
    return f"{'it' if words.startswith('ranks') else 'there is'} **{words}**, {_points(difference)}"


def _points(difference: Interval) -> str:
    return points(*astuple(difference))
