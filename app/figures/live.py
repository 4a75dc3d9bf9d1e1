"""Runs that are training now, side by side, and their results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from minipo.course.figures.style import (
    AVERAGES,
    FAINT,
    METRICS,
    add_line,
    as_text,
    colour_of,
    lay_out,
    level,
    panels,
    short,
)


@dataclass(frozen=True)
class Curves:
    """What a run has logged so far.

    settings: `objective`, `dynamic`, `negatives` and `steps`, and `dataset` and `model`, by which runs are comparable.
    metrics: columns `step`, `loss`; evaluations: `step`, `pair_loss` and ranking metrics of METRICS; both may be empty.
    """

    name: str
    settings: Mapping[str, Any]
    metrics: pd.DataFrame
    evaluations: pd.DataFrame


DASHES = ("solid", "dash", "dot", "dashdot")


def live_runs(runs: Sequence[Curves], metric: str = "hr@1") -> go.Figure:
    """Up to four runs as they train: training loss, pair_loss and a ranking metric over the steps, in stacked panels.

    One line per run, in its objective's colour (DynamicPO's if that is on) and with its own dash. The metric's panel
    has the level of the SFT model, at step 0, in grey; the win rate has none, because it is relative to SFT.
    """
    unit, percent = ("0 to 1", 1) if metric in AVERAGES else ("%", 100)
    begun = [run.evaluations[metric].iloc[0] for run in runs if not run.evaluations.empty]
    starts = sorted({float(start) for start in begun}) if metric != "reward_win_rate" else []
    grey = f" (grey: SFT, {' and '.join(level(start, metric) for start in starts)})" if starts else ""
    titles = (
        "Training loss, nats",
        "Yardstick pair_loss on validation users, nats",
        f"{METRICS[metric]} on validation users, {unit}{grey}",
    )
    places = {"rows": 3, "cols": 1, "row_heights": [0.27, 0.27, 0.46], "vertical_spacing": 0.09}
    figure = panels(titles, shared_xaxes=True, **places)
    for run, dash in zip(runs, DASHES, strict=False):
        name, colour = as_text(run.name, 60), colour_of(run.settings)
        for row, (table, column, scale) in enumerate(
            ((run.metrics, "loss", 1), (run.evaluations, "pair_loss", 1), (run.evaluations, metric, percent)), start=1
        ):
            x, y = ([], []) if table.empty else (table["step"], scale * table[column])
            add_line(
                figure, x, y, name, colour, dash, f"{name}, step %{{x}}: %{{y:.4~f}}", legendgroup=dash,
                marker=None if row == 1 else {"size": 6}, showlegend=row == 1, row=row, col=1,
            )  # fmt: skip
    for start in starts:
        figure.add_hline(y=percent * start, line={"color": FAINT, "width": 3}, row=3, col=1, layer="below")
    figure.update_annotations(x=0, xanchor="left", font={"size": 15})
    steps = max((int(run.settings["steps"]) for run in runs), default=100)
    figure.update_xaxes(range=[-0.015 * steps, 1.015 * steps])
    figure.update_xaxes(title_text="step", row=3, col=1)
    figure.update_yaxes(nticks=4, showticklabels=bool(begun))  # the numbers of an empty axis would mean nothing
    figure.update_yaxes(nticks=6, row=3, col=1)
    height = 350 + 20 * max(0, len(runs) - 1)  # the legend may need a line for each
    return lay_out(figure, height, margin_t=40, legend_y=1.08)


def live_sentence(runs: Sequence[Curves], metric: str = "hr@1", names: Sequence[str] | None = None) -> str:
    """Describe `live_runs`, in Markdown. names: the runs' names in Markdown, if theirs need escaping.

    Of several runs it names the one with the lowest training loss and pair_loss and the highest metric at its last
    evaluation; runs on different data or with different models are described one by one.
    """
    named = zip(names or [run.name for run in runs], runs, strict=True)
    begun = [(name, run) for name, run in named if not (run.metrics.empty or run.evaluations.empty)]
    if not begun:
        return "No step is logged yet: the lines appear with the first one."

    def described(name: str, run: Curves) -> str:
        losses, yardstick, ranking = run.metrics["loss"], run.evaluations["pair_loss"], run.evaluations[metric]
        sft = "" if metric == "reward_win_rate" else f" {level(ranking.iloc[0], metric)} (SFT) →"
        return (
            f"**{name}**: after step {run.metrics['step'].iloc[-1]} of {run.settings['steps']}, training loss "
            f"{short(losses.iloc[0])} → {short(losses.iloc[-1])}, pair_loss {short(yardstick.iloc[0])} → "
            f"{short(yardstick.iloc[-1])}, and {METRICS[metric]} on validation users{sft} "
            f"**{level(ranking.iloc[-1], metric)}**."
        )

    if len(begun) == 1 or len({(run.settings["dataset"], run.settings["model"]) for _, run in begun}) > 1:
        return " ".join(described(name, run) for name, run in begun)
    loss, loss_of = min((float(run.metrics["loss"].iloc[-1]), name) for name, run in begun)
    pair, pair_of = min((float(run.evaluations["pair_loss"].iloc[-1]), name) for name, run in begun)
    best, best_of = max((float(run.evaluations[metric].iloc[-1]), name) for name, run in begun)
    sft = f"; SFT {level(begun[0][1].evaluations[metric].iloc[0], metric)}" if metric != "reward_win_rate" else ""
    over = all(run.metrics["step"].iloc[-1] >= run.settings["steps"] for _, run in begun)
    alike = {(run.settings["objective"], run.settings["dynamic"], run.settings["negatives"]) for _, run in begun}
    scale = "; each objective and K has a scale of its own" if len(alike) > 1 else ""
    return (
        f"{'L' if over else 'So far, l'}owest training loss: **{loss_of}** ({short(loss)}{scale}). "
        f"Lowest pair_loss: **{pair_of}** ({short(pair)}). "
        f"Highest {METRICS[metric]} on validation users: **{best_of}** ({level(best, metric)}{sft})."
    )


def result_sentence(
    summary: Mapping[str, Any], neighbours: pd.DataFrame, gain: tuple[float, float, float] | None = None
) -> str:
    """A finished run's result, in Markdown, beside SFT and recorded runs: rows of a recorded table, of any K.

    gain: HR@1 minus SFT's, mean and 95 % interval, as shares of users; without it there is no interval.
    """
    difference = 100 * (summary["hr@1"] - summary["sft_hr@1"])
    side = "above" if difference >= 0 else "below"
    text = f"HR@1 on the test users: **{summary['hr@1']:.1%}**, {abs(difference):.1f} points {side} "
    text += f"SFT's {summary['sft_hr@1']:.1%}"
    if gain is not None:
        text += f" (95% interval {100 * gain[1]:+.1f} to {100 * gain[2]:+.1f})".replace("-", "−")
        text += "" if gain[1] > 0 or gain[2] < 0 else ", which may be chance"
    text += "."
    for negatives, runs in neighbours.groupby("negatives"):
        hits = runs["hr@1"]
        text += f" Recorded at K = {negatives}: {hits.mean():.1%}, "
        text += f"{len(hits)} seeds from {hits.min():.1%} to {hits.max():.1%}." if len(hits) > 1 else "1 seed."
    return text.replace("%", " %")
