"""Figures of notebook 06: who is at the boundary, which cuts make it, and what training with it alone changes."""

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float, Int

from minipo.course.figures.style import DYNAMIC_COLOUR, FAINT, INK, OBJECTIVE_COLOURS, QUIET, TEMPLATE, as_text

LOGP = "log-prob s, nats"
TOP = {"y": 1, "yanchor": "top", "pad": {"t": 10}}  # a title above a legend, whatever the height
BANDS = ("#EEF1F5", "#E0E5EC", "#D6E8F5")  # the groups, lowest to highest


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def candidates_line(
    logps: Float[np.ndarray, " candidates"],
    names: Sequence[str],
    boundary: Bool[np.ndarray, " negatives"],
    groups: Int[np.ndarray, " negatives"] | None = None,
    span: tuple[float, float] | None = None,
) -> go.Figure:
    """One user's candidates on a line of log-probs, the chosen item first in `logps` and `names`.

    groups: each negative's, 0 the lowest, where the boundary is the highest of them; None where negatives violate, and
    the groups play no part. `span` keeps the axis still while a slider moves.
    """
    chosen, negatives = logps[0], logps[1:]
    names = [as_text(name) for name in names]
    low, high = span or (logps.min() - 1, logps.max() + 1)
    order = np.argsort(-negatives, kind="stable")
    rows = np.empty(len(order), int)
    rows[order] = np.arange(len(order))
    violates = negatives >= chosen
    figure = go.Figure()
    for name, group, marker in (
        ("violates: in the boundary", violates, {"color": OBJECTIVE_COLOURS["dmpo"], "symbol": "diamond", "size": 13}),
        ("top group: in the boundary", boundary & ~violates, {"color": DYNAMIC_COLOUR, "size": 12}),
        ("left out", ~boundary, {"color": "white", "size": 11, "line": {"color": QUIET, "width": 1.5}}),
    ):
        figure.add_scatter(
            x=negatives[group], y=rows[group], mode="markers", name=name, marker=marker, showlegend=True,
            text=[name for name, inside in zip(names[1:], group, strict=True) if inside],
            hovertemplate="%{text}: %{x:.1f} nats<extra></extra>",
        )  # fmt: skip
    if groups is not None:
        for group, colour in zip(np.unique(groups), BANDS[-len(np.unique(groups)) :], strict=True):
            inside = negatives[groups == group]
            figure.add_vrect(
                x0=inside.min() - 0.12, x1=inside.max() + 0.12, fillcolor=colour, line_width=0, layer="below"
            )
    for name, at, row, inside in zip(names[1:], negatives, rows, boundary, strict=True):
        figure.add_annotation(
            x=at, y=row, text=name, xanchor="right" if at > (low + high) / 2 else "left",
            xshift=-10 if at > (low + high) / 2 else 10, font={"color": INK if inside else QUIET},
        )  # fmt: skip
    figure.add_vline(
        x=chosen, line={"color": INK, "width": 2, "dash": "dash"}, annotation_text=f"chosen: {names[0]}",
        annotation_position="bottom left" if chosen > (low + high) / 2 else "bottom right",
    )  # fmt: skip
    count = int(boundary.sum())
    why = "by violation" if violates.any() else "the top group"
    figure.update_layout(
        template=TEMPLATE,
        height=135 + 26 * len(negatives),
        title={"text": f"{count} of {len(negatives)} negatives at the boundary, {why}", "x": 0, **TOP},
        margin={"t": 66},
        xaxis={"range": [low, high], "title": {"text": LOGP}},
        yaxis={"visible": False, "range": [len(negatives) + 0.4, -0.7]},
    )
    return figure


def cost_of_cuts(
    cost: Float[np.ndarray, " cuts"], first: Int[np.ndarray, " cuts"], second: Int[np.ndarray, " cuts"], number: int
) -> go.Figure:
    """The cost of every pair of cuts of `number` sorted values: behind the `first` lowest, and behind the `second`."""
    table = np.full((number, number), np.nan)
    table[second, first] = cost
    best = int(np.argmin(cost))
    sizes = (first[best], second[best] - first[best], number - second[best])
    figure = go.Figure()
    figure.add_heatmap(
        z=table[1:, 1:], x0=1, y0=1, colorscale="Blues", colorbar={"title": {"text": "nats²"}},
        hovertemplate="cuts behind %{x} and %{y}: %{z:.1f} nats²<extra></extra>", hoverongaps=False,
    )  # fmt: skip
    figure.add_scatter(
        x=[first[best]], y=[second[best]], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"symbol": "x", "size": 12, "color": OBJECTIVE_COLOURS["dmpo"]},
    )  # fmt: skip
    figure.update_layout(
        template=TEMPLATE,
        height=360,
        width=560,
        title={"text": f"The best of {len(cost)} pairs of cuts (×) makes groups of {sizes[0]}, {sizes[1]} and "
                       f"{sizes[2]}", "x": 0},
        margin={"t": 42},
        xaxis={"title": {"text": "first cut: behind so many of the lowest"}},
        yaxis={"title": {"text": "second cut"}},
    )  # fmt: skip
    return figure


def missed_optimum(shares: Mapping[int, float], starts: int) -> go.Figure:
    """Share of random rows whose top group a one-start k-means gets wrong, by the number of negatives K."""
    worst = max(shares, key=lambda number: shares[number])
    figure = go.Figure()
    figure.add_bar(
        x=[f"K = {number}" for number in shares], y=[100 * share for share in shares.values()], width=0.5,
        marker_color=QUIET, text=[_percent(share) for share in shares.values()], textposition="outside",
        cliponaxis=False,
    )  # fmt: skip
    figure.update_layout(
        template=TEMPLATE,
        height=280,
        title={"text": f"One start misses the best top group in up to {_percent(shares[worst])} of rows "
                       f"(K = {worst}, {starts:,} rows)", "x": 0},
        margin={"t": 50},
        yaxis={"title": {"text": "% of random rows"}, "rangemode": "tozero"},
    )  # fmt: skip
    return figure


def truth_by_group(likelier: Mapping[str, tuple[int, int]]) -> go.Figure:
    """Share of each group's negatives that the oracle holds at least as likely as the chosen item.

    likelier: by group, how many are, and how many there are in all.
    """
    shares = {name: 100 * yes / all_ for name, (yes, all_) in likelier.items()}
    first = next(iter(likelier))
    yes, all_ = likelier[first]
    figure = go.Figure()
    figure.add_bar(
        y=list(shares), x=list(shares.values()), orientation="h", width=0.55,
        marker_color=[OBJECTIVE_COLOURS["dmpo"], DYNAMIC_COLOUR, FAINT, *[FAINT] * len(shares)][: len(shares)],
        text=[f"{share:.1f} %: {yes:,} of {all_:,}" for share, (yes, all_) in
              zip(shares.values(), likelier.values(), strict=True)],
        textposition="outside", cliponaxis=False,
    )  # fmt: skip
    figure.update_layout(
        template=TEMPLATE,
        height=120 + 42 * len(shares),
        title={
            "text": f"Of the {first}, {_percent(yes / all_)} are truly at least as likely as the chosen item",
            "x": 0,
        },
        margin={"t": 44, "r": 130},
        xaxis={"title": {"text": "% of the group's negatives"}, "rangemode": "tozero"},
        yaxis={"autorange": "reversed"},
    )
    return figure
