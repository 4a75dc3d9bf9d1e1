"""Figures of notebooks 02 and 05: from a reward to DPO, the mean inside the sigmoid, and who resists."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float

from minipo.course.figures.collapse import verdicts
from minipo.course.figures.style import (
    FAINT,
    GRID,
    INK,
    LOG,
    MARGIN,
    NEGATIVES,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    add_line,
    differences,
    lay_out,
    panels,
    percent,
    short,
)
from minipo.evaluation import Interval

# ------------------------------------------------------------------------------------ 02: the leash, the pair, the mean


def leash(
    names: Sequence[str],
    reference: Float[np.ndarray, " candidates"],
    policy: Float[np.ndarray, " candidates"],
    reward: Float[np.ndarray, " candidates"],
    beta: float,
) -> go.Figure:
    """A policy beside the reference it is held to: probabilities of one user's candidates, the most likely first.

    names: the candidates'. reference, policy: probabilities that sum to 1. reward: any unit, shown beside the names.
    The title compares both: mean reward, and KL(policy ‖ reference) in nats.
    """
    order = np.argsort(-reference)
    kept = policy > 0
    distance = float((policy[kept] * np.log(policy[kept] / reference[kept])).sum())
    labels = [f"{names[place]} ({reward[place]:.2g})" for place in order]
    first = int(policy.argmax())
    figure = go.Figure()
    for name, values, colour in (("reference", reference, FAINT), ("optimum", policy, INK)):
        figure.add_bar(
            x=labels, y=values[order], name=name, marker_color=colour,
            hovertemplate=f"%{{x}}<br>{name} %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    title = (
        f"β = {beta:g}: most on {names[first]}, {percent(policy[first])}; mean reward "
        f"{reference @ reward:.2f} → {policy @ reward:.2f}, KL {abs(distance):.2f} nats"
    )
    axes = "candidate (reward), by the reference's probability", "probability among the candidates"
    return lay_out(figure, 430, title, *axes, yaxis_range=[0, 1], xaxis_tickangle=-40, xaxis_tickfont_size=12)


def pair_curves(betas: Sequence[float]) -> go.Figure:
    """DPO's loss of one pair, and its push on the negative, against the gap of log-ratios, for several β."""
    gap = np.linspace(-6, 6, 241)
    figure = panels(("loss", "push on the negative"))
    for beta, dash in zip(betas, ("dot", "solid", "dash"), strict=True):
        colour = OBJECTIVE_COLOURS["dpo"] if dash == "solid" else QUIET
        for column, values in enumerate((np.logaddexp(0, -beta * gap), beta / (1 + np.exp(beta * gap))), start=1):
            add_line(figure, gap, values, f"β = {beta:g}", colour, dash, panel=column)
    figure.update_yaxes(rangemode="tozero")
    pushes = ", ".join(f"{beta / (1 + np.exp(3 * beta)):.2g}" for beta in betas)
    listed = ", ".join(f"{beta:g}" for beta in betas)
    title = f"A pair that is won is let go: push at a gap of 3 nats is {pushes} for β = {listed}"
    axes = "gap ρ<sub>w</sub> − ρ<sub>k</sub>, nats", ("nats", "∂loss/∂s<sub>k</sub>")
    return lay_out(figure, 330, title, *axes, margin_t=94, legend_y=1.08)


def jensen(margins: Float[np.ndarray, " negatives"]) -> go.Figure:
    """DPO and DMPO on one user's margins: the mean of heights on −log σ, and the height at the mean.

    margins: in nats. DPO's loss is the mean of the dots' heights; DMPO's is the curve's height at their mean.
    """
    margins = np.asarray(margins, float)
    low, high = min(-6.0, margins.min() - 0.5), max(10.0, margins.max() + 0.5)
    x = np.linspace(low, high, 300)
    mean, heights = margins.mean(), np.logaddexp(0, -margins)
    dpo, dmpo = heights.mean(), np.logaddexp(0, -mean)
    figure = go.Figure()
    figure.add_scatter(x=x, y=np.logaddexp(0, -x), mode="lines", line={"color": FAINT, "width": 2}, name="−log σ")
    figure.add_scatter(
        x=margins, y=heights, mode="markers", marker={"color": INK, "size": 8, "opacity": 0.7}, name="each margin",
        hovertemplate="margin %{x:.2f}: %{y:.3f} nats<extra></extra>",
    )  # fmt: skip
    for name, height, symbol in (("dpo", dpo, "diamond"), ("dmpo", dmpo, "circle")):
        figure.add_scatter(
            x=[mean], y=[height], mode="markers", name=f"{OBJECTIVE_LABELS[name]} {short(height)}",
            marker={"color": OBJECTIVE_COLOURS[name], "size": 14, "symbol": symbol},
            hovertemplate=f"{OBJECTIVE_LABELS[name]}: %{{y:.3f}} nats<extra></extra>",
        )  # fmt: skip
    figure.add_shape(type="line", x0=mean, x1=mean, y0=dmpo, y1=dpo, line={"color": QUIET, "width": 2, "dash": "dot"})
    top = max(6.5, heights.max() + 0.5)
    loss = "the same loss" if dpo - dmpo < 5e-4 else f"DMPO's loss is {short(dpo - dmpo)} nats below DPO's"
    spread = f"from {margins.min():.2g} to {margins.max():.2g}" if np.ptp(margins) else f"all {mean:.2g}"
    title = f"Margins {spread.replace('-', '−')}: {loss}"
    return lay_out(figure, 380, title, MARGIN, "nats", xaxis_range=[low, high], yaxis_range=[-0.3, top])


def push_by_margin(
    margins: Float[np.ndarray, " negatives"],
    pushes: Mapping[str, Float[np.ndarray, " negatives"]],
    names: Sequence[str],
) -> go.Figure:
    """One user's negatives: the push on each (log scale) against its margin, one colour per objective.

    margins: in nats, the same for all objectives. pushes: objective to ∂loss/∂s of each negative, above 0.
    The title compares, within each objective, the push on the lowest margin with that on the highest.
    """
    figure = go.Figure()
    order = np.argsort(margins)
    ratios = []
    for (name, values), symbol in zip(pushes.items(), ("circle", "diamond", "square", "x"), strict=False):
        label = OBJECTIVE_LABELS[name]
        ratio = values[order[0]] / values[order[-1]]
        ratios.append(f"{label} {'1' if abs(ratio - 1) < 0.01 else short(ratio)}")
        add_line(
            figure, margins[order], values[order], label, OBJECTIVE_COLOURS[name], width=1.5,
            hover=f"{label}: %{{y:.3g}}<br>%{{text}}, margin %{{x:.2f}}", marker={"size": 9, "symbol": symbol},
            text=[names[place] for place in order],
        )  # fmt: skip
    figure.add_vline(x=0, line={"color": GRID, "width": 2}, layer="below")
    title = f"Push on the lowest margin over that on the highest: {', '.join(ratios)}"
    decades = {"type": "log", "exponentformat": "power", "dtick": 1}
    return lay_out(figure, 380, title, MARGIN, "push on the negative", yaxis=decades)


# -------------------------------------------------------------------------------------------------- 05: who resists


def push_anatomy(table: pd.DataFrame) -> go.Figure:
    """The push on a mistake and on an easy negative under each objective, on a log scale, with the mistake's factors.

    table: one row per objective, with `mistake` and `easy` (pushes; easy may be nan), and the mistake's `beta`,
    `dilution` (a), `saturation` (σ(−z)) and `slope` (du/ds), whose product is `mistake`.
    """
    factors = ("beta", "dilution", "saturation", "slope")
    labels = [
        f"<b>{OBJECTIVE_LABELS[str(name)]}</b><br>{short(row['mistake'])} = "
        + " × ".join(f"{row[factor]:.2g}" for factor in factors)
        for name, row in table.to_dict("index").items()
    ]
    lowest = max(table[["mistake", "easy"]].min().min(), 1e-6)
    bottom = min(float(np.floor(np.log10(lowest))), -3)
    figure = go.Figure().add_bar(
        y=labels, x=table["mistake"].clip(lower=10**bottom), orientation="h", width=0.5, showlegend=False,
        marker_color=[OBJECTIVE_COLOURS[str(name)] for name in table.index],
        hovertext=[short(value) for value in table["mistake"]], hoverinfo="text",
    )  # fmt: skip
    figure.add_scatter(
        y=labels, x=table["easy"].clip(lower=10**bottom), mode="markers", name="push on each easy one",
        marker={"symbol": "diamond-open", "size": 12, "color": INK, "line": {"width": 2}},
        hovertemplate="easy: %{x:.2g}<extra></extra>",
    )  # fmt: skip
    figure.update_xaxes(type="log", range=[bottom, 0.6], dtick=1, exponentformat="power")
    figure.update_yaxes(autorange="reversed", ticklabelstandoff=6, showgrid=False)
    first, last = str(table["mistake"].idxmax()), str(table["mistake"].idxmin())
    most, least = short(table["mistake"].max()), short(table["mistake"].min())
    title = f"{OBJECTIVE_LABELS[first]} pushes the mistake hardest, {most}; {OBJECTIVE_LABELS[last]} least, {least}"
    return lay_out(figure, 330, title, "push ∂loss/∂s = β × a × σ(−z) × du/ds (log scale)")


def who_resists(changes: Mapping[str, Interval], first: int, last: int) -> go.Figure:
    """HR@1 at the largest K minus the smallest, in points, with 95 % intervals, one line per objective.

    changes: objective to the interval (`records.difference`) as a share of users. first, last: the two K.
    """
    named = {OBJECTIVE_LABELS[name]: change for name, change in changes.items()}
    title, axis = f"K = {first} → {last}: {verdicts(named)}", f"HR@1 at K = {last} minus K = {first}, points"
    return differences(named, title, axis, {OBJECTIVE_LABELS[name]: OBJECTIVE_COLOURS[name] for name in changes})


def losses_against_k(table: pd.DataFrame, starts: Mapping[str, Mapping[int, float]]) -> go.Figure:
    """Training loss and pair_loss against K, for each objective; dotted, the loss before the first step.

    table: runs, with `objective`, `negatives`, `train_loss`, `pair_loss`, averaged over seeds. starts: objective to
    K to the loss at step 0.
    """
    figure = panels(("training loss (dotted: at step 0)", "yardstick pair_loss, the same for all"))
    against = []
    for name, start in starts.items():
        label, colour = OBJECTIVE_LABELS[name], OBJECTIVE_COLOURS[name]
        means = table[table["objective"] == name].groupby("negatives")[["train_loss", "pair_loss"]].mean()
        falls = means.iloc[-1] < means.iloc[0]
        if falls["train_loss"] != falls["pair_loss"]:
            against.append(label)
        for column, loss in enumerate(means, start=1):
            hover = f"{label}, K = %{{x}}: %{{y:.3f}}"
            add_line(figure, means.index, means[loss], label, colour, hover=hover, panel=column, marker={})
        hover = f"{label} at step 0, K = %{{x}}: %{{y:.3f}}"
        add_line(
            figure, list(start), list(start.values()), "", colour, "dot", hover, width=2, showlegend=False, row=1, col=1
        )  # fmt: skip
    motion = f"moves against pair_loss for {', '.join(against)}" if against else "moves as pair_loss does"
    figure.update_xaxes(tickvals=sorted(table["negatives"].unique()))
    figure.update_yaxes(LOG)
    title = f"More negatives: the training loss {motion}"
    return lay_out(figure, 380, title, NEGATIVES, "nats, log scale", margin_t=96, legend_y=1.09)
