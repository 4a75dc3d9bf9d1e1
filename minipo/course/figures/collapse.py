"""Figures of notebook 03 and of the app's page Collapse: the collapse over seeds, what its losses can and cannot show,
guesses, the settings in which it occurs, and what a repeated run shows.

Tables are those of a sweep: one row per run, HR@1 as a share. Differences are `minipo.evaluation.Interval`s.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from minipo.course.figures.grid import motion
from minipo.course.figures.style import (
    AVERAGES,
    DYNAMIC_COLOUR,
    INK,
    LOG,
    METRICS,
    NEGATIVES,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    add_band,
    add_level,
    add_line,
    in_points,
    lay_out,
    level,
    panels,
    points,
    verdict,
)
from minipo.evaluation import Interval, Scores


def guessed_curve(table: pd.DataFrame, sft: float, guesses: Mapping[int, float] | None = None) -> go.Figure:
    """DMPO's recorded test HR@1 against K (mean, in a band from lowest to highest seed), SFT's level, and any guesses.

    table: DMPO's plain runs, with `negatives` and `hr@1`. sft: HR@1, a share. guesses: K to HR@1 in percent.
    """
    colour = OBJECTIVE_COLOURS["dmpo"]
    spread = (100 * table.groupby("negatives")["hr@1"].agg(["mean", "min", "max"])).sort_index()
    first, last = spread.index[0], spread.index[-1]
    change, below = spread["mean"].iloc[-1] - spread["mean"].iloc[0], int((spread["mean"] < 100 * sft).sum())
    moved = f"{'falls' if change < 0 else 'rises'} by {abs(change):.1f} points" if abs(change) >= 0.05 else "stays"
    figure = go.Figure()
    add_band(figure, spread, colour)
    name = f"DMPO, mean of {table['seed'].nunique()} seeds"
    add_line(figure, spread.index, spread["mean"], name, colour, marker={"size": 8})
    if guesses:
        marker = {"symbol": "diamond-open", "size": 10}
        add_line(figure, list(guesses), list(guesses.values()), "your guesses", QUIET, "dot", width=2, marker=marker)
    add_level(figure, 100 * sft, f"SFT {100 * sft:.1f} %")
    title = (
        f"From K = {first} to {last} DMPO's HR@1 {moved};<br>"
        f"{below} of {len(spread)} means are below the SFT model that every run starts from"
    )
    return lay_out(figure, 400, title, NEGATIVES, "HR@1, % of test users", xaxis_tickvals=spread.index)


def live_curve(
    runs: pd.DataFrame, recorded: pd.DataFrame, objective: str, sft: float | None = None, metric: str = "hr@1"
) -> go.Figure:
    """Training loss and a ranking metric against K: runs trained now, over bands of the recorded seeds.

    runs, recorded: `variant` ("plain" or "dynamic"), `negatives`, `train_loss` and `metric`, a key of METRICS, one row
    a run; `runs`, of one seed, may be empty and is drawn as far as it goes. sft: the level of SFT, which every run
    starts from. The axes fit both tables' runs, so that they stay while runs within the bands come.
    """
    unit = 1 if metric in AVERAGES else 100
    titles = "Training loss, nats", f"{METRICS[metric]}{', % of test users' * (unit == 100)}"
    figure = panels(titles, column_widths=[0.4, 0.6]).update_annotations(xanchor="left", font_size=15)
    ticks = sorted({*recorded["negatives"], *runs["negatives"]})
    for column, (name, scale) in enumerate((("train_loss", 1), (metric, unit)), start=1):
        for variant, colour in (("plain", OBJECTIVE_COLOURS[objective]), ("dynamic", DYNAMIC_COLOUR)):
            before, now = (table[table["variant"] == variant].sort_values("negatives") for table in (recorded, runs))
            if len(before):
                spread = scale * before.groupby("negatives")[name].agg(["min", "max"])
                add_band(figure, spread, colour, row=1, col=column)
            label = f"plain {OBJECTIVE_LABELS[objective]}" if variant == "plain" else "DynamicPO"
            hover, marker = f"{label}, K = %{{x}}: %{{y:.3~f}}", {"size": 10}
            x, y = now["negatives"], scale * now[name]
            if now.empty:
                x = y = [None]  # or the legend would have no entry
            add_line(figure, x, y, label, colour, "solid", hover, column, 3, marker)
        seen = [*(scale * recorded[name]), *(scale * runs[name])]
        if column == 2 and sft is not None:
            add_level(figure, unit * sft, f"SFT {level(sft, metric)}", row=1, col=2)
            seen.append(unit * sft)
        room = 0.08 * (max(seen) - min(seen)) or 0.01 * unit
        figure.update_yaxes(range=[0 if column == 1 else min(seen) - room, max(seen) + room], col=column)
        figure.layout.annotations[column - 1].x = figure.layout[f"xaxis{column}"].domain[0]
    figure.update_xaxes(tickvals=ticks, range=[min(ticks) - 0.5, max(ticks) + 0.5])
    return lay_out(figure, 360, x="K, negatives", margin_t=60, legend_y=1.1)


def live_curve_sentence(
    runs: pd.DataFrame,
    negatives: Sequence[int],
    differences: Mapping[str, Interval],
    objective: str,
    users: int,
    metric: str = "hr@1",
) -> str:
    """Describe `live_curve`, in Markdown. runs: as there. negatives: every K of the curve. differences: of
    `comparison.curve_so_far`. users: the number of test users."""
    total, few, many = 2 * len(negatives), min(negatives), max(negatives)
    name, names = METRICS[metric], {"plain": f"plain {OBJECTIVE_LABELS[objective]}", "dynamic": "DynamicPO"}
    text = f"**{len(runs)} of {total} runs trained.**" if len(runs) < total else f"**All {total} runs are trained.**"
    ends = []
    for k in (few, many):
        found = runs[runs["negatives"] == k].set_index("variant")[metric]
        levels = [f"{who} {level(found[variant], metric)}" for variant, who in names.items() if variant in found.index]
        ends += [f"at K = {k} {' and '.join(levels)}"] if levels else []
    text += f" {name}: {'; '.join(ends)}." if ends else ""
    if "plain" in differences:
        interval = differences["plain"]
        said = {
            "collapses": "this seed alone shows the **collapse**",
            "stable": "under this seed it is **stable**",
            "rises": "under this seed it **rises**",
            "undecided": "this seed alone leaves it **undecided**",
        }[verdict(interval.low, interval.high)]
        text += f" Plain, K = {many} minus K = {few}: {points(*astuple(interval))}; {said}."
    if "dynamic" in differences:
        text += f" At K = {many}, DynamicPO minus plain: {points(*astuple(differences['dynamic']))}."
    if differences:
        text += f" The intervals are over {users:,} test users, of one seed; how much seeds differ, the bands show."
    return text


def unchanged_model(losses: pd.DataFrame, objective: str) -> go.Figure:
    """Losses (nats) of one untrained model against K; `objective` is drawn strongly.

    losses: one row per K, one column per objective.
    """
    figure = go.Figure()
    for name in map(str, losses):
        label, colour, strong = OBJECTIVE_LABELS[name], OBJECTIVE_COLOURS[name], name == objective
        marker, width, opacity = ({"size": 9}, 3.5, 1) if strong else ({"size": 5}, 1.5, 0.55)
        add_line(figure, losses.index, losses[name], label, colour, width=width, marker=marker, opacity=opacity)
    title = f"From K = {losses.index[0]} to {losses.index[-1]}, {OBJECTIVE_LABELS[objective]}'s loss "
    title += f"{motion(losses[objective])},<br>and the model is the same"
    axes = "K, negatives in the loss", "loss of the same model, nats (log scale)"
    return lay_out(figure, 400, title, *axes, xaxis_tickvals=losses.index, yaxis=LOG)


def within_runs(curves: pd.DataFrame, objective: str, shown: Sequence[int] = (1, 5, 19)) -> go.Figure:
    """Training loss and validation pair_loss of recorded plain runs over their steps, means over seeds, for a few K.

    curves: `negatives`, `step`, `kind` ("metrics" or "evaluation"), `loss` and `pair_loss`, of one objective.
    """
    means = {
        column: curves[curves["kind"] == kind].pivot_table(index="step", columns="negatives", values=column)
        for column, kind in (("loss", "metrics"), ("pair_loss", "evaluation"))
    }
    trained = means["pair_loss"].iloc[1:]  # step 0 is SFT, log 2 for every K
    moves = "; ".join(f"K = {k} {motion(trained[k])}" for k in (shown[0], shown[-1]))
    figure = panels(("Training loss: another function for each K", "pair_loss: the same function for every K"))
    for column, name in enumerate(means, start=1):
        for k, dash in zip(shown, ("dot", "dash", "solid"), strict=True):
            marker = {"size": 7} if name == "pair_loss" else None
            values, colour = means[name][k], OBJECTIVE_COLOURS[objective]
            add_line(figure, values.index, values, f"K = {k}", colour, dash, panel=column, marker=marker)
    steps = " to ".join(f"{step:.0f}" for step in trained.index[[0, -1]])
    title = f"{OBJECTIVE_LABELS[objective]}: pair_loss from step {steps}<br>{moves}"
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    return lay_out(figure, 420, title, "step", ("nats", "nats, validation users"), margin_t=126, legend_y=1.1)


def loss_and_ranking(table: pd.DataFrame) -> go.Figure:
    """HR@1 of plain runs against their training loss and against their pair_loss, one line per objective through its K.

    table: `objective`, `negatives`, `train_loss`, `pair_loss`, `hr@1`; means over seeds are drawn.
    """
    means = table.groupby(["objective", "negatives"])[["train_loss", "pair_loss", "hr@1"]].mean().reset_index()
    measures = {"train_loss": "training loss", "pair_loss": "pair_loss"}
    lines = {name: means[means["objective"] == name] for name in map(str, means["objective"].unique())}
    order = {name: runs[[*measures, "hr@1"]].corr("spearman")["hr@1"] for name, runs in lines.items()}
    lower, higher = (
        ", ".join(OBJECTIVE_LABELS[name] for name, with_hits in order.items() if sign * with_hits[column] > 0.9)
        or "no objective"
        for column, sign in (("train_loss", 1), ("pair_loss", -1))
    )
    figure = panels(("", ""), horizontal_spacing=0.06, shared_yaxes=True)
    for column, (name, axis) in enumerate(measures.items(), start=1):
        for objective, runs in lines.items():
            ends = runs["negatives"].isin([runs["negatives"].min(), runs["negatives"].max()])
            named = ends & (objective in ("dmpo", "mppo"))
            add_line(
                figure, runs[name], 100 * runs["hr@1"], OBJECTIVE_LABELS[objective], OBJECTIVE_COLOURS[objective],
                panel=column, width=2, marker={"size": 7}, mode="lines+markers+text",
                text=[f"K = {k}" * shown for k, shown in zip(runs["negatives"], named, strict=True)],
                textposition="bottom right" if column == 1 else "bottom left", textfont={"size": 12},
                customdata=runs["negatives"], hovertemplate="K = %{customdata}: %{x:.3f}, %{y:.1f} %",
            )  # fmt: skip
        figure.update_xaxes(title_text=f"{axis}, nats (log scale)", **LOG, row=1, col=column)
    title = (
        f"Across K, a lower training loss goes with a lower HR@1 in {lower};<br>"
        f"a lower pair_loss with a higher one in {higher} (rank correlations beyond ±0.9)"
    )
    return lay_out(figure, 390, title, y=["HR@1, % of test users"])


def verdicts(rows: Mapping[str, Interval]) -> str:
    """What each objective's interval of K = 19 minus K = 1 shows, as one line: a title for `differences`."""
    return ", ".join(f"{label} {verdict(row.low, row.high)}" for label, row in rows.items())


def settings_heatmap(cells: Mapping[Any, Interval], rows: Mapping[Any, str]) -> go.Heatmap:
    """Differences of HR@1 by epochs of SFT (rows, with their labels) and learning rate; bold: 0 is outside."""
    rates = sorted({rate for _, rate in cells})
    found = [[cells.get((row, rate)) for rate in rates] for row in rows]
    return go.Heatmap(
        x=[f"{rate:g}" for rate in rates], y=list(rows.values()),
        z=[[cell and 100 * cell.mean for cell in row] for row in found],
        text=[[_cell(cell) if cell else "" for cell in row] for row in found],
        texttemplate="%{text}", textfont={"size": 12, "color": INK}, hoverinfo="text",
        colorscale="PuOr", zmid=0, zmin=-6, zmax=6, showscale=False, xgap=2, ygap=2,
    )  # fmt: skip


def settings_map(maps: Mapping[str, Mapping[tuple[int, float], Interval]], seeds: int) -> go.Figure:
    """Differences by epochs of SFT (rows) and learning rate (columns), one panel per comparison; bold: 0 is outside.

    maps: what is compared, to (epochs, learning rate) to the difference of HR@1.
    """
    counts = {
        name: (sum(cell.high < 0 for cell in cells.values()), sum(cell.low > 0 for cell in cells.values()))
        for name, cells in maps.items()
    }
    (first, (below, _)), *_, (last, (_, above)) = counts.items()
    titles = [f"<b>{name}</b><br>{under} below 0, {over} above" for name, (under, over) in counts.items()]
    figure = panels(titles, horizontal_spacing=0.015, shared_yaxes=True)
    rows = {epoch: f"{epoch:g} epochs" for epoch in sorted({epoch for cells in maps.values() for epoch, _ in cells})}
    for column, cells in enumerate(maps.values(), start=1):
        figure.add_trace(settings_heatmap(cells, rows), row=1, col=column)
    title = (
        f"{first} is below zero in {below} of {len(cells)} settings, {last} above in {above};<br>"
        f"points of HR@1, {seeds} seeds each, bold and counted if the 95 % interval excludes zero"
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, ticks="")
    return lay_out(figure, 190 + 62 * len(rows), title, "learning rate", ["SFT before"], width=860, margin_t=112)


def _cell(interval: Interval) -> str:
    mean, ends = in_points(interval).split(" ", 1)
    return f"<b>{mean}</b><br>{ends}" if interval.low > 0 or interval.high < 0 else f"{mean}<br>{ends}"


def repeated_sentence(ranks: Scores, recorded: Scores) -> str:
    """Whether a run repeats a recorded one, in Markdown. Both: the rank of every test user's chosen item (users,)."""
    ranks, recorded = np.asarray(ranks), np.asarray(recorded)
    live, then, differ = float((ranks == 0).mean()), float((recorded == 0).mean()), int((ranks != recorded).sum())
    said = f"HR@1 now **{live:.2%}**, recorded **{then:.2%}**: ".replace("%", " %")
    if differ == 0:
        return said + f"all {len(ranks):,} test users are ranked exactly as recorded."
    return said + (
        f"{differ} of {len(ranks):,} test users are ranked differently. Another processor or another number of "
        "threads rounds sums differently, and training amplifies that."
    )
