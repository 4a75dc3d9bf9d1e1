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
    as_text,
    lay_out,
    percent,
    short,
)
from minipo.dynamic import DynamicPO
from minipo.preference import preference_loss, preference_push


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
    last = probe[probe["step"] == probe["step"].max()].sort_values("candidate")
    for user, lines in last.groupby("user"):
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
) -> pd.DataFrame:
    """Loss and push on one mistake, column 1, among the other negatives of one user, and without them.

    One row for each of DMPO, DPO and S-DPO: `negatives`, `kept` (those that entered the loss), `loss`, `push`,
    `dilution`, `saturation`, and `alone_loss`, `alone_push`, `alone_dilution`, `alone_saturation` for the same mistake
    without other negatives.
    """
    rows = {}
    for objective in ("dmpo", "dpo", "sdpo"):
        row: dict[str, float] = {"negatives": policy.shape[1] - 1}
        for prefix, columns in (("", policy.shape[1]), ("alone_", 2)):
            arguments = (objective, policy[:, :columns], reference[:, :columns], beta)
            loss = preference_loss(*arguments, dynamic=dynamic)
            push = preference_push(*arguments, dynamic=dynamic)
            row[prefix + "loss"] = loss.losses.item()
            row |= {prefix + name: values[0, 0].item() for name, values in vars(push).items()}
            if not prefix:
                row["kept"] = int(loss.used.sum())
        rows[objective] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def push_sentence(plain: pd.DataFrame, selected: pd.DataFrame | None = None) -> str:
    """Describe DMPO's row of a `push_table`, in Markdown; with `selected`, that under selection, what it changed."""
    row = plain.to_dict("index")["dmpo"]
    negatives = row["negatives"]
    if selected is not None:
        kept = selected.to_dict("index")["dmpo"]
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
            f"The mistake is alone: DMPO's loss is {short(row['loss'])} and its push on the "
            f"mistake {short(row['push'])}. Add easy negatives and watch."
        )
    change, fall = row["loss"] / row["alone_loss"] - 1, row["alone_push"] / row["push"]
    loss = f"The loss {'fell' if change < 0 else 'rose'} **{percent(abs(change))}**"
    push = f"fell **{short(fall)}-fold**" if fall >= 1 else f"grew **{short(1 / fall)}-fold**"
    return f"{loss}, the mistake is as it was, and its push {push}: {_factors(row)}."


def _factors(row: dict[Any, Any]) -> str:
    """How much of the push was lost to averaging, and how much to the sigmoid."""
    found = []
    for part, by in (("dilution", "averaging"), ("saturation", "the shared sigmoid")):
        loss = row[f"alone_{part}"] / row[part]
        found.append(f"{short(loss)} by {by}" if loss >= 0.995 else f"{by} gave back {short(1 / loss)}")
    return ", ".join(found)


def push_product(table: pd.DataFrame) -> str:
    """DMPO's push on the mistake as a product, from `push_table`."""
    row = table.to_dict("index")["dmpo"]
    parts = f"{short(row['dilution'])} (averaging: dilution) × {short(row['saturation'])} (shared sigmoid: saturation)"
    strength = row["push"] / (row["dilution"] * row["saturation"]) if row["push"] > 0 else 1.0
    times = f" × {short(strength)} (β)" if abs(strength - 1) > 0.005 else ""
    return f"DMPO's push {short(row['push'])} = {parts}{times}."


def guess_sentence(plain: pd.DataFrame, times: float | None = None, loss: str | None = None) -> str:
    """The truth about DMPO beside a guess, in Markdown, from `push_table`.

    times: the guess of how many times smaller the push on the mistake becomes when the other negatives are added; loss:
    the guess of what the loss does, "falls" or "rises"; None without a guess.
    """
    row = plain.to_dict("index")["dmpo"]
    change, fall = row["loss"] / row["alone_loss"] - 1, row["alone_push"] / row["push"]
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
    heights = pd.Series(places).groupby(places).cumcount().to_numpy()
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

    def note(text: str, x: float, y: float, to: str = "center", shift: int = 0, color: str = QUIET) -> None:
        figure.add_annotation(text=text, x=x, y=y, xanchor=to, xshift=shift, align=to, font_color=color)

    def beside(x: float, shift: int) -> tuple[str, int]:
        """Towards the middle of the line, where there is room."""
        return ("right", -shift) if x > (low + high) / 2 else ("left", shift)

    averaged = "DMPO sees the average" if used.all() else "the average is now"
    width = 0.021 * (high - low)  # of a letter, on a phone
    half = width * max(11, lengths[0]) / 2
    mistake = min(max(margins[0], low + half), high - half)
    note(f"{averaged}: <b>{mean:.2f}</b>".replace("-", "−"), mean, -2.9, *beside(mean, 13), INK)
    note(f"the mistake<br><b>{names[0]}</b>", mistake, 4, color=INK)
    for text, room, to, shift in (("wrong side ◂", -low, "right", -6), ("▸ chosen item ahead", high, "left", 6)):
        if room > width * len(text):
            note(text, 0, 18.9, to, shift)
    rows = [mistake + half] * 2 + [low] * 3  # where each row of names is free
    lowest = 4 + max(0, heights[others].max(initial=0) - 2)  # above every stack of dots
    for place in np.unique(places[others]):
        stack = np.flatnonzero(others & (places == place))
        at, name = margins[stack[0]], names[stack[0]]
        more = f"and {len(stack) - 1} more" if len(stack) > 3 else ""
        if more and len(stack) == others.sum():  # nothing else is in the way
            note(f"{name}<br>{more}", at, heights[stack].max() / 2, *beside(at, 12))
            continue
        half = width * (lengths[stack[0]] + len(more)) / 2
        fits = at + half < high + width
        free = [row for row, end in enumerate(rows) if fits and end < at - half]
        y = lowest + 2.7 * free[0] if free else np.inf
        if y < 17:  # else the name is shown only on hover
            rows[free[0]] = at + half + width
            note(f"{name} {more}", at, y)
            leader = {"x0": at, "x1": at, "y0": 1, "y1": y - 1.2, "line": {"color": GRID, "width": 1.5}}
            figure.add_shape(type="line", layer="below", **leader)
    figure.add_vrect(x0=low, x1=0, fillcolor=SHADE, line_width=0, layer="below")
    figure.add_shape(type="line", x0=low, x1=high, y0=-1.1, y1=-1.1, line={"color": FAINT, "width": 2})
    figure.update_yaxes(visible=False, range=[-4.3, 20])
    return lay_out(figure, 205, "", MARGIN, showlegend=False, margin_t=4, xaxis_range=[low, high])


def _bars(table: pd.DataFrame, dynamic: bool) -> tuple[list[str], list[str], dict[str, Any]]:
    """Labels and colours of the rows of `push_table`, and what all their bars share."""
    labels = [OBJECTIVE_LABELS[name] for name in table.index]
    colours = [DYNAMIC_COLOUR if dynamic else OBJECTIVE_COLOURS[name] for name in table.index]
    return labels, colours, {"orientation": "h", "y": labels, "width": 0.55, "constraintext": "none"}


def _lay_bars_out(figure: go.Figure, title: str, alone: pd.Series, **layout: Any) -> go.Figure:
    """The common layout, with a tick in each row at the value for the mistake as the only negative."""
    figure.add_scatter(
        x=alone, y=figure.data[0].y, mode="markers", name="alone",
        marker={"symbol": "line-ns", "size": 26, "line": {"width": 2, "color": INK}},
        hovertemplate="mistake alone: %{x:.3f}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(tickfont_size=12)
    figure.update_yaxes(autorange="reversed", showgrid=False, ticksuffix="  ")
    return lay_out(figure, 214, title, barmode="overlay", margin={"t": 60, "b": 54}, title_font_size=15, **layout)


def loss_bars(table: pd.DataFrame, dynamic: bool = False) -> go.Figure:
    """The loss of each row of `push_table`, and a tick for the mistake as the only negative.

    `dynamic`: draw the bars in DynamicPO's blue.
    """
    _, colours, bars = _bars(table, dynamic)
    figure = go.Figure().add_bar(
        x=table["loss"], marker_color=colours, text=[f" <b>{short(value)}</b>" for value in table["loss"]],
        textposition="outside", hovertemplate="%{y}: loss %{x:.4g}<extra></extra>", **bars,
    )  # fmt: skip
    top = 1.4 * max(table["loss"].max(), table["alone_loss"].max())
    figure.update_xaxes(range=[0, top], nticks=4, showgrid=False)
    return _lay_bars_out(figure, "<b>Loss</b>", table["alone_loss"], showlegend=False)


def push_bars(table: pd.DataFrame, dynamic: bool = False, guess: float | None = None) -> go.Figure:
    """Push on the mistake, on a log scale, for each row of `push_table`.

    A bar is the push that is left; behind it, down from the push with the mistake as the only negative, is what
    averaging (dilution) and the shared sigmoid (saturation) took. `dynamic`: draw the bars in DynamicPO's blue. guess:
    how many times smaller the first row's push was guessed to become, drawn as a diamond.
    """
    labels, colours, bars = _bars(table, dynamic)
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
    bars |= {"hoverinfo": "text", "hovertext": hover}
    figure = go.Figure()
    for name, part, start, end, colour in (
        ("averaging", "dilution", diluted, alone, DILUTION_COLOUR),
        ("shared sigmoid", "saturation", push, diluted, SATURATION_COLOUR),
    ):
        factors = (table[f"alone_{part}"] / table[part]).where(end / start > 2.5)  # otherwise there is no room
        figure.add_bar(
            base=start, x=(end - start).clip(lower=0), name=name, marker_color=colour, **bars,
            text=["" if np.isnan(by) else f"÷ {short(by)}" for by in factors], textposition="inside",
            insidetextanchor="middle", textfont={"size": 14, "color": INK},
        )  # fmt: skip
    # On the log axis a bar needs a base; one of no length at all would be drawn without its number.
    figure.add_bar(
        base=floor, x=(push - floor).clip(lower=0.01 * floor), marker_color=colours, showlegend=False, **bars,
        text=[f"<b>{short(value)}</b>" for value in table["push"]], textposition="inside", insidetextanchor="start",
        textfont={"size": 14, "color": np.where(push <= floor, INK, "white" if dynamic else "black").tolist()},
    )  # fmt: skip
    if guess:
        figure.add_scatter(
            x=[max(guessed, floor)], y=labels[:1], mode="markers", name="your guess",
            marker={"symbol": "diamond", "size": 15, "color": "white", "line": {"width": 2.5, "color": INK}},
            hovertemplate="your guess: %{x:.3g}<extra></extra>",
        )  # fmt: skip
    last = np.log10(max(alone.max(), push.max(), guessed if guess else 0, 1)) + 0.1
    figure.update_xaxes(type="log", range=[exponent, last], dtick=1 if exponent > -7 else 2, exponentformat="power")
    legend = {"x": 1, "xanchor": "right", "y": -0.22, "yanchor": "top", "traceorder": "normal"}
    return _lay_bars_out(figure, "<b>Push on the mistake</b> (log scale)", alone, legend=legend)
