"""Figures of a class experiment: each student's paired difference beside the guess, and how the interval narrows.

Both are pure functions of a table, `entries`: one row per student or seed, in order of arrival, with `seed`, `name`,
`guess` (points; nan if missing) and `difference` (HR@1 of right minus left as a share; nan if it has not arrived).
"""

from collections.abc import Sequence
from dataclasses import asdict, astuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from minipo.course.figures.style import (
    GRID,
    QUIET,
    as_text,
    described,
    error_bars,
    lay_out,
    points,
)
from minipo.evaluation import Interval
from minipo.experiments.configuration import PreferConfig

AXIS = "difference of HR@1, points"
ZERO = {"y": 0, "line": {"color": QUIET, "width": 1.5, "dash": "dash"}}


def side_labels(left: PreferConfig, right: PreferConfig) -> tuple[str, str]:
    """Names of two runs beside each other: objective and K, and whatever else differs."""
    sides = asdict(left), asdict(right)
    shown = ("objective", "negatives", "dynamic", "select", "adjust_beta", "seed")
    differ = [name for name in sides[0] if sides[0][name] != sides[1][name] and name not in shown]
    first, second = (
        ", ".join([described(side), *(f"{name.replace('_', ' ')} {side[name]}" for name in differ)]) for side in sides
    )
    return first, second


def class_dots(entries: pd.DataFrame, interval: Interval | None, colour: str) -> go.Figure:
    """A dot for each difference and an open diamond for each guess, above their seed; the mean in its 95 % interval.

    The axis fits the differences; a guess beyond it is drawn at its edge, as a triangle that points outwards.
    """
    found = entries.dropna(subset="difference")
    seen = [0.0, *(100 * found["difference"])]
    figure = go.Figure()
    if interval is not None:
        seen += [100 * interval.low, 100 * interval.high]
        figure.add_hrect(y0=100 * interval.low, y1=100 * interval.high, fillcolor=GRID, line_width=0, layer="below")
        figure.add_hline(y=100 * interval.mean, line={"color": colour, "width": 2})
    figure.add_hline(**ZERO)
    half = max(max(seen) - min(seen), 2.0) * 0.75
    low, high = min(seen) - half, max(seen) + half
    inset = 0.03 * (high - low)
    guessed = entries["guess"].notna()
    shapes = np.select(
        [entries["guess"] > high, entries["guess"] < low], ["triangle-up-open", "triangle-down-open"], "diamond-open"
    )
    hollow = {"color": QUIET, "size": 10, "symbol": shapes[guessed], "line": {"width": 1.5}}
    for name, values, rows, marker in (
        ("guess", entries["guess"], guessed, hollow),
        ("difference", 100 * entries["difference"], entries["difference"].notna(), {"color": colour, "size": 12}),
    ):
        if rows.any():
            figure.add_scatter(
                x=entries["seed"][rows], y=values[rows].clip(low + inset, high - inset), mode="markers", name=name,
                marker=marker, customdata=values[rows],
                text=[as_text(student) for student in entries["name"][rows]],
                hovertemplate="%{text}<br>%{fullData.name} %{customdata:+.1f} points<extra></extra>",
                showlegend=bool(guessed.any()),
            )  # fmt: skip
    seeds = entries["seed"]
    figure.update_xaxes(**_whole(seeds))
    figure.update_yaxes(range=[low, high])
    title = f"{len(found)} paired difference{'s' * (len(found) != 1)}, one per seed"
    return lay_out(figure, 400, title, "seed", AXIS, margin_t=66)


def class_closing(intervals: Sequence[Interval], colour: str) -> go.Figure:
    """The mean and its 95 % interval after the first 1, 2, 3, … differences, in order of arrival."""
    counts = list(range(1, len(intervals) + 1))
    mean, low, high = ([100 * getattr(interval, name) for interval in intervals] for name in ("mean", "low", "high"))
    figure = go.Figure()
    figure.add_hline(**ZERO)
    figure.add_scatter(
        x=counts, y=mean, mode="markers", marker={"color": colour, "size": 9},
        error_y=error_bars(mean, low, high, colour), customdata=np.c_[low, high],
        hovertemplate="first %{x}: %{y:+.1f}, %{customdata[0]:+.1f} to %{customdata[1]:+.1f}<extra></extra>",
    )  # fmt: skip
    title = "The interval after the first"
    if len(intervals) > 1:
        first, last = high[0] - low[0], high[-1] - low[-1]
        title = f"The interval {'narrows' if last < first else 'widens'}: {first:.1f} → {last:.1f} points wide"
    figure.update_xaxes(**_whole(counts))
    return lay_out(figure, 400, title, "differences, in order of arrival", AXIS, margin_t=66)


def _whole(places: Sequence[int] | pd.Series) -> dict[str, object]:
    """An axis with room around these whole numbers, and ticks at whole numbers only, not too many."""
    low, high = min(places, default=0), max(places, default=0)
    return {"range": [low - 0.7, high + 0.7], "tickformat": "d", "tick0": low, "dtick": max(1, -(-(high - low) // 12))}


def difference_sentence(labels: tuple[str, str], interval: Interval) -> str:
    """Describe a paired difference, in Markdown. labels: of left and right, by `side_labels`."""
    left, right = labels
    if interval.high < 0 or interval.low > 0:
        said = f"{right} is **{'worse' if interval.high < 0 else 'better'}**"
    elif interval.low >= -0.01 and interval.high <= 0.01:
        said = "the two are **within a point of each other**"
    else:
        said = "that leaves it **undecided**"
    return f"HR@1 of {right} minus {left} is {points(*astuple(interval))}: {said}."


def class_sentence(labels: tuple[str, str], entries: pd.DataFrame, interval: Interval | None) -> str:
    """Describe `class_dots`, in Markdown."""
    joined, guessed = len(entries), int(entries["guess"].notna().sum())
    found = entries.dropna(subset="difference")
    students = f"{joined} student{'s' * (joined != 1)}"
    if not joined:
        return "**Nobody has joined yet.** Open the link or type the code; each student gets a seed."
    if interval is None:
        return f"**{students} joined, {guessed} guessed**, and no result has arrived yet."
    text = f"**{len(found)} of {students} in.** {difference_sentence(labels, interval)}"
    off = (found["guess"] - 100 * found["difference"]).abs().dropna()
    if len(off):
        text += f" The guesses are off by {off.mean():.1f} points on average."
    return text
