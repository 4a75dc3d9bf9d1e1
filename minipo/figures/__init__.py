"""Every figure that a notebook or the app shows, and the sentence that reads it aloud.

Figures are pure functions from arrays or tables to `plotly.graph_objects.Figure`; sentences are pure functions from the
same numbers to text, so that no conclusion is ever written down before the data are seen. An objective has one colour
everywhere, and whatever DynamicPO does is blue (Okabe and Ito's palette, and for the extensions Tol's muted one: safe
for colour-blind readers).
"""

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
    notes = [
        note(f"{averaged}: <b>{mean:.2f}</b>".replace("-", "−"), mean, -2.9, *beside(mean, 13), colour),
        note(f"the mistake<br><b>{names[0]}</b>", margins[0], 4, color=INK),
        note("the wrong side ◂", 0, 18.9, "right", -6),
        note("▸ the chosen item is ahead", 0, 18.9, "left", 6),
    ]
    leaders = []
    width = 0.0115 * (high - low)  # of a letter
    rows = [margins[0] + width * max(6, len(names[0]) / 2)] * 2 + [low] * 3  # where each row of names is free
    for index in np.argsort(margins):
        stack = np.flatnonzero(others & (places == places[index]))
        if not len(stack) or index != stack[0]:
            continue
        if len(stack) > 3:
            text = f"{names[index]}<br>and {len(stack) - 1} more"
            notes.append(note(text, margins[index], heights[stack].max() / 2, *beside(margins[index], 12)))
            continue
        half = width * len(names[index]) / 2
        fits = margins[index] + half < high + width
        free = [row for row, end in enumerate(rows) if fits and end < margins[index] - half]
        if free:  # else the name is only shown under the pointer
            y = 4 + 2.7 * free[0]
            rows[free[0]] = margins[index] + half + width
            notes.append(note(names[index], margins[index], y))
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


def push_bars(table: pd.DataFrame, dynamic: bool = False) -> go.Figure:
    """Loss, and push on the mistake on a log scale, for each row of `push_table`.

    A bar is the push that is left; behind it, from where the push stands with the mistake alone, what dilution and
    saturation took. `dynamic` paints the bars in DynamicPO's blue.
    """
    labels = [OBJECTIVE_LABELS[name] for name in table.index]
    colours = [DYNAMIC_COLOUR if dynamic else OBJECTIVE_COLOURS[name] for name in table.index]
    pushed = table["push"] > 0
    # the shortest bar has room for its number
    lowest = np.floor(np.log10(table["push"][pushed].min()) - 0.6) if pushed.any() else 0
    exponent = int(max(min(-4, lowest), -12))
    floor = 10.0**exponent
    push, alone = table["push"].clip(lower=floor), table["alone_push"].clip(lower=floor)
    diluted = (alone * table["dilution"] / table["alone_dilution"]).clip(lower=push, upper=alone)

    told = [
        f"{label}: loss {row['loss']:.4g}, push {row['push']:.3g}<br>"
        f"= {row['dilution']:.3g} (dilution) × {row['saturation']:.3g} (saturation), times β"
        for label, row in zip(labels, table.to_dict("records"), strict=True)
    ]

    def bar(start: Any, end: Any, color: Any, axis: str, **more: Any) -> dict[str, Any]:
        """A horizontal bar; on the log axis it needs a base."""
        place = {"type": "bar", "orientation": "h", "y": labels, "xaxis": axis, "width": 0.55, "showlegend": False}
        hover = {"hoverinfo": "text", "hovertext": told}
        return {**place, **hover, "base": start, "x": np.maximum(end - start, 0), "marker": {"color": color}, **more}

    def tick(at: pd.Series, axis: str) -> dict[str, Any]:
        mark = {"symbol": "line-ns", "size": 26, "line": {"width": 2, "color": INK}}
        words = {"name": "mistake alone", "hovertemplate": "mistake alone: %{x:.3f}<extra></extra>"}
        return {"type": "scatter", "mode": "markers", "x": at, "y": labels, "xaxis": axis, "marker": mark, **words}

    lost = {
        "dilution": (diluted, alone, DILUTION_COLOUR, table["alone_dilution"] / table["dilution"]),
        "saturation": (push, diluted, SATURATION_COLOUR, table["alone_saturation"] / table["saturation"]),
    }
    top = 1.4 * max(table["loss"].max(), table["alone_loss"].max())
    bars = [bar(0, table["loss"], colours, "x"), bar(floor, push, colours, "x2")]
    notes = []
    for what, (start, end, colour, factor) in lost.items():
        bars.append(bar(start, end, colour, "x2", name=f"lost to {what}", showlegend=True))
        notes += [
            {"text": f"÷ {short(by)}", "x": (np.log10(left) + np.log10(right)) / 2, "xref": "x2", "y": label}
            for label, left, right, by in zip(labels, start, end, factor, strict=True)
            if right / left > 2.5  # else there is no room
        ]
    notes += [
        {"text": text, "x": 0, "xref": axis, "xanchor": "left", "y": 1.02, "yref": "paper", "yanchor": "bottom"}
        for text, axis in (("<b>Loss</b>", "x domain"), ("<b>Push on the mistake</b> (log scale)", "x2 domain"))
    ]
    notes += [
        {"text": f"<b>{short(value)}</b>", "x": value, "xref": "x", "y": label, "xanchor": "left", "xshift": 7}
        for value, label in zip(table["loss"], labels, strict=True)
    ]
    notes += [
        {
            "text": f"<b>{short(value)}</b>", "x": exponent, "xref": "x2", "y": label, "xanchor": "left", "xshift": 5,
            "font": {"size": 14, "color": "white" if dynamic and value > 20 * floor else INK},
        }
        for value, label in zip(table["push"], labels, strict=True)
    ]  # fmt: skip
    return go.Figure(
        data=[*bars, {**tick(table["alone_loss"], "x"), "showlegend": False}, tick(alone, "x2")],
        layout={
            "template": TEMPLATE,
            "height": 205,
            "barmode": "overlay",
            "annotations": notes,
            "legend": {"x": 1, "xanchor": "right", "y": -0.2, "yanchor": "top", "traceorder": "normal"},
            "xaxis": {"domain": [0, 0.25], "range": [0, top], "showticklabels": False, "showgrid": False},
            "xaxis2": {
                "domain": [0.3, 1],
                "anchor": "y",
                "type": "log",
                "range": [exponent, np.log10(max(alone.max(), push.max(), 1)) + 0.1],
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
    """A difference of HR@1 in points with its 95 % interval."""
    return f"{100 * mean:+.1f} points (95 % interval {100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")


def collapse_sentence(
    objective: str,
    table: pd.DataFrame,
    change: tuple[float, float, float],
    repair: tuple[float, float, float] | None = None,
    parts: Mapping[str, tuple[float, float, float]] | None = None,
) -> str:
    """Read `collapse_grid` aloud, in Markdown.

    `change` is HR@1 of plain runs at the largest K minus the smallest, `repair` DynamicPO minus plain at the largest K:
    mean, low and high of a paired 95 % interval. `parts` are further such differences, by the name of the variant.
    """
    label = OBJECTIVE_LABELS[objective]
    plain = table[table["variant"] == "plain"].groupby("negatives")[["train_loss", "pair_loss"]].mean()
    first, last = plain.index.min(), plain.index.max()
    before, after = plain.loc[first, "train_loss"], plain.loc[last, "train_loss"]
    word = verdict(*change[1:])
    said = {"stable": "it is **stable**", "undecided": "that leaves it **undecided**"}.get(word, f"it **{word}**")
    loss = f"{'falls' if after < before else 'rises'} {abs(after / before - 1):.0%}".replace("%", " %")
    text = f"From K = {first} to {last}, {label}'s training loss {loss}; its HR@1 changes by {points(*change)}: {said}."
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


def collapse_grid(table: pd.DataFrame, objective: str, word: str, levels: Mapping[str, float]) -> go.Figure:
    """Training loss, pair_loss and HR@1 against K, in stacked panels: means, in bands from lowest to highest seed.

    `table` has a row a run: `variant` (a key of VARIANTS), `negatives`, `train_loss`, `pair_loss`, `hr@1`. `word` is
    `verdict`'s; it goes into the title of the last panel. `levels` are HR@1 levels drawn as lines, of those in LEVELS;
    the oracle's stands above a break of the axis.
    """
    label = OBJECTIVE_LABELS[objective]
    plain = table[table["variant"] == "plain"].groupby("negatives")[["train_loss", "pair_loss", "hr@1"]].mean()
    figure = make_subplots(
        rows=3,
        cols=1,
        shared_xaxes=True,
        row_heights=[0.24, 0.24, 0.52],
        vertical_spacing=0.09,
        subplot_titles=(
            _motion(plain["train_loss"], f"{label}'s training loss"),
            _motion(plain["pair_loss"], "Yardstick pair_loss"),
            f"HR@1 {word}: {plain['hr@1'].iloc[0]:.1%} → {plain['hr@1'].iloc[-1]:.1%}".replace("%", " %"),
        ),
    )
    for variant, (name, colour, dash, symbol) in VARIANTS.items():
        runs = table[table["variant"] == variant]
        if runs.empty:
            continue
        colour = colour or OBJECTIVE_COLOURS[objective]
        name = f"{name} {label}" if variant == "plain" else name
        for row, (column, scale) in enumerate((("train_loss", 1), ("pair_loss", 1), ("hr@1", 100)), start=1):
            spread = (runs.groupby("negatives")[column].agg(["mean", "min", "max"]) * scale).sort_index()
            if variant in ("plain", "dynamic"):
                figure.add_scatter(
                    x=[*spread.index, *spread.index[::-1]], y=[*spread["max"], *spread["min"][::-1]],
                    fill="toself", fillcolor=colour, opacity=0.18, line_width=0, mode="lines",
                    hoverinfo="skip", showlegend=False, row=row, col=1,
                )  # fmt: skip
            figure.add_scatter(
                x=spread.index, y=spread["mean"], name=name, legendgroup=variant, showlegend=row == 3,
                mode="lines+markers", line={"color": colour, "width": 2.5, "dash": dash},
                marker={"symbol": symbol, "size": 8},
                customdata=spread[["min", "max"]],
                hovertemplate=f"{name}, K = %{{x}}<br>%{{y:.3~f}} (seeds %{{customdata[0]:.3~f}} to "
                "%{customdata[1]:.3~f})<extra></extra>",
                row=row, col=1,
            )  # fmt: skip
    # The oracle is far above every run: it has a strip of its own, so that a point of HR@1 can be seen below it.
    near = {name: 100 * level for name, level in levels.items() if name != "oracle"}
    heights = [*near.values(), *(100 * table["hr@1"])]
    places = apart(near, 0.1 * (max(heights) - min(heights)))
    top = figure.layout.yaxis3.domain[1]
    if "oracle" in levels:
        oracle = places["oracle"] = 100 * levels["oracle"]
        strip = {"domain": [top - 0.03, top], "range": [oracle - 1, oracle + 1], "anchor": "x3", "visible": False}
        figure.update_layout(yaxis3={"domain": [0, top - 0.06]}, yaxis4=strip)
        figure.add_annotation(text="≈", x=0, xref="paper", y=top - 0.045, yref="paper", name="break", xanchor="center")
    for name, level in levels.items():
        axis = "y4" if name == "oracle" else "y3"
        figure.add_shape(
            type="line", x0=0, x1=1, xref="x3 domain", y0=100 * level, y1=100 * level, yref=axis,
            line={"color": QUIET, "width": 1.5, "dash": LEVELS[name]},
        )  # fmt: skip
        figure.add_annotation(
            text=f"{name} {level:.1%}".replace("%", " %"), x=1.01, xref="x3 domain", y=places[name], yref=axis,
            xanchor="left", align="left", font={"size": 13, "color": QUIET},
        )  # fmt: skip
    figure.update_annotations(selector={"yref": "paper", "name": None}, x=0, xanchor="left", font={"size": 15})
    ticks = sorted(table["negatives"].unique())
    rows = 1 if table["variant"].nunique() <= 2 else 2  # of the legend
    figure.update_layout(template=TEMPLATE, height=412 + 28 * rows, margin={"t": 20 + 26 * rows, "r": 118})
    figure.update_layout(legend={"y": 1.065})
    figure.update_xaxes(tickvals=ticks, range=[min(ticks) - 0.5, max(ticks) + 0.5])
    figure.update_xaxes(title_text="K, negatives per training example", row=3, col=1)
    figure.update_yaxes(title_text="nats", nticks=4, rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="nats", nticks=4, row=2, col=1)
    figure.update_yaxes(title_text="% of test users", nticks=7, row=3, col=1)
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


def result_sentence(summary: Mapping[str, Any], neighbours: pd.DataFrame) -> str:
    """What a finished run came to, in Markdown, beside SFT and recorded runs: rows of a recorded table, of any K."""
    gain = 100 * (summary["hr@1"] - summary["sft_hr@1"])
    side = "above" if gain >= 0 else "below"
    text = f"HR@1 on the test users: **{summary['hr@1']:.1%}**, {abs(gain):.1f} points {side} "
    text += f"SFT's {summary['sft_hr@1']:.1%}."
    for negatives, runs in neighbours.groupby("negatives"):
        hits = runs["hr@1"]
        text += f" Recorded at K = {negatives}: {hits.mean():.1%}, "
        text += f"{len(hits)} seeds from {hits.min():.1%} to {hits.max():.1%}." if len(hits) > 1 else "1 seed."
    return text.replace("%", " %")
