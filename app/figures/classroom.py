"""Figures of a class experiment: each student's paired difference beside the guess, and how the interval closes in.

Both are pure functions of a table, `entries`: a row a student or seed, with `seed`, `name`, `guess` (points; nan where
there is none) and `difference` (HR@1 of right minus left as a share; nan where it is not in), in order of arrival.
"""

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from minipo.course.figures.style import (
    DYNAMIC_COLOUR,
    GRID,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    TEMPLATE,
    as_text,
    points,
)
from minipo.evaluation import Interval
from minipo.experiments.configuration import PreferConfig

WHOLE = {("on", "on"): "", ("on", "off"): " selection alone", ("off", "on"): " β alone"}  # select, adjust_beta
AXIS = "difference of HR@1, points"


def side_labels(left: PreferConfig, right: PreferConfig) -> tuple[str, str]:
    """What two runs are called beside each other: objective and K, and whatever else tells them apart."""
    shown = ("objective", "negatives", "dynamic", "select", "adjust_beta", "seed")
    first, second = asdict(left), asdict(right)
    differ = [name for name in first if first[name] != second[name] and name not in shown]

    def label(side: PreferConfig) -> str:
        parts, switches = [OBJECTIVE_LABELS[side.objective]], (side.select, side.adjust_beta)
        if side.dynamic == "on" and switches != ("off", "off"):  # with neither part it is the plain objective
            control = f" {side.select} |B|{' with β' * (side.adjust_beta == 'on')}"
            parts.append(f"DynamicPO{WHOLE.get(switches, control)}")
        further = (f"{name.replace('_', ' ')} {getattr(side, name)}" for name in differ)
        return ", ".join([*parts, f"K = {side.negatives}", *further])

    return label(left), label(right)


def colour_of(side: PreferConfig) -> str:
    """The colour of an objective, or DynamicPO's."""
    return DYNAMIC_COLOUR if side.dynamic == "on" else OBJECTIVE_COLOURS[side.objective]


def class_dots(entries: pd.DataFrame, interval: Interval | None, colour: str) -> go.Figure:
    """A dot for each difference and an open diamond for each guess, above their seed; the mean in its 95 % interval.

    The axis fits the differences; a guess beyond it stands at its edge, as a triangle that points outwards.
    """
    found = entries.dropna(subset="difference")
    seen = [0.0, *(100 * found["difference"])]
    if interval is not None:
        seen += [100 * interval.low, 100 * interval.high]
    half = max(max(seen) - min(seen), 2.0) * 0.75
    low, high = min(seen) - half, max(seen) + half
    figure = go.Figure(layout={"template": TEMPLATE, "height": 400, "margin": {"t": 66}})
    if interval is not None:
        figure.add_hrect(y0=100 * interval.low, y1=100 * interval.high, fillcolor=GRID, line_width=0, layer="below")
        figure.add_hline(y=100 * interval.mean, line={"color": colour, "width": 2})
    figure.add_hline(y=0, line={"color": QUIET, "width": 1.5, "dash": "dash"})
    inset = 0.03 * (high - low)
    guesses = entries["guess"]
    hollow = {"color": QUIET, "size": 10, "line": {"width": 1.5}}
    for name, rows, value, marker in (
        ("guess", guesses.between(low, high), guesses, {**hollow, "symbol": "diamond-open"}),
        ("guess above", guesses > high, guesses, {**hollow, "symbol": "triangle-up-open"}),
        ("guess below", guesses < low, guesses, {**hollow, "symbol": "triangle-down-open"}),
        (
            "difference",
            entries["difference"].notna(),
            100 * entries["difference"],
            {"color": colour, "size": 12, "line": {"color": "white", "width": 1}},
        ),
    ):
        if rows.any():
            figure.add_scatter(
                x=entries["seed"][rows], y=value[rows].clip(low + inset, high - inset), mode="markers", name=name,
                marker=marker, text=[as_text(student) for student in entries["name"][rows]], customdata=value[rows],
                hovertemplate="%{text}<br>%{fullData.name} %{customdata:+.1f} points<extra></extra>",
                showlegend=bool(guesses.notna().any()),
            )  # fmt: skip
    seeds = entries["seed"]
    figure.update_layout(title={"text": f"{len(found)} paired difference{'s' * (len(found) != 1)}, one a seed"})
    figure.update_xaxes(title_text="seed", range=_around(seeds, 0.7), tickformat="d", **_ticks(seeds))
    figure.update_yaxes(title_text=AXIS, range=[low, high])
    return figure


def class_closing(intervals: Sequence[Interval], colour: str) -> go.Figure:
    """The mean and its 95 % interval after the first 1, 2, 3, … differences, in order of arrival."""
    counts = list(range(1, len(intervals) + 1))
    mean, low, high = ([100 * getattr(interval, name) for interval in intervals] for name in ("mean", "low", "high"))
    figure = go.Figure(layout={"template": TEMPLATE, "height": 400, "margin": {"t": 66}, "showlegend": False})
    figure.add_hline(y=0, line={"color": QUIET, "width": 1.5, "dash": "dash"})
    figure.add_scatter(
        x=counts, y=mean, mode="markers", marker={"color": colour, "size": 9},
        error_y={"array": np.subtract(high, mean), "arrayminus": np.subtract(mean, low), "color": colour,
                 "thickness": 2, "width": 4},
        customdata=np.c_[low, high],
        hovertemplate="first %{x}: %{y:+.1f}, %{customdata[0]:+.1f} to %{customdata[1]:+.1f}<extra></extra>",
    )  # fmt: skip
    title = "The interval after the first"
    if len(intervals) > 1:
        first, last = high[0] - low[0], high[-1] - low[-1]
        verb = "closes in" if last < first else "opens"
        title = f"The interval {verb}: {first:.1f} → {last:.1f} points wide"
    figure.update_layout(title={"text": title})
    figure.update_xaxes(title_text="differences in, in order of arrival", range=_around(counts, 0.5), **_ticks(counts))
    figure.update_yaxes(title_text=AXIS)
    return figure


def _around(places: Sequence[int] | pd.Series, room: float) -> list[float]:
    return [min(places, default=0) - room, max(places, default=0) + room]


def _ticks(places: Sequence[int] | pd.Series) -> dict[str, object]:
    """Whole numbers alone, and not too many."""
    width = max(places, default=0) - min(places, default=0)
    return {"dtick": next(step for step in (1, 2, 5, 10, 20, 50, 100) if width / step <= 12 or step == 100)}


def difference_sentence(labels: tuple[str, str], interval: Interval) -> str:
    """Read a paired difference aloud, in Markdown. labels: of left and right, by `side_labels`."""
    left, right = labels
    if interval.high < 0 or interval.low > 0:
        said = f"{right} is **{'worse' if interval.high < 0 else 'better'}**"
    elif interval.low >= -0.01 and interval.high <= 0.01:
        said = "the two are **within a point of each other**"
    else:
        said = "that leaves it **undecided**"
    return f"HR@1 of {right} minus {left} is {points(interval.mean, interval.low, interval.high)}: {said}."


def class_sentence(labels: tuple[str, str], entries: pd.DataFrame, interval: Interval | None) -> str:
    """Read `class_dots` aloud, in Markdown."""
    joined, guessed = len(entries), int(entries["guess"].notna().sum())
    found = entries.dropna(subset="difference")
    students = f"{joined} student{'s' * (joined != 1)}"
    if not joined:
        return "**Nobody has joined yet.** Open the link or type the code; each student gets a seed."
    if interval is None:
        return f"**{students} joined, {guessed} guessed**, and no pair of runs is in yet."
    text = f"**{len(found)} of {students} in.** {difference_sentence(labels, interval)}"
    off = (found["guess"] - 100 * found["difference"]).abs().dropna()
    if len(off):
        text += f" The guesses are off by {off.mean():.1f} points on average."
    return text
