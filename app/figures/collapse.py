"""The page Collapse: guesses before the reveal, settings as a panel, and users one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from minipo.course.figures.collapse import settings_heatmap
from minipo.course.figures.grid import loss_motion
from minipo.course.figures.style import (
    AVERAGES,
    DILUTION_COLOUR,
    FAINT,
    INK,
    METRICS,
    OBJECTIVE_LABELS,
    lay_out,
    level,
    points,
)
from minipo.evaluation import Interval, Scores


def expect_sentence(table: pd.DataFrame, objective: str, metric: str = "hr@1") -> str:
    """What is known before a guess, in Markdown: the training loss at every K, and the metric at the smallest K only.

    table: one objective's plain runs, with `negatives`, `train_loss` and `metric`, a key of METRICS.
    """
    first, last = table["negatives"].min(), table["negatives"].max()
    start = table.loc[table["negatives"] == first, metric].mean()
    return (
        f"From K = {first} to {last}, {OBJECTIVE_LABELS[objective]}'s training loss {loss_motion(table)}. Its "
        f"{METRICS[metric]} is {level(start, metric)} at K = {first}. **What will it be with more negatives?**"
    )


def guess_sentence(table: pd.DataFrame, guesses: Mapping[int, float], metric: str = "hr@1") -> str:
    """How far guesses were from the recorded means in points, hundredths of the metric, in Markdown.

    table: one objective's plain runs. guesses: K to percent, or to the metric itself if it is no share of users.
    """
    unit = 1 if metric in AVERAGES else 100
    errors = pd.Series(guesses) / unit - table.groupby("negatives")[metric].mean()[[*guesses]]
    high, low = (int((sign * errors.round(4) > 0).sum()) for sign in (1, -1))
    return (
        f"Your guesses were **{100 * errors.abs().mean():.1f} points** off on average: {high} of {len(guesses)} too "
        f"high, {low} too low."
    )


def settings_panel(
    name: str,
    cells: Mapping[tuple[float, float], Interval],
    levels: Mapping[float, str] | None = None,
    chosen: tuple[float, float] | None = None,
) -> go.Figure:
    """One comparison by epochs of SFT (rows) and learning rate (columns); bold: the 95 % interval excludes zero.

    cells: (epochs, learning rate) to the difference of a metric, in the same colours as `settings_map`. levels: text
    beside a row's epochs. chosen: the cell to frame.
    """
    epochs, rates = sorted({epoch for epoch, _ in cells}), sorted({rate for _, rate in cells})
    rows = {row: f"{row:g} epoch{'s' * (row != 1)}" + (f"<br>{levels[row]}" if levels else "") for row in epochs}
    figure = go.Figure(settings_heatmap(cells, rows))
    if chosen and chosen in cells:
        x, y = rates.index(chosen[1]), epochs.index(chosen[0])
        edges = {"x0": x - 0.49, "x1": x + 0.49, "y0": y - 0.48, "y1": y + 0.48}
        figure.add_shape(type="rect", **edges, line={"color": INK, "width": 3})
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, ticks="")
    return lay_out(figure, 112 + 62 * len(epochs), name, "learning rate", margin_t=40)


def settings_sentence(maps: Mapping[str, Mapping[tuple[float, float], Interval]], metric: str = "hr@1") -> str:
    """In how many settings each comparison is below and above zero, in Markdown.

    maps: what is compared, to (epochs, learning rate) to the difference of `metric`.
    """
    counts = []
    for name, cells in maps.items():
        low, high = sum(cell.high < 0 for cell in cells.values()), sum(cell.low > 0 for cell in cells.values())
        counts.append(f"{name} is **below zero in {low}** of {len(cells)} settings and **above in {high}**")
    return f"{METRICS[metric]}: {'; '.join(counts)}."


# ------------------------------------------------------------------------------------------ users gained, users lost

# Users by whether their chosen item is first before and after: label, colour, size. As in the settings' map, orange is
# worse and purple better; the many that stay are neutral.
GROUPS = {
    (True, True): ("right in both", FAINT),
    (False, True): ("gained", "#7A5195"),
    (True, False): ("lost", "#E66101"),
    (False, False): ("wrong in both", DILUTION_COLOUR),
}
USERS_ACROSS = 50


def user_groups(before: Scores, after: Scores) -> dict[str, np.ndarray]:
    """Positions of the users in each of GROUPS, in their order. before, after: ranks of the chosen item (users,)."""
    first, then = np.asarray(before) == 0, np.asarray(after) == 0
    return {label: np.flatnonzero((first == was) & (then == becomes)) for (was, becomes), (label, _) in GROUPS.items()}


def user_grid(
    users: Sequence[int], before: Scores, after: Scores, labels: tuple[str, str], shown: int | None = None
) -> go.Figure:
    """Every test user as a square, by whether the chosen item is first before, after, in both or in neither.

    users: their numbers. before, after: ranks of the chosen item (users,), 0 is best; labels: what ranked them. A
    square's `customdata` is the user's number. shown: the user to mark with a ring.
    """
    before, after, numbers = np.asarray(before), np.asarray(after), np.asarray(users)
    across, down = int(np.clip(np.ceil(np.sqrt(1.25 * len(numbers))), 1, USERS_ACROSS)), 0
    figure, ring = go.Figure(), {"symbol": "circle-open", "size": 16, "color": INK, "line": {"width": 3}}
    marked: dict[str, Any] = {"x": [], "y": []}
    for (label, colour), inside in zip(GROUPS.values(), user_groups(before, after).values(), strict=True):
        y, x = np.divmod(np.arange(len(inside)), across)
        y += down  # each group begins a row
        figure.add_scatter(
            x=x, y=y, mode="markers", name=f"{label}: {len(inside):,}",
            marker={"symbol": "square", "size": 6, "color": colour}, customdata=numbers[inside],
            text=[f"place {1 + a} → {1 + b}" for a, b in zip(before[inside], after[inside], strict=True)],
            hovertemplate="user %{customdata}: %{text}<extra></extra>",
            selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
        )  # fmt: skip
        if shown in numbers[inside]:
            marked = {"x": x[numbers[inside] == shown], "y": y[numbers[inside] == shown]}
        down += -(-len(inside) // across)
    figure.add_scatter(**marked, mode="markers", showlegend=False, hoverinfo="skip", marker=ring)
    figure.update_xaxes(visible=False, range=[-0.7, across - 0.3], fixedrange=True)
    figure.update_yaxes(visible=False, range=[down - 0.3, -0.7], fixedrange=True)
    figure.update_layout(legend={"itemsizing": "constant", "itemclick": False, "itemdoubleclick": False})
    title = f"{labels[0]} → {labels[1]}"
    return lay_out(figure, 62 + 9 * down, title, margin_t=28, clickmode="event+select", dragmode=False)


def user_sentence(before: Scores, after: Scores, labels: tuple[str, str], interval: Interval) -> str:
    """Describe `user_grid`, in Markdown. interval: of HR@1 after minus before, for these users."""
    groups = {label: len(inside) for label, inside in user_groups(before, after).items()}
    gained, lost, users = groups["gained"], groups["lost"], len(np.asarray(before))
    net = f"{gained - lost:+d}".replace("-", "−")
    return (
        f"From {labels[0]} to {labels[1]}, **{gained} users are gained** (their chosen item is now first) and **{lost} "
        f"are lost**: net {net} of {users:,}, {points(*astuple(interval))}."
    )
