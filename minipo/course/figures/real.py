"""Figures of the course's last notebook: a real language model on real data.

A packed row of `minipo.scoring.pack` as the model reads it, levels of HR@1, intervals of paired differences on several
datasets, and the recorded runs of a language model seed by seed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Bool, Int
from torch import Tensor

from minipo.course.figures.grid import VARIANTS, changes
from minipo.course.figures.style import (
    AVERAGES,
    FAINT,
    GRID,
    INK,
    METRICS,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    add_level,
    add_line,
    as_text,
    colour_of,
    described,
    differences,
    lay_out,
    level,
    panels,
    ranking_bars,
)
from minipo.evaluation import Interval

PROMPT_COLOUR, OWN_COLOUR = "#B9C3D0", INK  # what a token sees: the prompt; its own answer
OPACITIES = {"chosen": 1.0, "boundary": 0.55, "discriminative": 0.3}  # of lines of log-probs
WHOSE = {"logp_chosen": ", chosen items", "logp_boundary": ", boundary", "logp_discriminative": ", easy negatives"}
DASHES = ("solid", "dot", "dash", "dashdot")


@dataclass(frozen=True)
class Curves:
    """What a run has logged so far.

    settings: `objective`, `dynamic` and `steps`; for a sentence also `negatives`, `dataset` and `model`.
    metrics: columns `step`, `loss`; evaluations: `step`, `pair_loss` and ranking metrics of METRICS; both may be empty.
    """

    name: str
    settings: Mapping[str, Any]
    metrics: pd.DataFrame
    evaluations: pd.DataFrame


def live_runs(runs: Sequence[Curves], metric: str = "hr@1") -> go.Figure:
    """Up to four runs as they train: training loss, pair_loss, log-probs by group where they were logged, and a ranking
    metric over the steps, in stacked panels.

    One line per run, in its objective's colour (DynamicPO's if that is on) and with its own dash. The metric's panel
    has the level of the SFT model, at step 0, in grey; the win rate has none, because it is relative to SFT.
    """
    unit, percent = ("0 to 1", 1) if metric in AVERAGES else ("%", 100)
    begun = [run.evaluations[metric].iloc[0] for run in runs if not run.evaluations.empty]
    starts = sorted({float(start) for start in begun}) if metric != "reward_win_rate" else []
    grey = f" (grey: SFT, {' and '.join(level(start, metric) for start in starts)})" if starts else ""
    panes = {
        "Training loss, nats": [("metrics", "loss", 1, 1.0)],
        "Yardstick pair_loss on validation users, nats": [("evaluations", "pair_loss", 1, 1.0)],
        "Log-probs since SFT, nats (paler: boundary, easy)": [
            ("moves", f"logp_{name}", 1, opacity) for name, opacity in OPACITIES.items()
        ],
        f"{METRICS[metric]} on validation users, {unit}{grey}": [("evaluations", metric, percent, 1.0)],
    }
    tables = [{"metrics": run.metrics, "evaluations": run.evaluations, "moves": moves(run.evaluations)} for run in runs]
    if all(each["moves"].empty for each in tables) and begun:  # recorded before these were logged
        panes = {title: lines for title, lines in panes.items() if lines[0][0] != "moves"}
    shares = [0.44 if place == len(panes) - 1 else 0.56 / (len(panes) - 1) for place in range(len(panes))]
    figure = panels([*panes], rows=len(panes), cols=1, shared_xaxes=True, row_heights=shares, vertical_spacing=0.08)
    for run, table, dash in zip(runs, tables, DASHES, strict=False):
        name, colour = as_text(run.name, 60), colour_of(run.settings)
        for row, lines in enumerate(panes.values(), start=1):
            for source, column, scale, opacity in lines:
                part = table[source]
                x, y = ([], []) if part.empty or column not in part else (part["step"], scale * part[column])
                add_line(
                    figure, x, y, name, colour, dash, f"{name}{WHOSE.get(column, '')}, step %{{x}}: %{{y:.4~f}}",
                    legendgroup=dash,
                    marker=None if row == 1 else {"size": 6}, showlegend=row == 1, row=row, col=1, opacity=opacity,
                )  # fmt: skip
    for start in starts:
        figure.add_hline(y=percent * start, line={"color": FAINT, "width": 3}, row=len(panes), col=1, layer="below")
    figure.update_annotations(x=0, xanchor="left", font={"size": 15})
    steps = max((int(run.settings["steps"]) for run in runs), default=100)
    figure.update_xaxes(range=[-0.015 * steps, 1.015 * steps])
    figure.update_xaxes(title_text="step", row=len(panes), col=1)
    figure.update_yaxes(nticks=4, showticklabels=bool(begun))  # the numbers of an empty axis would mean nothing
    figure.update_yaxes(nticks=6, row=len(panes), col=1)
    height = 20 + 110 * len(panes) + 20 * max(0, len(runs) - 1)  # the legend may need a line for each
    return lay_out(figure, height, margin_t=40, legend_y=1.08)


def moves(evaluations: pd.DataFrame) -> pd.DataFrame:
    """How far the log-probs of `trainers.mean_logps` have moved since the first evaluation; empty without them."""
    names = [f"logp_{name}" for name in OPACITIES if f"logp_{name}" in evaluations]
    if not names:
        return pd.DataFrame()
    return (evaluations[names] - evaluations[names].iloc[0]).assign(step=evaluations["step"])


def live_run(metrics: pd.DataFrame, evaluations: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """`live_runs` of one run."""
    return live_runs([Curves(described(settings), settings, metrics, evaluations)])


def packed_row(
    segments: Int[Tensor, " T"], positions: Int[Tensor, " T"], may_look: Bool[Tensor, "T T"], tokens_alone: int
) -> go.Figure:
    """Which tokens see which in one packed row, with each token's position below.

    segments: 0 in the prompt, 1 + c in candidate c. may_look: whether the row's token may attend to the column's.
    tokens_alone: how many tokens it would take with one row per candidate.
    """
    total, owner, looks = len(segments), segments.numpy(), may_look.numpy()
    kind = np.where(looks, np.where(owner == 0, 1, 2), 0).astype(np.uint8)  # of the token that is looked at
    seen = "a sibling too" if (looks & (owner > 0) & (owner != owner[:, None])).any() else "never a sibling"
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
    title = f"{shown}: place {len(names) - names.index(shown)} of {len(names)} by HR@1"
    exact = {name: Interval(hits[name], hits[name], hits[name]) for name in names}
    return ranking_bars(exact, title, "HR@1, % of test users", {shown: INK})


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
            runs, dash = runs.sort_values("negatives"), DASHES[number % len(DASHES)]
            for panel, (column, (_, scale)) in enumerate(columns.items(), start=1):
                add_line(
                    figure, runs["negatives"], scale * runs[column], f"{name}, seed {seed}",
                    own or OBJECTIVE_COLOURS[objective], dash, f"{name}, seed {seed}, K = %{{x}}: %{{y:.3~f}}",
                    panel=panel, marker={"size": 8},
                )  # fmt: skip
    add_level(figure, float(np.log(2)), "log 2, reference", row=1, col=2)
    add_level(figure, 100 * sft, f"SFT, {level(sft)}", row=1, col=3)
    figure.update_xaxes(tickvals=sorted(table["negatives"].unique()), gridcolor=GRID)
    figure.update_yaxes(nticks=6)
    units, legend = ("nats", "nats, validation users", "% of test users"), {"y": -0.24, "yanchor": "top"}
    return lay_out(figure, 380, x="K", y=units, margin={"t": 56, "r": 24}, legend=legend)
