"""Figures of notebook 03 and of the app's page Collapse: the collapse over seeds, what its losses can and cannot say,
guesses, settings under which it collapses, and the users that a setting gains and loses.

Tables are those of a sweep: a row per run, HR@1 as a share. Differences come as `minipo.evaluation.Interval`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minipo.course.figures.style import (
    INK,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    TEMPLATE,
    short,
    verdict,
)
from minipo.evaluation import Interval, Scores

DASHES = ("dot", "dash", "solid")  # of runs at rising K
NEGATIVES = "K, negatives per training example"


def signed(share: float) -> str:
    """A difference of HR@1 in points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _moves(before: float, after: float) -> str:
    if short(before) == short(after):
        return f"stays at {short(before)}"
    return f"{'falls' if after < before else 'rises'} from {short(before)} to {short(after)}"


def _title(text: str) -> dict[str, object]:
    place = {"x": 0, "xref": "container", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"}
    return {"text": text, **place, "pad": {"t": 18}, "font": {"size": 16}}


def _listed(names: Sequence[str]) -> str:
    return " and ".join([*filter(None, [", ".join(names[:-1])]), *names[-1:]]) or "no objective"


# ------------------------------------------------------------------------------------------------ the curve, guessed


def guessed_curve(
    table: pd.DataFrame, sft: float, guesses: Mapping[int, float] | None = None, objective: str = "dmpo"
) -> go.Figure:
    """Recorded test HR@1 against K (mean, in a band from lowest to highest seed), SFT's level, and guesses if made.

    table: one objective's plain runs, with `negatives` and `hr@1`. sft: HR@1, a share. guesses: K to HR@1 in percent.
    """
    label, colour = OBJECTIVE_LABELS[objective], OBJECTIVE_COLOURS[objective]
    spread = (100 * table.groupby("negatives")["hr@1"].agg(["mean", "min", "max"])).sort_index()
    first, last = spread.index[0], spread.index[-1]
    change, below = spread["mean"].iloc[-1] - spread["mean"].iloc[0], int((spread["mean"] < 100 * sft).sum())
    motion = f"{'falls' if change < 0 else 'rises'} by {abs(change):.1f} points" if abs(change) >= 0.05 else "stays"
    figure = go.Figure(layout={"template": TEMPLATE, "height": 400, "margin": {"t": 84, "r": 80}})
    figure.add_scatter(
        x=[*spread.index, *spread.index[::-1]], y=[*spread["max"], *spread["min"][::-1]], fill="toself",
        fillcolor=colour, opacity=0.18, line_width=0, mode="lines", hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    figure.add_scatter(
        x=spread.index, y=spread["mean"], name=f"{label}, mean of {table['seed'].nunique()} seeds",
        mode="lines+markers", line={"color": colour, "width": 2.5}, marker={"size": 8},
    )  # fmt: skip
    if guesses:
        figure.add_scatter(
            x=list(guesses), y=list(guesses.values()), name="your guesses", mode="lines+markers",
            line={"color": QUIET, "dash": "dot"}, marker={"symbol": "diamond-open", "size": 10},
        )  # fmt: skip
    figure.add_hline(
        y=100 * sft, line={"color": QUIET, "width": 1.5, "dash": "dash"},
        annotation={"text": f"SFT {100 * sft:.1f} %", "x": 1.01, "xanchor": "left", "yanchor": "middle",
                    "font": {"size": 13, "color": QUIET}},
    )  # fmt: skip
    figure.update_layout(
        title=_title(
            f"From K = {first} to {last} {label}'s HR@1 {motion};<br>"
            f"{below} of {len(spread)} means are below the SFT model that every run starts from"
        )
    )
    figure.update_xaxes(title_text=NEGATIVES, tickvals=spread.index)
    figure.update_yaxes(title_text="HR@1, % of test users")
    return figure


# --------------------------------------------------------------------------------- what a loss at another K can say


def unchanged_model(losses: pd.DataFrame, objective: str) -> go.Figure:
    """Losses (nats) of one model that nothing trains, against K; `objective` is drawn strongly.

    losses: a row a K, a column an objective.
    """
    before, after = losses[objective].iloc[0], losses[objective].iloc[-1]
    figure = go.Figure(layout={"template": TEMPLATE, "height": 400, "margin": {"t": 84}})
    for name in map(str, losses):
        strong = name == objective
        figure.add_scatter(
            x=losses.index, y=losses[name], name=OBJECTIVE_LABELS[name], mode="lines+markers",
            line={"color": OBJECTIVE_COLOURS[name], "width": 3.5 if strong else 1.5}, opacity=1 if strong else 0.55,
            marker={"size": 9 if strong else 5},
        )  # fmt: skip
    figure.update_layout(
        title=_title(
            f"{OBJECTIVE_LABELS[objective]}'s loss {_moves(before, after)} from K = {losses.index[0]} to "
            f"{losses.index[-1]},<br>and the model is the same"
        )
    )
    figure.update_xaxes(title_text="K, negatives in the loss", tickvals=losses.index)
    ticks = [0.05, 0.1, 0.2, 0.5, 1, 2, 5]
    figure.update_yaxes(title_text="loss of the same model, nats (log scale)", type="log", tickvals=ticks)
    return figure


def within_runs(curves: pd.DataFrame, objective: str, shown: Sequence[int] = (1, 5, 19)) -> go.Figure:
    """Training loss and validation pair_loss of recorded plain runs over their steps, means over seeds, for a few K.

    curves: `negatives`, `step`, `kind` ("metrics" or "evaluation"), `loss` and `pair_loss`, of one objective.
    """
    means = {
        column: curves[curves["kind"] == kind].pivot_table(index="step", columns="negatives", values=column)
        for column, kind in (("loss", "metrics"), ("pair_loss", "evaluation"))
    }
    trained = means["pair_loss"].iloc[1:]  # step 0 is SFT, log 2 for every K
    moves = "; ".join(f"K = {k}: {_moves(trained[k].iloc[0], trained[k].iloc[-1])}" for k in (shown[0], shown[-1]))
    figure = make_subplots(
        rows=1, cols=2, horizontal_spacing=0.1,
        subplot_titles=("Training loss: another function for each K", "pair_loss: the same function for every K"),
    )  # fmt: skip
    for column, name in enumerate(means, start=1):
        for k, dash in zip(shown, DASHES, strict=True):
            figure.add_scatter(
                x=means[name].index, y=means[name][k], name=f"K = {k}", legendgroup=str(k), showlegend=column == 1,
                mode="lines" if column == 1 else "lines+markers", marker={"size": 7},
                line={"color": OBJECTIVE_COLOURS[objective], "width": 2.5, "dash": dash}, row=1, col=column,
            )  # fmt: skip
    figure.update_layout(
        template=TEMPLATE, height=420, margin={"t": 126}, legend={"y": 1.1},
        title=_title(
            f"{OBJECTIVE_LABELS[objective]}: pair_loss from step {trained.index[0]:.0f} to {trained.index[-1]:.0f}<br>"
            f"{moves}"
        ),
    )  # fmt: skip
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="step", rangemode="tozero")
    figure.update_yaxes(title_text="nats", rangemode="tozero")
    figure.update_yaxes(title_text="nats, validation users", col=2)
    return figure


def loss_and_ranking(table: pd.DataFrame) -> go.Figure:
    """HR@1 of plain runs against their training loss and against their pair_loss, a line an objective through its K.

    table: `objective`, `negatives`, `train_loss`, `pair_loss`, `hr@1`; means over seeds are drawn.
    """
    means = table.groupby(["objective", "negatives"])[["train_loss", "pair_loss", "hr@1"]].mean().reset_index()
    panels = {
        "train_loss": ("training loss", [0.02, 0.05, 0.1, 0.2, 0.5, 1]),
        "pair_loss": ("pair_loss", [0.25, 0.3, 0.4, 0.5, 0.7, 1]),
    }
    lines = {name: means[means["objective"] == name] for name in map(str, means["objective"].unique())}
    order = {name: runs[[*panels, "hr@1"]].corr("spearman")["hr@1"] for name, runs in lines.items()}
    lower, higher = (
        _listed([OBJECTIVE_LABELS[name] for name, with_hits in order.items() if sign * with_hits[column] > 0.9])
        for column, sign in (("train_loss", 1), ("pair_loss", -1))
    )
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.06, shared_yaxes=True)
    for column, name in enumerate(panels, start=1):
        for objective, runs in lines.items():
            ends = runs["negatives"].isin([runs["negatives"].min(), runs["negatives"].max()])
            figure.add_scatter(
                x=runs[name], y=100 * runs["hr@1"], name=OBJECTIVE_LABELS[objective], legendgroup=objective,
                showlegend=column == 1, mode="lines+markers+text",
                text=[f"K = {k}" if end and objective in ("dmpo", "mppo") else "" for k, end in
                      zip(runs["negatives"], ends, strict=True)],
                textposition="bottom right" if column == 1 else "bottom left", textfont={"size": 12},
                customdata=runs["negatives"], hovertemplate="K = %{customdata}: %{x:.3f}, %{y:.1f} %",
                line={"color": OBJECTIVE_COLOURS[objective], "width": 2}, marker={"size": 7}, row=1, col=column,
            )  # fmt: skip
        title, ticks = panels[name]
        figure.update_xaxes(title_text=f"{title}, nats (log scale)", type="log", tickvals=ticks, row=1, col=column)
    figure.update_layout(
        template=TEMPLATE, height=390, margin={"t": 92},
        title=_title(
            f"Across K, a lower training loss goes with a lower HR@1 in {lower};<br>"
            f"a lower pair_loss with a higher one in {higher} (rank correlations beyond ±0.9)"
        ),
    )  # fmt: skip
    figure.update_yaxes(title_text="HR@1, % of test users", col=1)
    return figure


# ------------------------------------------------------------------------------------------------ paired differences


def verdicts(rows: Mapping[str, Interval]) -> str:
    """What each objective's interval of K = 19 minus K = 1 lets one say, as one line: a title for `differences`."""
    return ", ".join(f"{label} {verdict(row.low, row.high)}" for label, row in rows.items())


def settings_map(maps: Mapping[str, Mapping[tuple[int, float], Interval]], seeds: int) -> go.Figure:
    """Differences by epochs of SFT (rows) and learning rate (columns), a panel a comparison; bold: 0 is outside.

    maps: what is compared, to (epochs, learning rate) to the difference of HR@1.
    """
    counts = {
        name: (sum(cell.high < 0 for cell in cells.values()), sum(cell.low > 0 for cell in cells.values()))
        for name, cells in maps.items()
    }
    (first, (below, _)), *_, (last, (_, above)) = counts.items()
    figure = make_subplots(
        rows=1, cols=len(maps), horizontal_spacing=0.015, shared_yaxes=True,
        subplot_titles=[f"<b>{name}</b><br>{under} below 0, {over} above" for name, (under, over) in counts.items()],
    )  # fmt: skip
    for column, cells in enumerate(maps.values(), start=1):
        epochs, rates = sorted({epoch for epoch, _ in cells}), sorted({rate for _, rate in cells})
        figure.add_heatmap(
            x=[f"{rate:g}" for rate in rates],
            y=[f"{row:g} epochs" for row in epochs],
            z=[[100 * cells[row, rate].mean for rate in rates] for row in epochs],
            text=[[_cell(cells[row, rate]) for rate in rates] for row in epochs],
            texttemplate="%{text}", textfont={"size": 12, "color": INK}, hoverinfo="text",
            colorscale="PuOr", zmid=0, zmin=-6, zmax=6, showscale=False, xgap=2, ygap=2, row=1, col=column,
        )  # fmt: skip
        figure.update_xaxes(title_text="learning rate", type="category", row=1, col=column)
    figure.update_layout(
        template=TEMPLATE, width=860, height=190 + 62 * len(epochs), margin={"t": 112},
        title=_title(
            f"{first} is below zero in {below} of {len(cells)} settings, {last} above in {above};<br>"
            f"points of HR@1, {seeds} seeds each, bold and counted where the 95 % interval leaves zero out"
        ),
    )  # fmt: skip
    figure.update_annotations(font_size=14)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, ticks="")
    figure.update_yaxes(title_text="SFT before", col=1)
    return figure


def _cell(interval: Interval) -> str:
    mean = signed(interval.mean)
    if interval.low > 0 or interval.high < 0:
        mean = f"<b>{mean}</b>"
    return f"{mean}<br>[{signed(interval.low)}, {signed(interval.high)}]"


def repeated_sentence(ranks: Scores, recorded: Scores) -> str:
    """Whether a run repeats a recorded one, in Markdown. Both: the rank of every test user's chosen item (users,)."""
    ranks, recorded = np.asarray(ranks), np.asarray(recorded)
    live, then, differ = float((ranks == 0).mean()), float((recorded == 0).mean()), int((ranks != recorded).sum())
    said = f"HR@1 now **{live:.2%}**, recorded **{then:.2%}**: ".replace("%", " %")
    if differ == 0:
        return said + f"all {len(ranks):,} test users are ranked exactly as recorded."
    return said + (
        f"{differ} of {len(ranks):,} test users are ranked differently. Another processor or another number of "
        "threads rounds sums differently, and training carries that on."
    )
