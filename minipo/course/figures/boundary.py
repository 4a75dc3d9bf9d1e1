"""Figures of notebook 06: who is at the boundary, which cuts define it, and what training with it changes."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float, Int

from minipo.course.figures.style import DYNAMIC_COLOUR, FAINT, INK, OBJECTIVE_COLOURS, QUIET, as_text, lay_out, percent

BANDS = ("#EEF1F5", "#E0E5EC", "#D6E8F5")  # the groups, lowest to highest


def candidates_line(
    logps: Float[np.ndarray, " candidates"],
    names: Sequence[str],
    boundary: Bool[np.ndarray, " negatives"],
    groups: Int[np.ndarray, " negatives"] | None = None,
    span: tuple[float, float] | None = None,
) -> go.Figure:
    """One user's candidates on a line of log-probs, the chosen item first in `logps` and `names`.

    groups: each negative's group, 0 the lowest and the boundary the highest; None where negatives violate and the
    groups play no part. `span` fixes the axis while a slider moves.
    """
    chosen, negatives = logps[0], logps[1:]
    names = [as_text(name) for name in names]
    low, high = span or (logps.min() - 1, logps.max() + 1)
    middle = (low + high) / 2
    rows = np.argsort(np.argsort(-negatives, kind="stable"), kind="stable")
    violates = negatives >= chosen
    figure = go.Figure()
    for name, group, marker in (
        ("violates: in the boundary", violates, {"color": OBJECTIVE_COLOURS["dmpo"], "symbol": "diamond", "size": 13}),
        ("top group: in the boundary", boundary & ~violates, {"color": DYNAMIC_COLOUR, "size": 12}),
        ("left out", ~boundary, {"color": "white", "size": 11, "line": {"color": QUIET, "width": 1.5}}),
    ):
        figure.add_scatter(
            x=negatives[group], y=rows[group], mode="markers", name=name, marker=marker, showlegend=True,
            text=np.array(names[1:], object)[group], hovertemplate="%{text}: %{x:.1f} nats<extra></extra>",
        )  # fmt: skip
    if groups is not None:
        for group, colour in zip(np.unique(groups), BANDS[-len(np.unique(groups)) :], strict=True):
            ends = negatives[groups == group]
            box = {"x0": ends.min() - 0.12, "x1": ends.max() + 0.12, "fillcolor": colour, "line_width": 0}
            figure.add_vrect(**box, layer="below")
    for name, at, row, inside in zip(names[1:], negatives, rows, boundary, strict=True):
        side = {"xanchor": "right", "xshift": -10} if at > middle else {"xanchor": "left", "xshift": 10}
        figure.add_annotation(x=at, y=row, text=name, font={"color": INK if inside else QUIET}, **side)
    figure.add_vline(
        x=chosen, line={"color": INK, "width": 2, "dash": "dash"}, annotation_text=f"chosen: {names[0]}",
        annotation_position="bottom left" if chosen > middle else "bottom right",
    )  # fmt: skip
    why = "by violation" if violates.any() else "the top group"
    title = f"{int(boundary.sum())} of {len(negatives)} negatives at the boundary, {why}"
    rows_axis = {"visible": False, "range": [len(negatives) + 0.4, -0.7]}
    height = 135 + 26 * len(negatives)
    return lay_out(figure, height, title, "log-prob s, nats", xaxis_range=[low, high], yaxis=rows_axis)


def cost_of_cuts(
    cost: Float[np.ndarray, " cuts"], first: Int[np.ndarray, " cuts"], second: Int[np.ndarray, " cuts"], number: int
) -> go.Figure:
    """The cost of every pair of cuts of `number` sorted values: after the `first` lowest, and after the `second`."""
    table = np.full((number, number), np.nan)
    table[second, first] = cost
    best = int(np.argmin(cost))
    figure = go.Figure().add_heatmap(
        z=table[1:, 1:], x0=1, y0=1, colorscale="Blues", colorbar={"title": {"text": "nats²"}},
        hovertemplate="cuts after %{x} and %{y}: %{z:.1f} nats²<extra></extra>", hoverongaps=False,
    )  # fmt: skip
    mark = {"symbol": "x", "size": 12, "color": OBJECTIVE_COLOURS["dmpo"]}
    at = {"x": [first[best]], "y": [second[best]]}
    figure.add_scatter(**at, mode="markers", marker=mark, hoverinfo="skip", showlegend=False)
    sizes = f"{first[best]}, {second[best] - first[best]} and {number - second[best]}"
    title = f"The best of {len(cost)} pairs of cuts (×) makes groups of {sizes}"
    return lay_out(figure, 360, title, "first cut: after this many of the lowest", "second cut", width=560, margin_t=42)


def missed_optimum(shares: Mapping[int, float], starts: int) -> go.Figure:
    """Share of random rows for which a one-start k-means finds a wrong top group, by the number of negatives K."""
    worst = max(shares, key=lambda number: shares[number])
    figure = go.Figure().add_bar(
        x=[f"K = {number}" for number in shares], y=[100 * share for share in shares.values()], width=0.5,
        marker_color=QUIET, text=[percent(share) for share in shares.values()], textposition="outside",
        cliponaxis=False,
    )  # fmt: skip
    missed = f"in up to {percent(shares[worst])} of rows (K = {worst}, {starts:,} rows)"
    title = f"One start misses the best top group {missed}"
    return lay_out(figure, 280, title, y="% of random rows", margin_t=50, yaxis_rangemode="tozero")


def truth_by_group(likelier: Mapping[str, tuple[int, int]]) -> go.Figure:
    """Share of each group's negatives that are at least as likely as the chosen item under the oracle.

    likelier: by group, how many are, and how many there are in all.
    """
    shares = {name: yes / all_ for name, (yes, all_) in likelier.items()}
    first = next(iter(likelier))
    figure = go.Figure().add_bar(
        y=list(shares), x=[100 * share for share in shares.values()], orientation="h", width=0.55,
        marker_color=[OBJECTIVE_COLOURS["dmpo"], DYNAMIC_COLOUR, *[FAINT] * len(shares)][: len(shares)],
        text=[f"{100 * shares[name]:.1f} %: {yes:,} of {all_:,}" for name, (yes, all_) in likelier.items()],
        textposition="outside", cliponaxis=False,
    )  # fmt: skip
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(autorange="reversed")
    title = f"Of the {first}, {percent(shares[first])} are truly at least as likely as the chosen item"
    return lay_out(figure, 120 + 42 * len(shares), title, "% of the group's negatives", margin_r=130)
