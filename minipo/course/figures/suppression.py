"""Gradient suppression (notebook 04 and the app's page): gaps that open, pushes by group over training and against K,
one user's negatives, and the causal swap.

Tables are those of `diagnostics`; groups of negatives are drawn alike everywhere, the boundary dark and the easy
(discriminative) ones grey.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minipo.course.figures.style import (
    FAINT,
    INK,
    MARGIN,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    TEMPLATE,
    differences,
    points,
    short,
)
from minipo.evaluation import Interval

# Label, colour and marker of a group.
GROUPS = {"boundary": ("boundary", INK, "diamond"), "discriminative": ("easy", "#7F8A9A", "circle")}
SAME = 0.01  # of HR@1: an interval that stays inside ± this shows that two sides rank alike
# Rows of `swap_intervals` that have a colour elsewhere.
COLOURS = {"DPO": OBJECTIVE_COLOURS["dpo"], "selection alone": "#56B4E9", "SFT": QUIET}


def gaps_opening(groups: pd.DataFrame) -> go.Figure:
    """Each group's mean log-ratio gap over the steps of a run; the title says how far each got.

    groups: `by_group(..., "boundary_at_start")`, so that a group's members stay the same.
    """
    last = groups[groups["step"] == groups["step"].max()].set_index("group")["gap"]
    figure = go.Figure()
    for group, (label, colour, symbol) in GROUPS.items():
        lines = groups[groups["group"] == group]
        figure.add_scatter(
            x=lines["step"], y=lines["gap"], name=f"{label} negatives", mode="lines+markers",
            line={"color": colour, "width": 2.5}, marker={"symbol": symbol, "size": 7},
            hovertemplate=f"{label}, step %{{x}}: %{{y:.2f}} nats<extra></extra>",
        )  # fmt: skip
    title = (
        f"From 0, the easy negatives' gap opens to {short(last['discriminative'])} nats, "
        f"the boundary's to {short(last['boundary'])}"
    )
    figure.update_layout(template=TEMPLATE, height=330, title=_title(title), margin={"t": 74})
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="mean gap ρ<sub>chosen</sub> − ρ<sub>negative</sub>, nats")
    return figure


def push_parts(shared: pd.DataFrame, own: pd.DataFrame) -> go.Figure:
    """Dilution × saturation = push, by group over the steps: DMPO's shared sigmoid, and dotted, on the same log-probs,
    a sigmoid for each negative (DPO's weights).

    shared, own: `by_group(..., "boundary_at_start")` of the same probe.
    """
    figure = make_subplots(
        rows=1, cols=3, horizontal_spacing=0.11, subplot_titles=("dilution", "× saturation", "= push on one negative")
    )
    for kind, table, dash in (("DMPO", shared, "solid"), ("a sigmoid of its own", own, "dot")):
        for group, (label, colour, _) in GROUPS.items():
            lines = table[table["group"] == group]
            for column, name in enumerate(("dilution", "saturation", "push"), start=1):
                figure.add_scatter(
                    x=lines["step"], y=lines[name], name=f"{label}, {kind}", legendgroup=f"{label}, {kind}",
                    showlegend=column == 1, mode="lines", line={"color": colour, "width": 2.5, "dash": dash},
                    hovertemplate=f"{label}, {kind}, step %{{x}}: %{{y:.4f}}<extra></extra>", row=1, col=column,
                )  # fmt: skip
    begin, end = (shared[shared["step"] == step].set_index("group")["push"] for step in (0, shared["step"].max()))
    falls = [f"{short(begin[group] / end[group])}-fold on {label} negatives" for group, (label, _, _) in GROUPS.items()]
    title = f"DMPO's push falls {falls[0]}, {falls[1]}: all of it saturation"
    figure.update_layout(template=TEMPLATE, height=370, title=_title(title), margin={"t": 84})
    figure.update_layout(legend={"y": -0.2, "yanchor": "top"})
    figure.update_annotations(font_size=15)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(rangemode="tozero", nticks=5)
    figure.update_yaxes(title_text="share of z", row=1, col=1)
    figure.update_yaxes(title_text="σ(−z), or σ(−d<sub>k</sub>)", row=1, col=2)
    figure.update_yaxes(title_text="∂loss / ∂s<sub>k</sub>", row=1, col=3)
    return figure


def one_user(negatives: pd.DataFrame, objective: str, beta: float) -> go.Figure:
    """One user's negatives at one step, by margin: the margins on the left, each one's push on the right.

    negatives: rows of `pushes`, with their item, gap, logp_gap, boundary, push, dilution and saturation. A negative
    ranked at or above the chosen item is a mistake, and drawn larger.
    """
    rows = negatives.sort_values("gap", ascending=False)
    group = np.where(rows["boundary"], "boundary", "discriminative")
    mistake = rows["logp_gap"].to_numpy() <= 0
    colours = [GROUPS[name][1] for name in group]
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, column_widths=[0.5, 0.5], horizontal_spacing=0.03,
        subplot_titles=("Margin to the chosen item", "Push"),
    )  # fmt: skip
    names = [f"<b>{item}</b>" if wrong else item for item, wrong in zip(rows["item"], mistake, strict=True)]
    figure.add_scatter(
        x=beta * rows["gap"], y=names, mode="markers", showlegend=False, row=1, col=1,
        marker={
            "color": colours, "size": np.where(mistake, 14, 9), "symbol": [GROUPS[name][2] for name in group],
            "opacity": 1,
        },
        hovertemplate="%{y}: margin %{x:.2f}<extra></extra>",
    )  # fmt: skip
    told = [
        f"{item}: {row.push:.4f} = {row.dilution:.4f} (dilution) × {row.saturation:.4f} (saturation) × β"
        for item, row in zip(rows["item"], rows.itertuples(), strict=True)
    ]
    figure.add_bar(
        x=rows["push"], y=names, orientation="h", marker={"color": colours}, showlegend=False, row=1, col=2,
        text=[short(value) for value in rows["push"]], textposition="outside", cliponaxis=False,
        hovertext=told, hoverinfo="text",
    )  # fmt: skip
    for label, colour, symbol in GROUPS.values():  # the legend alone
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=f"{label} negative", row=1, col=1,
            marker={"color": colour, "symbol": symbol, "size": 9},
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": FAINT, "width": 1.5}, row=1, col=1)
    low, high = rows["push"].min(), rows["push"].max()
    label = OBJECTIVE_LABELS[objective]
    title = f"{label} pushes every negative alike: {short(high)}" if high - low <= 1e-9 * high else (
        f"{label}'s pushes run from {short(low)} to {short(high)}"
    )  # fmt: skip
    figure.update_layout(template=TEMPLATE, height=150 + 21 * len(rows), title=_title(title), margin={"t": 92})
    figure.update_layout(legend={"y": 1 + 26 / (21 * len(rows))})
    figure.update_annotations(font_size=15)
    figure.update_xaxes(title_text=MARGIN, row=1, col=1)
    figure.update_xaxes(title_text="∂loss / ∂s<sub>k</sub>", range=[0, 1.28 * high], row=1, col=2)
    return figure


def boundary_shares(parts: Mapping[int, pd.DataFrame]) -> go.Figure:
    """The boundary's part over the steps: of the negatives, of the sum of all pushes, and of the parameters' gradient.

    parts: step to `gradient_parts`' table.
    """
    steps = sorted(parts)
    table = pd.concat({step: parts[step].set_index("group") for step in steps}, names=["step"]).reset_index()
    boundary = table[table["group"] == "boundary"].set_index("step")
    count = boundary["negatives"] / table.groupby("step")["negatives"].sum()
    shares = {
        "of the negatives": (100 * count, FAINT, "dot"),
        "of the sum of all pushes": (100 * boundary["push_share"], QUIET, "dash"),
        "of the parameters' gradient, projected": (100 * boundary["share"], INK, "solid"),
    }
    figure = go.Figure()
    for name, (values, colour, dash) in shares.items():
        figure.add_scatter(
            x=steps, y=values, name=name, mode="lines+markers", line={"color": colour, "width": 2.5, "dash": dash},
            marker={"size": 7}, hovertemplate=f"%{{y:.0f}} % {name}<extra></extra>",
        )  # fmt: skip
    at_end = [f"{values.iloc[-1]:.0f} %" for values, _, _ in shares.values()]
    title = f"The boundary at step {steps[-1]}: {at_end[0]} of the negatives, {at_end[1]} of the pushes, " + (
        f"{at_end[2]} of the gradient"
    )
    figure.update_layout(template=TEMPLATE, height=340, title=_title(title), margin={"t": 74})
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="boundary negatives' part, %", range=[0, 100])
    return figure


def swap_intervals(intervals: Mapping[str, Interval], against: str, name: str) -> go.Figure:
    """HR@1 minus that of `against`, with 95 % intervals, a row each from above; the title tells the row `name`."""
    chosen = intervals[name]
    return differences(
        intervals,
        f"{name}: {points(chosen.mean, chosen.low, chosen.high)}",
        f"test HR@1 minus {against}'s, points",
        {row: COLOURS.get(row.split(":")[0]) for row in intervals},
    )


def ranks_better(difference: Interval) -> str:
    """What an interval of differences of HR@1 lets one say of its left side."""
    if difference.low > 0:
        return "ranks better"
    return "ranks worse" if difference.high < 0 else "no difference that can be told from zero"


def swap_sentence(swap: Interval, full_weight: Interval | None = None, pairwise: Interval | None = None) -> str:
    """Read the causal swap aloud, in Markdown.

    swap: boundary negatives alone, with DMPO's weight, minus DMPO. full_weight: boundary negatives alone with their
    full weight minus the same with DMPO's. pairwise: all negatives with pairwise weights (DPO) minus DMPO. Without the
    latter two, only the first is said.
    """
    text = (
        "Take the easy negatives' pushes away and leave the boundary's as small as DMPO makes them: "
        f"against DMPO {_told(swap)}."
    )
    if full_weight is None or pairwise is None:
        return text
    added = {
        "ranks better": "The full weight on top brings more",
        "ranks worse": "The full weight on top costs something",
    }.get(ranks_better(full_weight), "The full weight on top adds nothing that can be told from zero")
    if full_weight.low >= -SAME and full_weight.high <= SAME:
        added += ", a point at most either way"
    text += f" {added}: {_points(full_weight)}. With all negatives pushed, by pairwise weights (DPO), against DMPO "
    text += f"{_told(pairwise)}."
    if swap.low > 0 and full_weight.low <= 0:
        ruled_out = "does not hold" if full_weight.high <= SAME else "is not shown to hold"
        but = "" if full_weight.high <= SAME else ", but may"
        return text + (
            f" So in these runs the boundary's small weight, taken alone, {ruled_out} DMPO back{but}. The pushes on "
            "the easy negatives beside it do."
        )
    if full_weight.low > 0 and swap.low <= 0:
        return text + (
            " So in these runs the boundary's small weight holds the ranking down, with or without the easy negatives' "
            "pushes beside it."
        )
    if full_weight.low > 0:
        return text + " So in these runs both count: the easy negatives' pushes, and the boundary's small weight."
    return text + " So these runs do not tell which of the two holds DMPO back."


def alone_sentence(against_sft: Interval, against_dmpo: Interval) -> str:
    """Read the last experiment aloud, in Markdown: easy negatives alone, with DMPO's weight, minus SFT and DMPO."""
    text = f"Easy negatives alone: against SFT {_told(against_sft)}; against DMPO {_told(against_dmpo)}. "
    if against_sft.high < 0:
        text += "They do harm of their own: with nobody to crowd out, they bring the ranking below where it began."
    elif against_sft.low > 0:
        text += "They do no harm of their own: they improve the ranking that SFT left."
    else:
        text += "Harm of their own is not shown."
    if against_dmpo.high < 0:
        text += " And DMPO's pushes on the boundary, small as they are, do some good."
    return text


def _told(difference: Interval) -> str:
    words = ranks_better(difference)
    return f"{'it' if words.startswith('ranks') else 'there is'} **{words}**, {_points(difference)}"


def _points(difference: Interval) -> str:
    return points(difference.mean, difference.low, difference.high)


def _title(text: str) -> dict[str, object]:
    return {"text": text, "x": 0, "xanchor": "left", "y": 0.98, "yanchor": "top", "font": {"size": 16}}


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"
