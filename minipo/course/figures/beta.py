"""Figures of notebook 07: dual-margin β over its two margins, and its effect on the push."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from minipo.course.figures.style import DYNAMIC_COLOUR, FAINT, INK, OBJECTIVE_COLOURS, QUIET, add_line, lay_out, short

RATIO = "β<sub>k</sub> / β"
VIOLATION, TOP = OBJECTIVE_COLOURS["dmpo"], DYNAMIC_COLOUR  # the two ways to the boundary, as in notebook 06
MARK = {"color": FAINT, "dash": "dash", "width": 1.5}


def beta_map(
    plus: Float[np.ndarray, " columns"],
    minus: Float[np.ndarray, " rows"],
    ratio: Float[np.ndarray, "rows columns"],
    title: str,
    dots: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> go.Figure:
    """β_k/β over the two margins, white where β is unchanged; violations are inside the box, Δ⁺ ≤ 0 ≤ Δ⁻.

    dots: Δ⁺, Δ⁻ and whether it is a violation, for each negative of a real boundary.
    """
    figure = go.Figure().add_heatmap(
        x=plus, y=minus, z=ratio, zmin=0.5, zmid=1, zmax=1.5, colorscale="PuOr",
        colorbar={"title": {"text": RATIO}, "tickvals": [0.5, 0.75, 1, 1.25, 1.5]},
        hovertemplate="Δ⁺ %{x:.1f}, Δ⁻ %{y:.1f}: %{z:.2f} β<extra></extra>",
    )  # fmt: skip
    figure.add_contour(
        x=plus, y=minus, z=ratio, contours={"start": 1, "end": 1, "size": 1, "coloring": "none"},
        line={"color": INK, "width": 1.5, "dash": "dot"}, showscale=False, hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    if dots is not None:
        x, y, violates = dots
        inside = (x >= plus[0]) & (x <= plus[-1]) & (y >= minus[0]) & (y <= minus[-1])
        for name, group, colour, symbol in (
            ("violations", violates, VIOLATION, "diamond"), ("top groups", ~violates, TOP, "circle"),
        ):  # fmt: skip
            figure.add_scatter(
                x=x[inside & group], y=y[inside & group], mode="markers", name=name,
                hovertemplate="Δ⁺ %{x:.1f}, Δ⁻ %{y:.1f}",
                marker={"color": colour, "symbol": symbol, "size": 7, "line": {"color": "white", "width": 0.7}},
            )  # fmt: skip
    box = {"x0": plus[0], "x1": 0, "y0": 0, "y1": minus[-1], "fillcolor": "rgba(0,0,0,0)"}
    figure.add_shape(type="rect", line={"color": INK, "width": 1.5}, **box)
    corner = {"x": plus[0], "y": minus[-1], "xanchor": "left", "yanchor": "top", "xshift": 6}
    figure.add_annotation(text="violations are here", font={"color": "white"}, **corner)
    right, upwards = [plus[0], plus[-1]], [minus[0], minus[-1]]
    axes = "Δ⁺ = s<sub>w</sub> − s<sub>k</sub>, nats", "Δ⁻ = s<sub>k</sub> − m, nats"
    return lay_out(figure, 440, title, *axes, width=680, margin_t=66, xaxis_range=right, yaxis_range=upwards)


def push_by_rule(pushes: pd.DataFrame) -> go.Figure:
    """Mean push on the negatives of each group (columns) under each rule (rows).

    The title compares the first two groups under the last two rules.
    """
    one, other = pushes.columns[:2]
    figure = go.Figure()
    for group, colour in zip(pushes, (VIOLATION, TOP, FAINT, *[FAINT] * pushes.shape[1]), strict=False):
        figure.add_bar(
            x=list(pushes.index), y=pushes[group], name=group, marker_color=colour,
            text=[short(value) for value in pushes[group]], textposition="outside", cliponaxis=False,
        )  # fmt: skip
    *_, before, last = ((rule, short(row[one] / row[other])) for rule, row in pushes.iterrows())
    title = f"{one.capitalize()} over {other}: {before[0]} {before[1]} times, {last[0]} {last[1]} times"
    return lay_out(figure, 330, title, y="mean push per negative", barmode="group", yaxis_rangemode="tozero")


def push_against_gap(gap: Float[np.ndarray, " gaps"], push: Mapping[float, np.ndarray], crossing: float) -> go.Figure:
    """Push on a single negative against its log-ratio gap, one line per β; the lines cross at `crossing`."""
    figure = go.Figure()
    for beta, colour in zip(sorted(push, reverse=True), (VIOLATION, TOP, QUIET), strict=False):
        add_line(figure, gap, push[beta], f"β<sub>k</sub> = {beta:.2f}", colour)
    figure.add_vline(x=crossing, line=MARK)
    title = f"A smaller β pushes less up to a gap of {crossing:.1f} nats, and more beyond"
    axes = "log-ratio gap ρ<sub>w</sub> − ρ<sub>k</sub>, nats", "push β<sub>k</sub> σ(−β<sub>k</sub> gap)"
    return lay_out(figure, 300, title, *axes, yaxis_rangemode="tozero")


def beta_against_margin(table: pd.DataFrame, marked: Sequence[float]) -> go.Figure:
    """Mean β_k/β of violations and top groups (columns) against γ (index); `marked` are the values in use."""
    figure = go.Figure()
    for name, colour in zip(table.columns, (VIOLATION, TOP), strict=True):
        add_line(figure, table.index, table[name], name, colour)
    for value in marked:
        figure.add_vline(x=value, line=MARK, annotation_text=f"γ = {value:g}")
    figure.add_hline(y=0.5, line={"color": QUIET, "dash": "dot", "width": 1.5})
    ends = [0.45, max(1.1, table.max().max() + 0.05)]
    first, last = (short(abs(row.iloc[0] - row.iloc[1])) for _, row in table.iloc[[0, -1]].iterrows())
    title = f"The groups' β are {first} apart at γ = {table.index[0]:g}, {last} at γ = {table.index[-1]:g}"
    return lay_out(figure, 320, title, "margin γ, nats", f"mean {RATIO}", margin_t=70, yaxis_range=ends)


def beta_over_training(table: pd.DataFrame) -> go.Figure:
    """Mean β_k/β of violations, of top groups and of both (columns) over a run's steps (index)."""
    figure = go.Figure()
    for name, colour, dash in zip(table.columns, (VIOLATION, TOP, INK), ("solid", "solid", "dash"), strict=True):
        add_line(figure, table.index, table[name], name, colour, dash, marker={})
    last = table.iloc[:, -1]
    first, end = (f"{last.iloc[at]:.2f} at step {last.index[at]}" for at in (0, -1))
    title = f"The boundary's mean β<sub>k</sub>/β: {first}, {end}"
    return lay_out(figure, 320, title, "step", RATIO, yaxis_range=[0.45, 1.05])
