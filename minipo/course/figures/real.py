"""Figures of the course's last notebook: a real language model on real data.

A packed row of `minipo.scoring.pack` as the model reads it, levels of HR@1, intervals of paired differences on several
datasets, and the recorded runs of a language model seed by seed. All are pure functions of arrays or tables.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Int
from torch import Tensor

from minipo.course.figures.grid import VARIANTS, changes
from minipo.course.figures.style import (
    DYNAMIC_COLOUR,
    FAINT,
    GRID,
    INK,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    add_level,
    add_line,
    differences,
    lay_out,
    level,
    panels,
)
from minipo.evaluation import Interval

PROMPT_COLOUR, OWN_COLOUR = "#B9C3D0", INK  # what a token sees: the prompt; its own answer
SEED_DASHES = ("solid", "dot", "dash", "dashdot")

# ------------------------------------------------------------------------------------------------ train it now: a run


def live_run(metrics: pd.DataFrame, evaluations: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """A run while it trains: loss, pair_loss and validation HR@1 over its steps, beside the SFT level it started from.

    metrics: columns `step`, `loss`; evaluations: `step`, `pair_loss`, `hr@1`; both may be empty. settings: the run's
    `objective`, `dynamic` and `steps`.
    """
    titles = ("Training loss (nats)", "pair_loss, validation (nats)", "HR@1, validation (%)")
    figure = panels(titles, horizontal_spacing=0.07)
    colour = DYNAMIC_COLOUR if settings["dynamic"] == "on" else OBJECTIVE_COLOURS[settings["objective"]]
    for column, (frame, name, scale) in enumerate(
        ((metrics, "loss", 1), (evaluations, "pair_loss", 1), (evaluations, "hr@1", 100)), start=1
    ):
        if not frame.empty:
            add_line(
                figure, frame["step"], frame[name] * scale, "", colour, hover="step %{x}: %{y:.4~f}", panel=column,
                marker={"size": 7} if column > 1 else None, showlegend=False,
            )  # fmt: skip
    if not evaluations.empty:
        start = float(evaluations["hr@1"].iloc[0])
        add_level(figure, 100 * start, f"SFT, {level(start)}", row=1, col=3)
    steps = int(settings["steps"])
    figure.update_xaxes(range=[-0.02 * steps, 1.02 * steps])
    figure.update_yaxes(nticks=5)
    return lay_out(figure, 260, x="step", margin_t=28)


def packed_row(
    segments: Int[Tensor, " T"], positions: Int[Tensor, " T"], may_look: Bool[Tensor, "T T"], tokens_alone: int
) -> go.Figure:
    """Which tokens see which in one packed row, with each token's position below.

    segments: 0 in the prompt, 1 + c in candidate c. may_look: whether the row's token may attend to the column's.
    tokens_alone: how many tokens it would take with one row per candidate.
    """
    total, owner, looks = len(segments), segments.numpy(), may_look.numpy()
    kind = np.where(looks, np.where(owner == 0, 1, 2), 0).astype(np.uint8)  # of the token that is looked at
    sees_sibling = bool((looks & (owner > 0) & (owner != owner[:, None])).any())
    seen = "a sibling too" if sees_sibling else "never a sibling"
    title = f"{total:,} tokens instead of {tokens_alone:,}: an answer sees the prompt and itself, {seen}"
    figure = panels((title, ""), rows=2, cols=1, shared_xaxes=True, row_heights=[0.76, 0.24], vertical_spacing=0.05)
    figure.add_heatmap(
        z=kind, zmin=0, zmax=2, showscale=False,
        colorscale=[[0, "white"], [0.5, PROMPT_COLOUR], [1, OWN_COLOUR]], hoverinfo="skip", row=1, col=1,
    )  # fmt: skip
    for name, colour in (("sees the prompt", PROMPT_COLOUR), ("sees its own answer so far", OWN_COLOUR)):
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=name, marker={"symbol": "square", "size": 12, "color": colour},
            row=1, col=1,
        )  # fmt: skip
    figure.add_scatter(
        x=np.arange(total), y=positions.numpy(), mode="markers", marker={"size": 4, "color": INK}, showlegend=False,
        hovertemplate="token %{x}: position %{y}<extra></extra>", row=2, col=1,
    )  # fmt: skip
    prompt = int((owner == 0).sum())
    figure.add_vline(x=prompt - 0.5, line={"color": FAINT, "width": 1, "dash": "dot"})
    figure.add_annotation(
        text=f"{owner.max()} answers", x=(prompt + total) / 2, y=0, yanchor="top", font={"color": QUIET},
        row=1, col=1,
    )  # fmt: skip
    figure.update_annotations(selector={"yref": "paper"}, x=0, xanchor="left", y=1.045, font_size=15)
    figure.update_xaxes(showgrid=False, range=[-0.5, total - 0.5], constrain="domain")
    figure.update_xaxes(title_text="token that is seen", row=2, col=1)
    figure.update_yaxes(title_text="token that sees", autorange="reversed", showgrid=False, row=1, col=1)
    figure.update_yaxes(title_text="position", nticks=4, row=2, col=1)
    return lay_out(figure, 620, margin_t=62)


def levels(hits: Mapping[str, float], shown: str) -> go.Figure:
    """HR@1 of a few ways to rank, as sorted bars, one of them in ink; the title gives the place of that one.

    hits: name to HR@1, a share of users. shown: the name of the one that the figure is about.
    """
    names = sorted(hits, key=lambda name: hits[name])
    place = len(names) - names.index(shown)
    figure = go.Figure()
    figure.add_bar(
        x=[100 * hits[name] for name in names], y=names, orientation="h",
        marker_color=[INK if name == shown else FAINT for name in names],
        text=[level(hits[name]) for name in names], textposition="outside", cliponaxis=False,
        hovertemplate="%{y}: %{x:.1f} % of test users<extra></extra>",
    )  # fmt: skip
    title, height = f"{shown}: place {place} of {len(names)} by HR@1", 70 + 40 * len(names)
    axes: dict[str, Any] = {"xaxis_rangemode": "tozero", "yaxis_showgrid": False}
    return lay_out(figure, height, title, "HR@1, % of test users", margin_r=60, **axes)


def intervals(table: pd.DataFrame, worlds: Sequence[str], what: str) -> go.Figure:
    """Paired differences with their 95 % intervals, by name and, within a name, by world.

    table: one row per difference: `name`; `world`; `mean`, `low`, `high` in points; `objective` and `variant` (a key of
    VARIANTS), which give the colour. worlds: all worlds, in order. what: the difference in words, with its metric; it
    begins the title, which then counts how many are below zero, above, and undecided.
    """
    places = [*table["name"].unique(), *worlds]
    rows, colours = {}, {}
    for line in table.sort_values(["name", "world"], key=lambda column: column.map(places.index)).to_dict("records"):
        label = f"<b>{line['name']}</b><br>{line['world']}"
        rows[label] = Interval(*(line[end] / 100 for end in ("mean", "low", "high")))
        colours[label] = VARIANTS[line["variant"]][1] or OBJECTIVE_COLOURS[line["objective"]]
    above, below = int((table["low"] > 0).sum()), int((table["high"] < 0).sum())
    title = f"{what}: {below} below zero, {above} above, {len(table) - above - below} undecided"
    return differences(rows, title, "points, with 95 % intervals over users and seeds", colours)


def seed_by_seed(table: pd.DataFrame, sft: float) -> go.Figure:
    """Training loss, pair_loss and HR@1 against K, one line per seed, for plain runs and runs with DynamicPO.

    table: one row per run: `objective`, the same for all, `negatives`, `dynamic`, `seed`, `train_loss`, `pair_loss`,
    `hr@1`. sft: HR@1 of the SFT model. Each panel's title counts the seeds in which plain runs rise from the smallest K
    to the largest.
    """
    columns = {"train_loss": ("Training loss", 1), "pair_loss": ("pair_loss", 1), "hr@1": ("HR@1", 100)}
    objective = str(table["objective"].iloc[0])
    titles = []
    for column, (name, _) in columns.items():
        change = changes(table[table["dynamic"] == "off"], column)
        rises, falls = (change > 0).sum(), (change < 0).sum()
        titles.append(f"{name}, plain:<br>rises in {rises}, falls in {falls} of {len(change)} seeds")
    figure = panels(titles)
    for dynamic, variant in (("off", "plain"), ("on", "dynamic")):
        label, own, *_ = VARIANTS[variant]
        name = f"{label} {OBJECTIVE_LABELS[objective]}" if variant == "plain" else label
        for number, (seed, runs) in enumerate(table[table["dynamic"] == dynamic].groupby("seed")):
            runs, dash = runs.sort_values("negatives"), SEED_DASHES[number % len(SEED_DASHES)]
            for panel, (column, (_, scale)) in enumerate(columns.items(), start=1):
                add_line(
                    figure, runs["negatives"], scale * runs[column], f"{name}, seed {seed}",
                    own or OBJECTIVE_COLOURS[objective], dash, f"{name}, seed {seed}, K = %{{x}}: %{{y:.3~f}}",
                    panel=panel, marker={"size": 8},
                )  # fmt: skip
    add_level(figure, float(np.log(2)), "log 2, reference", right=True, row=1, col=2)
    add_level(figure, 100 * sft, f"SFT, {level(sft)}", row=1, col=3)
    figure.update_xaxes(tickvals=sorted(table["negatives"].unique()), gridcolor=GRID)
    figure.update_yaxes(nticks=6)
    units, legend = ("nats", "nats, validation users", "% of test users"), {"y": -0.24, "yanchor": "top"}
    return lay_out(figure, 380, x="K", y=units, margin={"t": 56, "r": 24}, legend=legend)
