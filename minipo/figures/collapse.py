"""Figures of notebook 03 and of the app's page Collapse: the collapse over seeds, what its losses can and cannot say,
guesses, settings under which it collapses, and the users that a setting gains and loses.

Tables are those of `minipo.sweeps`: a row a run, HR@1 as a share. Differences come as `minipo.evaluation.Interval`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from minipo.evaluation import Interval, Scores
from minipo.figures import (
    AVERAGES,
    DILUTION_COLOUR,
    FAINT,
    INK,
    METRICS,
    OBJECTIVE_COLOURS,
    OBJECTIVE_LABELS,
    QUIET,
    TEMPLATE,
    level,
    loss_motion,
    points,
    short,
    verdict,
)

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


def expect_sentence(table: pd.DataFrame, objective: str, metric: str = "hr@1") -> str:
    """What is known before a guess, in Markdown: the training loss at every K, and the metric at the smallest K alone.

    table: one objective's plain runs, with `negatives`, `train_loss` and `metric`, a key of METRICS.
    """
    first, last = table["negatives"].min(), table["negatives"].max()
    start = table.loc[table["negatives"] == first, metric].mean()
    return (
        f"From K = {first} to {last}, {OBJECTIVE_LABELS[objective]}'s training loss {loss_motion(table)}. Its "
        f"{METRICS[metric]} is {level(start, metric)} at K = {first}. **What will it be with more negatives?**"
    )


def guess_error(table: pd.DataFrame, guesses: Mapping[int, float], metric: str = "hr@1") -> float:
    """The mean absolute error of guesses in points, hundredths of the metric.

    table: one objective's plain runs. guesses: K to per cent, or to the metric itself where it is no share of users.
    Raises ValueError if there is no run at one of these K.
    """
    means = table.groupby("negatives")[metric].mean()
    if missing := [k for k in guesses if k not in means]:
        raise ValueError(f"There is no run at K = {missing[0]}; guess for one of {', '.join(map(str, means.index))}.")
    unit = 1 if metric in AVERAGES else 100
    return 100 * float(np.mean([abs(guess / unit - means[k]) for k, guess in guesses.items()]))


def guess_sentence(table: pd.DataFrame, guesses: Mapping[int, float], metric: str = "hr@1") -> str:
    """How far guesses were from the recorded means, in Markdown; arguments and raises as `guess_error`'s."""
    means, unit = table.groupby("negatives")[metric].mean(), 1 if metric in AVERAGES else 100
    error = guess_error(table, guesses, metric)
    sides = [round(guess / unit - means[k], 4) for k, guess in guesses.items()]
    high, low = (sum(sign * side > 0 for side in sides) for sign in (1, -1))
    return f"Your guesses were **{error:.1f} points** off on average: {high} of {len(guesses)} too high, {low} too low."


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


def settings_panel(
    name: str,
    cells: Mapping[tuple[float, float], Interval],
    levels: Mapping[float, str] | None = None,
    chosen: tuple[float, float] | None = None,
) -> go.Figure:
    """One comparison by epochs of SFT (rows) and learning rate (columns); bold: the 95 % interval leaves zero out.

    cells: (epochs, learning rate) to the difference of a metric, in the same colours as `settings_map`. levels: what to
    write beside a row's epochs. chosen: the cell to frame.
    """
    epochs, rates = sorted({epoch for epoch, _ in cells}), sorted({rate for _, rate in cells})
    places = [(row, column) for row in epochs for column in rates if (row, column) in cells]
    rows = {row: f"{row:g} epoch{'s' * (row != 1)}" + (f"<br>{levels[row]}" if levels else "") for row in epochs}
    figure = go.Figure(layout={"template": TEMPLATE, "height": 112 + 62 * len(epochs), "margin": {"t": 40}})
    figure.add_heatmap(
        x=[f"{rate:g}" for rate in rates],
        y=list(rows.values()),
        z=[[100 * cells[row, rate].mean if (row, rate) in cells else None for rate in rates] for row in epochs],
        text=[[_cell(cells[row, rate]) if (row, rate) in cells else "" for rate in rates] for row in epochs],
        texttemplate="%{text}", textfont={"size": 13, "color": INK}, hoverinfo="text",
        colorscale="PuOr", zmid=0, zmin=-6, zmax=6, showscale=False, xgap=3, ygap=3,
    )  # fmt: skip
    if chosen in places:
        x, y = rates.index(chosen[1]), epochs.index(chosen[0])
        edges = {"x0": x - 0.49, "x1": x + 0.49, "y0": y - 0.48, "y1": y + 0.48}
        figure.add_shape(type="rect", **edges, line={"color": INK, "width": 3})
    figure.update_layout(title=_title(name))
    figure.update_xaxes(title_text="learning rate", type="category", showgrid=False)
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, ticks="")
    return figure


def settings_sentence(maps: Mapping[str, Mapping[tuple[float, float], Interval]], metric: str = "hr@1") -> str:
    """In how many settings each comparison is below and above zero, in Markdown.

    maps: what is compared, to (epochs, learning rate) to the difference of `metric`.
    """
    told = []
    for name, cells in maps.items():
        low, high = sum(cell.high < 0 for cell in cells.values()), sum(cell.low > 0 for cell in cells.values())
        told.append(f"{name} is **below zero in {low}** of {len(cells)} settings and **above in {high}**")
    return f"{METRICS[metric]}: {'; '.join(told)}."


# ------------------------------------------------------------------------------------------ users gained, users lost

# Users by whether their chosen item is first before and after: label, colour, size. As in the settings' map, orange is
# worse and purple better; the many that stay are neutral.
GROUPS = {
    (True, True): ("right in both", FAINT),
    (False, True): ("gained", "#7A5195"),
    (True, False): ("lost", "#E66101"),
    (False, False): ("wrong in both", DILUTION_COLOUR),
}
USERS_ACROSS = 50


def user_groups(before: Scores, after: Scores) -> dict[str, np.ndarray]:
    """Positions of the users in each of GROUPS, in their order. before, after: ranks of the chosen item (users,)."""
    first, then = np.asarray(before) == 0, np.asarray(after) == 0
    return {label: np.flatnonzero((first == was) & (then == becomes)) for (was, becomes), (label, _) in GROUPS.items()}


def user_grid(
    users: Sequence[int], before: Scores, after: Scores, labels: tuple[str, str], shown: int | None = None
) -> go.Figure:
    """Every test user as a square, by whether the chosen item is first before, after, in both or in neither.

    users: their numbers. before, after: ranks of the chosen item (users,), 0 is best; labels: what ranked them. A
    square's `customdata` is the user's number. shown: the user to ring.
    """
    before, after, numbers = np.asarray(before), np.asarray(after), np.asarray(users)
    groups = user_groups(before, after)
    across = min(USERS_ACROSS, max(1, int(np.ceil(np.sqrt(1.25 * len(numbers))))))
    place, down = np.empty(len(numbers), dtype=int), 0
    for inside in groups.values():  # each begins a row
        place[inside] = down * across + np.arange(len(inside))
        down += -(-len(inside) // across)
    figure = go.Figure(layout={"template": TEMPLATE, "height": 62 + 9 * down})
    for (label, colour), inside in zip(GROUPS.values(), groups.values(), strict=True):
        figure.add_scatter(
            x=place[inside] % across, y=place[inside] // across, mode="markers", name=f"{label}: {len(inside):,}",
            marker={"symbol": "square", "size": 6, "color": colour}, customdata=numbers[inside],
            text=[f"place {1 + a} → {1 + b}" for a, b in zip(before[inside], after[inside], strict=True)],
            hovertemplate="user %{customdata}: %{text}<extra></extra>",
            selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 1}},
        )  # fmt: skip
    if shown is not None and shown in numbers:
        at = place[np.flatnonzero(numbers == shown)[0]]
        figure.add_scatter(
            x=[at % across], y=[at // across], mode="markers", showlegend=False, hoverinfo="skip",
            marker={"symbol": "circle-open", "size": 16, "color": INK, "line": {"width": 3}},
        )  # fmt: skip
    figure.update_layout(
        title=_title(f"{labels[0]} → {labels[1]}"), clickmode="event+select", dragmode=False,
        legend={"itemsizing": "constant", "itemclick": False, "itemdoubleclick": False},
    )  # fmt: skip
    figure.update_xaxes(visible=False, range=[-0.7, across - 0.3], fixedrange=True)
    figure.update_yaxes(visible=False, range=[down - 0.3, -0.7], fixedrange=True)
    return figure


def user_sentence(before: Scores, after: Scores, labels: tuple[str, str], interval: Interval) -> str:
    """Read `user_grid` aloud, in Markdown. interval: of HR@1 after minus before, for these users."""
    groups = {label: len(inside) for label, inside in user_groups(before, after).items()}
    gained, lost, users = groups["gained"], groups["lost"], len(np.asarray(before))
    net = f"{gained - lost:+d}".replace("-", "−")
    return (
        f"From {labels[0]} to {labels[1]}, **{gained} users are gained** (their chosen item is now first) and **{lost} "
        f"are lost**: net {net} of {users:,}, {points(interval.mean, interval.low, interval.high)}."
    )


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
