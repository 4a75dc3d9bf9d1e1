"""Why averaging silences a mistake: one recorded user's mistake among easy negatives, as bars, a line and sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minipo.course.figures.style import (
    DILUTION_COLOUR,
    DYNAMIC_COLOUR,
    FAINT,
    GRID,
    INK,
    MARGIN,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    SATURATION_COLOUR,
    SHADE,
    TEMPLATE,
    as_text,
    percent,
    short,
)
from minipo.dynamic import DynamicPO
from minipo.preference import preference_loss, preference_push

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
    """Users of a run's probe with one mistake at its last step: exactly one negative's log-prob is at or above the
    chosen item's, and its log-ratio is above, so it gained since SFT."""
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
    """Loss and push on one mistake, column 1, among the other negatives of one user, and without them.

    One row per objective: `negatives`, `kept` (those that entered the loss), `loss`, `push`, `dilution`, `saturation`,
    and `alone_loss`, `alone_push`, `alone_dilution`, `alone_saturation` for the same mistake without other negatives.
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
    """Describe `push_table`, in Markdown; with `selected`, the table under selection, what that changed."""
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
    change, fall = _changes(row)
    loss = f"The loss {'fell' if change < 0 else 'rose'} **{percent(abs(change))}**"
    push = f"fell **{short(fall)}-fold**" if fall >= 1 else f"grew **{short(1 / fall)}-fold**"
    return f"{loss}, the mistake is as it was, and its push {push}: {_factors(row)}."


def _changes(row: dict[Any, Any]) -> tuple[float, float]:
    """By what share the loss changed, and how many times smaller the push became, when the others were added."""
    return row["loss"] / row["alone_loss"] - 1, row["alone_push"] / row["push"]


def _factors(row: dict[Any, Any]) -> str:
    """How much of the push was lost to averaging, and how much to the sigmoid."""
    found = []
    for part, by in (("dilution", "averaging"), ("saturation", "the shared sigmoid")):
        loss = row[f"alone_{part}"] / row[part]
        found.append(f"{short(loss)} by {by}" if loss >= 0.995 else f"{by} gave back {short(1 / loss)}")
    return ", ".join(found)


def push_product(table: pd.DataFrame, objective: str = "dmpo") -> str:
    """The push on the mistake as a product, from `push_table`."""
    row = table.to_dict("index")[objective]
    parts = f"{short(row['dilution'])} (averaging: dilution) × {short(row['saturation'])} (shared sigmoid: saturation)"
    strength = row["push"] / (row["dilution"] * row["saturation"]) if row["push"] > 0 else 1.0
    times = f" × {short(strength)} (β)" if abs(strength - 1) > 0.005 else ""
    return f"{OBJECTIVE_LABELS[objective]}'s push {short(row['push'])} = {parts}{times}."


def guess_sentence(
    plain: pd.DataFrame, times: float | None = None, loss: str | None = None, objective: str = "dmpo"
) -> str:
    """The truth beside a guess, in Markdown, from `push_table`.

    times: the guess of how many times smaller the push on the mistake becomes when the other negatives are added; loss:
    the guess of what the loss does, "falls" or "rises"; None without a guess.
    """
    row = plain.to_dict("index")[objective]
    change, fall = _changes(row)
    push = f"falls **{short(fall)}-fold**" if fall >= 1 else f"grows **{short(1 / fall)}-fold**"
    text = f"The push {push} ({_factors(row)})"
    if times is not None:
        off = max(times / fall, fall / times)
        error = f"{short(off)} times too {'much' if times > fall else 'little'}" if off > 1.1 else "right"
        text += f"; you said {short(times)}-fold: **{error}**"
    truth = "falls" if change < 0 else "rises"
    text += f". The loss **{truth}** {percent(abs(change))}"
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
    the mistake first. The triangle, where the line would balance, is the mean margin of the negatives in use, which
    DMPO puts into its sigmoid. `span` fixes the axis while a slider moves.
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

    figure = go.Figure()
    for group, marker in (
        (others & used, {"color": "#7F8A9A", "size": 9}),
        (others & ~used, {"color": "white", "size": 9, "line": {"color": FAINT, "width": 1.5}}),
        (~others, {"color": INK, "size": 14, "symbol": "diamond"}),
    ):
        figure.add_scatter(
            x=margins[group], y=heights[group], mode="markers", marker=marker, text=np.array(names, object)[group],
            hovertemplate="%{text}<br>margin %{x:.2f}<extra></extra>", cliponaxis=False,
        )  # fmt: skip
    mean = margins[used].mean()
    figure.add_scatter(
        x=[mean], y=[-2.7], mode="markers", marker={"symbol": "triangle-up", "size": 18, "color": colour},
        hovertemplate="mean margin %{x:.2f}<extra></extra>",
    )  # fmt: skip

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
        if y < 17:  # else the name is shown only on hover
            rows[free[0]] = margins[index] + half + width
            notes.append(note(f"{names[index]} {more}", margins[index], y))
            leaders.append({"type": "line", "x0": margins[index], "x1": margins[index], "y0": 1, "y1": y - 1.2})
    line: dict[str, Any] = {"type": "line", "y0": -1.1, "y1": -1.1, "line": {"color": FAINT, "width": 2}}
    wrong = {"type": "rect", "x0": low, "x1": 0, "y0": 0, "y1": 1, "yref": "y domain", "fillcolor": SHADE}
    thin = {"line": {"color": GRID, "width": 1.5}, "layer": "below"}
    return figure.update_layout(
        template=TEMPLATE, height=205, showlegend=False, margin_t=4, annotations=notes,
        shapes=[
            {**wrong, "line": {"width": 0}, "layer": "below"}, {**line, "x0": low, "x1": high},
            *({**leader, **thin} for leader in leaders),
        ],
        xaxis={"range": [low, high], "title": {"text": MARGIN}}, yaxis={"visible": False, "range": [-4.3, 20]},
    )  # fmt: skip


ROWS = {"autorange": "reversed", "showgrid": False, "ticksuffix": "  "}
BARS = {"template": TEMPLATE, "height": 190, "barmode": "overlay", "margin": {"t": 26, "b": 54}, "yaxis": ROWS}


def _painted(table: pd.DataFrame, dynamic: bool) -> tuple[list[str], list[str]]:
    """Labels and colours of the rows of `push_table`."""
    colours = [DYNAMIC_COLOUR if dynamic else OBJECTIVE_COLOURS[name] for name in table.index]
    return [OBJECTIVE_LABELS[name] for name in table.index], colours


def _heading(text: str) -> dict[str, Any]:
    place = {"x": 0, "xref": "x domain", "xanchor": "left", "y": 1, "yref": "y domain", "yanchor": "bottom"}
    return {"text": text, "font": {"size": 15}, **place}


def _alone(at: pd.Series, labels: list[str], **more: Any) -> dict[str, Any]:
    """A tick at each row's value for the mistake as the only negative."""
    mark = {"symbol": "line-ns", "size": 26, "line": {"width": 2, "color": INK}}
    words = {"name": "alone", "hovertemplate": "mistake alone: %{x:.3f}<extra></extra>"}
    return {"type": "scatter", "mode": "markers", "x": at, "y": labels, "marker": mark, **words, **more}


def loss_bars(table: pd.DataFrame, dynamic: bool = False) -> go.Figure:
    """The loss of each row of `push_table`, and a tick for the mistake as the only negative.

    `dynamic`: draw the bars in DynamicPO's blue.
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
        },
    )


def push_bars(table: pd.DataFrame, dynamic: bool = False, guess: float | None = None) -> go.Figure:
    """Push on the mistake, on a log scale, for each row of `push_table`.

    A bar is the push that is left; behind it, down from the push with the mistake as the only negative, is what
    averaging (dilution) and the shared sigmoid (saturation) took. `dynamic`: draw the bars in DynamicPO's blue. guess:
    how many times smaller the first row's push was guessed to become, drawn as a diamond.
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
    hover = [
        f"{label}: push {row['push']:.3g}<br>"
        f"= {row['dilution']:.3g} (dilution) × {row['saturation']:.3g} (saturation), times β"
        for label, row in zip(labels, table.to_dict("records"), strict=True)
    ]

    def bar(start: Any, end: Any, color: Any, **more: Any) -> dict[str, Any]:
        """A horizontal bar; on the log axis it needs a base."""
        place = {"type": "bar", "orientation": "h", "y": labels, "width": 0.55, "showlegend": False}
        place |= {"base": start, "x": np.maximum(end - start, 0), "marker": {"color": color}}
        return {**place, "hoverinfo": "text", "hovertext": hover, **more}

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
            if right / left > 2.5  # otherwise there is no room
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
            "xaxis": {"type": "log", "range": [exponent, last], "dtick": 1 if exponent > -7 else 2,
                      "exponentformat": "power", "tickfont": {"size": 12}},
        },
    )  # fmt: skip
