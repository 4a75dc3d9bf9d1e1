"""Every figure that a notebook or the app shows, and the sentence that reads it aloud.

Figures are pure functions from arrays or tables to `plotly.graph_objects.Figure`; sentences are pure functions from the
same numbers to text, so that no conclusion is ever written down before the data are seen. An objective has one colour
everywhere, and whatever DynamicPO does is blue (Okabe and Ito's palette, and for the extensions Tol's muted one: safe
for colour-blind readers).
"""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from plotly.subplots import make_subplots
from torch import Tensor

from minipo.dynamic import DynamicPO
from minipo.evaluation import Interval
from minipo.preference import preference_loss, preference_push

OBJECTIVE_LABELS = {
    "dpo": "DPO", "dmpo": "DMPO", "sdpo": "S-DPO", "mppo": "MPPO", "simpo": "SimPO", "beta-dpo": "β-DPO",
}  # fmt: skip
OBJECTIVE_COLOURS = {
    "dpo": "#E69F00", "dmpo": "#D55E00", "sdpo": "#009E73", "mppo": "#CC79A7", "simpo": "#999933",
    "beta-dpo": "#882255",
}  # fmt: skip
DYNAMIC_COLOUR = "#0072B2"
INK, QUIET, FAINT, GRID = "#1B2430", "#5B6675", "#AAB3BF", "#E7EBF0"
DILUTION_COLOUR, SATURATION_COLOUR = "#D9DEE6", "#A9B3C1"
HALO = "0 0 2px white, 0 0 2px white, 0 0 3px white"  # round text, so that a line behind it does not cross letters
MARGIN = "margin β(ρ<sub>chosen</sub> − ρ<sub>negative</sub>), nats"
FONT = "Source Sans, Source Sans Pro, Helvetica, Arial, sans-serif"

# Variants of a run in `collapse_grid`: label, colour (None: the objective's own), dash, marker.
VARIANTS = {
    "plain": ("plain", None, "solid", "circle"),
    "dynamic": ("DynamicPO", DYNAMIC_COLOUR, "solid", "circle"),
    "selection alone": ("selection alone", "#56B4E9", "dot", "diamond"),
    "β alone": ("β alone", "#7A5195", "dot", "square"),
    "random |B|": ("random |B|", "#8A8F98", "dot", "x"),
    "hardest |B|": ("hardest |B|", "#1B2430", "dot", "triangle-up"),
}

# What a ranking is measured by, and which of these are averages rather than shares of users.
METRICS = {"hr@1": "HR@1", "ndcg@5": "NDCG@5", "mrr": "MRR", "hr@5": "HR@5", "reward_win_rate": "win rate"}
AVERAGES = ("ndcg@5", "mrr")

AXIS = {"gridcolor": GRID, "zeroline": False, "automargin": True}
# Levels drawn as lines in `collapse_grid`, and their dash.
LEVELS = {"oracle": "dot", "more SFT": "dashdot", "SFT": "dash"}

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": FONT, "size": 14, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 8, "r": 8, "t": 28, "b": 8},
        "hoverlabel": {"font": {"family": FONT, "size": 14}},
        "legend": {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "font": {"size": 13}},
        "xaxis": {**AXIS, "title": {"standoff": 4, "font": {"size": 14}}},
        "yaxis": {**AXIS, "title": {"standoff": 6, "font": {"size": 14}}},
        "annotationdefaults": {"showarrow": False, "font": {"size": 14}},
    }
)

# What neutral and dark colours are on a dark page; the others are seen on both.
ON_DARK = {
    INK: "#E6EBF2", QUIET: "#A3AEBD", FAINT: "#5A6675", GRID: "#29323E", "white": "#11161D", "#F3F5F8": "#1B222C",
    HALO: HALO.replace("white", "#11161D"),
    DILUTION_COLOUR: "#343E4C", SATURATION_COLOUR: "#556273", "#EEF1F5": "#1A212B", "#E0E5EC": "#232C38",
    "#D6E8F5": "#16324A", DYNAMIC_COLOUR: "#3D9BD9", "#882255": "#CC6699", "#7A5195": "#A98BC4",
}  # fmt: skip


def darkened(figure: dict[str, Any]) -> dict[str, Any]:
    """A figure, as `Figure.to_dict` gives it, for a dark page. Text inside a heat map's cells stays as it is."""
    data = [trace if trace.get("type") == "heatmap" else _darkened(trace) for trace in figure["data"]]
    return {**figure, "data": data, "layout": _darkened(figure["layout"])}


def _darkened(part: Any) -> Any:
    if isinstance(part, str):
        return ON_DARK.get(part, part)
    if isinstance(part, Mapping):
        return {name: _darkened(value) for name, value in part.items()}
    if isinstance(part, list | tuple):
        return [_darkened(value) for value in part]
    return part


def as_text(name: object, letters: int = 40) -> str:
    """A name from data as a figure may show it: nothing in it is taken for HTML, and a long one is cut."""
    text = " ".join(str(name).split())
    return html.escape(text if len(text) <= letters else text[: letters - 1] + "…", quote=False)


def short(value: float) -> str:
    """A number as one says it: two significant digits, and no exponent where it can be avoided."""
    if not np.isfinite(value):
        return "–"
    if value == 0 or abs(value) < 1e-6:
        return "0" if value == 0 else f"{value:.0e}"
    digits = max(0, 1 - int(np.floor(np.log10(abs(value)))))
    return f"{round(value, digits):,.{digits}f}" if abs(value) < 100 else f"{float(f'{value:.2g}'):,.0f}"


# ------------------------------------------------------------------------------------------------ why: one mistake


@dataclass(frozen=True)
class Mistake:
    """A recorded user with one negative ranked above the chosen item; log-probs: chosen, mistake, the others."""

    user: int
    step: int
    chosen: str
    names: tuple[str, ...]  # of the negatives, the mistake first
    policy: Float[Tensor, "1 candidates"]
    reference: Float[Tensor, "1 candidates"]


def mistakes(probe: pd.DataFrame) -> list[Mistake]:
    """Users of a run's probe with one mistake at its last step.

    Exactly one negative's log-prob is at or above the chosen item's, and its log-ratio is above: it gained since SFT.
    """
    found = []
    last = probe[probe["step"] == probe["step"].max()]
    for user, lines in last.groupby("user", sort=True):
        lines = lines.sort_values("candidate")
        logps = lines[["policy", "reference"]].to_numpy(float)
        above = np.flatnonzero(logps[1:, 0] >= logps[0, 0]) + 1
        ratio = logps[:, 0] - logps[:, 1]
        if len(above) == 1 and ratio[above[0]] > ratio[0]:
            order = [0, *above, *(place for place in range(1, len(lines)) if place not in above)]
            policy, reference = torch.tensor(logps[order]).T[:, None]
            names = lines["item"].to_numpy()[order]
            found.append(Mistake(int(user), int(lines["step"].iloc[0]), names[0], tuple(names[1:]), policy, reference))
    return found


def push_table(
    policy: Float[Tensor, "1 candidates"],
    reference: Float[Tensor, "1 candidates"],
    beta: float = 1.0,
    dynamic: DynamicPO | None = None,
    objectives: Sequence[str] = ("dmpo", "dpo", "sdpo"),
) -> pd.DataFrame:
    """Loss and push on one mistake, column 1, among the other negatives of one user, and with the mistake alone.

    One row an objective: `negatives`, `kept` (those that entered the loss), `loss`, `push`, `dilution`, `saturation`,
    and `alone_loss`, `alone_push`, `alone_dilution`, `alone_saturation` for the same mistake with no other negative.
    """
    rows = {}
    for objective in objectives:
        row: dict[str, float] = {"negatives": policy.shape[1] - 1}
        for prefix, columns in (("", policy.shape[1]), ("alone_", 2)):
            arguments = (objective, policy[:, :columns], reference[:, :columns], beta)
            loss = preference_loss(*arguments, dynamic=dynamic)
            push = preference_push(*arguments, dynamic=dynamic)
            row[prefix + "loss"] = loss.losses.item()
            for name in ("push", "dilution", "saturation"):
                row[prefix + name] = getattr(push, name)[0, 0].item()
            if not prefix:
                row["kept"] = int(loss.used.sum())
        rows[objective] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def push_sentence(plain: pd.DataFrame, selected: pd.DataFrame | None = None, objective: str = "dmpo") -> str:
    """Read `push_table` aloud, in Markdown; with `selected`, the table under selection, say what that changed."""
    row = plain.to_dict("index")[objective]
    negatives = row["negatives"]
    if selected is not None:
        kept = selected.to_dict("index")[objective]
        out = negatives - kept["kept"]
        if out == 0:
            return f"Boundary only: nothing is left out, the push on the mistake is **{short(kept['push'])}**."
        if not kept["push"] > 0:
            return f"Boundary only: the mistake itself is left out, with {out - 1} of the {negatives - 1} others."
        return (
            f"Boundary only: {out} easy negative{'s are' if out > 1 else ' is'} left out, and the push on the mistake "
            f"is **{short(kept['push'])}**, **{short(kept['push'] / row['push'])} times** that among all {negatives}."
        )
    if negatives == 1:
        return (
            f"The mistake is alone: {OBJECTIVE_LABELS[objective]}'s loss is {short(row['loss'])} and its push on the "
            f"mistake {short(row['push'])}. Add easy negatives and watch."
        )
    change = row["loss"] / row["alone_loss"] - 1
    fall = row["alone_push"] / row["push"]
    loss = f"The loss {'fell' if change < 0 else 'rose'} **{abs(change):.0%}**".replace("%", " %")
    push = f"fell **{short(fall)}-fold**" if fall >= 1 else f"grew **{short(1 / fall)}-fold**"
    averaging = _factor(row["alone_dilution"] / row["dilution"], "averaging")
    sigmoid = _factor(row["alone_saturation"] / row["saturation"], "the shared sigmoid")
    return f"{loss}, the mistake is as it was, and its push {push}: {averaging}, {sigmoid}."


def _factor(loss: float, by: str) -> str:
    return f"{short(loss)} by {by}" if loss >= 0.995 else f"{by} gave back {short(1 / loss)}"


def push_product(table: pd.DataFrame, objective: str = "dmpo") -> str:
    """The push on the mistake as the product that it is, from `push_table`."""
    row = table.to_dict("index")[objective]
    parts = f"{short(row['dilution'])} (averaging: dilution) × {short(row['saturation'])} (shared sigmoid: saturation)"
    strength = row["push"] / (row["dilution"] * row["saturation"]) if row["push"] > 0 else 1.0
    times = f" × {short(strength)} (β)" if abs(strength - 1) > 0.005 else ""
    return f"{OBJECTIVE_LABELS[objective]}'s push {short(row['push'])} = {parts}{times}."


def guess_sentence(
    plain: pd.DataFrame, times: float | None = None, loss: str | None = None, objective: str = "dmpo"
) -> str:
    """The truth beside a guess of it, in Markdown, from `push_table`.

    times: by how many times the push on the mistake was guessed to fall when the other negatives are added; loss:
    "falls" or "rises", what the loss was guessed to do; None where nothing was guessed.
    """
    row = plain.to_dict("index")[objective]
    fall, change = row["alone_push"] / row["push"], row["loss"] / row["alone_loss"] - 1
    averaging = _factor(row["alone_dilution"] / row["dilution"], "averaging")
    sigmoid = _factor(row["alone_saturation"] / row["saturation"], "the shared sigmoid")
    push = f"falls **{short(fall)}-fold**" if fall >= 1 else f"grows **{short(1 / fall)}-fold**"
    text = f"The push {push} ({averaging}, {sigmoid})"
    if times is not None:
        off = max(times / fall, fall / times)
        error = f"{short(off)} times too {'much' if times > fall else 'little'}" if off > 1.1 else "right"
        text += f"; you said {short(times)}-fold: **{error}**"
    truth = "falls" if change < 0 else "rises"
    text += f". The loss **{truth}** {abs(change):.0%}".replace("%", " %")
    if loss is not None:
        text += f"; you said it {loss}: **{'right' if loss == truth else 'wrong'}**"
    return text + "."


def margin_line(
    rewards: Float[np.ndarray, " candidates"],
    used: Bool[np.ndarray, " negatives"],
    names: Sequence[str],
    span: tuple[float, float] | None = None,
) -> go.Figure:
    """One user's negatives on a line of margins, equal ones stacked: how far the chosen item is ahead of each.

    rewards: βρ of the candidates, used: what entered the loss, both a row of `PreferenceOutput`; names: the negatives',
    the mistake first. The triangle is where the line would balance: the mean margin of the negatives in use, which is
    what DMPO puts into its sigmoid. `span` keeps the axis still while a slider moves.
    """
    margins = np.asarray(rewards[0] - rewards[1:], dtype=float)
    used = np.asarray(used, dtype=bool)
    lengths = [min(len(name), 24) for name in names]
    names = [as_text(name, 24) for name in names]
    low, high = span or (min(margins.min(), 0) - 1, max(margins.max(), 0) + 1)
    places = np.round((margins - low) / (high - low) * 60).astype(int)
    heights = np.array([(places[:index] == place).sum() for index, place in enumerate(places)])
    others = np.arange(len(margins)) > 0
    colour = OBJECTIVE_COLOURS["dmpo"] if used.all() else DYNAMIC_COLOUR

    dots = []
    for group, marker in (
        (others & used, {"color": "#7F8A9A", "size": 9}),
        (others & ~used, {"color": "white", "size": 9, "line": {"color": FAINT, "width": 1.5}}),
        (~others, {"color": INK, "size": 14, "symbol": "diamond"}),
    ):
        dots.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": margins[group],
                "y": heights[group],
                "marker": marker,
                "text": [name for name, inside in zip(names, group, strict=True) if inside],
                "hovertemplate": "%{text}<br>margin %{x:.2f}<extra></extra>",
                "cliponaxis": False,
            }
        )
    mean = margins[used].mean()
    dots.append(
        {
            "type": "scatter",
            "mode": "markers",
            "x": [mean],
            "y": [-2.7],
            "marker": {"symbol": "triangle-up", "size": 18, "color": colour},
            "hovertemplate": "mean margin %{x:.2f}<extra></extra>",
        }
    )

    def note(text: str, x: float, y: float, to: str = "center", shift: int = 0, color: str = QUIET) -> dict[str, Any]:
        place = {"x": x, "y": y, "xanchor": to, "xshift": shift, "align": to}
        return {"text": text, "font": {"size": 14, "color": color}, **place}

    def beside(x: float, shift: int) -> tuple[str, int]:
        """Towards the middle of the line, where there is room."""
        return ("right", -shift) if x > (low + high) / 2 else ("left", shift)

    averaged = "DMPO sees the average" if used.all() else "the average is now"
    width = 0.021 * (high - low)  # of a letter, on a phone
    half = width * max(11, lengths[0]) / 2
    mistake = min(max(margins[0], low + half), high - half)
    notes = [
        note(f"{averaged}: <b>{mean:.2f}</b>".replace("-", "−"), mean, -2.9, *beside(mean, 13), INK),
        note(f"the mistake<br><b>{names[0]}</b>", mistake, 4, color=INK),
    ]
    for text, room, to, shift in (("wrong side ◂", -low, "right", -6), ("▸ chosen item ahead", high, "left", 6)):
        if room > width * len(text):
            notes.append(note(text, 0, 18.9, to, shift))
    leaders = []
    rows = [mistake + half] * 2 + [low] * 3  # where each row of names is free
    lowest = 4 + max(0, heights[others].max(initial=0) - 2)  # above every stack of dots
    for index in np.argsort(margins):
        stack = np.flatnonzero(others & (places == places[index]))
        if not len(stack) or index != stack[0]:
            continue
        more = f"and {len(stack) - 1} more" if len(stack) > 3 else ""
        if more and len(stack) == others.sum():  # nothing else is in the way
            text = f"{names[index]}<br>{more}"
            notes.append(note(text, margins[index], heights[stack].max() / 2, *beside(margins[index], 12)))
            continue
        half = width * (lengths[index] + len(more)) / 2
        fits = margins[index] + half < high + width
        free = [row for row, end in enumerate(rows) if fits and end < margins[index] - half]
        y = lowest + 2.7 * free[0] if free else np.inf
        if y < 17:  # else the name is only shown under the pointer
            rows[free[0]] = margins[index] + half + width
            notes.append(note(f"{names[index]} {more}", margins[index], y))
            leaders.append({"type": "line", "x0": margins[index], "x1": margins[index], "y0": 1, "y1": y - 1.2})
    return go.Figure(
        data=dots,
        layout={
            "template": TEMPLATE,
            "height": 205,
            "showlegend": False,
            "margin": {"t": 4},
            "annotations": notes,
            "shapes": [
                {"type": "rect", "x0": low, "x1": 0, "y0": 0, "y1": 1, "yref": "y domain", "fillcolor": "#F3F5F8",
                 "line": {"width": 0}, "layer": "below"},
                {"type": "line", "x0": low, "x1": high, "y0": -1.1, "y1": -1.1, "line": {"color": FAINT, "width": 2}},
                *({**leader, "line": {"color": GRID, "width": 1.5}, "layer": "below"} for leader in leaders),
            ],
            "xaxis": {"range": [low, high], "title": {"text": MARGIN}},
            "yaxis": {"visible": False, "range": [-4.3, 20]},
        },
    )  # fmt: skip


BARS = {"template": TEMPLATE, "height": 190, "barmode": "overlay", "margin": {"t": 26, "b": 54}}  # of a table's rows


def _painted(table: pd.DataFrame, dynamic: bool) -> tuple[list[str], list[str]]:
    """Labels and colours of the rows of `push_table`."""
    colours = [DYNAMIC_COLOUR if dynamic else OBJECTIVE_COLOURS[name] for name in table.index]
    return [OBJECTIVE_LABELS[name] for name in table.index], colours


def _heading(text: str) -> dict[str, Any]:
    place = {"x": 0, "xref": "x domain", "xanchor": "left", "y": 1, "yref": "y domain", "yanchor": "bottom"}
    return {"text": text, "font": {"size": 15}, **place}


def _alone(at: pd.Series, labels: list[str], **more: Any) -> dict[str, Any]:
    """A tick where each row stands with the mistake alone."""
    mark = {"symbol": "line-ns", "size": 26, "line": {"width": 2, "color": INK}}
    words = {"name": "alone", "hovertemplate": "mistake alone: %{x:.3f}<extra></extra>"}
    return {"type": "scatter", "mode": "markers", "x": at, "y": labels, "marker": mark, **words, **more}


def loss_bars(table: pd.DataFrame, dynamic: bool = False) -> go.Figure:
    """The loss of each row of `push_table`, and a tick where it stands with the mistake alone.

    `dynamic` paints the bars in DynamicPO's blue.
    """
    labels, colours = _painted(table, dynamic)
    bars = {"type": "bar", "orientation": "h", "x": table["loss"], "y": labels, "width": 0.55, "showlegend": False}
    words = {"marker": {"color": colours}, "hovertemplate": "%{y}: loss %{x:.4g}<extra></extra>"}
    notes = [
        {"text": f"<b>{short(value)}</b>", "x": value, "y": label, "xanchor": "left", "xshift": 7}
        for value, label in zip(table["loss"], labels, strict=True)
    ]
    top = 1.4 * max(table["loss"].max(), table["alone_loss"].max())
    return go.Figure(
        data=[{**bars, **words}, _alone(table["alone_loss"], labels, showlegend=False)],
        layout={
            **BARS,
            "annotations": [_heading("<b>Loss</b>"), *notes],
            "xaxis": {"range": [0, top], "nticks": 4, "showgrid": False, "tickfont": {"size": 12}},
            "yaxis": {"autorange": "reversed", "showgrid": False, "ticksuffix": "  "},
        },
    )


def push_bars(table: pd.DataFrame, dynamic: bool = False, guess: float | None = None) -> go.Figure:
    """Push on the mistake, on a log scale, for each row of `push_table`.

    A bar is the push that is left; behind it, from where the push stands with the mistake alone, what averaging
    (dilution) and the shared sigmoid (saturation) took. `dynamic` paints the bars in DynamicPO's blue. guess: by how
    many times the first row's push was guessed to fall; a diamond stands there.
    """
    labels, colours = _painted(table, dynamic)
    pushed = table["push"][table["push"] > 0]
    guessed = table["alone_push"].iloc[0] / guess if guess else np.inf
    # the shortest bar has room for its number
    lowest = np.floor(np.log10(min(pushed.min(), guessed)) - 0.6) if len(pushed) else 0
    exponent = int(max(min(-4, lowest), -12))
    floor = 10.0**exponent
    push, alone = table["push"].clip(lower=floor), table["alone_push"].clip(lower=floor)
    diluted = (alone * table["dilution"] / table["alone_dilution"]).clip(lower=push, upper=alone)
    told = [
        f"{label}: push {row['push']:.3g}<br>"
        f"= {row['dilution']:.3g} (dilution) × {row['saturation']:.3g} (saturation), times β"
        for label, row in zip(labels, table.to_dict("records"), strict=True)
    ]

    def bar(start: Any, end: Any, color: Any, **more: Any) -> dict[str, Any]:
        """A horizontal bar; on the log axis it needs a base."""
        place = {"type": "bar", "orientation": "h", "y": labels, "width": 0.55, "showlegend": False}
        hover = {"hoverinfo": "text", "hovertext": told}
        return {**place, **hover, "base": start, "x": np.maximum(end - start, 0), "marker": {"color": color}, **more}

    lost = {
        "averaging": (diluted, alone, DILUTION_COLOUR, table["alone_dilution"] / table["dilution"]),
        "shared sigmoid": (push, diluted, SATURATION_COLOUR, table["alone_saturation"] / table["saturation"]),
    }
    bars = [bar(floor, push, colours)]
    notes = []
    for what, (start, end, colour, factor) in lost.items():
        bars.append(bar(start, end, colour, name=what, showlegend=True))
        notes += [
            {"text": f"÷ {short(by)}", "x": (np.log10(left) + np.log10(right)) / 2, "y": label}
            for label, left, right, by in zip(labels, start, end, factor, strict=True)
            if right / left > 2.5  # else there is no room
        ]
    notes += [
        {
            "text": f"<b>{short(value)}</b>", "x": exponent, "y": label, "xanchor": "left", "xshift": 5,
            "font": {"size": 14, "color": INK if value <= floor else "white" if dynamic else "black"},
        }
        for value, label in zip(table["push"], labels, strict=True)
    ]  # fmt: skip
    marks = [_alone(alone, labels)]
    if guess:
        mark = {"symbol": "diamond", "size": 15, "color": "white", "line": {"width": 2.5, "color": INK}}
        words = {"name": "your guess", "hovertemplate": "your guess: %{x:.3g}<extra></extra>"}
        marks.append({"type": "scatter", "mode": "markers", "x": [max(guessed, floor)], "y": labels[:1],
                      "marker": mark, **words})  # fmt: skip
    last = np.log10(max(alone.max(), push.max(), guessed if guess else 0, 1)) + 0.1
    return go.Figure(
        data=[*bars, *marks],
        layout={
            **BARS,
            "annotations": [_heading("<b>Push on the mistake</b> (log scale)"), *notes],
            "legend": {"x": 1, "xanchor": "right", "y": -0.22, "yanchor": "top", "traceorder": "normal"},
            "xaxis": {
                "type": "log",
                "range": [exponent, last],
                "dtick": 1 if exponent > -7 else 2,
                "exponentformat": "power",
                "tickfont": {"size": 12},
            },
            "yaxis": {"autorange": "reversed", "showgrid": False, "ticksuffix": "  "},
        },
    )


# ------------------------------------------------------------------------------------- paired differences, anywhere


def in_points(interval: Interval) -> str:
    """A difference of shares of users in points, with its 95 % interval: mean [low, high]."""
    mean, low, high = (
        f"{100 * value:+.1f}".replace("-0.0", "+0.0").replace("-", "−")
        for value in (interval.mean, interval.low, interval.high)
    )
    return f"{mean} [{low}, {high}]"


def differences(
    intervals: Mapping[str, Interval],
    title: str,
    axis: str = "difference of HR@1, points",
    colours: Mapping[str, str | None] | None = None,
    seeds: Mapping[str, Sequence[float]] | None = None,
) -> go.Figure:
    """Paired differences with their 95 % intervals, a line each, in the order given; the numbers stand to the right.

    intervals: by label, as shares of users (0.01 is a point). title: said by the caller, from the same numbers.
    colours: by label; a label without one is drawn in ink. seeds: each label's differences seed by seed, as shares,
    drawn as open circles. A grey band is one point to either side of zero.
    """
    labels = list(intervals)
    places = dict(zip(labels, range(len(labels)), strict=True))
    figure = go.Figure()
    figure.add_vrect(x0=-1, x1=1, fillcolor="#F3F5F8", line_width=0, layer="below")
    figure.add_vline(x=0, line={"color": QUIET, "width": 1.5}, layer="below")
    if seeds is not None:
        each = [(100 * value, places[label] - 0.25) for label in labels for value in seeds[label]]
        figure.add_scatter(
            x=[at for at, _ in each], y=[place for _, place in each], mode="markers", name="one seed",
            marker={"size": 8, "color": QUIET, "symbol": "circle-open"}, hovertemplate="%{x:+.1f}<extra></extra>",
        )  # fmt: skip
    for label, place in places.items():
        interval = intervals[label]
        mean, low, high = (100 * value for value in (interval.mean, interval.low, interval.high))
        colour = (colours or {}).get(label) or INK
        figure.add_scatter(
            x=[mean], y=[place], mode="markers", name="mean, 95 % interval",
            showlegend=seeds is not None and place == 0, marker={"size": 11, "color": colour, "symbol": "diamond"},
            error_x={"array": [high - mean], "arrayminus": [mean - low], "color": colour, "thickness": 2, "width": 5},
            hovertemplate=f"{label}: {in_points(interval)}<extra></extra>",
        )  # fmt: skip
        figure.add_annotation(
            text=in_points(interval), x=1.01, xref="paper", y=place, xanchor="left", font={"size": 13, "color": INK}
        )
    lows, highs = ([100 * getattr(interval, end) for interval in intervals.values()] for end in ("low", "high"))
    lines = 1 + title.count("<br>")
    top = {"y": 1, "yanchor": "top", "yref": "container", "pad": {"t": 18}}
    figure.update_layout(
        template=TEMPLATE,
        height=102 + 20 * lines + 38 * len(labels) + 28 * (seeds is not None),
        title={"text": title, "x": 0, "xref": "container", "font": {"size": 16}, **top},
        margin={"t": 34 + 20 * lines + 28 * (seeds is not None), "r": 135},
    )
    figure.update_xaxes(title_text=axis, range=[1.15 * min(*lows, -1.0), 1.15 * max(*highs, 1.0)])
    figure.update_yaxes(
        range=[len(labels) - 0.5, -0.6],
        showgrid=False,
        tickvals=list(places.values()),
        ticktext=labels,
        ticksuffix="  ",
    )
    return figure


# ---------------------------------------------------------------------------------- what happens: the recorded grid


def verdict(low: float, high: float) -> str:
    """What an interval of HR@1(largest K) − HR@1(smallest K) lets one say, in one word."""
    if high < 0:
        return "collapses"
    if low >= -0.01 and high <= 0.01:
        return "stable"
    return "rises" if low > 0 else "undecided"


def points(mean: float, low: float, high: float) -> str:
    """A difference of a metric in points, hundredths of it, with its 95 % interval."""
    return f"{100 * mean:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")


def level(value: float, metric: str = "hr@1") -> str:
    """A metric's value as one says it: in per cent where it is a share of users."""
    return f"{value:.3f}" if metric in AVERAGES else f"{100 * value:.1f} %"


def collapse_sentence(
    objective: str,
    table: pd.DataFrame,
    change: tuple[float, float, float] | None,
    repair: tuple[float, float, float] | None = None,
    parts: Mapping[str, tuple[float, float, float]] | None = None,
    metric: str = "hr@1",
) -> str:
    """Read `collapse_grid` aloud, in Markdown.

    `change` is `metric` of plain runs at the largest K minus the smallest, `repair` DynamicPO minus plain at the
    largest K: mean, low and high of a paired 95 % interval; None where single users were not recorded. `parts` are
    further such differences, by the name of the variant. Where the table has a column `seed` and the seeds disagree on
    whether the training loss falls, it says so.
    """
    plain = table[table["variant"] == "plain"]
    first, last = plain["negatives"].min(), plain["negatives"].max()
    text = (
        f"From K = {first} to {last}, {OBJECTIVE_LABELS[objective]}'s training loss {loss_motion(plain)}; "
        f"its {METRICS[metric]} "
    )
    if change is None:
        few, many = plain.groupby("negatives")[metric].mean()[[first, last]]
        return text + f"goes from {level(few, metric)} to {level(many, metric)}."
    word = verdict(*change[1:])
    said = {"stable": "it is **stable**", "undecided": "that leaves it **undecided**"}.get(word, f"it **{word}**")
    text += f"changes by {points(*change)}: {said}."
    if repair is not None:
        effect = "repairs it" if word == "collapses" else "helps"
        if repair[1] <= 0:
            effect = "hurts" if repair[2] < 0 else "makes no clear difference"
        text += f" At K = {last}, DynamicPO {effect}: {points(*repair)}."
    if parts:
        told = [
            f"{VARIANTS[part][0]} {100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
            for part, (mean, low, high) in parts.items()
        ]
        text += f" Its parts, in points against plain: {', '.join(told)}.".replace("-", "−")
    return text


def loss_motion(plain: pd.DataFrame) -> str:
    """How the training loss of plain runs moves from the smallest K to the largest, and in how many seeds otherwise."""
    means = plain.groupby("negatives")["train_loss"].mean()
    falls = means.iloc[-1] < means.iloc[0]
    text = f"{'falls' if falls else 'rises'} {abs(means.iloc[-1] / means.iloc[0] - 1):.0%}".replace("%", " %")
    against, seeds = _seeds_against(plain)
    if against:
        text += f" on average, but {'rises' if falls else 'falls'} in {against} of {seeds} seeds"
    return text


def _seeds_against(plain: pd.DataFrame) -> tuple[int, int]:
    """In how many seeds the training loss moves against the mean from the smallest to the largest K; of how many."""
    if "seed" not in plain:
        return 0, 0
    seeds = plain.pivot_table(index="seed", columns="negatives", values="train_loss").sort_index(axis=1)
    change = (seeds.iloc[:, -1] - seeds.iloc[:, 0]).dropna()
    return int((change * change.mean() < 0).sum()), len(change)


def _motion(values: pd.Series, name: str) -> str:
    first, last = values.iloc[0], values.iloc[-1]
    word = "stays" if short(first) == short(last) else "falls" if last < first else "rises"
    return f"{name} {word}: {short(first)} → {short(last)}"


def apart(levels: Mapping[str, float], gap: float) -> dict[str, float]:
    """Where to write each level's name so that no two are closer than `gap`: as near to the level as that allows."""
    names = sorted(levels, key=lambda name: levels[name])
    places = np.array([levels[name] for name in names])
    for _ in range(len(names)):
        for low in range(len(names) - 1):
            push = max(0.0, gap - (places[low + 1] - places[low])) / 2
            places[low] -= push
            places[low + 1] += push
    return dict(zip(names, places.tolist(), strict=True))


def collapse_grid(
    table: pd.DataFrame,
    objective: str,
    word: str,
    levels: Mapping[str, float],
    metric: str = "hr@1",
    guesses: Mapping[int, float] | None = None,
    hidden: bool = False,
) -> go.Figure:
    """Training loss, pair_loss and a ranking metric against K, in stacked panels: means, in bands over the seeds.

    `table` has a row a run: `variant` (a key of VARIANTS), `negatives`, `train_loss`, `pair_loss` and `metric`, a key
    of METRICS. `word` is `verdict`'s or empty; it goes into the last panel's title. `levels` are levels of the metric
    drawn as lines, of those in LEVELS; the oracle's stands above a break of the axis. `guesses`: a viewer's, K to per
    cent, or to the metric itself where it is no share. `hidden`: the plain runs' training loss alone, and of the metric
    only where K is smallest.
    """
    name_of, unit = METRICS[metric], 1 if metric in AVERAGES else 100
    plain = table[table["variant"] == "plain"]
    means = plain.groupby("negatives")[["train_loss", "pair_loss", metric]].mean()
    ticks = sorted(table["negatives"].unique())
    loss = _motion(means["train_loss"], "Training loss")
    if _seeds_against(plain)[0]:
        loss = loss.replace(":", " on average:")
    ends = f"{level(means[metric].iloc[0], metric)} → {level(means[metric].iloc[-1], metric)}"
    panels = {
        "train_loss": loss,
        "pair_loss": _motion(means["pair_loss"], "pair_loss"),
        metric: f"{name_of}{' ' * bool(word)}{word}: {ends}",
    }
    if hidden:
        panels = {"train_loss": loss, metric: f"{name_of}: what do you expect?"}
        table = plain
    heights = {"train_loss": 0.24, "pair_loss": 0.24, metric: 0.52}
    bottom = len(panels)
    figure = make_subplots(
        rows=bottom, cols=1, shared_xaxes=True, row_heights=[heights[column] for column in panels],
        vertical_spacing=0.09, subplot_titles=list(panels.values()),
    )  # fmt: skip
    for variant, (name, colour, dash, symbol) in VARIANTS.items():
        runs = table[table["variant"] == variant]
        if runs.empty:
            continue
        colour = colour or OBJECTIVE_COLOURS[objective]
        name = f"{name} {OBJECTIVE_LABELS[objective]}" if variant == "plain" else name
        for row, column in enumerate(panels, start=1):
            scale = unit if column == metric else 1
            spread = (runs.groupby("negatives")[column].agg(["mean", "min", "max"]) * scale).sort_index()
            if hidden and column == metric:
                spread = spread.head(1)
            if variant in ("plain", "dynamic"):
                figure.add_scatter(
                    x=[*spread.index, *spread.index[::-1]], y=[*spread["max"], *spread["min"][::-1]],
                    fill="toself", fillcolor=colour, opacity=0.18, line_width=0, mode="lines",
                    hoverinfo="skip", showlegend=False, row=row, col=1,
                )  # fmt: skip
            figure.add_scatter(
                x=spread.index, y=spread["mean"], name=name, legendgroup=variant, showlegend=row == bottom,
                mode="lines+markers", line={"color": colour, "width": 2.5, "dash": dash},
                marker={"symbol": symbol, "size": 8},
                customdata=spread[["min", "max"]],
                hovertemplate=f"{name}, K = %{{x}}<br>%{{y:.3~f}} (seeds %{{customdata[0]:.3~f}} to "
                "%{customdata[1]:.3~f})<extra></extra>",
                row=row, col=1,
            )  # fmt: skip
    seen = [unit * means[metric].iloc[0]] if hidden else [*(unit * table[metric])]
    if guesses:
        seen += guesses.values()
        figure.add_scatter(
            x=list(guesses), y=list(guesses.values()), name="your guess", mode="lines+markers",
            line={"color": INK, "width": 2, "dash": "dot"}, marker={"symbol": "diamond-open", "size": 11},
            hovertemplate="your guess, K = %{x}: %{y:.3~f}<extra></extra>", row=bottom, col=1,
        )  # fmt: skip
    # The oracle is far above every run: it has a strip of its own, so that a point can be seen below it.
    near = {name: unit * height for name, height in levels.items() if name != "oracle"}
    seen += near.values()
    places = apart(near, 0.38 * max(max(seen) - min(seen), 0.001 * unit))
    x_axis, y_axis = (f"{letter}{bottom}" for letter in "xy")
    top = figure.layout[f"yaxis{bottom}"].domain[1]
    if "oracle" in levels:
        oracle = places["oracle"] = unit * levels["oracle"]
        around = [0.99 * oracle, 1.01 * oracle]
        strip = {"domain": [top - 0.03, top], "range": around, "anchor": x_axis, "visible": False}
        figure.update_layout({f"yaxis{bottom}": {"domain": [0, top - 0.06]}, f"yaxis{bottom + 1}": strip})
        figure.add_annotation(text="≈", x=0, xref="paper", y=top - 0.045, yref="paper", name="break", xanchor="center")
    for name, height in levels.items():
        axis = f"y{bottom + 1}" if name == "oracle" else y_axis
        figure.add_shape(
            type="line", x0=0, x1=1, xref=f"{x_axis} domain", y0=unit * height, y1=unit * height, yref=axis,
            line={"color": QUIET, "width": 1.5, "dash": LEVELS[name]},
        )  # fmt: skip
        figure.add_annotation(
            text=f"{name}<br>{level(height, metric)}", x=1.01, xref=f"{x_axis} domain", y=places[name], yref=axis,
            xanchor="left", align="left", font={"size": 13, "color": QUIET},
            yanchor="bottom" if name == "oracle" else "middle", yshift=-10 if name == "oracle" else 0,
        )  # fmt: skip
    figure.update_annotations(selector={"yref": "paper", "name": None}, x=0, xanchor="left", font={"size": 15})
    rows = 1 if table["variant"].nunique() <= 2 else 2  # of the legend
    height = (350 if hidden else 392) + 28 * rows
    figure.update_layout(template=TEMPLATE, height=height, margin={"t": 20 + 26 * rows, "r": 66}, legend={"y": 1.065})
    figure.update_xaxes(tickvals=ticks, range=[min(ticks) - 0.5, max(ticks) + 0.5])
    figure.update_xaxes(title_text="K, negatives per training example", row=bottom, col=1)
    figure.update_yaxes(title_text="nats", nticks=4)
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="mean, 0 to 1" if unit == 1 else "% of test users", nticks=7, row=bottom, col=1)
    return figure


# ------------------------------------------------------------------------------------------------ train it now: a run


def live_run(metrics: pd.DataFrame, evaluations: pd.DataFrame, settings: Mapping[str, Any]) -> go.Figure:
    """A run while it trains: loss, pair_loss and validation HR@1 over its steps, beside the SFT level it started from.

    metrics: columns `step`, `loss`; evaluations: `step`, `pair_loss`, `hr@1`; both may be empty. settings: the run's
    `objective`, `dynamic` and `steps`.
    """
    figure = make_subplots(
        rows=1,
        cols=3,
        horizontal_spacing=0.07,
        subplot_titles=("Training loss (nats)", "pair_loss, validation (nats)", "HR@1, validation (%)"),
    )
    colour = DYNAMIC_COLOUR if settings["dynamic"] == "on" else OBJECTIVE_COLOURS[settings["objective"]]
    for column, (frame, name, scale) in enumerate(
        ((metrics, "loss", 1), (evaluations, "pair_loss", 1), (evaluations, "hr@1", 100)), start=1
    ):
        if not frame.empty:
            figure.add_scatter(
                x=frame["step"], y=frame[name] * scale, mode="lines" if column == 1 else "lines+markers",
                line={"color": colour, "width": 2.5}, marker={"size": 7}, showlegend=False,
                hovertemplate="step %{x}: %{y:.4~f}<extra></extra>", row=1, col=column,
            )  # fmt: skip
    if not evaluations.empty:
        start = 100 * float(evaluations["hr@1"].iloc[0])
        figure.add_hline(
            y=start, line={"color": QUIET, "width": 1.5, "dash": "dash"}, row=1, col=3,
            annotation={"text": f"SFT, {start:.1f} %", "font": {"size": 13, "color": QUIET}, "x": 0, "xanchor": "left"},
        )  # fmt: skip
    figure.update_layout(template=TEMPLATE, height=260)
    figure.update_annotations(font_size=15)
    steps = int(settings["steps"])
    figure.update_xaxes(title_text="step", range=[-0.02 * steps, 1.02 * steps])
    figure.update_yaxes(nticks=5)
    return figure


@dataclass(frozen=True)
class Curves:
    """What a run has logged on its way, or so far.

    settings: `objective`, `dynamic`, `negatives` and `steps`, and `dataset` and `model`, by which runs are comparable.
    metrics: columns `step`, `loss`; evaluations: `step`, `pair_loss` and ranking metrics of METRICS; both may be empty.
    """

    name: str
    settings: Mapping[str, Any]
    metrics: pd.DataFrame
    evaluations: pd.DataFrame

    @property
    def colour(self) -> str:
        return DYNAMIC_COLOUR if self.settings["dynamic"] == "on" else OBJECTIVE_COLOURS[self.settings["objective"]]


DASHES = ("solid", "dash", "dot", "dashdot")


def live_runs(runs: Sequence[Curves], metric: str = "hr@1") -> go.Figure:
    """Up to four runs as they train: training loss, pair_loss and a ranking metric over the steps, in stacked panels.

    A line a run, in its objective's colour (DynamicPO's where that is on) and a dash of its own. The metric's panel
    has the level of the SFT model, at step 0, in grey; the win rate has none, for it is counted from there.
    """
    unit, percent = ("0 to 1", 1) if metric in AVERAGES else ("%", 100)
    begun = [run.evaluations[metric].iloc[0] for run in runs if not run.evaluations.empty]
    starts = sorted({float(start) for start in begun}) if metric != "reward_win_rate" else []
    grey = f" (grey: SFT, {' and '.join(level(start, metric) for start in starts)})" if starts else ""
    figure = make_subplots(
        rows=3,
        cols=1,
        shared_xaxes=True,
        row_heights=[0.27, 0.27, 0.46],
        vertical_spacing=0.09,
        subplot_titles=(
            "Training loss, nats",
            "Yardstick pair_loss on validation users, nats",
            f"{METRICS[metric]} on validation users, {unit}{grey}",
        ),
    )
    for run, dash in zip(runs, DASHES, strict=False):
        name = as_text(run.name, 60)
        for row, (table, column, scale) in enumerate(
            ((run.metrics, "loss", 1), (run.evaluations, "pair_loss", 1), (run.evaluations, metric, percent)), start=1
        ):
            figure.add_scatter(
                x=[] if table.empty else table["step"], y=[] if table.empty else scale * table[column],
                mode="lines" if row == 1 else "lines+markers", name=name, legendgroup=dash, showlegend=row == 1,
                line={"color": run.colour, "width": 2.5, "dash": dash}, marker={"size": 6},
                hovertemplate=f"{name}, step %{{x}}: %{{y:.4~f}}<extra></extra>", row=row, col=1,
            )  # fmt: skip
    for start in starts:
        line = {"color": FAINT, "width": 3}
        figure.add_hline(y=percent * start, line=line, row=3, col=1, layer="below")
    figure.update_annotations(x=0, xanchor="left", font={"size": 15})
    height = 350 + 20 * max(0, len(runs) - 1)  # the legend may need a line for each
    figure.update_layout(template=TEMPLATE, height=height, margin={"t": 40}, legend={"y": 1.08})
    steps = max((int(run.settings["steps"]) for run in runs), default=100)
    figure.update_xaxes(range=[-0.015 * steps, 1.015 * steps])
    figure.update_xaxes(title_text="step", row=3, col=1)
    figure.update_yaxes(nticks=4)
    figure.update_yaxes(nticks=6, row=3, col=1)
    if not begun:  # axes with nothing on them would show numbers of no meaning
        figure.update_yaxes(showticklabels=False)
    return figure


def live_sentence(runs: Sequence[Curves], metric: str = "hr@1", names: Sequence[str] | None = None) -> str:
    """Read `live_runs` aloud, in Markdown. names: the runs' in Markdown, if theirs cannot be taken as it.

    Of several runs it says which has the lowest training loss and pair_loss and the highest metric at its last
    evaluation; runs on other data or with another model it tells one by one.
    """
    named = zip(names or [run.name for run in runs], runs, strict=True)
    begun = [(name, run) for name, run in named if not (run.metrics.empty or run.evaluations.empty)]
    if not begun:
        return "No step is logged yet: the lines appear as soon as the first is."

    def alone(name: str, run: Curves) -> str:
        losses, yardstick, ranking = run.metrics["loss"], run.evaluations["pair_loss"], run.evaluations[metric]
        sft = "" if metric == "reward_win_rate" else f" {level(ranking.iloc[0], metric)} (SFT) →"
        return (
            f"**{name}**: after step {run.metrics['step'].iloc[-1]} of {run.settings['steps']}, training loss "
            f"{short(losses.iloc[0])} → {short(losses.iloc[-1])}, pair_loss {short(yardstick.iloc[0])} → "
            f"{short(yardstick.iloc[-1])}, and {METRICS[metric]} on validation users{sft} "
            f"**{level(ranking.iloc[-1], metric)}**."
        )

    if len(begun) == 1 or len({(run.settings["dataset"], run.settings["model"]) for _, run in begun}) > 1:
        return " ".join(alone(name, run) for name, run in begun)
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
    """What a finished run came to, in Markdown, beside SFT and recorded runs: rows of a recorded table, of any K.

    gain: HR@1 minus SFT's, mean and 95 % interval, as shares of users; without it the difference is told alone.
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
