"""Figures of notebook 07: dual-margin β over its two margins, and what it makes of the push."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Float

from minipo.course.figures.style import DYNAMIC_COLOUR, FAINT, INK, OBJECTIVE_COLOURS, QUIET, TEMPLATE, short

PLUS = "Δ⁺ = s<sub>w</sub> − s<sub>k</sub>, nats"
MINUS = "Δ⁻ = s<sub>k</sub> − m, nats"
RATIO = "β<sub>k</sub> / β"
VIOLATION, TOP = OBJECTIVE_COLOURS["dmpo"], DYNAMIC_COLOUR  # the two ways to the boundary, as in notebook 06


def _boundary_dots(
    plus: Float[np.ndarray, " negatives"],
    minus: Float[np.ndarray, " negatives"],
    violates: Bool[np.ndarray, " negatives"],
) -> list[go.Scatter]:
    return [
        go.Scatter(
            x=plus[group], y=minus[group], mode="markers", name=name, hovertemplate="Δ⁺ %{x:.1f}, Δ⁻ %{y:.1f}",
            marker={"color": colour, "symbol": symbol, "size": 7, "line": {"color": "white", "width": 0.7}},
        )
        for name, group, colour, symbol in (
            ("violations", violates, VIOLATION, "diamond"), ("top groups", ~violates, TOP, "circle"),
        )
    ]  # fmt: skip


def beta_map(
    plus: Float[np.ndarray, " columns"],
    minus: Float[np.ndarray, " rows"],
    ratio: Float[np.ndarray, "rows columns"],
    title: str,
    dots: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> go.Figure:
    """β_k/β over the two margins, white where β stays as it is; the box is where violations are, Δ⁺ ≤ 0 ≤ Δ⁻.

    dots: Δ⁺, Δ⁻ and whether it violates, for each negative of a real boundary.
    """
    figure = go.Figure()
    figure.add_heatmap(
        x=plus, y=minus, z=ratio, zmin=0.5, zmid=1, zmax=1.5, colorscale="PuOr",
        colorbar={"title": {"text": RATIO}, "tickvals": [0.5, 0.75, 1, 1.25, 1.5]},
        hovertemplate="Δ⁺ %{x:.1f}, Δ⁻ %{y:.1f}: %{z:.2f} β<extra></extra>",
    )  # fmt: skip
    figure.add_trace(
        go.Contour(
            x=plus, y=minus, z=ratio, contours={"start": 1, "end": 1, "size": 1, "coloring": "none"},
            line={"color": INK, "width": 1.5, "dash": "dot"}, showscale=False, hoverinfo="skip", showlegend=False,
        )
    )  # fmt: skip
    if dots is not None:
        inside = (dots[0] >= plus[0]) & (dots[0] <= plus[-1]) & (dots[1] >= minus[0]) & (dots[1] <= minus[-1])
        figure.add_traces(_boundary_dots(*(each[inside] for each in dots)))
    figure.add_shape(
        type="rect", x0=plus[0], x1=0, y0=0, y1=minus[-1], line={"color": INK, "width": 1.5}, fillcolor="rgba(0,0,0,0)"
    )
    figure.add_annotation(
        x=plus[0],
        y=minus[-1],
        text="violations live here",
        font={"color": "white"},
        xanchor="left",
        yanchor="top",
        xshift=6,
    )
    figure.update_layout(
        template=TEMPLATE,
        height=440,
        width=680,
        title={"text": title, "x": 0},
        margin={"t": 66},
        legend={"y": 1.01},
        xaxis={"title": {"text": PLUS}, "range": [plus[0], plus[-1]]},
        yaxis={"title": {"text": MINUS}, "range": [minus[0], minus[-1]]},
    )
    return figure


def push_by_rule(pushes: pd.DataFrame) -> go.Figure:
    """Mean push on the negatives of each group (columns) under each rule (rows).

    The title compares the first two groups under the last two rules.
    """
    groups = list(pushes.columns)
    colours = dict(zip(groups, (VIOLATION, TOP, FAINT), strict=False))
    figure = go.Figure()
    for group in groups:
        figure.add_bar(
            x=list(pushes.index), y=pushes[group], name=group, marker_color=colours.get(group, FAINT),
            text=[short(value) for value in pushes[group]], textposition="outside", cliponaxis=False,
        )  # fmt: skip
    times = {rule: short(row[groups[0]] / row[groups[1]]) for rule, row in pushes.iterrows()}
    *_, before, last = times
    figure.update_layout(
        template=TEMPLATE,
        height=330,
        title={
            "text": f"{groups[0].capitalize()} over {groups[1]}: "
            f"{before} {times[before]} times, {last} {times[last]} times",
            "x": 0,
            "font": {"size": 16},
        },
        margin={"t": 70},
        barmode="group",
        legend={"y": 1.01},
        yaxis={"title": {"text": "mean push per negative"}, "rangemode": "tozero"},
    )
    return figure


def push_against_gap(gap: Float[np.ndarray, " gaps"], push: Mapping[float, np.ndarray], crossing: float) -> go.Figure:
    """Push on a lone negative against its log-ratio gap, a line for each β; `crossing` is where they swap."""
    colours = (OBJECTIVE_COLOURS["dmpo"], DYNAMIC_COLOUR, QUIET)
    betas = sorted(push, reverse=True)
    figure = go.Figure()
    for beta, colour in zip(betas, colours, strict=False):
        figure.add_scatter(
            x=gap, y=push[beta], mode="lines", name=f"β<sub>k</sub> = {beta:.2f}",
            line={"color": colour, "width": 2.5},
        )  # fmt: skip
    figure.add_vline(x=crossing, line={"color": FAINT, "dash": "dash", "width": 1.5})
    figure.update_layout(
        template=TEMPLATE,
        height=300,
        title={"text": f"A smaller β pushes less up to a gap of {crossing:.1f} nats, and more beyond", "x": 0},
        margin={"t": 66},
        legend={"y": 1.01},
        xaxis={"title": {"text": "log-ratio gap ρ<sub>w</sub> − ρ<sub>k</sub>, nats"}},
        yaxis={"title": {"text": "push β<sub>k</sub> σ(−β<sub>k</sub> gap)"}, "rangemode": "tozero"},
    )
    return figure


def beta_against_margin(table: pd.DataFrame, marked: Sequence[float]) -> go.Figure:
    """Mean β_k/β of violations and top groups (columns) against γ (index); `marked` are the values in use."""
    figure = go.Figure()
    for name, colour in zip(table.columns, (VIOLATION, TOP), strict=True):
        figure.add_scatter(
            x=table.index, y=table[name], mode="lines", name=name, line={"color": colour, "width": 2.5}
        )  # fmt: skip
    for value in marked:
        figure.add_vline(x=value, line={"color": FAINT, "dash": "dash", "width": 1.5}, annotation_text=f"γ = {value:g}")
    figure.add_hline(y=0.5, line={"color": QUIET, "dash": "dot", "width": 1.5})
    gaps = (table.iloc[:, 0] - table.iloc[:, 1]).abs()
    figure.update_layout(
        template=TEMPLATE,
        height=320,
        title={"text": f"The groups' β are {short(gaps.iloc[0])} apart at γ = {table.index[0]:g}, "
                       f"{short(gaps.iloc[-1])} at γ = {table.index[-1]:g}", "x": 0},
        margin={"t": 70},
        legend={"y": 1.01},
        xaxis={"title": {"text": "margin γ, nats"}},
        yaxis={"title": {"text": f"mean {RATIO}"}, "range": [0.45, max(1.1, table.max().max() + 0.05)]},
    )  # fmt: skip
    return figure


def beta_over_training(table: pd.DataFrame) -> go.Figure:
    """Mean β_k/β of violations, of top groups and of both (columns) over a run's steps (index)."""
    figure = go.Figure()
    for name, colour in zip(table.columns, (VIOLATION, TOP, INK), strict=True):
        both = name == table.columns[-1]
        figure.add_scatter(
            x=table.index, y=table[name], mode="lines+markers", name=name,
            line={"color": INK if both else colour, "width": 2.5, "dash": "dash" if both else "solid"},
        )  # fmt: skip
    last = table.iloc[:, -1]
    figure.update_layout(
        template=TEMPLATE,
        height=320,
        title={"text": f"The boundary's mean β<sub>k</sub>/β: {last.iloc[0]:.2f} at step {last.index[0]}, "
                       f"{last.iloc[-1]:.2f} at step {last.index[-1]}", "x": 0},
        margin={"t": 66},
        legend={"y": 1.01},
        xaxis={"title": {"text": "step"}},
        yaxis={"title": {"text": RATIO}, "range": [0.45, 1.05]},
    )  # fmt: skip
    return figure
